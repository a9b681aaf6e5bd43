"""How well a score tells bad pictures from good ones. In all of them, higher = more at risk.

Source: `spec/benchmark.md`, Protocol (detection).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

F64 = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Curve:
    """Rates at every threshold that changes anything, from the highest (nothing is flagged) to the lowest."""

    thresholds: F64  # [T], decreasing; the first is inf. A picture is flagged where its score is >= the threshold
    false_alarms: F64  # [T] share of the good pictures that are flagged
    recall: F64  # [T] share of the bad pictures that are flagged
    precision: F64  # [T] share of the flagged pictures that are bad; 1 where nothing is flagged


@dataclass(frozen=True)
class Confusion:
    """Pictures by what a threshold says of them (>= is at risk) and what they are."""

    risk_bad: int
    risk_good: int
    safe_bad: int
    safe_good: int


def auroc(scores: NDArray[np.floating], bad: NDArray[np.bool_]) -> float:
    """The probability that a bad picture scores above a good one, ties counted half: area under the ROC curve.

    `scores` [N], `bad` [N]. nan where one of the two kinds is absent. Raises ValueError for scores that are nan.
    """
    num_bad, num_good = _counts(scores, bad)
    if not num_bad or not num_good:
        return float("nan")
    ranks = stats.rankdata(scores)
    return float((ranks[bad].sum() - num_bad * (num_bad + 1) / 2) / (num_bad * num_good))


def detection_curve(scores: NDArray[np.floating], bad: NDArray[np.bool_]) -> Curve:
    """ROC and precision-recall of scores [N] against `bad` [N] at every distinct score.

    Raises ValueError for scores that are nan, and where one of the two kinds is absent.
    """
    num_bad, num_good = _counts(scores, bad)
    if not num_bad or not num_good:
        raise ValueError(f"detection_curve: {num_bad} bad and {num_good} good pictures; pass both kinds")
    order = np.argsort(-scores, kind="stable")
    ordered = np.asarray(scores, dtype=np.float64)[order]
    last = np.append(ordered[1:] != ordered[:-1], True)  # of the pictures with this score
    hits = np.cumsum(bad[order])[last]
    flagged = np.flatnonzero(last) + 1
    return Curve(
        thresholds=np.append(np.inf, ordered[last]),
        false_alarms=np.append(0.0, (flagged - hits) / num_good),
        recall=np.append(0.0, hits / num_bad),
        precision=np.append(1.0, hits / flagged),
    )


def average_precision(scores: NDArray[np.floating], bad: NDArray[np.bool_]) -> float:
    """The sum over thresholds of precision times the gain in recall; chance is the share of bad pictures.

    Arguments as `auroc`. nan where one of the two kinds is absent.
    """
    if not bad.any() or bad.all():
        return float("nan")
    curve = detection_curve(scores, bad)
    return float((np.diff(curve.recall) * curve.precision[1:]).sum())


def recall_at_false_alarms(scores: NDArray[np.floating], bad: NDArray[np.bool_], rate: float = 0.05) -> float:
    """The largest recall of a threshold that flags at most `rate` of the good pictures. nan as in `auroc`."""
    if not bad.any() or bad.all():
        return float("nan")
    curve = detection_curve(scores, bad)
    return float(curve.recall[curve.false_alarms <= rate].max())


def recall_at_retention(scores: NDArray[np.floating], bad: NDArray[np.bool_], kept: float = 0.96) -> float:
    """The share of the bad pictures among those dropped when the `kept` N with the lowest scores are kept.

    Ties at the border count by their share, so that the order of the pictures does not matter. A random filter has
    1 - kept. nan where nothing is bad. Raises ValueError for scores that are nan, or `kept` outside [0, 1].
    """
    if not 0 <= kept <= 1:
        raise ValueError(f"recall_at_retention: kept={kept} must lie between 0 and 1")
    num_bad, _ = _counts(scores, bad)
    if not num_bad:
        return float("nan")
    dropped = len(scores) - round(kept * len(scores))
    if not dropped:
        return 0.0
    border = np.sort(scores)[len(scores) - dropped]
    above, level = scores > border, scores == border
    share = (dropped - above.sum()) / level.sum()
    return float(((above & bad).sum() + share * (level & bad).sum()) / num_bad)


def confusion(scores: NDArray[np.floating], bad: NDArray[np.bool_], threshold: float) -> Confusion:
    """Counts of pictures at risk (score >= threshold) and not, bad and good. Raises ValueError for nan."""
    _counts(scores, bad)
    risk = scores >= threshold
    return Confusion(
        *(int(n) for n in ((risk & bad).sum(), (risk & ~bad).sum(), (~risk & bad).sum(), (~risk & ~bad).sum()))
    )


def _counts(scores: NDArray[np.floating], bad: NDArray[np.bool_]) -> tuple[int, int]:
    """How many pictures are bad and good."""
    if scores.shape != bad.shape or scores.ndim != 1:
        raise ValueError(f"scores: shapes {list(scores.shape)} and {list(bad.shape)}; pass one score and label each")
    if np.isnan(scores).any():
        raise ValueError("scores: some are nan; a detector must return numbers")
    return int(bad.sum()), int((~bad).sum())
