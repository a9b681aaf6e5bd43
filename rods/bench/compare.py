"""A method compared with the baseline on the seeds that both sampled: the numbers that the tables print."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from rods.bench.labelled import LabelledRun
from rods.bench.pooled import POOLED, pooled_levels
from rods.bench.redrawn import Redrawn, redrawn_of
from rods.bench.task import Task
from rods.eval.bootstrap import Estimate, bootstrap
from rods.eval.correction import PairedOutcomes, Proportion, paired_outcomes, proportion_interval
from rods.eval.detection import (
    Confusion,
    Curve,
    auroc,
    average_precision,
    confusion,
    detection_curve,
    recall_at_false_alarms,
    recall_at_retention,
)
from rods.eval.diversity import mode_shares, spread_within, total_variation
from rods.eval.frechet import frechet_distance
from rods.eval.kernel import kid
from rods.eval.labels import Label
from rods.eval.statistics import FeatureStatistics

F64 = NDArray[np.float64]
KID_SAMPLES = 4096  # of either set; the kernel's cost is their product
RETAINED = 0.96  # of the images, where a score is judged as a filter
FALSE_ALARMS = 0.05
MIN_GROUPS = 8  # of images, for an interval of their total variance


@dataclass(frozen=True, eq=False)
class Reference:
    """Held-out real data of a task: features of n samples, and what a second set of n real samples scores on them."""

    features: F64  # [n, d]
    mode_shares: F64 | None  # [K]; None without modes
    within_mode_std: float  # nan for images and without modes
    floor: Distances


@dataclass(frozen=True)
class Distances:
    """How far a set of samples is from real data."""

    frechet: float
    kid: float
    mode_distance: float  # total variation distance of the shares of the modes; nan without modes
    std_ratio: float  # standard deviation within the modes over that of real data; nan for images and without modes


@dataclass(frozen=True)
class Detection:
    """How well a score ranks the baseline's hallucinated images above its valid ones; uncertain ones are left out."""

    auroc: Estimate
    average_precision: Estimate
    at_false_alarms: float  # recall where FALSE_ALARMS of the valid images are flagged
    at_retention: float  # recall where all but RETAINED of the images are flagged
    hallucinated: int
    valid: int


@dataclass(frozen=True)
class Comparison:
    """One method against the baseline on the seeds that both have."""

    name: str
    n: int
    is_score: bool  # a detector that leaves the baseline's images as they are
    outcomes: PairedOutcomes
    another_class: Proportion | None  # images of a class that was not asked for; None: none was asked for
    relative_reduction: Estimate  # of the hallucination rate: 1 - after / before
    variance_kept: Estimate  # total variance over the set, summed over pixels, as a ratio to the baseline's
    changed: float  # share of the images that are not the baseline's own
    forward: float  # network evaluations per image
    backward: float  # vector-Jacobian products per image
    time_ratio: float  # median over the chunks timed beside the baseline's; nan where none was
    not_finite: int
    distances: Distances | None  # None where no reference was given
    detection: Detection | None  # of scores only: what a corrector scores is no longer the baseline
    redrawn: Redrawn | None  # of runs that draw again what does not pass a limit
    filtered: float  # hallucination rate of the RETAINED with the lowest scores, of scores and restarts; else nan

    @property
    def nfe(self) -> float:
        """F + B per image."""
        return self.forward + self.backward


def features_name(task: Task) -> str:
    """What the Fréchet and kernel distances of the task are taken on, by its honest name."""
    return f"pixels{POOLED}" if task.is_picture else "coordinates"


def features_of(task: Task) -> Callable[[F64], F64]:
    """What turns samples [N, C, H, W] into the features of result files [N, d]."""
    if task.is_picture:
        return lambda x: pooled_levels(x).reshape(len(x), -1) / 255
    return lambda x: x.reshape(len(x), -1)


def reference(task: Task, n: int) -> Reference:
    """The reference of a task: n real samples and, for the floor, n others."""
    features = features_of(task)
    first, second = (task.real(n, seed) for seed in (1, 2))
    x, modes = features(first), None if task.kinds is None else task.kinds(first)
    shares = None if modes is None else mode_shares(modes, task.num_kinds)
    std = float("nan") if task.is_picture or modes is None else spread_within(x, modes)
    own = Reference(x, shares, std, Distances(0.0, 0.0, 0.0, 1.0))
    other = None if task.kinds is None else task.kinds(second)
    return Reference(x, shares, std, distances(features(second), other, own))


