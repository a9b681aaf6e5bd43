"""Statistics of paired outcomes, against closed forms."""

import math

import numpy as np
import pytest

from rods.eval.correction import mcnemar_p, paired_outcomes, proportion_interval
from rods.eval.labels import Label, combine_readings


def upper_tail(k, n, p):
    return sum(math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(k, n + 1))


def test_interval_without_successes_or_failures_has_a_closed_form():
    none, every = proportion_interval(0, 40), proportion_interval(40, 40)
    assert (none.low, every.high) == (0, 1)
    assert none.high == pytest.approx(1 - 0.025 ** (1 / 40), rel=1e-9)
    assert every.low == pytest.approx(0.025 ** (1 / 40), rel=1e-9)


@pytest.mark.parametrize(("k", "n", "level"), [(1, 7, 0.95), (13, 50, 0.95), (49, 50, 0.9), (3, 400, 0.99)])
def test_interval_ends_have_the_stated_tails(k, n, level):
    p = proportion_interval(k, n, level)
    assert upper_tail(k, n, p.low) == pytest.approx((1 - level) / 2, rel=1e-8)
    assert 1 - upper_tail(k + 1, n, p.high) == pytest.approx((1 - level) / 2, rel=1e-8)
    assert p.low < p.rate == k / n < p.high


def test_interval_of_nothing_says_nothing():
    p = proportion_interval(0, 0)
    assert (p.low, p.high) == (0, 1)
    assert math.isnan(p.rate)


def test_mcnemar_is_the_exact_sign_test():
    assert mcnemar_p(10, 2) == pytest.approx(2 * (1 + 12 + 66) / 2**12)
    assert mcnemar_p(2, 10) == mcnemar_p(10, 2)
    assert mcnemar_p(6, 0) == pytest.approx(2 / 2**6)
    assert mcnemar_p(0, 0) == 1
    assert mcnemar_p(5, 5) == 1


def test_outcomes_count_each_pair_once():
    A, W, B = Label.UNCERTAIN, Label.VALID, Label.HALLUCINATED
    pairs = (
        [(B, W)] * 5 + [(B, B)] * 3 + [(B, A)] * 2 + [(W, W)] * 20 + [(W, B)] + [(W, A)] * 4 + [(A, W)] * 6 + [(A, A)]
    )
    before, after = np.array(pairs, dtype=np.int8).T
    got = paired_outcomes(before, after)
    assert got.table == ((1, 6, 0), (4, 20, 1), (2, 5, 3))
    assert got.n == 42
    assert (got.repaired.k, got.repaired.n) == (5, 10)
    assert (got.broken.k, got.broken.n) == (1, 25)
    assert (got.hallucinated_before.k, got.hallucinated_after.k) == (10, 4)
    assert (got.uncertain_before.k, got.uncertain_after.k) == (7, 7)
    assert got.mcnemar_p == pytest.approx(2 * 7 / 2**6)
    assert got.broken == proportion_interval(1, 25)


def test_readings_combine_to_labels():
    well = np.array([[1, 1, 1], [0, 0, 0], [1, 0, 1]], dtype=bool)
    labels = combine_readings(well)
    assert labels.dtype == np.int8
    assert labels.tolist() == [Label.VALID, Label.HALLUCINATED, Label.UNCERTAIN]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: proportion_interval(5, 4), "k=5"),
        (lambda: proportion_interval(1, 4, 1.0), "level=1.0"),
        (lambda: mcnemar_p(-1, 2), "b=-1"),
        (lambda: paired_outcomes(np.zeros(3, np.int8), np.zeros(4, np.int8)), "differ"),
        (lambda: paired_outcomes(np.full(3, 3, np.int8), np.zeros(3, np.int8)), "codes"),
        (lambda: combine_readings(np.ones((3, 0), dtype=bool)), r"\[3, 0\]"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
