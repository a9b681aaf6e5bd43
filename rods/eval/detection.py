"""How well a score separates hallucinated from valid images: ROC, precision-recall, retention.

A positive is a hallucinated image, and a higher score says hallucinated.
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

    thresholds: F64  # [T], decreasing; the first is inf. An image is flagged where its score is >= the threshold
    false_alarms: F64  # [T] share of the valid images that are flagged
    recall: F64  # [T] share of the hallucinated images that are flagged
    precision: F64  # [T] share of the flagged images that are hallucinated; 1 where nothing is flagged


@dataclass(frozen=True)
class Confusion:
    """Counts of images: positive is hallucinated, and flagged where the score is >= the threshold."""

    tp: int
    fp: int
    fn: int
    tn: int


def auroc(scores: NDArray[np.floating], positive: NDArray[np.bool_]) -> float:
    """The probability that a hallucinated image scores above a valid one, ties counted half: area under the ROC curve.

    From the ranks, as the Mann-Whitney U statistic. `scores` [N], `positive` [N]. nan where all labels are the same.
    Raises ValueError for scores that are nan.
    """
    num_positive, num_negative = _counts(scores, positive)
    if not num_positive or not num_negative:
        return float("nan")
    ranks = stats.rankdata(scores)
    return float((ranks[positive].sum() - num_positive * (num_positive + 1) / 2) / (num_positive * num_negative))


def detection_curve(scores: NDArray[np.floating], positive: NDArray[np.bool_]) -> Curve:
    """ROC and precision-recall of scores [N] against `positive` [N] at every distinct score.

    Raises ValueError for scores that are nan, and where all labels are the same.
    """
    num_positive, num_negative = _counts(scores, positive)
    if not num_positive or not num_negative:
        raise ValueError(
            f"detection_curve: {num_positive} hallucinated and {num_negative} valid images; pass some of each"
        )
    order = np.argsort(-scores, kind="stable")
    ordered = np.asarray(scores, dtype=np.float64)[order]
    last = np.append(ordered[1:] != ordered[:-1], True)  # of the images with this score
    hits = np.cumsum(positive[order])[last]
    flagged = np.flatnonzero(last) + 1
    return Curve(
        thresholds=np.append(np.inf, ordered[last]),
        false_alarms=np.append(0.0, (flagged - hits) / num_negative),
        recall=np.append(0.0, hits / num_positive),
        precision=np.append(1.0, hits / flagged),
    )


def average_precision(scores: NDArray[np.floating], positive: NDArray[np.bool_]) -> float:
    """The sum over thresholds of precision times the gain in recall; chance is the share of hallucinated images.

    Arguments as `auroc`. nan where all labels are the same.
    """
    if not positive.any() or positive.all():
        return float("nan")
    curve = detection_curve(scores, positive)
    return float((np.diff(curve.recall) * curve.precision[1:]).sum())


def recall_at_false_alarms(scores: NDArray[np.floating], positive: NDArray[np.bool_], rate: float = 0.05) -> float:
    """The largest recall of a threshold that flags at most `rate` of the valid images. nan as in `auroc`."""
    if not positive.any() or positive.all():
        return float("nan")
    curve = detection_curve(scores, positive)
    return float(curve.recall[curve.false_alarms <= rate].max())


def recall_at_retention(scores: NDArray[np.floating], positive: NDArray[np.bool_], kept: float = 0.96) -> float:
    """The share of the hallucinated images that are dropped when the `kept` N images with the lowest scores are kept.

    Ties at the border count by their share, so that the order of the images does not matter. A random filter has
    1 - kept. nan where no image is hallucinated. Raises ValueError for scores that are nan, or `kept` outside [0, 1].
    """
    if not 0 <= kept <= 1:
        raise ValueError(f"recall_at_retention: kept={kept} must lie between 0 and 1")
    num_positive, _ = _counts(scores, positive)
    if not num_positive:
        return float("nan")
    dropped = len(scores) - round(kept * len(scores))
    if not dropped:
        return 0.0
    border = np.sort(scores)[len(scores) - dropped]
    above, level = scores > border, scores == border
    share = (dropped - above.sum()) / level.sum()
    return float(((above & positive).sum() + share * (level & positive).sum()) / num_positive)


def confusion(scores: NDArray[np.floating], positive: NDArray[np.bool_], threshold: float) -> Confusion:
    """How a threshold splits the images. Raises ValueError for scores that are nan."""
    _counts(scores, positive)
    flagged = scores >= threshold
    counts = (flagged & positive, flagged & ~positive, ~flagged & positive, ~flagged & ~positive)
    return Confusion(*(int(c.sum()) for c in counts))


def _counts(scores: NDArray[np.floating], positive: NDArray[np.bool_]) -> tuple[int, int]:
    """How many images are hallucinated, and how many valid."""
    if scores.shape != positive.shape or scores.ndim != 1:
        raise ValueError(f"scores: shapes {scores.shape} and {positive.shape}; pass one score and one label per image")
    if np.isnan(scores).any():
        raise ValueError("scores: some are nan; a detector must return numbers")
    return int(positive.sum()), int((~positive).sum())
