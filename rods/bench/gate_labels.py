"""What labels add to a gate: a density ratio refined by them, or a readout of them alone.

Everything is judged on labels that it was not fitted to: the density ratio that is chosen without labels on all of
them, what is fitted to labels by five folds. Three ways are compared: that density ratio; a density ratio refined, a
logistic regression on its score and on its features, with a ridge that holds the features' weights near 0, so that few
labels leave it the density ratio; and a logistic regression on the features alone. The best is taken; of those that
are as good but for a hundredth, the one that learns least.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dnnlib.errors import UserError
from rods.bench.gate_fit import (
    MOST_NUMBERS,
    Choice,
    Features,
    Level,
    choices,
    columns_of,
    fitted,
    gates_of,
    halves,
    quantile,
)
from rods.bench.gate_preset import Fitted, HeldOut
from rods.bench.readout_fit import FOLDS, regression, standardised
from rods.eval.bootstrap import Estimate, bootstrap
from rods.eval.detection import auroc
from rods.gate import LARGEST, DensityRatio, Readout, fingerprint, network_of
from rods.types import Denoiser

F64 = NDArray[np.float64]
Bad = NDArray[np.bool_]
RIDGES = (100.0, 1000.0, 10.0, 1.0)  # of the features' weights; the first ranks levels and blocks
FREE = 1e-3  # ridge of the density ratio's own weight: next to none
WAYS = ("density ratio, chosen without labels", "density ratio refined by labels", "readout of labels alone")
ALIKE = 0.01  # AUROCs that labels do not tell apart
LEAST_LABELS = 2 * FOLDS  # of either kind, to learn from


@dataclass(frozen=True, eq=False)
class Labelled:
    """Activations by `score_at` of labelled images [N, K], which went the way of real images, and their labels [N]."""

    levels: Sequence[Level]
    blocks: tuple[str, ...]
    widths: tuple[int, ...]  # K of each block
    found: Mapping[float, Tensor]
    bad: Bad

    def of(self, level: Level, last: int) -> Tensor:
        """What a gate of the last blocks reads at a level [N, k]."""
        return self.found[level.score_at][:, columns_of(self.widths, last)]

    @property
    def can_teach(self) -> bool:
        return fewest(self.bad) >= LEAST_LABELS


def fewest(bad: Bad) -> int:
    """How many labels there are of the rarer kind."""
    return min(int(bad.sum()), int((~bad).sum()))


def check_labels(bad: Bad, *, has_real: bool) -> None:
    """UserError for labels [N] from which nothing can be chosen, or learned where there are no real images."""
    counts = f"{int(bad.sum())} hallucinated and {int((~bad).sum())} valid images"
    if not fewest(bad):
        raise UserError(f"--labels: {counts}; a choice needs both kinds")
    if not has_real and fewest(bad) < LEAST_LABELS:
        raise UserError(
            f"--labels: {counts} are too few to learn from; label {LEAST_LABELS} of either kind, or give --real"
        )


@dataclass(frozen=True, eq=False)
class Candidate:
    """A gate before its fit to everything, with its scores of images that it was not fitted to."""

    way: int  # index of WAYS
    level: Level
    last: int  # blocks
    two_class: bool
    ridge: float | None  # of what is learned from labels; None: nothing is
    held_out: F64  # scores [N]
    auroc: float


def chosen_way(found: Sequence[Candidate]) -> tuple[Candidate, list[Candidate]]:
    """The first way whose best candidate is as good as any but for ALIKE, and the best of each way, in their order."""
    best = [max((c for c in found if c.way == way), key=lambda c: c.auroc) for way in sorted({c.way for c in found})]
    top = max(c.auroc for c in best)
    return next(c for c in best if c.auroc >= top - ALIKE), best


def interval(c: Candidate, bad: Bad) -> Estimate:
    """The candidate's AUROC with its bootstrap interval."""
    return bootstrap(lambda i: auroc(c.held_out[i], bad[i]), len(bad))


# -- candidates -------------------------------------------------------------------------------------------------------


