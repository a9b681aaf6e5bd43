"""Fréchet distance, kernel distance, diversity and streamed statistics, against closed forms and reference values."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from vectors import vector_file

from rods.eval.diversity import cosine_diversity, inception_var
from rods.eval.frechet import frechet_distance
from rods.eval.kernel import kernel_within, kid, subset_kid
from rods.eval.statistics import FeatureStatistics

F64 = NDArray[np.float64]
Moments = tuple[F64, F64]


def moments(features: F64) -> Moments:
    return features.mean(axis=0), np.cov(features, rowvar=False)


def random_features(seed: int, n: int, d: int) -> F64:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) + rng.normal(size=d)


def vectors() -> dict[str, F64]:
    with np.load(vector_file("fid/features.npz"), allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


# -- reference values -------------------------------------------------------------------------------------------------


def test_reference_values() -> None:
    v = vectors()
    m1, m2, m3 = (moments(v[f]) for f in ("f1", "f2", "f3"))
    assert np.linalg.matrix_rank(m3[1]) < len(m3[0])  # the singular case
    assert frechet_distance(*m1, *m2) == pytest.approx(float(v["fid_12"]), rel=1e-6)
    assert frechet_distance(*m1, *m3) == pytest.approx(float(v["fid_13"]), rel=1e-6)
    assert frechet_distance(*m3, *m1) == pytest.approx(float(v["fid_13"]), rel=1e-6)
    assert frechet_distance(*m1, *m1) == pytest.approx(float(v["fid_11"]), abs=1e-6)
    assert kid(v["f1"], v["f2"]) == pytest.approx(float(v["kid_12"]), rel=1e-6)
    assert inception_var(m1[1]) == pytest.approx(float(v["trace_var_1"]), rel=1e-6)


# -- Fréchet: closed forms --------------------------------------------------------------------------------------------


def test_gaussians_with_common_axes() -> None:
    """||m1 - m2||^2 + sum (s1 - s2)^2 where both covariances are diagonal in one basis."""
    rng = np.random.default_rng(0)
    Q = np.linalg.qr(rng.normal(size=(12, 12)))[0]
    s1, s2, m1, m2 = rng.uniform(0, 2, (4, 12))
    expected = ((m1 - m2) ** 2).sum() + ((s1 - s2) ** 2).sum()
    assert frechet_distance(m1, Q * s1**2 @ Q.T, m2, Q * s2**2 @ Q.T) == pytest.approx(expected, rel=1e-9)


def test_rank_one_covariances() -> None:
    """tr (a a^T b b^T)^(1/2) = |a.b|."""
    a, b = np.random.default_rng(1).normal(size=(2, 40))
    zero = np.zeros(40)
    expected = a @ a + b @ b - 2 * abs(a @ b)
    assert frechet_distance(zero, np.outer(a, a), zero, np.outer(b, b)) == pytest.approx(expected, rel=1e-9)


def test_one_dimension_and_no_spread() -> None:
    assert frechet_distance(np.array([1.0]), np.array([[4.0]]), np.array([3.0]), np.array([[9.0]])) == pytest.approx(5)
    nothing = np.zeros((3, 3))
    assert frechet_distance(np.zeros(3), nothing, np.ones(3), nothing) == 3
    assert frechet_distance(np.zeros(3), nothing, np.ones(3), np.eye(3)) == pytest.approx(6)


@pytest.mark.parametrize("smallest", [1e-4, 1e-8, 1e-12, 1e-16, 0.0])
def test_near_singular_covariances(smallest: float) -> None:
    rng = np.random.default_rng(2)
    Q = np.linalg.qr(rng.normal(size=(30, 30)))[0]
    s1, s2 = np.geomspace(1, max(smallest, 1e-20), 30) ** 0.5, np.full(30, 0.5)
    zero, expected = np.zeros(30), ((s1 - s2) ** 2).sum()
    assert frechet_distance(zero, Q * s1**2 @ Q.T, zero, Q * s2**2 @ Q.T) == pytest.approx(expected, rel=1e-6)


def test_fewer_samples_than_dimensions_are_at_no_distance_from_themselves() -> None:
    m = moments(random_features(3, 20, 200))
    assert frechet_distance(*m, *m) < 1e-9 * np.trace(m[1])


# -- Fréchet: laws ----------------------------------------------------------------------------------------------------

SEEDS = st.integers(0, 2**32 - 1)
SIZES = st.tuples(st.integers(2, 12), st.integers(2, 12), st.integers(1, 6))  # samples, samples, dimensions


def pair(seed: int, sizes: tuple[int, int, int]) -> tuple[Moments, Moments]:
    n1, n2, d = sizes
    (m1, C1), (m2, C2) = moments(random_features(seed, n1, d)), moments(random_features(seed + 1, n2, d))
    return (m1, C1.reshape(d, d)), (m2, C2.reshape(d, d))


@given(SEEDS, SIZES)
@settings(deadline=None, max_examples=50)
def test_distance_laws(seed: int, sizes: tuple[int, int, int]) -> None:
    (m1, C1), (m2, C2) = pair(seed, sizes)
    size = float(m1 @ m1 + m2 @ m2 + np.trace(C1) + np.trace(C2)) + 1
    d12 = frechet_distance(m1, C1, m2, C2)
    assert d12 >= 0
    assert frechet_distance(m1, C1, m1, C1) <= 1e-7 * size  # zero on itself
    assert frechet_distance(m2, C2, m1, C1) == pytest.approx(d12, abs=1e-7 * size)  # symmetry
    assert frechet_distance(m1 + 1, C1, m2 + 1, C2) == pytest.approx(d12, abs=1e-7 * size)  # both moved
    moved = frechet_distance(m1 + 1, C1, m1, C1)
    assert moved == pytest.approx(len(m1), abs=1e-7 * size)  # one moved by t: ||t||^2
    assert frechet_distance(3 * m1, 9 * C1, 3 * m2, 9 * C2) == pytest.approx(9 * d12, abs=1e-6 * size)  # scale


@pytest.mark.parametrize(
    ("mean", "cov", "says"),
    [
        (np.zeros(3), np.eye(2), r"mean1 is \[3\] and cov1 \[2, 2\]; pass \[d\] and \[d, d\]"),
        (np.zeros((1, 2)), np.eye(2), r"pass \[d\] and \[d, d\]"),
        (np.zeros(0), np.zeros((0, 0)), r"pass \[d\] and \[d, d\]"),
        (np.zeros(3), np.eye(3), "features of 3 and 2 dimensions; use one extractor for both"),
        (np.array([0, np.nan]), np.eye(2), "not finite"),
        (np.zeros(2), np.array([[1.0, 1], [0, 1]]), "cov1 is not symmetric"),
        (np.zeros(2), np.diag([1.0, -1]), "cov1 has the eigenvalue -1, so it is not a covariance"),
    ],
)
def test_what_is_no_pair_of_moments_is_refused(mean: F64, cov: F64, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        frechet_distance(mean, cov, np.zeros(2), np.eye(2))


# -- kernel distance --------------------------------------------------------------------------------------------------


def test_kid_is_its_definition() -> None:
    """The sums over pairs, written out."""
    x, y = random_features(0, 7, 3), random_features(1, 5, 3)

    def k(a: F64, b: F64) -> float:
        return float((a @ b / 3 + 1) ** 3)

    xx = np.mean([k(x[i], x[j]) for i in range(7) for j in range(7) if i != j])
    yy = np.mean([k(y[i], y[j]) for i in range(5) for j in range(5) if i != j])
    xy = np.mean([k(a, b) for a in x for b in y])
    assert kid(x, y) == pytest.approx(xx + yy - 2 * xy, rel=1e-12)
    assert kid(y, x) == pytest.approx(kid(x, y), rel=1e-12)
    assert kernel_within(x) == pytest.approx(xx, rel=1e-12)
    assert kid(x, y, within_y=kernel_within(y)) == kid(x, y)


def test_kid_in_blocks_is_kid(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = random_features(0, 50, 4), random_features(1, 41, 4)
    whole = kid(x, y)
    monkeypatch.setattr("rods.eval.kernel._ROWS", 7)
    assert kid(x, y) == pytest.approx(whole, rel=1e-12)


def test_kid_is_unbiased() -> None:
    """Two samples of one distribution: the mean over many is 0 within its own error, and some are negative."""
    rng = np.random.default_rng(0)
    values = np.array([kid(*rng.normal(size=(2, 10, 4))) for _ in range(400)])
    assert abs(values.mean()) < 3 * values.std() / 20
    assert values.min() < 0


def test_subsets() -> None:
    x, y = random_features(0, 300, 4), random_features(0, 200, 4) + 1
    found = subset_kid(x, y, subsets=50, size=1000)
    assert (found.size, found.subsets) == (100, 50)
    assert found.sd > 0
    assert abs(found.mean - kid(x, y)) < 3 * found.sd
    assert subset_kid(x, y, subsets=50) == found  # seeded
    assert subset_kid(x, y, subsets=50, seed=1) != found
    with pytest.raises(ValueError, match="pass 2 or more, from 4 samples or more"):
        subset_kid(x[:3], y)


@pytest.mark.parametrize(
    ("x", "y", "says"),
    [
        (np.zeros((2, 3)), np.zeros((2, 4)), r"pass \[n, d\] and \[m, d\]"),
        (np.zeros(3), np.zeros((2, 3)), r"pass \[n, d\] and \[m, d\]"),
        (np.zeros((1, 3)), np.zeros((2, 3)), "1 and 2 samples; pass two or more of each"),
        (np.full((2, 3), np.inf), np.zeros((2, 3)), "not finite"),
    ],
)
def test_what_is_no_pair_of_sets_is_refused(x: F64, y: F64, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        kid(x, y)


# -- diversity --------------------------------------------------------------------------------------------------------


def test_cosine_diversity_is_the_mean_over_pairs() -> None:
    f = random_features(4, 9, 5)
    unit = f / np.linalg.norm(f, axis=1, keepdims=True)
    pairs = [1 - unit[i] @ unit[j] for i in range(9) for j in range(9) if i != j]
    assert cosine_diversity(f) == pytest.approx(np.mean(pairs), rel=1e-12)
    assert cosine_diversity(f * np.arange(1, 10)[:, None]) == pytest.approx(np.mean(pairs), rel=1e-12)


def test_cosine_diversity_of_extremes() -> None:
    assert cosine_diversity(np.eye(4)) == pytest.approx(1)
    assert cosine_diversity(np.array([[1.0, 0], [-1, 0]])) == pytest.approx(2)
    assert cosine_diversity(np.tile([3.0, 4], (5, 1))) == pytest.approx(0, abs=1e-15)
    with pytest.raises(ValueError, match="have no direction"):
        cosine_diversity(np.array([[1.0, 0], [0, 0]]))
    with pytest.raises(ValueError, match="pass"):
        cosine_diversity(np.ones((1, 2)))


def test_inception_var_of_known_spread() -> None:
    assert inception_var(np.diag([1.0, 3])) == 2
    with pytest.raises(ValueError, match="pass a covariance"):
        inception_var(np.zeros((2, 3)))


# -- streamed statistics ----------------------------------------------------------------------------------------------


@given(SEEDS, st.lists(st.integers(0, 7), min_size=1, max_size=6))
@settings(deadline=None, max_examples=50)
def test_batches_do_not_matter(seed: int, batches: list[int]) -> None:
    f = random_features(seed, sum(batches) + 2, 3)
    stream = FeatureStatistics(3)
    for batch in np.split(f, np.cumsum([2, *batches])[:-1]):
        stream.add(batch)
    mean, cov = moments(f)
    assert stream.n == len(f)
    np.testing.assert_allclose(stream.mean, mean, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(stream.cov, cov, rtol=1e-10, atol=1e-12 * np.abs(cov).max())


def test_parts_merge_to_the_whole() -> None:
    f = random_features(5, 60, 4)
    whole = FeatureStatistics(4)
    whole.add(f)
    merged = FeatureStatistics(4)
    for part in (f[:1], f[1:1], f[1:20], f[20:]):
        one = FeatureStatistics(4)
        one.add(part)
        merged.merge(one)
    assert merged.n == 60
    np.testing.assert_allclose(merged.cov, whole.cov, rtol=1e-12)


def test_a_large_mean_costs_no_digits() -> None:
    """In sums of squares a spread of 1e-3 around 1e6 would vanish in float64."""
    f = random_features(6, 100, 2) * 1e-3
    near, far = FeatureStatistics(2), FeatureStatistics(2)
    for batch in np.split(f, 4):
        near.add(batch)
        far.add(batch + 1e6)
    np.testing.assert_allclose(far.cov, near.cov, rtol=1e-5)


def test_what_has_no_statistics_is_refused() -> None:
    stream = FeatureStatistics(2)
    stream.add(np.zeros((1, 2)))
    with pytest.raises(ValueError, match="a covariance of 1 images; pass two or more"):
        _ = stream.cov
    with pytest.raises(ValueError, match=r"pass \[b, 2\]"):
        stream.add(np.zeros((1, 3)))
    with pytest.raises(ValueError, match="not finite"):
        stream.add(np.array([[np.nan, 0]]))
    with pytest.raises(ValueError, match="cannot be merged"):
        stream.merge(FeatureStatistics(3))
