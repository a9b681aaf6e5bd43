"""How varied a set is: spread of its features, of its samples inside their modes, and the shares of its modes.

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


def mode_shares(kinds: NDArray[np.integer], num_kinds: int) -> NDArray[np.float64]:
    """The share [num_kinds] of each mode or class among the samples that have one (kind >= 0).

    Raises ValueError for kinds of `num_kinds` or more, or where no sample has a kind.
    """
    known = kinds[kinds >= 0]
    if not len(known) or known.max() >= num_kinds:
        raise ValueError(f"mode_shares: {len(known)} samples with a kind; pass kinds below {num_kinds}, -1 for none")
    return np.asarray(np.bincount(known, minlength=num_kinds) / len(known), dtype=np.float64)


def total_variation(p: NDArray[np.floating], q: NDArray[np.floating]) -> float:
    """Half the sum of |p - q| over the modes: the mass that has to move, 0 to 1. `p`, `q` [K] sum to 1.

    Raises ValueError for unequal lengths.
    """
    if p.shape != q.shape:
        raise ValueError(f"total_variation: shapes {list(p.shape)} and {list(q.shape)} differ; pass shares of one list")
    return float(np.abs(p - q).sum() / 2)


def spread_within(x: NDArray[np.floating], kinds: NDArray[np.integer]) -> float:
    """The root mean square distance of samples x [n, d] from the mean of their kind, per dimension.

    Pooled over kinds, each mean costing a degree of freedom; samples without a kind (-1) are left out, and kinds with
    one sample say nothing. nan where no kind has two. Divided by the same of real data, 1 is the true spread.
    """
    squares, freedom = 0.0, 0
    for kind in np.unique(kinds[kinds >= 0]):
        own = np.asarray(x[kinds == kind], dtype=np.float64)
        squares += float(((own - own.mean(axis=0)) ** 2).sum())
        freedom += len(own) - 1
    return float(np.sqrt(squares / (freedom * x.shape[1]))) if freedom else float("nan")