def candidates(f: Features | None, free: Choice | None, labelled: Labelled) -> list[Candidate]:
    """Every way at every level and number of last blocks that is tried; `f` and `free` None: no real images.

    `free` is what is chosen without labels, and all there is where labels are too few to teach (see `check_labels`).
    """
    bad = labelled.bad
    found: list[Candidate] = []
    if f is not None and free is not None:
        start = blank(0, free.level, len(free.blocks), free.two_class, labelled)
        scores = ratio_of(f, start).of(labelled.of(start.level, start.last)).numpy()
        found.append(replace(start, held_out=scores, auroc=auroc(scores, bad)))
    if not labelled.can_teach:
        return found
    if f is not None:
        found += taught(f, [blank(1, c.level, len(c.blocks), c.two_class, labelled) for c in choices(f)], labelled)
    return found + taught(None, [blank(2, *place, False, labelled) for place in places_of(labelled)], labelled)


def blank(way: int, level: Level, last: int, two_class: bool, labelled: Labelled) -> Candidate:
    """A candidate that is not judged yet."""
    return Candidate(way, level, last, two_class, None, np.zeros(len(labelled.bad)), 0.0)


def taught(f: Features | None, start: Sequence[Candidate], labelled: Labelled) -> list[Candidate]:
    """Candidates that learn from labels: all at the first ridge, and the best of these at the others."""
    found = [learned_from(f, c, labelled, RIDGES[0]) for c in start]
    best = max(found, key=lambda c: c.auroc)
    return found + [learned_from(f, best, labelled, ridge) for ridge in RIDGES[1:]]


def places_of(labelled: Labelled) -> list[tuple[Level, int]]:
    """Every level and number of last blocks whose features are not too many."""
    numbers = range(1, len(labelled.blocks) + 1)
    few = [n for n in numbers if n == 1 or len(columns_of(labelled.widths, n)) <= MOST_NUMBERS]
    return [(level, n) for level in labelled.levels for n in few]


def ratio_of(f: Features, c: Candidate, network: str = "0" * 12) -> DensityRatio:
    """The density ratio at a candidate's place, fitted to the first half of the real images."""
    own = torch.arange(f.num_own) if c.two_class else None
    return fitted(f, c.level, c.last, halves(f.num_real)[0], own, network=network)


def design(
    f: Features | None, c: Candidate, labelled: Labelled, ridge: float
) -> tuple[F64, F64, Readout | DensityRatio]:
    """What is regressed on: features X [N, k] with their ridges [k], and a gate that has their mean and scale.

    Refining, the first column is the density ratio's value, and the others are standardised as it does.
    """
    p = labelled.of(c.level, c.last)
    if f is None:
        z, mean, scale = standardised(p.numpy())
        K, (m, s) = len(mean), (tuple(np.float32(part).tolist()) for part in (mean, scale))
        blank = Readout(labelled.blocks[-c.last :], c.level.sigma, 1, "0" * 12, 0.0, m, s, (0.0,) * K)
        return z, np.full(K, ridge), blank
    gate = ratio_of(f, c)
    z = ((p - p.new_tensor(gate.mean)) / p.new_tensor(gate.scale)).numpy()
    return np.column_stack([gate.value(p).numpy(), z]), np.array([FREE, *np.full(z.shape[1], ridge)]), gate


def learned_from(f: Features | None, c: Candidate, labelled: Labelled, ridge: float) -> Candidate:
    """The candidate with scores [N] that each come from a regression on the other folds, each with both kinds."""
    X, ridges, _ = design(f, c, labelled, ridge)
    bad = labelled.bad
    fold, scores = np.zeros(len(bad), dtype=np.int64), np.zeros(len(bad))
    for kind in (bad, ~bad):
        fold[kind] = np.arange(kind.sum()) % FOLDS
    for k in range(FOLDS):
        bias, weights = regression(X[fold != k], bad[fold != k], ridges)
        scores[fold == k] = bias + X[fold == k] @ weights
    return replace(c, ridge=ridge, held_out=scores, auroc=auroc(scores, bad))


