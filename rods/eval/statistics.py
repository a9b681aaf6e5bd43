"""Mean and covariance of features that arrive in batches, in float64."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
_ROWS = 1024


class FeatureStatistics:
    """Count, mean [d] and scatter [d, d] of the features seen so far.

    The scatter is taken about the running mean (Chan, Golub and LeVeque 1983), so that features with a large mean and
    a small spread keep their digits, which they lose in sums of squares.
    """

    def __init__(self, dim: int) -> None:
        self.n = 0
        self.mean: F64 = np.zeros(dim)
        self._scatter: F64 = np.zeros((dim, dim))

    def add(self, features: NDArray[np.floating]) -> None:
        """Takes in features [b, d]. Raises ValueError for another d, or values that are not finite."""
        if features.ndim != 2 or features.shape[1] != len(self.mean):
            raise ValueError(f"features have shape {list(features.shape)}; pass [b, {len(self.mean)}]")
        if not np.isfinite(features).all():
            raise ValueError("features: some are not finite; they have no mean")
        if not len(features):
            return
        batch = FeatureStatistics(len(self.mean))
        f = features.astype(np.float64)
        batch.n, batch.mean = len(f), f.mean(axis=0)
        batch._scatter = (f - batch.mean).T @ (f - batch.mean)
        self.merge(batch)

    def merge(self, other: FeatureStatistics) -> None:
        """Takes in what `other` has seen. Raises ValueError for another d."""
        if len(other.mean) != len(self.mean):
            raise ValueError(f"statistics of {len(self.mean)} and {len(other.mean)} dimensions cannot be merged")
        if not other.n:
            return
        n = self.n + other.n
        shift = other.mean - self.mean
        self._scatter += other._scatter + np.outer(shift, shift) * (self.n * other.n / n)
        self.mean = self.mean + shift * (other.n / n)
        self.n = n

    @property
    def cov(self) -> F64:
        """The unbiased covariance [d, d]. Raises ValueError for fewer than two features."""
        if self.n < 2:
            raise ValueError(f"a covariance of {self.n} images; pass two or more")
        return self._scatter / (self.n - 1)


def feature_statistics(features: NDArray[np.floating]) -> FeatureStatistics:
    """The statistics of features [n, d], taken in by 1024: the same for every way in which they were made."""
    statistics = FeatureStatistics(features.shape[1])
    for start in range(0, len(features), _ROWS):
        statistics.add(features[start : start + _ROWS])
    return statistics
