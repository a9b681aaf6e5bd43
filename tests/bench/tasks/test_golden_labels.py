"""Labels of images that were labelled before the labellers became one class: none has moved since."""

from __future__ import annotations

import json

import numpy as np
import pytest
from exact import GOLDEN

from rods.bench.tasks.hands.data import draw_hands
from rods.bench.tasks.hands.hand_counter import label_hands
from rods.bench.tasks.mnist import labeller as mnist
from rods.bench.tasks.mnist.data import PLANTED, plant_errors
from rods.bench.tasks.rendered.labeller import count_rendered, label_rendered
from rods.bench.tasks.shapes import planted as shapes
from rods.bench.tasks.shapes.data import draw_shapes
from rods.bench.tasks.shapes.labeller import label_shapes

LABELS = json.loads((GOLDEN / "labels.json").read_text())


def blends(x: np.ndarray, by: int) -> np.ndarray:
    return np.concatenate([t * x + (1 - t) * np.roll(x, by, axis=0) for t in (0.9, 0.7, 0.5)])


@pytest.fixture(scope="module")
def found(all_hands, golden_digits):
    images, classes = golden_digits
    x, d = all_hands / 127.5 - 1, images / 127.5 - 1
    rng = np.random.default_rng
    hands = {
        "uint8": all_hands,
        "float": x[:, None],
        "blends": blends(x, 1),
        "noise": rng(0).uniform(-1, 1, (8, 64, 64)),
        "large": all_hands.repeat(2, 1).repeat(2, 2),
        "colour": np.repeat(all_hands[:, None], 3, 1),
    }
    digits = {
        "uint8": images,
        "float": d[:, None],
        "blends": blends(d, 7),
        "noise": rng(0).uniform(-1, 1, (8, 32, 32)),
        "blur": np.concatenate([d, 0.25 * d + 0.5, 0.1 * d]),
    }
    return {
        **{f"hands-64r labels {k}": label_rendered(v) for k, v in hands.items()},
        **{f"hands-64r counts {k}": count_rendered(v) for k, v in hands.items()},
        **{f"mnist labels {k}": mnist.label_digits(v) for k, v in digits.items()},
        **{f"mnist classes {k}": mnist.classes(v) for k, v in digits.items()},
        **{f"mnist planted {k}": mnist.label_digits(plant_errors(k, images, classes, seed=5)) for k in PLANTED},
        **{f"hands-32 {f}": label_hands(draw_hands(40, seed=9, num_fingers=f)) for f in (3, 4, 5, 6, 7)},
        "shapes": label_shapes(draw_shapes(40, seed=9)),
        **{f"shapes {k}": label_shapes(shapes.plant_errors(k, 8, seed=9)) for k in shapes.PLANTED},
    }


@pytest.mark.parametrize("name", LABELS)
def test_labels_are_the_golden_ones(found, name):
    assert found[name].tolist() == LABELS[name]
