"""Trains an ensemble that labels images: one member after the other, then its thresholds, then what it gets wrong."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Generator, Tensor
from torch.nn import functional as F

from dnnlib.util import atomic_write
from rods.bench.tasks.ensemble import F32, STORED, Ensemble, EnsembleSpec, Member
from rods.eval.correction import proportion_interval
from rods.eval.labels import Label

Batches = Iterator[tuple[Tensor, Tensor]]  # images [B, 1, H, H] in normalised tone, and their classes [B]
Report = Callable[[int, int, float], None]  # member, step, loss


@dataclass(frozen=True)
class Recipe:
    """How a member is trained. Raises ValueError for less than one step."""

    steps: int
    lr: float  # the largest; down to 0 along a cosine
    warmup: float = 0.0  # share of the steps until it is reached (one cycle: the momentum goes the other way)
    weight_decay: float = 0.0
    smoothing: float = 0.0  # of the labels

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"{self}: steps must be at least 1")

    def schedule(self, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
        """The learning rate by steps."""
        if self.warmup:
            return torch.optim.lr_scheduler.OneCycleLR(
                optimizer, self.lr, total_steps=self.steps, pct_start=self.warmup
            )
        return torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: (1 + math.cos(math.pi * step / self.steps)) / 2
        )


@dataclass(frozen=True)
class LabellerTraining:
    """What a task says about its learned labeller. `batches` holds training data only."""

    spec: EnsembleSpec
    path: Path  # the embedded file
    recipe: Recipe
    batches: Callable[[Generator], Batches]  # endless
    thresholds: Callable[[Ensemble], tuple[float, ...]]  # from held-out data
    facts: Callable[[Ensemble], Mapping[str, Any]]  # JSON: what was measured on data that set nothing


def train_member(training: LabellerTraining, *, seed: int) -> Iterator[tuple[int, float, Member]]:
    """Trains one member; yields (step, loss, the member) after every step. The seed decides everything."""
    recipe = training.recipe
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = Member(training.spec)
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks it
    optimizer = torch.optim.AdamW(net.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay)
    schedule = recipe.schedule(optimizer)
    batches = training.batches(Generator().manual_seed(seed))
    for step, (x, y) in zip(range(1, recipe.steps + 1), batches, strict=False):
        logits = net(x.contiguous(memory_format=torch.channels_last))
        loss = F.cross_entropy(logits, y, label_smoothing=recipe.smoothing)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        yield step, float(loss.detach()), net


def train_ensemble(
    training: LabellerTraining, *, seed: int = 0, folder: Path, report: Report = lambda member, step, loss: None
) -> Ensemble:
    """The members of seeds `seed`, `seed` + 1, ..., with thresholds and facts.

    Finished members are kept in `folder`, whose name must stand for all that they depend on.
    """
    folder.mkdir(parents=True, exist_ok=True)
    members = []
    for m in range(training.spec.members):
        path = folder / f"member-{seed + m}.safetensors"
        if not path.exists():
            for step, loss, net in train_member(training, seed=seed + m):  # noqa: B007  (the last net is kept)
                report(m, step, loss)
            with atomic_write(path) as temporary:
                save_file({k: v.contiguous() for k, v in net.state_dict().items()}, temporary)
        members.append(_as_stored(training.spec, path))
    ensemble = Ensemble(training.spec, tuple(members), (1.0,))
    ensemble = replace(ensemble, thresholds=training.thresholds(ensemble))
    return replace(ensemble, facts={"seed": seed, "steps": training.recipe.steps, **training.facts(ensemble)})


def _as_stored(spec: EnsembleSpec, path: Path) -> Member:
    """The member in a file with its numbers rounded: what sets the thresholds is what the ensemble's file will hold."""
    member = Member(spec)
    member.load_state_dict({k: v.to(STORED) if v.is_floating_point() else v for k, v in load_file(path).items()})
    return member.eval().requires_grad_(False)


def measure(ensemble: Ensemble, p: Mapping[str, F32]) -> dict[str, Any]:
    """Confusion matrix and labels of images whose truth is known: `p` has probabilities [N, M, K] by what they show."""
    confusion, labels = {}, {}
    for truth, probability in p.items():
        found = probability.mean(axis=1).argmax(axis=1)
        confusion[truth] = [int((found == k).sum()) for k in range(len(ensemble.spec.classes))]
        codes = ensemble.labels_of(probability)
        shares = {code.verdict: proportion_interval(int((codes == code).sum()), len(codes)) for code in Label}
        labels[truth] = {name: [s.rate, s.low, s.high] for name, s in shares.items()}
    return {"classes": list(ensemble.spec.classes), "confusion": confusion, "labels": labels}


def reached_by(confidence: F32, share: float) -> float:
    """The confidence that this share of real images [N] reaches."""
    return float(np.quantile(confidence, 1 - share, method="lower"))
