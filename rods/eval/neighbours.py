"""Precision, recall and coverage of generated features, by balls around each sample that reach its k-th neighbour.

Sources: precision and recall, Kynkaanniemi et al. 2019 (arXiv 1904.06991), equations 1 and 2, k = 3; coverage, Naeem
et al. 2020 (arXiv 2002.09797), equation 7, k = 5.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
K_PRECISION, K_COVERAGE = 3, 5
_ROWS = 1024  # of a matrix of distances at a time


def precision(x: NDArray[np.floating], y: NDArray[np.floating], *, k: int = K_PRECISION) -> float:
    """The share of generated x [n, d] that lie in the ball of some real y [m, d].

    A sample's ball reaches its k-th nearest neighbour in its own set, itself not counted.
    Raises ValueError for shapes that do not fit, fewer than k + 1 real samples, or values that are not finite.
    Cost: (m + n) m d multiplications; memory for 1024 rows of distances.
    """
    return float(inside(x, y, k=k).mean())


def recall(x: NDArray[np.floating], y: NDArray[np.floating], *, k: int = K_PRECISION) -> float:
    """The share of real y [m, d] that lie in the ball of some generated x [n, d]: `precision` with sides changed."""
    return precision(y, x, k=k)


def coverage(x: NDArray[np.floating], y: NDArray[np.floating], *, k: int = K_COVERAGE) -> float:
    """The share of real y [m, d] whose own ball holds a generated x [n, d]. Raises ValueError as `precision` does."""
    a, b = _checked(x, y, k)
    reach = _reach(b, k)  # [m], squared
    nearest = np.concatenate([_squares(b[i : i + _ROWS], a).min(axis=1) for i in range(0, len(b), _ROWS)])
    return float((nearest <= reach).mean())


def inside(x: NDArray[np.floating], y: NDArray[np.floating], *, k: int = K_PRECISION) -> NDArray[np.bool_]:
    """Which x [n] lie in the ball of some y: the terms of `precision`, whose errors it raises."""
    a, b = _checked(x, y, k)
    reach = _reach(b, k)
    return np.concatenate([(_squares(a[i : i + _ROWS], b) <= reach).any(axis=1) for i in range(0, len(a), _ROWS)])


def _checked(x: NDArray[np.floating], y: NDArray[np.floating], k: int) -> tuple[F64, F64]:
    a, b = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or not len(a):
        raise ValueError(f"neighbours: shapes {list(a.shape)} and {list(b.shape)}; pass [n, d] and [m, d]")
    if not 1 <= k < len(b):
        raise ValueError(f"neighbours: k={k} of {len(b)} samples; a ball needs more than k of them, and k of 1 or more")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("neighbours: some features are not finite")
    return a, b


def _reach(y: F64, k: int) -> F64:
    """Squared distance of each y [m, d] to its k-th neighbour among the others, [m]."""
    found = []
    for i in range(0, len(y), _ROWS):
        D = _squares(y[i : i + _ROWS], y)
        D[np.arange(len(D)), np.arange(i, i + len(D))] = np.inf  # a sample is not a neighbour of itself
        found.append(np.partition(D, k - 1, axis=1)[:, k - 1])
    return np.concatenate(found)


def _squares(x: F64, y: F64) -> F64:
    """Squared distances [n, m]."""
    D: F64 = (x**2).sum(axis=1)[:, None] + (y**2).sum(axis=1) - 2 * (x @ y.T)
    return D.clip(min=0)
