"""The difference of each metric between two sets of images of the same seeds, with bootstrap intervals.

A resample draws pairs with replacement, so a seed enters both sides or neither, and what they share cancels.
Resamples hold some images several times: sums over pairs of images leave an image's pair with itself out.
Source: Efron and Tibshirani 1993, chapters 8 and 13.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from rods.eval.extraction import FeatureSet
from rods.eval.features import Extractor
from rods.eval.frechet import covariance_factor
from rods.eval.kernel import kernel
from rods.eval.metrics import Result, measure
from rods.eval.neighbours import inside
from rods.eval.reference import Reference

F64 = NDArray[np.float64]
_ROWS = 1024  # of a kernel matrix at a time
NO_INTERVAL = ("recall", "coverage")
"""Resamples hold some images twice, whose balls shrink, and miss others, so that these shares would be biased."""


@dataclass(frozen=True)
class Difference:
    """b - a for one metric, with a confidence interval [low, high] over the choice of seeds."""

    metric: str
    label: str
    a: float | None  # None where the images have no such value, see `undefined`
    b: float | None
    difference: float | None
    low: float | None
    high: float | None
    n: int
    n_ref: int | None
    resamples: int
    level: float
    undefined: str | None = None  # why there is no difference

    def describe(self) -> str:
        """One line: name, both values, their difference and its interval, n."""
        if self.undefined is not None:
            return f"{self.label:<26} not defined for these images: {self.undefined}"
        against = f" against {self.n_ref}" if self.n_ref else ""
        return (
            f"{self.label:<26} {self.a:<11.5g} {self.b:<11.5g} {self.difference:+.5g} "
            f"({self.low:+.4g} to {self.high:+.4g})  n = {self.n} pairs{against}"
        )


def paired_differences(
    names: Sequence[str],
    a: FeatureSet,
    b: FeatureSet,
    extractors: Sequence[Extractor],
    reference: Reference | None,
    *,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> list[Difference]:
    """b - a for every metric of `measure`; row i of both sets is the same seed. The reference is held fixed.

    The interval is that of the resampled differences, moved so that their mean is the difference itself: resampling
    makes both sets look less varied, and a difference in how much must not count as an effect.
    Raises ValueError for sets of unequal size, fewer than 2 resamples, or a metric of NO_INTERVAL.
    Cost of fid: one symmetric eigendecomposition of min(n, d) a resample and side.
    """
    if a.n != b.n or resamples < 2:
        raise ValueError(
            f"paired_differences: {a.n} and {b.n} images, {resamples} resamples; pass pairs, and 2 or more"
        )
    if refused := [name for name in names if name in NO_INTERVAL]:
        raise ValueError(f"paired_differences: {refused[0]} has no interval by resampling; measure it on each side")
    W = np.random.default_rng(seed).multinomial(a.n, np.full(a.n, 1 / a.n), size=resamples).astype(np.float64)  # [R, n]
    W = W[(W > 0).sum(axis=1) > 1]  # one image, drawn n times, has no spread and no pairs
    found = []
    for one, two in zip(
        measure(names, a, extractors, reference), measure(names, b, extractors, reference), strict=True
    ):
        if one.value is None or two.value is None:
            why = one.undefined or two.undefined
            found.append(
                Difference(
                    one.metric, one.label, one.value, two.value, None, None, None, a.n, one.n_ref, resamples, level, why
                )
            )
            continue
        which = 1 if one.metric == "dreamsim" else 0
        x, y = (s.features[which].astype(np.float64) for s in (a, b))
        spread = _resampled(one, y, W, reference) - _resampled(one, x, W, reference)  # [R]
        difference = two.value - one.value
        tail = (1 - level) / 2
        low, high = (float(q) for q in np.quantile(spread - spread.mean(), [tail, 1 - tail]) + difference)
        found.append(
            Difference(
                one.metric, one.label, one.value, two.value, difference, low, high, a.n, one.n_ref, resamples, level
            )
        )
    return found


def _resampled(result: Result, x: F64, W: F64, reference: Reference | None) -> F64:
    """A metric of every resample [R], up to what does not depend on x."""
    if result.metric == "fid":
        assert reference is not None
        return _frechet(x, W, reference)
    if result.metric == "kid":
        assert reference is not None
        assert reference.features is not None
        return _kernel(x, W, reference.features.astype(np.float64))
    if result.metric == "precision":  # an image is near the reference or not, whatever else is drawn
        assert reference is not None
        assert reference.features is not None
        assert result.k is not None
        return np.asarray(W @ inside(x, reference.features, k=result.k) / len(x))
    if result.metric == "inception-var":
        x = x - x.mean(axis=0)
        return np.asarray((len(x) * (W @ (x**2).sum(axis=1)) - ((W @ x) ** 2).sum(axis=1)) / _pairs(W) / x.shape[1])
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    return np.asarray(1 - (((W @ unit) ** 2).sum(axis=1) - (W**2).sum(axis=1)) / _pairs(W))


def _pairs(W: F64) -> F64:
    """How many ordered pairs of different images a resample has: n^2 - sum w^2, [R]."""
    return np.asarray(W.shape[1] ** 2 - (W**2).sum(axis=1))


def _frechet(x: F64, W: F64, reference: Reference) -> F64:
    """||m - mu||^2 + tr C - 2 tr (C sigma)^(1/2) of every resample [R].

    With sigma = A A^T the last trace is that of the root of A^T C A, in which only P = A^T x^T enters.
    """
    n = len(x)
    P = x @ covariance_factor(reference.sigma, "sigma")  # [n, r]
    square = (x**2).sum(axis=1)
    values = np.empty(len(W))
    for i, w in enumerate(tqdm(W, unit="resample", leave=False, disable=None)):
        mean = w @ x / n
        kept = w > 0
        Y = np.sqrt(w[kept, None]) * (P[kept] - w @ P / n)  # [k, r], Y^T Y = (n - 1) A^T C A
        gram = Y @ Y.T if len(Y) <= Y.shape[1] else Y.T @ Y
        root = np.sqrt(np.linalg.eigvalsh(gram).clip(min=0) / (n - 1)).sum()
        trace = (w @ square - n * (mean @ mean)) / (n - 1)
        values[i] = ((mean - reference.mu) ** 2).sum() + trace - 2 * root
    return values


def _kernel(x: F64, W: F64, y: F64) -> F64:
    """The terms of MMD^2 that hold x, of every resample [R]: mean of k(x, x') over pairs - 2 mean of k(x, y)."""
    n = len(x)
    within, across = np.zeros(len(W)), np.zeros(n)
    for start in range(0, n, _ROWS):
        rows = slice(start, start + _ROWS)
        K = kernel(x[rows], x)  # [rows, n]
        K[np.arange(len(K)), np.arange(n)[rows]] = 0  # an image with itself
        within += (W[:, rows] * (W @ K.T)).sum(axis=1)
        for begin in range(0, len(y), 4 * _ROWS):
            across[rows] += kernel(x[rows], y[begin : begin + 4 * _ROWS]).sum(axis=1)
    return np.asarray(within / _pairs(W) - 2 * (W @ across) / (n * len(y)))