def distances(features: F64, modes: NDArray[np.int64] | None, real: Reference) -> Distances:
    """Features [N, d] and modes [N] of a set against real data. Raises ValueError for fewer than two samples."""
    distance = ratio = float("nan")
    if modes is not None and real.mode_shares is not None and (modes >= 0).any():
        distance = total_variation(mode_shares(modes, len(real.mode_shares)), real.mode_shares)
        ratio = spread_within(features, modes) / real.within_mode_std
    return Distances(
        frechet(features, real.features),
        kid(features[:KID_SAMPLES], real.features[:KID_SAMPLES]),
        distance,
        ratio,
    )


def frechet(a: F64, b: F64) -> float:
    """The Fréchet distance of two sets of features [N, d], [M, d]. Raises ValueError for fewer than two of either."""
    one, two = FeatureStatistics(a.shape[1]), FeatureStatistics(b.shape[1])
    one.add(a)
    two.add(b)
    return frechet_distance(one.mean, one.cov, two.mean, two.cov)


def compare(base: LabelledRun, run: LabelledRun, *, real: Reference | None = None) -> Comparison:
    """A method against the baseline, on the seeds that both have.

    Variance, network evaluations and time are of all samples of either. Raises ValueError: no seed in common.
    """
    mine, theirs = common(base, run)
    before, after = base.labels[mine], run.labels[theirs]
    forward, backward = run.nfe.mean(axis=0)
    ratios = [c["seconds"] / c["baseline_seconds"] for c in run.timing if "baseline_seconds" in c]
    return Comparison(
        name=run.name,
        n=len(mine),
        is_score=run.is_score,
        outcomes=paired_outcomes(before, after),
        another_class=proportion_interval(int(run.another_class[theirs].sum()), len(theirs))
        if run.has_classes
        else None,
        relative_reduction=bootstrap(
            lambda i: relative_reduction(before[i] == Label.HALLUCINATED, after[i] == Label.HALLUCINATED), len(mine)
        ),
        variance_kept=variance_kept(base, run),
        changed=float(changed_images(base, run, mine, theirs).mean()),
        forward=float(forward),
        backward=float(backward),
        time_ratio=statistics.median(ratios) if ratios else float("nan"),
        not_finite=run.not_finite,
        distances=None if real is None else distances(run.features, run.modes, real),
        detection=detection(base, run) if run.scores is not None and run.is_score else None,
        redrawn=redrawn_of(run),
        filtered=filtered_rate(run),
    )


def agreeing(base: LabelledRun, run: LabelledRun) -> tuple[LabelledRun, LabelledRun]:
    """Both runs with one label for an image that is the same in both; where they had two, it is uncertain.

    Raises ValueError: no seed in common.
    """
    mine, theirs = (np.array(places) for places in common(base, run))
    same = ~changed_images(base, run, mine.tolist(), theirs.tolist())
    twice = same & (base.labels[mine] != run.labels[theirs])
    before, after = base.labels.copy(), run.labels.copy()
    before[mine[twice]] = after[theirs[twice]] = Label.UNCERTAIN
    return replace(base, labels=before), replace(run, labels=after)


def filtered_rate(run: LabelledRun) -> float:
    """The hallucination rate when the 1 - RETAINED of the samples with the highest scores are dropped.

    nan for methods that score nothing, or score each step of what they correct.
    """
    if run.own_scores is None or not (run.is_score or run.has_restarts):
        return float("nan")
    bad = run.labels == Label.HALLUCINATED
    if not bad.any():
        return 0.0
    return float(bad.mean()) * (1 - recall_at_retention(run.own_scores, bad, RETAINED)) / RETAINED


def common(base: LabelledRun, run: LabelledRun) -> tuple[list[int], list[int]]:
    """The places in either of the images that both have, by seed, or by seed and row; in the order of the first."""
    place = run.position()
    both = [(i, place[name]) for name, i in base.position().items() if name in place]
    if not both:
        raise ValueError(f"{run.path} and {base.path} have no seed in common; run both on the same --seeds")
    return [i for i, _ in both], [j for _, j in both]