def final_gate(f: Features | None, c: Candidate, labelled: Labelled, network: str) -> DensityRatio | Readout:
    """The gate of a candidate, fitted to all labels if it learns from them; `network` is its blocks' fingerprint."""
    if c.ridge is None:
        assert f is not None, "a density ratio needs real images"
        return ratio_of(f, c, network)
    refined = f if c.way == 1 else None
    X, ridges, gate = design(refined, c, labelled, c.ridge)
    bias, weights = regression(X, labelled.bad, ridges)
    if refined is None:
        return replace(gate, network=network, bias=bias, linear=tuple(np.float32(weights).tolist()))  # type: ignore[return-value]
    a, w = float(weights[0]), weights[1:]
    linear = tuple((a * np.array(gate.linear) + w).tolist())
    quadratic = tuple((a * np.array(gate.quadratic)).tolist())
    return Readout(gate.blocks, gate.sigma, gate.draws, network, a * gate.bias + bias, gate.mean, gate.scale, linear,
                   quadratic)  # fmt: skip


# -- what comes of it -------------------------------------------------------------------------------------------------


def taught_gate(
    f: Features | None, free: Choice | None, labelled: Labelled, net: Denoiser, alpha: float, source: str
) -> tuple[Fitted, list[str]]:
    """The gate that labels choose, with its lowest threshold, and lines that say what was chosen and why.

    The threshold is what a share `alpha` exceeds of the real images that it was not fitted to; without real images, of
    the valid labelled ones, by their held-out scores. Arguments and errors as `candidates`.
    """
    bad = labelled.bad
    chosen, best = chosen_way(candidates(f, free, labelled))
    blocks = labelled.blocks[-chosen.last :]
    gate = final_gate(f, chosen, labelled, fingerprint(network_of(net), blocks))
    scores = torch.from_numpy(chosen.held_out)
    if chosen.ridge is not None:
        scores = torch.sigmoid(scores.clamp(-LARGEST, LARGEST))
    second, limit = None, None
    if f is None:
        lowest = quantile(scores[torch.from_numpy(~bad)], alpha)
    else:
        place = Choice(chosen.level, blocks, chosen.two_class, 0, float("nan"), float("nan"))
        _, second, lowest, limit = gates_of(f, place, net, alpha)
        if chosen.ridge is not None:
            columns = columns_of(labelled.widths, chosen.last)
            lowest = quantile(gate.of(f.real[chosen.level.score_at][halves(f.num_real)[1]][:, columns]), alpha)
    lines = [f"Held-out AUROC of {len(bad)} labels, {int(bad.sum())} of them hallucinated:"]
    for c in best:
        e = interval(c, bad)
        lines.append(f"  {WAYS[c.way]}: {e.value:.3f} ({e.low:.3f} to {e.high:.3f}), {_place(c)}")
    if not labelled.can_teach:
        lines.append(f"  too few labels to learn from: {LEAST_LABELS} of either kind are needed")
    top = max(c.auroc for c in best)
    why = "the best" if chosen.auroc == top else f"as good but for {top - chosen.auroc:.3f}, and learns less"
    lines.append(f"Chosen: {WAYS[chosen.way]} ({why}). A choice by these labels looks a little better than it is")
    log = [{"way": WAYS[c.way], "score_at": c.level.score_at, "sigma": c.level.sigma, "blocks": c.last,
            "two_class": c.two_class, "ridge": c.ridge, "auroc": c.auroc} for c in best]  # fmt: skip
    said = f"{source}; {WAYS[chosen.way]}, held-out AUROC {chosen.auroc:.3f}"
    held_out = HeldOut(tuple(scores.tolist()), tuple(bad.tolist()))
    return Fitted(gate, chosen.level.score_at, lowest, second, limit, said, log, held_out), lines


def _place(c: Candidate) -> str:
    ridge = "" if c.ridge is None else f", ridge {c.ridge:g}"
    return f"the last {c.last} blocks at noise level {c.level.score_at:g}{ridge}"
