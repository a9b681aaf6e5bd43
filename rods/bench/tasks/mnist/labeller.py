"""The labeller of digits: does an ensemble of classifiers recognise one, as surely as it does real digits?

The confidence is the members' mean probability of the likeliest digit. It is compared with those that 99.75, 99.5 and
98 % of held-out real digits reach. The members learn distorted digits under their class, negatives under "no digit".
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Generator, Tensor

from dnnlib.util import file_sha256
from rods.bench.tasks.corruptions import digit_negatives
from rods.bench.tasks.ensemble import Ensemble, EnsembleSpec, load_ensemble, prepare
from rods.bench.tasks.labeller_training import Batches, LabellerTraining, Recipe, measure, reached_by
from rods.bench.tasks.mnist import data
from rods.bench.tasks.real_data import data_folder
from rods.bench.tasks.tone_control import normalise
from training.model_zoo import MODELS

U8 = NDArray[np.uint8]
Int = NDArray[np.int64]

PATH = MODELS / "mnist-labeller.safetensors"
MADE_BY = "python scripts/train_labellers.py mnist"
REACHED_BY = (0.9975, 0.995, 0.98)  # shares of real digits: the three thresholds
BRIGHTEST = 1.2  # what lies above, in units of the strokes' level, is cut off
SPEC = EnsembleSpec(
    resolution=data.RESOLUTION,
    classes=(*map(str, range(data.CLASSES)), "no digit"),
    valid=tuple(range(data.CLASSES)),
    layers=((1, 16, 5, 2), (16, 32, 3, 2), (32, 64, 3, 1), (64, 96, 3, 2)),
    pooled=False,
    clip=(0, BRIGHTEST),
    mirrored=False,
    unanimous=False,
    num_thresholds=len(REACHED_BY),
    batch=512,
)
EPOCHS, BATCH, NEGATIVES, LR = 20, 96, 48, 4e-3  # NEGATIVES beside BATCH digits
TURN, STRETCH, SHEAR, SHIFT = math.radians(10), 0.12, 0.15, 2.5  # of the distortions: at most; the shift in pixels
ELASTIC, KNOTS = 1.0, 6  # pixels (s.d.) of displacement at each of 6x6 knots
GAMMA, NOISE, SOFT = 0.4, 0.06, 0.6  # of the tone: |ln gamma|, s.d. of noise, share of a 3x3 mean; at most


def load() -> Ensemble:
    """The embedded labeller."""
    return load_ensemble(PATH, SPEC, made_by=MADE_BY)


def label_digits(images: NDArray[Any]) -> NDArray[np.int8]:
    """Labels [N] (codes of `rods.eval.labels.Label`). Types and errors of `ensemble.prepare`."""
    return load().label(images)


def classes(images: NDArray[Any]) -> Int:
    """The digit [N] in each image, -1 where none is recognised at the middle threshold."""
    recognised, digit = _read(images)
    return np.where(recognised, digit, -1)


def faults(images: NDArray[Any]) -> Sequence[str]:
    """ "" for a digit at the middle threshold, else "no digit" and the class that it is most like."""
    return ["" if ok else f"no digit (most like {k})" for ok, k in zip(*_read(images), strict=True)]


def _read(images: NDArray[Any]) -> tuple[NDArray[np.bool_], Int]:
    """Whether each image [N] shows a digit at the middle threshold, and the likeliest one [N]."""
    ensemble = load()
    p = ensemble.probabilities(images).mean(axis=1)
    return ensemble.confidence(p) >= ensemble.thresholds[1], np.asarray(p[:, : data.CLASSES].argmax(axis=1))


def training() -> LabellerTraining:
    """How it is trained. UserError where the digits are missing."""
    images, labels = data.training_digits()
    return LabellerTraining(
        spec=SPEC,
        path=PATH,
        recipe=Recipe(steps=EPOCHS * max(1, len(images) // BATCH), lr=LR),
        batches=lambda g: batches(images, labels, g, batch=BATCH, negatives=NEGATIVES),
        thresholds=thresholds,
        facts=_facts,
    )


def thresholds(ensemble: Ensemble) -> tuple[float, ...]:
    """The confidences that REACHED_BY of the digits that are held out for them reach."""
    confidence = ensemble.confidence(ensemble.probabilities(data.threshold_digits()[0]).mean(axis=1))
    return tuple(reached_by(confidence, share) for share in REACHED_BY)


def _facts(ensemble: Ensemble) -> Mapping[str, Any]:
    images, labels = data.audit_digits()
    p = ensemble.probabilities(images)
    found = {str(k): p[labels == k] for k in range(data.CLASSES)}
    source = {"name": data.TRAINING, "sha256": file_sha256(data_folder() / data.TRAINING)}
    return {"data": source, **measure(ensemble, found)}


def batches(images: U8, labels: Int, g: Generator, *, batch: int, negatives: int) -> Batches:
    """Endless batches of distorted digits and negatives with their classes, epoch by epoch."""
    x, y = prepare(SPEC, images)[0], torch.from_numpy(labels)
    while True:
        order = torch.randperm(len(x), generator=g)
        for i in range(max(1, len(x) // batch)):
            rows = order[i * batch : (i + 1) * batch]
            none = digit_negatives(x, y, negatives, g)
            target = torch.cat([y[rows], torch.full((len(none),), data.CLASSES)])  # the last class
            yield _as_read(distorted(torch.cat([x[rows], none]), g)), target


def distorted(x: Tensor, g: Generator) -> Tensor:
    """Digits [N, 1, 32, 32] turned, stretched, sheared, shifted, bent, and in another tone."""
    N, H = len(x), data.RESOLUTION

    def uniform(most: float, *shape: int) -> Tensor:
        return most * (2 * torch.rand(N, *shape, generator=g) - 1)

    turn = uniform(TURN)
    c, s = turn.cos(), turn.sin()
    stretch = 1 + uniform(STRETCH, 2)
    A = torch.stack([torch.stack([c, -s], dim=1), torch.stack([s, c], dim=1)], dim=1)  # [N, 2, 2]
    shear = torch.eye(2).repeat(N, 1, 1)
    shear[:, 0, 1] = uniform(SHEAR)
    A = A @ shear * stretch[:, None, :]
    theta = torch.cat([A, uniform(2 * SHIFT / H, 2)[:, :, None]], dim=2)
    knots = torch.randn(N, 2, KNOTS, KNOTS, generator=g) * (2 * ELASTIC / H)
    bend = F.interpolate(knots, size=(H, H), mode="bicubic", align_corners=True).permute(0, 2, 3, 1)
    grid = F.affine_grid(theta, [N, 1, H, H], align_corners=False) + bend
    x = F.grid_sample(x, grid, align_corners=False)
    soft = torch.rand(N, 1, 1, 1, generator=g) * SOFT
    x = x + soft * (F.avg_pool2d(x, 3, stride=1, padding=1) - x)
    x = x.clamp(min=0) ** uniform(GAMMA, 1, 1, 1).exp()
    return (x + torch.randn(x.shape, generator=g) * torch.rand(N, 1, 1, 1, generator=g) * NOISE).clamp(0, 1)


def _as_read(x: Tensor) -> Tensor:
    """Images [N, 1, H, H] in the tone in which the labeller reads them."""
    return torch.from_numpy(np.clip(normalise(x[:, 0].numpy())[0], *SPEC.clip)[:, None])
