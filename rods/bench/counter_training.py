"""Training of the counter: one member at a time, its thresholds, and what it confuses on fresh seeds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor
from torch.nn import functional as F

from rods.bench.counter import CLASSES, FIVE, CountingNet, Thresholds, labels_of, prepare
from rods.bench.spoil import augment, spoil
from rods.eval.correction import proportion_interval
from rods.eval.labels import Label

U8 = NDArray[np.uint8]

FALSE_FLAGS, FALSE_PASSES = 0.002, 0.01  # of held-out real and planted hands, that the thresholds aim at
MOST_LOW, LEAST_HIGH = 0.2, 0.8  # between them nothing is sure, however well the classes separate


@dataclass(frozen=True)
class Recipe:
    """How a member is trained."""

    steps: int = 500
    per_class: int = 16  # pictures of each class in a batch
    lr: float = 2e-3
    weight_decay: float = 0.02
    smoothing: float = 0.02  # of the labels


def batches(hands: Mapping[int, U8], recipe: Recipe, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless batches of pictures [4 B, 1, 64, 64] with their classes; `hands` has pictures [N, H, W] by fingers."""
    g = Generator().manual_seed(seed)
    pools = [prepare(hands[f])[0] for f in (4, 5, 6)]
    y = torch.arange(len(CLASSES)).repeat_interleave(recipe.per_class)
    while True:
        x = [pool[torch.randint(len(pool), (recipe.per_class,), generator=g)] for pool in pools]
        mixed = torch.cat(x)[torch.randperm(3 * recipe.per_class, generator=g)]
        yield augment(torch.cat([*x, spoil(mixed, g)[: recipe.per_class]]), g), y


def train_member(hands: Mapping[int, U8], recipe: Recipe, *, seed: int) -> Iterator[tuple[int, float, CountingNet]]:
    """Trains one network; yields (step, loss, the network) after every step. The seed decides everything."""
    torch.manual_seed(seed)
    net = CountingNet().to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks it
    optimizer = torch.optim.AdamW(net.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay)
    plan = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.lr, total_steps=recipe.steps, pct_start=0.15)
    for step, (x, y) in zip(range(1, recipe.steps + 1), batches(hands, recipe, seed), strict=False):
        logits = net(x.contiguous(memory_format=torch.channels_last))
        loss = F.cross_entropy(logits, y, label_smoothing=recipe.smoothing)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        plan.step()
        yield step, float(loss.detach()), net


def spoilt(hands: Mapping[int, U8], *, seed: int, num: int) -> U8:
    """Pictures [num, H, W] without a real hand, from hands of every kind."""
    g = Generator().manual_seed(seed)
    pool = torch.cat([prepare(hands[f])[0] for f in (4, 5, 6)])
    x = spoil(pool[torch.randint(len(pool), (num,), generator=g)], g)
    return np.asarray((40 + 200 * x[:, 0]).clamp(0, 255).round().to(torch.uint8).numpy())


def choose_thresholds(five: NDArray[np.float32], other: NDArray[np.float32]) -> Thresholds:
    """From the members' probabilities [N, M, 4] of held-out real hands and of pictures that are none.

    low: at most FALSE_FLAGS of the real ones have it as their most convinced member's probability of five fingers;
    high: at most FALSE_PASSES of the others reach it with their least convinced member.
    """
    low = float(np.quantile(five[:, :, FIVE].max(axis=1), FALSE_FLAGS))
    high = float(np.quantile(other[:, :, FIVE].min(axis=1), 1 - FALSE_PASSES))
    return Thresholds(round(min(max(low, 0.02), MOST_LOW), 4), round(min(max(high, LEAST_HIGH), 0.95), 4))


def measure(p: Mapping[str, NDArray[np.float32]], thresholds: Thresholds) -> dict[str, Any]:
    """Confusion matrix and labels of pictures whose truth is known: `p` has probabilities [N, M, 4] by class name."""
    confusion, labels = {}, {}
    for truth, probability in p.items():
        counted = probability.mean(axis=1).argmax(axis=1)
        confusion[truth] = [int((counted == c).sum()) for c in range(len(CLASSES))]
        codes = labels_of(probability, thresholds)
        shares = {code.name.lower(): proportion_interval(int((codes == code).sum()), len(codes)) for code in Label}
        labels[truth] = {name: [s.rate, s.low, s.high] for name, s in shares.items()}
    return {"classes": list(CLASSES), "confusion": confusion, "labels": labels}