def changed_images(base: LabelledRun, run: LabelledRun, mine: list[int], theirs: list[int]) -> NDArray[np.bool_]:
    """Whether the run's images at `theirs` are others than the baseline's at `mine` [n].

    By their checksums; by their 8x8 means, to two of 255 levels, where one run is of before these were of files.
    """
    before, after = base.keys, run.keys
    if before[mine[0]][0] != after[theirs[0]][0]:
        return np.asarray(np.abs(base.features[mine] - run.features[theirs]).max(axis=1) > 2.5 / 255)
    return np.array([before[i] != after[j] for i, j in zip(mine, theirs, strict=True)])


def relative_reduction(before: NDArray[np.bool_], after: NDArray[np.bool_]) -> float:
    """1 - hallucinated after / before [N]; nan where nothing was hallucinated."""
    return 1 - float(after.sum() / before.sum()) if before.any() else float("nan")


def total_variance(groups: tuple[F64, F64, F64], weights: F64 | None = None) -> float:
    """Variance summed over pixels, from sizes [K], sums [K, D] and squares [K] of groups taken `weights` [K] times.

    Not a number where there is no group.
    """
    if not len(groups[0]):
        return float("nan")
    w = np.ones(len(groups[0])) if weights is None else weights
    n, total, squares = w @ groups[0], w @ groups[1], w @ groups[2]
    return float(squares / n - (total / n) @ (total / n))


def variance_kept(base: LabelledRun, run: LabelledRun) -> Estimate:
    """Total variance as a ratio to the baseline's; groups that both runs have are drawn again together.

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


def judged_scores(base: LabelledRun, run: LabelledRun) -> tuple[F64, NDArray[np.bool_]]:
    """A run's scores [M] and whether the baseline's images are hallucinated [M], without the uncertain ones."""
    assert run.scores is not None, f"{run.path}: no scores"
    mine, theirs = common(base, run)
    labels = base.labels[mine]
    sure = labels != Label.UNCERTAIN
    return run.scores[theirs][sure], labels[sure] == Label.HALLUCINATED


def detection(base: LabelledRun, run: LabelledRun) -> Detection | None:
    """How well a run's scores tell the baseline's hallucinated images from its valid ones; None: there are neither."""
    return detection_of(*judged_scores(base, run))


def detection_of(s: F64, bad: NDArray[np.bool_]) -> Detection | None:
    """How well scores [M] tell hallucinated images from the others [M]; None for M = 0."""
    if not len(s):
        return None
    return Detection(
        auroc=bootstrap(lambda i: auroc(s[i], bad[i]), len(s)),
        average_precision=bootstrap(lambda i: average_precision(s[i], bad[i]), len(s)),
        at_false_alarms=recall_at_false_alarms(s, bad, FALSE_ALARMS),
        at_retention=recall_at_retention(s, bad, RETAINED),
        hallucinated=int(bad.sum()),
        valid=int((~bad).sum()),
    )


def step_aurocs(run: LabelledRun, base: LabelledRun) -> list[tuple[float, float]]:
    """(noise level, AUROC) of the score at each probed step, on the samples whose steps the file has."""
    if run.step_scores is None:
        return []
    levels, scores = run.step_scores
    place = base.position()
    rows = [(i, place[name]) for name, i in run.position().items() if i < len(scores) and name in place]
    labels = base.labels[[j for _, j in rows]]
    sure, bad = labels != Label.UNCERTAIN, labels == Label.HALLUCINATED
    own = scores[[i for i, _ in rows]]
    return [(float(t), auroc(own[sure, k], bad[sure])) for k, t in enumerate(levels)]


def score_curve(base: LabelledRun, run: LabelledRun) -> Curve | None:
    """The detection curve of a score against the baseline's labels, uncertain ones left out.

    None where the baseline has no hallucinated or no valid image, or the run no score.
    """
    if run.scores is None:
        return None
    scores, bad = judged_scores(base, run)
    return detection_curve(scores, bad) if bad.any() and not bad.all() else None


def confusion_at_threshold(base: LabelledRun, run: LabelledRun) -> tuple[float, Confusion] | None:
    """(threshold that the method ran with, confusion matrix on the baseline's labels); None without a threshold."""
    threshold = run.options.get("threshold", run.options.get("eps"))
    if run.scores is None or not isinstance(threshold, int | float) or not 0 < threshold < math.inf:
        return None
    mine, theirs = common(base, run)
    return float(threshold), confusion(run.scores[theirs], base.labels[mine] == Label.HALLUCINATED, float(threshold))
