"""How far the pictures of one set are from each other: no reference, no labels.

Source: `spec/benchmark.md`, Metrics by name.
"""

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

    The pairs need no visit: it is n/(n-1) (1 - ||mean of unit features||^2), O(n d). With DreamSim's embeddings this
    is the DreamSim diversity of the RODS paper.
    Raises ValueError for fewer than two features, or one without a direction (all zero, or not finite).
    """
    f = np.asarray(features, dtype=np.float64)
    if f.ndim != 2 or len(f) < 2:
        raise ValueError(f"cosine_diversity: features have shape {list(f.shape)}; pass [n, d] with n of two or more")
    norms = np.linalg.norm(f, axis=1, keepdims=True)  # [n, 1]
    if not (np.isfinite(norms).all() and (norms > 0).all()):
        raise ValueError("cosine_diversity: a feature is zero or not finite, and has no direction")
    mean = (f / norms).mean(axis=0)  # [d]
    return max(0.0, len(f) / (len(f) - 1) * (1 - float(mean @ mean)))
