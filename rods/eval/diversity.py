"""Diversity of a set: variance of its features, spread of its samples within their modes, and the modes' shares."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def inception_var(cov: NDArray[np.floating]) -> float:
    """tr C / d of an unbiased feature covariance [d, d]: the mean variance of a feature.

    Raises ValueError for a matrix that is not square.
    """
    if cov.ndim != 2 or cov.shape[0] != cov.shape[1] or not len(cov):
        raise ValueError(f"inception_var: cov has shape {list(cov.shape)}; pass a covariance [d, d]")
    return float(np.trace(cov)) / len(cov)


def cosine_diversity(features: NDArray[np.floating]) -> float:
    """Mean of 1 - cosine over all pairs of features [n, d], from 0 (all parallel) to n/(n-1).

    Computed as n/(n-1) (1 - ||mean of unit features||^2), in O(n d). With DreamSim's embeddings this
    is the DreamSim diversity of the RODS paper.
    Raises ValueError for fewer than two features, or one without a direction (all zero, or not finite).
    """
    f = np.asarray(features, dtype=np.float64)
    if f.ndim != 2 or len(f) < 2:
        raise ValueError(f"cosine_diversity: features have shape {list(f.shape)}; pass [n, d] with n of two or more")
    norms = np.linalg.norm(f, axis=1, keepdims=True)  # [n, 1]
    if bad := int((~(np.isfinite(norms) & (norms > 0))).sum()):
        raise ValueError(f"cosine_diversity: {bad} of {len(f)} features are zero or not finite, and have no direction")
    mean = (f / norms).mean(axis=0)  # [d]
    return max(0.0, len(f) / (len(f) - 1) * (1 - float(mean @ mean)))


def mode_shares(modes: NDArray[np.integer], num_modes: int) -> NDArray[np.float64]:
    """The share [num_modes] of each mode or class among the samples that have one (`modes` [N] >= 0).

    Raises ValueError for modes of `num_modes` or more, or where no sample has a mode.
    """
    known = modes[modes >= 0]
    if not len(known) or known.max() >= num_modes:
        raise ValueError(f"mode_shares: {len(known)} samples with a mode; pass modes below {num_modes}, -1 for none")
    return np.asarray(np.bincount(known, minlength=num_modes) / len(known), dtype=np.float64)


def total_variation(p: NDArray[np.floating], q: NDArray[np.floating]) -> float:
    """Total variation distance, half the sum of |p - q|, 0 to 1. `p`, `q` [K] sum to 1.

    Raises ValueError for unequal lengths.
    """
    if p.shape != q.shape:
        raise ValueError(
            f"total_variation: shapes {list(p.shape)} and {list(q.shape)} differ; pass shares of the same modes"
        )
    return float(np.abs(p - q).sum() / 2)


def spread_within(x: NDArray[np.floating], modes: NDArray[np.integer]) -> float:
    """The pooled standard deviation of samples x [n, d] within their modes [n], per dimension.

    Each mode's mean costs a degree of freedom. Samples without a mode (-1) are left out. nan where no mode
    has two samples. The ratio to the same of real data is 1 for the true spread.
    """
    squares, freedom = 0.0, 0
    for mode in np.unique(modes[modes >= 0]):
        own = np.asarray(x[modes == mode], dtype=np.float64)
        squares += float(((own - own.mean(axis=0)) ** 2).sum())
        freedom += len(own) - 1
    return float(np.sqrt(squares / (freedom * x.shape[1]))) if freedom else float("nan")
