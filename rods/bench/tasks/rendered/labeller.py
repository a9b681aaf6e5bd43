"""The labeller of rendered hands: an ensemble that counts four, five or six fingers, or sees no hand.

An image is valid where every member gives five fingers more than both thresholds, and hallucinated where every member
gives less than both. `docs/how-to/rendered-hands.md` has what it confuses.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor

from rods.bench.tasks.corruptions import bend, blur, corrupt_hands, field, symmetric
from rods.bench.tasks.ensemble import F32, Ensemble, EnsembleSpec, load_ensemble, prepare
from rods.bench.tasks.labeller_training import Batches, LabellerTraining, Recipe, measure
from rods.bench.tasks.rendered import data
from training.model_zoo import MODELS

U8 = NDArray[np.uint8]

PATH = MODELS / "hands-64r-counter.safetensors"
MADE_BY = "python scripts/train_labellers.py hands-64r"
CLASSES = ("4 fingers", "5 fingers", "6 fingers", "no hand")
FIVE = 1
SPEC = EnsembleSpec(
    resolution=data.RESOLUTION,
    classes=CLASSES,
    valid=(FIVE,),
    layers=((1, 24, 5, 2), (24, 48, 3, 2), (48, 64, 3, 1), (64, 96, 3, 2), (96, 48, 3, 1)),
    pooled=True,
    clip=(-1, 2),
    mirrored=True,
    unanimous=True,
    num_thresholds=2,
    batch=128,
)
RECIPE = Recipe(steps=500, lr=2e-3, warmup=0.15, weight_decay=0.02, smoothing=0.02)
PER_CLASS = 16  # images of each class in a batch
FALSE_FLAGS, FALSE_PASSES = 0.002, 0.01  # of held-out real and planted hands, that the thresholds aim at
MOST_LOW, LEAST_HIGH = 0.2, 0.8  # between them nothing is sure, however well the classes separate


def load() -> Ensemble:
    """The embedded labeller."""
    return load_ensemble(PATH, SPEC, made_by=MADE_BY)


def label_rendered(images: NDArray[Any]) -> NDArray[np.int8]:
    """Labels [N] (codes of `rods.eval.labels.Label`); about 5 ms an image. Types and errors of `ensemble.prepare`."""
    return load().label(images)


def count_rendered(images: NDArray[Any]) -> NDArray[np.int64]:
    """The likeliest of CLASSES [N] by the members' mean probability."""
    return np.asarray(load().probabilities(images).mean(axis=1).argmax(axis=1))


def training() -> LabellerTraining:
    """How it is trained. UserError where the rendered hands are missing."""
    hands = data.LABELLER_TRAINING.by_fingers()
    return LabellerTraining(
        spec=SPEC,
        path=PATH,
        recipe=RECIPE,
        batches=lambda g: batches(hands, g, per_class=PER_CLASS),
        thresholds=_thresholds,
        facts=_facts,
    )


def batches(hands: Mapping[int, U8], g: Generator, *, per_class: int) -> Batches:
    """Endless batches of hands and negatives with their classes; `hands` has images [N, 64, 64] by fingers."""
    pools = [prepare(SPEC, hands[f])[0] for f in data.FINGERS]
    y = torch.arange(len(CLASSES)).repeat_interleave(per_class)
    while True:
        x = [pool[torch.randint(len(pool), (per_class,), generator=g)] for pool in pools]
        mixed = torch.cat(x)[torch.randperm(3 * per_class, generator=g)]
        yield augment(torch.cat([*x, corrupt_hands(mixed, g)[:per_class]]), g), y


def augment(x: Tensor, g: Generator) -> Tensor:
    """The same hands moved, bent a little, and with another tone, sharpness and noise: no label changes."""
    x = bend(x, g, most=0.02)
    B = len(x)
    x = blur(x, float(torch.rand((), generator=g)) * 1.1)
    factor, offset = 1 + 0.25 * symmetric(g, B, 1, 1, 1), 0.1 * symmetric(g, B, 1, 1, 1)
    x = offset + factor * x + 0.15 * field(g, B, x.shape[-1])  # uneven light
    x = x + torch.rand(B, 1, 1, 1, generator=g) ** 2 * 0.12 * torch.randn(x.shape, generator=g)
    return torch.where(torch.rand(B, 1, 1, 1, generator=g) < 0.5, x.flip(3), x).clamp(-1, 2)


def corrupted_hands(hands: Mapping[int, U8], *, seed: int, num: int) -> U8:
    """Images [num, 64, 64] without a real hand, from hands of every kind."""
    g = Generator().manual_seed(seed)
    pool = torch.cat([prepare(SPEC, hands[f])[0] for f in data.FINGERS])
    x = corrupt_hands(pool[torch.randint(len(pool), (num,), generator=g)], g)
    return np.asarray((40 + 200 * x[:, 0]).clamp(0, 255).round().to(torch.uint8).numpy())


def choose_thresholds(five: F32, other: F32) -> tuple[float, float]:
    """From the members' probabilities [N, M, 4] of held-out real hands and of images that show none.

    The lower one: at most FALSE_FLAGS of the real hands have it as their most convinced member's probability of five
    fingers. The upper one: at most FALSE_PASSES of the others reach it with their least convinced member.
    """
    low = float(np.quantile(five[:, :, FIVE].max(axis=1), FALSE_FLAGS))
    high = float(np.quantile(other[:, :, FIVE].min(axis=1), 1 - FALSE_PASSES))
    return round(min(max(low, 0.02), MOST_LOW), 4), round(min(max(high, LEAST_HIGH), 0.95), 4)


def _votes(ensemble: Ensemble, files: data.HandsFiles) -> dict[str, F32]:
    """Probabilities [N, M, 4] of a set of hands, and of negatives made of them, by what they show."""
    hands = files.by_fingers()
    negatives = corrupted_hands(hands, seed=files.seed, num=len(hands[4]))
    p = {f"{f} fingers": ensemble.probabilities(images) for f, images in hands.items()}
    return {**p, "no hand": ensemble.probabilities(negatives)}


def _thresholds(ensemble: Ensemble) -> tuple[float, float]:
    p = _votes(ensemble, data.LABELLER_THRESHOLDS)
    return choose_thresholds(p.pop("5 fingers"), np.concatenate(list(p.values())))


def _facts(ensemble: Ensemble) -> Mapping[str, Any]:
    sets = (data.LABELLER_TRAINING, data.LABELLER_THRESHOLDS, data.LABELLER_FRESH)
    return {"seeds": {files.name: files.seed for files in sets}, **measure(ensemble, _votes(ensemble, sets[-1]))}
