"""Logistic regression of a few features on labels, with a ridge penalty."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

F64 = NDArray[np.float64]
MAX_ITERATIONS = 100


def fit_logistic(features: ArrayLike, bad: ArrayLike, *, ridge: ArrayLike = 1.0) -> tuple[float, F64]:
    """Bias and weights [K] of P(bad) = 1 / (1 + exp(-(bias + features . weights))), by Newton's method.

    `features` [N, K] are scores, `bad` [N] labels. Minimises the sum of -log P(label) plus ridge / 2 times the squared
    norm of the weights of the standardised features: a prior that each is worth about one, which also keeps separable
    labels finite. The bias is free. `ridge` is one number, or one for each feature [K]. Raises ValueError: shapes that
    do not match, values that are not finite, labels that are all the same, a constant feature, or a ridge that is not
    > 0.
    """
    X, y = np.asarray(features, dtype=np.float64), np.asarray(bad, dtype=bool)
    if X.ndim != 2 or y.shape != X.shape[:1] or not np.isfinite(X).all():
        raise ValueError(f"features: shape {X.shape} with labels {y.shape}; give finite [N, K] and [N]")
    if y.all() or not y.any():
        raise ValueError("bad: all labels are the same; give samples with either label")
    prior = np.asarray(ridge, dtype=np.float64)
    if prior.shape not in ((), X.shape[1:]) or not ((prior > 0) & (prior < np.inf)).all():
        raise ValueError(f"ridge: {ridge!r} is not the weight of a prior; give a finite number > 0, or one a feature")
    mean, spread = X.mean(axis=0), X.std(axis=0)
    if not (spread > 0).all():
        raise ValueError(f"features: column {int(np.argmin(spread))} is constant; leave it out")
    A = np.column_stack([np.ones(len(X)), (X - mean) / spread])  # [N, 1 + K]
    penalty = np.diag([0.0, *(prior * np.ones(X.shape[1]))])
    w = np.zeros(A.shape[1])
    for _ in range(MAX_ITERATIONS):
        p = 1 / (1 + np.exp(-(A @ w).clip(-500, 500)))
        gradient = A.T @ (p - y) + penalty @ w
        curvature = A.T @ (A * (p * (1 - p))[:, None]) + penalty
        step = np.linalg.solve(curvature, gradient)
        w = w - step * min(1.0, 4 / max(np.abs(step).max(), 1e-300))  # a step of at most 4 keeps p away from 0 and 1
        if np.abs(step).max() < 1e-10:
            break
    weights = w[1:] / spread
    return float(w[0] - weights @ mean), weights
