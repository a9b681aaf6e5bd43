"""Task shapes: the data's law, the labels, the planted errors and the audit."""

from __future__ import annotations

import numpy as np
import pytest

from rods.bench.tasks.shapes.data import COLUMN_WIDTH, NAMES, draw_shapes, template
from rods.bench.tasks.shapes.labeller import faults, label_shapes, present_shapes
from rods.bench.tasks.shapes.planted import PLANTED, plant_errors
from rods.bench.tasks.shapes.task import audit, real_shapes
from rods.eval.labels import Label

SEED = 77


@pytest.fixture(scope="module")
def real():
    return draw_shapes(270, seed=SEED)  # more than one chunk of the labeller


@pytest.fixture(scope="module")
def mixed():
    """60 real pictures and 8 of each planted error, as floats in -1..1, and which are real."""
    pictures = np.concatenate([draw_shapes(60, seed=SEED), *(plant_errors(k, 8, seed=SEED) for k in PLANTED)])
    return pictures / 127.5 - 1, np.arange(len(pictures)) < 60


def picture(*placed: tuple[str, int, int]) -> np.ndarray:
    """uint8 [64, 64] with shapes at (name, y, x)."""
    image = np.zeros((64, 64), dtype=np.uint8)
    for name, y, x in placed:
        shape = template(name)
        image[y : y + shape.shape[0], x : x + shape.shape[1]][shape] = 255
    return image


def label(image: np.ndarray) -> int:
    return int(label_shapes(image[None])[0])


def test_data_is_that_of_the_paper(real):
    assert [int(template(name).sum()) for name in NAMES] == [65, 64, 70]
    assert real.dtype == np.uint8
    assert set(np.unique(real)) == {0, 255}
    assert not real[:, 63].any()
    assert not real[:, :, 63].any()


def test_shapes_appear_half_of_the_time_and_anywhere_in_their_column():
    pictures = draw_shapes(1500, seed=SEED)
    sets = np.bincount(present_shapes(pictures), minlength=7) / len(pictures)
    np.testing.assert_allclose(sets, 1 / 7, atol=0.04)
    for c in range(3):
        touched = pictures[:, :63, c * COLUMN_WIDTH : (c + 1) * COLUMN_WIDTH].max(axis=0) > 0
        assert touched[1:-1, 1:-1].mean() > 0.95


def test_real_pictures_are_valid_and_their_shapes_are_named(real):
    assert (label_shapes(real) == Label.VALID).all()
    assert set(faults(real)) == {""}
    filled = np.stack([real[:, :63, c * 21 : c * 21 + 21].max(axis=(1, 2)) > 0 for c in range(3)], axis=1)
    np.testing.assert_array_equal(present_shapes(real), filled @ [1, 2, 4] - 1)


FAULTS = {
    "two triangles in a column": "several shapes in a column",
    "two squares in a column": "several shapes in a column",
    "two pentagons in a column": "several shapes in a column",
    "a triangle in another column": "another column's shape",
    "a square in another column": "another column's shape",
    "a pentagon in another column": "another column's shape",
    "a shape across columns": "malformed or across",
    "blank": "blank",
    "half a shape": "malformed or across",
    "a melted shape": "malformed or across",
}


@pytest.mark.parametrize("kind", PLANTED)
def test_planted_errors_are_hallucinated_and_named(kind):
    pictures = plant_errors(kind, 40, seed=SEED)
    assert (label_shapes(pictures) == Label.HALLUCINATED).all()
    assert set(faults(pictures)) == {FAULTS[kind]}
    assert (present_shapes(pictures) == -1).all()


def test_good_columns_do_not_make_up_for_a_bad_one():
    good = [("triangle", 5, 3), ("pentagon", 40, 48)]
    assert label(picture(*good, ("square", 10, 25))) == Label.VALID
    assert label(picture(*good, ("square", 10, 25), ("square", 30, 30))) == Label.HALLUCINATED
    assert label(picture(*good, ("triangle", 10, 25))) == Label.HALLUCINATED


def test_neighbours_that_touch_across_a_border_are_two_shapes():
    assert label(picture(("triangle", 20, 10), ("square", 20, 21))) == Label.VALID
    assert label(picture(("square", 20, 34), ("pentagon", 20, 42))) == Label.VALID


def test_the_last_row_belongs_to_no_column():
    assert label(picture(("square", 55, 30))) == Label.VALID
    assert label(picture(("square", 56, 30))) == Label.HALLUCINATED


def test_a_stray_pixel_is_noise_and_a_stray_piece_is_not():
    stray = picture(("square", 10, 25))
    stray[50, 50] = 255
    assert label(stray) == Label.VALID
    stray[50:53, 50:53] = 255
    assert label(stray) == Label.HALLUCINATED


@pytest.mark.parametrize("level", [0.1, 0.5, 1.0])
def test_a_second_shape_that_fades_away_is_uncertain_on_its_way(level):
    image = np.maximum(picture(("square", 5, 25)), level * picture(("square", 30, 25))) / 127.5 - 1
    assert label(image) == {0.1: Label.VALID, 0.5: Label.UNCERTAIN, 1.0: Label.HALLUCINATED}[level]


def test_types_change_nothing(mixed):
    pictures, _ = mixed
    labels = label_shapes(pictures[:, None])
    np.testing.assert_array_equal(label_shapes(np.rint((pictures + 1) * 127.5).astype(np.uint8)), labels)


@pytest.mark.slow
def test_audit_meets_its_bars_on_ten_thousand_pictures():
    lines = audit()
    assert lines[0].share.k == lines[1].share.k == 0
    assert lines[0].share.n == 10_000
    assert all(line.passes for line in lines)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: label_shapes(np.zeros((2, 32, 32))), r"shape \[2, 32, 32\]"),
        (lambda: label_shapes(np.full((1, 64, 64), np.nan)), "not finite"),
        (lambda: label_shapes(np.zeros((1, 64, 64), np.int64)), "int64"),
        (lambda: plant_errors("three circles", 1, seed=0), "three circles"),
        (lambda: plant_errors("blank", -1, seed=0), "negative"),
        (lambda: real_shapes(3, -1), "seed=-1"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
