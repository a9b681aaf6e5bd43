"""Trains the learnt denoiser of task grid25: EDM's loss and preconditioning on an MLP, a few minutes on one core."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rods.bench.tasks.grid25.task import SD, draw_points, modes
from training.checkpoint import save_snapshot
from training.loss import EDMLoss
from training.networks import EDMPrecond

_TRAIN_STREAM = 25_000  # of random numbers; the benchmark's real points come from others
MEASURED_ON = 1_000_000  # points


@dataclass(frozen=True)
class PointTraining:
    """How the network is trained. Raises ValueError for sizes below 1."""

    seed: int = 0
    steps: int = 8_000
    batch: int = 1_024
    hidden: int = 128
    num_layers: int = 3
    lr: float = 2e-3  # reached after 1/16 of the steps, then down to 0 along a cosine
    ema: float = 0.999  # share of the average that a step keeps
    P_mean: float = -2.0  # of ln(sigma): much lower than for images, for the modes part at sigma .05 to .3
    P_std: float = 1.6

    def __post_init__(self) -> None:
        if min(self.steps, self.batch, self.hidden, self.num_layers) < 1 or self.seed < 0:
            raise ValueError(f"{self}: steps, batch, hidden and num_layers must be at least 1, seed at least 0")


def measured_sigma_data() -> float:
    """The standard deviation of a coordinate over a million real points: 1 within .001."""
    return float(draw_points(MEASURED_ON, np.random.default_rng([_TRAIN_STREAM])).std())


def train_points(
    config: PointTraining, *, report: Callable[[int, float], None] = lambda step, loss: None
) -> tuple[EDMPrecond, dict[str, Any], list[tuple[int, float]]]:
    """(averaged network, its constructor arguments, learning curve as (points seen, mean loss since the last)).

    `report` is called after each step with the steps done and the loss. Equal configs give equal networks on one kind
    of machine with one thread.
    """
    kwargs: dict[str, Any] = {
        "img_resolution": 1,
        "img_channels": 2,
        "sigma_data": round(measured_sigma_data(), 4),
        "model_type": "MLP",
        "hidden": config.hidden,
        "num_layers": config.num_layers,
    }
    draws = torch.Generator().manual_seed(config.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        net = EDMPrecond(**kwargs)
    average = copy.deepcopy(net).requires_grad_(False)
    loss_of = EDMLoss(config.P_mean, config.P_std, kwargs["sigma_data"])
    optimizer = torch.optim.Adam(net.parameters(), lr=config.lr)
    centres = torch.from_numpy(modes()).float()[:, :, None, None]
    curve, losses = [], []
    for step in range(config.steps):
        for group in optimizer.param_groups:
            group["lr"] = config.lr * _schedule((step + 1) / config.steps)
        k = torch.randint(len(centres), (config.batch,), generator=draws)
        shape = (config.batch, 2, 1, 1)
        y = centres[k] + SD * torch.randn(shape, generator=draws)
        n, noise = torch.randn(config.batch, generator=draws), torch.randn(shape, generator=draws)
        loss = loss_of(net, y, None, n=n, noise=noise).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        _average(average, net, min(config.ema, (1 + step) / (10 + step)))
        losses.append(float(loss.detach()))
        report(step + 1, losses[-1])
        if len(losses) == max(1, config.steps // 8):
            curve.append(((step + 1) * config.batch, float(np.mean(losses))))
            losses = []
    return average, kwargs, curve


def save_points(
    path: Path, trained: tuple[EDMPrecond, Mapping[str, Any], list[tuple[int, float]]], config: PointTraining
) -> None:
    """Writes a network that `train_points` made, with the config and the learning curve in its header."""
    net, kwargs, curve = trained
    extra = {"training": asdict(config), "learning_curve": [list(point) for point in curve]}
    kimg = config.steps * config.batch / 1000
    save_snapshot(path, net, init_kwargs=kwargs, kimg=kimg, dataset="grid25", extra=extra)


def _schedule(progress: float) -> float:
    return min(1.0, 16 * progress) * (1 + math.cos(math.pi * progress)) / 2


@torch.no_grad()
def _average(average: EDMPrecond, net: EDMPrecond, keep: float) -> None:
    for a, p in zip(average.parameters(), net.parameters(), strict=True):
        a.lerp_(p, 1 - keep)
