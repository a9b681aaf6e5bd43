"""The Fréchet distance between two Gaussians, from their means and covariances.

Source: Heusel et al. 2017 (arXiv 1706.08500), equation 6.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
_EPS = float(np.finfo(np.float64).eps)


def frechet_distance(
    mean1: NDArray[np.floating], cov1: NDArray[np.floating], mean2: NDArray[np.floating], cov2: NDArray[np.floating]
) -> float:
    """||m1 - m2||^2 + tr C1 + tr C2 - 2 tr (C1 C2)^(1/2), by symmetric eigenvalues in float64.

    With C1 = A1 A1^T and C2 = A2 A2^T the eigenvalues of C1 C2 are the squared singular values of A1^T A2, so the last
    trace is their sum and no root of a small rounded number is taken. A needs no columns for the eigenvalues that are
    0: covariances of fewer samples than dimensions lose no digits, where a general matrix square root leaves the real
    numbers. A total below 0 is rounding, and is 0.

    Args:
        mean1: [d].
        cov1: [d, d], symmetric and positive semi-definite.
        mean2: [d].
        cov2: as cov1.
    Raises:
        ValueError: shapes that do not fit, values that are not finite, or a matrix that is not a covariance.
    Cost: two symmetric eigendecompositions and the singular values of one matrix, of d x d or smaller.
    """
    m1, C1 = _moments(mean1, cov1, "1")
    m2, C2 = _moments(mean2, cov2, "2")
    if m1.shape != m2.shape:
        raise ValueError(
            f"frechet_distance: features of {len(m1)} and {len(m2)} dimensions; use one extractor for both"
        )
    A1, A2 = covariance_factor(C1, "cov1"), covariance_factor(C2, "cov2")
    root_trace = float(np.linalg.svd(A1.T @ A2, compute_uv=False).sum())  # of [r1, r2]
    difference = m1 - m2
    return max(0.0, float(difference @ difference + np.trace(C1) + np.trace(C2)) - 2 * root_trace)


def _moments(mean: NDArray[np.floating], cov: NDArray[np.floating], which: str) -> tuple[F64, F64]:
    m, C = np.asarray(mean, dtype=np.float64), np.asarray(cov, dtype=np.float64)
    if m.ndim != 1 or C.shape != (len(m), len(m)) or not len(m):
        raise ValueError(
            f"frechet_distance: mean{which} is {list(m.shape)} and cov{which} {list(C.shape)}; pass [d] and [d, d]"
        )
    if not (np.isfinite(m).all() and np.isfinite(C).all()):
        raise ValueError(f"frechet_distance: mean{which} or cov{which} has values that are not finite")
    if np.abs(C - C.T).max() > 1e-6 * np.abs(C).max():
        raise ValueError(f"frechet_distance: cov{which} is not symmetric, so it is not a covariance")
    return m, (C + C.T) / 2


def covariance_factor(C: F64, name: str) -> F64:
    """A [d, r] with A A^T = C, r the number of eigenvalues that are not 0 but for rounding."""
    eigenvalues, Q = np.linalg.eigh(C)
    largest = float(np.abs(eigenvalues).max())
    if eigenvalues.min() < -1e-5 * largest:
        raise ValueError(
            f"frechet_distance: {name} has the eigenvalue {eigenvalues.min():.3g}, so it is not a covariance"
        )
    kept = eigenvalues > len(C) * _EPS * largest
    return np.asarray(Q[:, kept] * np.sqrt(eigenvalues[kept]))
