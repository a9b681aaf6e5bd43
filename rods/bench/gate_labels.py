"""What labels add to a gate: the choice of what it reads, a density ratio refined by them, or a readout of them alone.

Everything is judged on labels that it was not fitted to: a density ratio of real images on all of them, what is fitted
to labels by five folds. Four ways are compared, in the order of how much they learn from labels: the density ratio as
it is chosen without labels; the best density ratio over levels and blocks; that one refined, a logistic regression on
its score and on its features, with a ridge that holds the features' weights near 0, so that few labels leave it the
density ratio; and a logistic regression on the features alone. The first of these within one standard error of the best
is taken (Breiman et al. 1984): what learns more has to show it.
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
WAYS = ("density ratio, chosen without labels", "density ratio, level and blocks chosen by labels",
        "density ratio refined by labels", "readout of labels alone")  # fmt: skip
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
        return min(int(self.bad.sum()), int((~self.bad).sum())) >= LEAST_LABELS


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


def standard_error(one: F64, other: F64, bad: Bad, *, resamples: int = 400, seed: int = 0) -> float:
    """Of the difference of two scores' AUROCs, over the same resampled images."""
    rng, differences = np.random.default_rng(seed), []
    for _ in range(resamples):
        i = rng.integers(len(bad), size=len(bad))
        differences.append(auroc(one[i], bad[i]) - auroc(other[i], bad[i]))
    return float(np.nanstd(differences))


def chosen_way(found: Sequence[Candidate], bad: Bad) -> tuple[Candidate, list[Candidate]]:
    """The first way within one standard error of the best, and the best candidate of each way, in their order."""
    best = [max((c for c in found if c.way == way), key=lambda c: c.auroc) for way in sorted({c.way for c in found})]
    top = max(best, key=lambda c: c.auroc)
    for one in best:
        if top.auroc - one.auroc <= standard_error(top.held_out, one.held_out, bad):
            return one, best
    return top, best


def interval(c: Candidate, bad: Bad) -> Estimate:
    """The candidate's AUROC with its bootstrap interval."""
    return bootstrap(lambda i: auroc(c.held_out[i], bad[i]), len(bad))


# -- candidates -------------------------------------------------------------------------------------------------------


def candidates(f: Features | None, free: Choice | None, labelled: Labelled) -> list[Candidate]:
    """Every way at every level and number of last blocks that is tried; `f` None: there are no real images.

    `free` is what is chosen without labels. Raises UserError: labels of one kind, or too few where nothing else is.
    """
    bad = labelled.bad
    counts = f"{int(bad.sum())} hallucinated and {int((~bad).sum())} valid images"
    if bad.all() or not bad.any():
        raise UserError(f"--labels: {counts}; a choice needs both kinds")
    ratios = [] if f is None else density_ratios(f, free, labelled)
    if not labelled.can_teach:
        if not ratios:
            raise UserError(f"--labels: {counts} are too few to learn from; label {LEAST_LABELS} of either kind, or "
                            "give --real")  # fmt: skip
        return ratios
    start = [replace(c, way=2) for c in ratios if c.way == 1]
    places = [(c.level, c.last) for c in start] or places_of(labelled)
    alone = [Candidate(3, level, last, False, None, np.zeros(len(bad)), 0.0) for level, last in places]
    return [*ratios, *(taught(f, start, labelled) if start else []), *taught(None, alone, labelled)]


def density_ratios(f: Features, free: Choice | None, labelled: Labelled) -> list[Candidate]:
    """The gate that is chosen without labels, and that of every level and number of last blocks."""
    found = []
    for way, choice in [*([(0, free)] if free else []), *((1, choice) for choice in choices(f))]:
        scores = ratio_of(f, choice).of(labelled.of(choice.level, len(choice.blocks))).numpy()
        found.append(Candidate(way, choice.level, len(choice.blocks), choice.two_class, None, scores,
                               auroc(scores, labelled.bad)))  # fmt: skip
    return found


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


def ratio_of(f: Features, c: Choice | Candidate, network: str = "0" * 12) -> DensityRatio:
    """The density ratio of a choice, fitted to the first half of the real images."""
    last = c.last if isinstance(c, Candidate) else len(c.blocks)
    own = torch.arange(f.num_own) if c.two_class else None
    return fitted(f, c.level, last, halves(f.num_real)[0], own, network=network)


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
    refined = f if c.way == 2 else None
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
    chosen, best = chosen_way(candidates(f, free, labelled), bad)
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
    top = max(best, key=lambda c: c.auroc)
    why = (
        "the best"
        if chosen is top
        else f"within one standard error of the best ({top.auroc:.3f}), learned less from labels"
    )
    lines.append(f"Chosen: {WAYS[chosen.way]} ({why}). A choice by these labels makes its own AUROC look a little high")
    log = [{"way": WAYS[c.way], "score_at": c.level.score_at, "sigma": c.level.sigma, "blocks": c.last,
            "two_class": c.two_class, "ridge": c.ridge, "auroc": c.auroc} for c in best]  # fmt: skip
    said = f"{source}; {WAYS[chosen.way]}, held-out AUROC {chosen.auroc:.3f}"
    held_out = HeldOut(tuple(scores.tolist()), tuple(bad.tolist()))
    return Fitted(gate, chosen.level.score_at, lowest, second, limit, said, log, held_out), lines


def _place(c: Candidate) -> str:
    ridge = "" if c.ridge is None else f", ridge {c.ridge:g}"
    return f"the last {c.last} blocks at noise level {c.level.score_at:g}{ridge}"
