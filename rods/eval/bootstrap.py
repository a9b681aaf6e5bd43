"""Percentile bootstrap over seeds (Efron 1979): how far a number moves when the seeds are drawn again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Estimate:
    """A number on all seeds, with the interval of its resamples."""

    value: float
    low: float
    high: float
    level: float


def bootstrap(
    statistic: Callable[[NDArray[np.intp]], float], n: int, *, resamples: int = 400, level: float = 0.95, seed: int = 0
) -> Estimate:
    """`statistic` of the indices 0..n-1, and the `level` interval of its values on resampled indices [n].

    The statistic looks up what it needs by the indices, so that paired arrays stay paired. Resamples on which it is
    nan (no hallucinated image among them) are left out; with none left the interval is nan.
    Raises ValueError for n < 1, fewer than two resamples, or a level outside (0, 1).
    Cost: `resamples` + 1 calls.
    """
    if n < 1 or resamples < 2 or not 0 < level < 1:
        raise ValueError(f"bootstrap: n={n}, resamples={resamples}, level={level}; pass n >= 1, 2 or more, and .95")
    rng = np.random.default_rng(seed)
    values = np.array([statistic(rng.integers(n, size=n)) for _ in range(resamples)])
    values = values[~np.isnan(values)]
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2]) if len(values) else (np.nan, np.nan)
    return Estimate(float(statistic(np.arange(n))), float(low), float(high), level)
