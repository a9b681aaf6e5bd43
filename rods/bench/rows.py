"""The numbers of a method beside the baseline's, from their result files: what the tables of the report print."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dnnlib.errors import UserError
from rods.bench.results import POOLED, Results
from rods.bench.task import Task
from rods.eval.bootstrap import Estimate, bootstrap
from rods.eval.correction import PairedOutcomes, paired_outcomes
from rods.eval.detection import auroc, average_precision, recall_at_false_alarms, recall_at_retention
from rods.eval.diversity import mode_shares, spread_within, total_variation
from rods.eval.frechet import frechet_distance
from rods.eval.kernel import kid
from rods.eval.labels import Label
from rods.eval.statistics import FeatureStatistics

F64 = NDArray[np.float64]
KID_SAMPLES = 4096  # of either set; the kernel's cost is their product
RETAINED = 0.96  # of the images, where a score is judged as a filter
FALSE_ALARMS = 0.05
MIN_GROUPS = 8


@dataclass(frozen=True, eq=False)
class Reference:
    """Held-out real data of a task: features of n samples, and what a second set of n real samples scores on them."""

    features: F64  # [n, d]
    shares: F64 | None  # [K] of the kinds
    spread: float  # inside the kinds
    floor: Distances


@dataclass(frozen=True)
class Distances:
    """How far a set is from real data."""

    frechet: float
    kid: float
    modes: float  # total variation of the shares of the kinds; nan without kinds
    spread: float  # inside the kinds, 1 = that of real data; nan for pictures and without kinds


@dataclass(frozen=True)
class Detection:
    """How well a score ranks the baseline's surely bad images above its surely well ones; ambiguous ones left out."""

    auroc: Estimate
    average_precision: Estimate
    at_false_alarms: float  # recall at FALSE_ALARMS
    at_retention: float  # recall at RETAINED
    bad: int
    good: int


@dataclass(frozen=True)
class Row:
    """One method against the baseline on the seeds that both have."""

    name: str
    n: int
    is_score: bool
    outcomes: PairedOutcomes
    cut: Estimate  # 1 - hallucinated after / before
    variance_kept: Estimate  # total variance over the set, summed over pixels, as a ratio to the baseline's
    changed: float  # share of the images that are not the baseline's own
    forward: float  # passes per image
    backward: float
    time_ratio: float  # median over the chunks timed beside the baseline's; nan where none was
    not_finite: int
    distances: Distances | None  # None where no reference was given
    detection: Detection | None  # of scores only: what a correction scores is no longer the baseline
    filtered: float  # surely bad among the RETAINED with the lowest scores, of scores and restarts; else nan


def features_name(task: Task) -> str:
    """What the Fréchet and kernel distances of the task are taken on, by its honest name."""
    return f"pixels{POOLED}" if task.is_picture else "coordinates"


def reference(task: Task, features_of: Callable[[F64], F64], n: int) -> Reference:
    """The reference of a task: n real samples and, for the floor, n others. `features_of` [N, C, H, W] -> [N, d]."""
    first, second = (task.real(n, seed) for seed in (1, 2))
    x, kinds = features_of(first), None if task.kinds is None else task.kinds(first)
    shares = None if kinds is None else mode_shares(kinds, task.num_kinds)
    spread = float("nan") if task.is_picture or kinds is None else spread_within(x, kinds)
    own = Reference(x, shares, spread, Distances(0.0, 0.0, 0.0, 1.0))
    other = None if task.kinds is None else task.kinds(second)
    return Reference(x, shares, spread, distances(features_of(second), other, own))


def distances(features: F64, kinds: NDArray[np.int64] | None, real: Reference) -> Distances:
    """Features [N, d] and kinds [N] of a set against real data. Raises ValueError for fewer than two samples."""
    mine, theirs = FeatureStatistics(features.shape[1]), FeatureStatistics(features.shape[1])
    mine.add(features)
    theirs.add(real.features)
    modes = spread = float("nan")
    if kinds is not None and real.shares is not None and (kinds >= 0).any():
        modes = total_variation(mode_shares(kinds, len(real.shares)), real.shares)
        spread = spread_within(features, kinds) / real.spread
    return Distances(
        frechet_distance(mine.mean, mine.cov, theirs.mean, theirs.cov),
        kid(features[:KID_SAMPLES], real.features[:KID_SAMPLES]),
        modes,
        spread,
    )


