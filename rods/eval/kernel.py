"""The kernel distance (KID): unbiased MMD^2 between two sets of features.

Source: Binkowski et al. 2018 (arXiv 1801.01401), section 4.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
_ROWS = 1024  # of the kernel matrix at a time: 50,000 samples would need 20 GB at once


@dataclass(frozen=True)
class SubsetKid:
    """Mean and standard deviation of MMD^2 over random subsets, each of `size` samples from either set."""

    mean: float
    sd: float
    size: int
    subsets: int


def kid(x: NDArray[np.floating], y: NDArray[np.floating], *, within_y: float | None = None) -> float:
    """Unbiased MMD^2 of all samples x [n, d] and y [m, d] under the kernel (x.y / d + 1)^3; may be negative.

    `within_y` is `kernel_within(y)`, for those who compare many x with one y.
    Raises ValueError for shapes that do not fit, fewer than two samples, or values that are not finite.
    Cost: (n + m)^2 d multiplications; memory for 1024 rows of the kernel matrix.
    """
    x, y = _checked(x, y)
    within_y = kernel_within(y) if within_y is None else within_y
    return kernel_within(x) + within_y - 2 * _kernel_sum(x, y) / (len(x) * len(y))


def kernel_within(x: NDArray[np.floating]) -> float:
    """The mean kernel of two different samples of x [n, d]. Raises ValueError for what `kid` refuses."""
    a, _ = _checked(x, x)
    return (_kernel_sum(a, a) - _diagonal_sum(a)) / (len(a) * (len(a) - 1))


def subset_kid(
    x: NDArray[np.floating],
    y: NDArray[np.floating],
    *,
    subsets: int = 100,
    size: int = 1000,
    seed: int = 0,
) -> SubsetKid:
    """MMD^2 on random subsets without replacement, as KID is usually printed.

    `size` is lowered to half of the smaller set: subsets that are the set itself would all agree, with an s.d. of 0.
    Raises ValueError for what `kid` refuses, and for sets too small for subsets of two.
    """
    x, y = _checked(x, y)
    size = min(size, len(x) // 2, len(y) // 2)
    if subsets < 2 or size < 2:
        raise ValueError(f"subset_kid: {subsets} subsets of {size} samples; pass 2 or more, from 4 samples or more")
    rng = np.random.default_rng(seed)
    values = [
        kid(x[rng.choice(len(x), size, replace=False)], y[rng.choice(len(y), size, replace=False)])
        for _ in range(subsets)
    ]
    return SubsetKid(float(np.mean(values)), float(np.std(values, ddof=1)), size, subsets)


def kernel(x: F64, y: F64) -> F64:
    """(x.y / d + 1)^3 for every pair, [n, m]."""
    k: F64 = x @ y.T / x.shape[1] + 1
    return k * k * k  # numpy's ** 3 is ten times slower


def _checked(x: NDArray[np.floating], y: NDArray[np.floating]) -> tuple[F64, F64]:
    a, b = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or not a.shape[1]:
        raise ValueError(f"kid: shapes {list(a.shape)} and {list(b.shape)}; pass [n, d] and [m, d]")
    if min(len(a), len(b)) < 2:
        raise ValueError(f"kid: {len(a)} and {len(b)} samples; pass two or more of each")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("kid: some features are not finite")
    return a, b


def _kernel_sum(x: F64, y: F64) -> float:
    rows = range(0, len(x), _ROWS)
    return sum(float(kernel(x[i : i + _ROWS], y).sum()) for i in rows)


def _diagonal_sum(x: F64) -> float:
    return float(((np.einsum("nd,nd->n", x, x) / x.shape[1] + 1) ** 3).sum())
