"""Logistic regression of scores: the gradient vanishes, known cases, what it refuses."""

from __future__ import annotations

import numpy as np
import pytest

from rods.eval.logistic import fit_logistic


def data(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    X = rng.normal([3, -50, 0.01], [1, 20, 0.001], (n, 3))
    logit = 0.5 + 2 * (X[:, 0] - 3) - 0.05 * (X[:, 1] + 50)
    return X, rng.random(n) < 1 / (1 + np.exp(-logit))


@pytest.mark.parametrize("ridge", [1e-3, 1.0, 100.0, np.array([1e-3, 10.0, 1.0])], ids=str)
def test_the_gradient_vanishes(ridge: float | np.ndarray) -> None:
    X, y = data(200)
    bias, weights = fit_logistic(X, y, ridge=ridge)
    error = 1 / (1 + np.exp(-(bias + X @ weights))) - y
    assert abs(error.sum()) < 1e-7
    Z = (X - X.mean(axis=0)) / X.std(axis=0)
    assert np.abs(Z.T @ error + ridge * weights * X.std(axis=0)).max() < 1e-7


def test_many_samples_give_the_weights_back() -> None:
    bias, weights = fit_logistic(*data(40_000), ridge=1e-6)
    assert weights[:2] == pytest.approx([2, -0.05], rel=0.05)
    assert abs(weights[2]) * 0.001 < 0.05
    assert bias + weights @ [3, -50, 0.01] == pytest.approx(0.5, abs=0.05)


def test_scaling_a_score_scales_its_weight() -> None:
    X, y = data(100)
    bias, weights = fit_logistic(X, y)
    again, scaled = fit_logistic(X * [1, 10, 1] + [0, 5, 0], y)
    assert scaled == pytest.approx(weights / [1, 10, 1], rel=1e-6)
    assert again == pytest.approx(bias - 5 * scaled[1], rel=1e-6)


def test_separable_labels_stay_finite() -> None:
    bias, weights = fit_logistic([[0.0], [1.0], [2.0], [3.0]], [0, 0, 1, 1])
    assert 0 < weights[0] < 10
    assert bias == pytest.approx(-1.5 * weights[0])


@pytest.mark.parametrize(
    ("X", "y", "ridge", "says"),
    [
        ([1.0, 2.0], [0, 1], 1.0, "features: shape"),
        ([[1.0], [2.0]], [0, 1, 1], 1.0, "features: shape"),
        ([[1.0], [np.nan]], [0, 1], 1.0, "give finite"),
        ([[1.0], [2.0]], [1, 1], 1.0, "bad: all labels are the same"),
        ([[1.0], [1.0]], [0, 1], 1.0, "features: column 0 is constant"),
        ([[1.0], [2.0]], [0, 1], 0.0, "ridge: 0.0 is not the weight"),
        ([[1.0], [2.0]], [0, 1], [1.0, 1.0], "or one a feature"),
    ],
)
def test_what_cannot_be_fitted(X: object, y: object, ridge: float, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        fit_logistic(X, y, ridge=ridge)