def compare(base: Results, run: Results, *, real: Reference | None = None) -> Row:
    """A method's row against the baseline, on the seeds that both files have.

    Variance, passes and time are of all samples of either file. Raises ValueError: no seed in common.
    """
    mine, theirs = common(base, run)
    before, after = base.labels[mine], run.labels[theirs]
    forward, backward = run.passes.mean(axis=0)
    ratios = [c["seconds"] / c["baseline_seconds"] for c in run.chunks if "baseline_seconds" in c]
    look = "sha" if "sha" in run.columns else "x"
    looks_before, looks_after = base.column(look), run.column(look)
    return Row(
        name=run.recipe["method"],
        n=len(mine),
        is_score=run.recipe["is_score"],
        outcomes=paired_outcomes(before, after),
        cut=bootstrap(lambda i: relative_cut(before[i] == Label.BAD, after[i] == Label.BAD), len(mine)),
        variance_kept=variance_kept(base, run),
        changed=sum(looks_before[i] != looks_after[j] for i, j in zip(mine, theirs, strict=True)) / len(mine),
        forward=float(forward),
        backward=float(backward),
        time_ratio=statistics.median(ratios) if ratios else float("nan"),
        not_finite=sum(c["not_finite"] for c in run.chunks),
        distances=None if real is None else distances(run.features, run.kinds, real),
        detection=detection(run.scores[theirs], before) if run.scores is not None and run.recipe["is_score"] else None,
        filtered=filtered_share(run),
    )


def filtered_share(run: Results) -> float:
    """The share of surely bad samples when the worst 1 - RETAINED by a run's own scores are dropped.

    nan for methods that score nothing, or score each step of what they correct.
    """
    if run.own_scores is None or not (run.recipe["is_score"] or "restart" in run.columns):
        return float("nan")
    bad = run.labels == Label.BAD
    if not bad.any():
        return 0.0
    return float(bad.mean()) * (1 - recall_at_retention(run.own_scores, bad, RETAINED)) / RETAINED


def common(base: Results, run: Results) -> tuple[list[int], list[int]]:
    """The places in either file of the seeds that both have, in the order of the first."""
    place = run.position()
    both = [(i, place[int(seed)]) for i, seed in enumerate(base.seeds) if int(seed) in place]
    if not both:
        raise UserError(f"{run.path} and {base.path} have no seed in common; run both on the same --seeds")
    return [i for i, _ in both], [j for _, j in both]


def relative_cut(before: NDArray[np.bool_], after: NDArray[np.bool_]) -> float:
    """1 - bad after / bad before; nan where nothing was bad."""
    return 1 - float(after.sum() / before.sum()) if before.any() else float("nan")


def total_variance(groups: tuple[F64, F64, F64], weights: F64 | None = None) -> float:
    """Variance summed over pixels, from sizes [K], sums [K, D] and squares [K] of groups taken `weights` [K] times."""
    w = np.ones(len(groups[0])) if weights is None else weights
    n, total, squares = w @ groups[0], w @ groups[1], w @ groups[2]
    return float(squares / n - (total / n) @ (total / n))


def variance_kept(base: Results, run: Results) -> Estimate:
    """Total variance as a ratio to the baseline's; groups that both files have are drawn again together.

    Without an interval where the groups are too few to be drawn again.
    """
    mine, theirs = run.groups(), base.groups()
    paired = len(mine[0]) == len(theirs[0])

    def ratio(index: NDArray[np.intp]) -> float:
        w = np.bincount(index, minlength=len(mine[0])).astype(np.float64)
        other = total_variance(theirs, w if paired else None)
        return total_variance(mine, w) / other if other > 0 else float("nan")

    if len(mine[0]) < MIN_GROUPS:
        return Estimate(ratio(np.arange(len(mine[0]))), float("nan"), float("nan"), 0.95)
    return bootstrap(ratio, len(mine[0]))


def detection(scores: F64, labels: NDArray[np.int8]) -> Detection:
    """Scores [N] of the baseline's images against their labels [N]."""
    sure = labels != Label.AMBIGUOUS
    s, bad = scores[sure], labels[sure] == Label.BAD
    return Detection(
        auroc=bootstrap(lambda i: auroc(s[i], bad[i]), len(s)),
        average_precision=bootstrap(lambda i: average_precision(s[i], bad[i]), len(s)),
        at_false_alarms=recall_at_false_alarms(s, bad, FALSE_ALARMS),
        at_retention=recall_at_retention(s, bad, RETAINED),
        bad=int(bad.sum()),
        good=int((~bad).sum()),
    )


def step_aurocs(run: Results, base: Results) -> list[tuple[float, float]]:
    """(noise level, AUROC) of the score at each probed step, on the samples whose steps the file has."""
    if run.step_scores is None:
        return []
    levels, scores = run.step_scores
    place = base.position()
    rows = [(i, place[int(seed)]) for i, seed in enumerate(run.seeds[: len(scores)]) if int(seed) in place]
    labels = base.labels[[j for _, j in rows]]
    sure, bad = labels != Label.AMBIGUOUS, labels == Label.BAD
    own = scores[[i for i, _ in rows]]
    return [(float(t), auroc(own[sure, k], bad[sure])) for k, t in enumerate(levels)]
