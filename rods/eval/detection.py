"""How well a score tells bad pictures from good ones."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import stats


def auroc(scores: NDArray[np.floating], bad: NDArray[np.bool_]) -> float:
    """The probability that a bad picture scores above a good one, ties counted half: area under the ROC curve.

    `scores` [N], `bad` [N]. nan where one of the two kinds is absent. Raises ValueError for scores that are nan.
    """
    if np.isnan(scores).any():
        raise ValueError("scores: some are nan; a detector must return numbers")
    num_bad, num_good = int(bad.sum()), int((~bad).sum())
    if not num_bad or not num_good:
        return float("nan")
    ranks = stats.rankdata(scores)
    return float((ranks[bad].sum() - num_bad * (num_bad + 1) / 2) / (num_bad * num_good))
