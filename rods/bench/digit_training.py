"""Trains the ensemble that labels digits: distorted digits under their class, what is none under "no digit"."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from rods.bench.digit_labels import BRIGHTEST, CLASSES, RESOLUTION, STORED, DigitNet, prepared
from rods.bench.digit_nothings import nothings
from rods.bench.tone import normalise

TURN, STRETCH, SHEAR, SHIFT = math.radians(10), 0.12, 0.15, 2.5  # of the distortions: at most; the shift in pixels
ELASTIC, KNOTS = 1.0, 6  # pixels (s.d.) of displacement at each of 6x6 knots
GAMMA, NOISE, SOFT = 0.4, 0.06, 0.6  # of the tone: |ln gamma|, s.d. of noise, share of a 3x3 mean; at most
LABELS = NDArray[np.int64]


@dataclass(frozen=True)
class DigitTraining:
    """How a classifier is trained. Raises ValueError for sizes below 1."""

    seed: int = 0
    epochs: int = 20
    batch: int = 96  # digits
    nothings: int = 48  # pictures of no digit beside them
    lr: float = 4e-3  # down to 0 along a cosine

    def __post_init__(self) -> None:
        if min(self.epochs, self.batch) < 1 or min(self.nothings, self.seed) < 0:
            raise ValueError(f"{self}: epochs and batch must be at least 1, nothings and seed at least 0")


def train_digit_net(
    images: NDArray[np.uint8],
    labels: LABELS,
    config: DigitTraining,
    *,
    report: Callable[[int, float], None] = lambda epoch, loss: None,
) -> DigitNet:
    """A classifier of digits [N, 32, 32] with classes [N]; `report` is called after each epoch with the mean loss.

    Its weights are numbers of bfloat16.
    Equal arguments give equal networks on one kind of machine with one thread.
    """
    x, y = torch.from_numpy(prepared(images)[0]), torch.from_numpy(labels)
    g = torch.Generator().manual_seed(config.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        net = DigitNet()
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks it
    optimizer = torch.optim.Adam(net.parameters(), lr=config.lr)
    batches = max(1, len(x) // config.batch)
    for epoch in range(config.epochs):
        order, total = torch.randperm(len(x), generator=g), 0.0
        for i in range(batches):
            for group in optimizer.param_groups:
                group["lr"] = config.lr * (1 + math.cos(math.pi * (epoch + i / batches) / config.epochs)) / 2
            rows = order[i * config.batch : (i + 1) * config.batch]
            none = nothings(x, y, config.nothings, g)
            target = torch.cat([y[rows], torch.full((len(none),), CLASSES)])  # CLASSES stands for "no digit"
            loss = F.cross_entropy(net(_as_read(distorted(torch.cat([x[rows], none]), g))), target)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            total += float(loss.detach())
        report(epoch + 1, total / batches)
    with torch.no_grad():
        for value in net.state_dict().values():
            value.copy_(value.to(STORED))  # what is calibrated is what the file will hold
    return net.eval().requires_grad_(False)


def distorted(x: Tensor, g: torch.Generator) -> Tensor:
    """Pictures [N, 32, 32] turned, stretched, sheared, shifted, bent, and in another tone."""
    N, H = len(x), RESOLUTION

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
    x = F.grid_sample(x[:, None], grid, align_corners=False)
    soft = torch.rand(N, 1, 1, 1, generator=g) * SOFT
    x = x + soft * (F.avg_pool2d(x, 3, stride=1, padding=1) - x)
    x = x.clamp(min=0) ** uniform(GAMMA, 1, 1, 1).exp()
    return (x + torch.randn(x.shape, generator=g) * torch.rand(N, 1, 1, 1, generator=g) * NOISE)[:, 0].clamp(0, 1)


def _as_read(x: Tensor) -> Tensor:
    """Pictures [N, 32, 32] in the tone in which the labeller reads them."""
    return torch.from_numpy(np.clip(normalise(x.numpy())[0], 0, BRIGHTEST))
