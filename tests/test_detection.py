"""rods.eval.detection, bootstrap and the mode measures of diversity: closed forms and laws."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rods.eval.bootstrap import bootstrap
from rods.eval.detection import (
    auroc,
    average_precision,
    confusion,
    detection_curve,
    recall_at_false_alarms,
    recall_at_retention,
)
from rods.eval.diversity import mode_shares, spread_within, total_variation

SCORES = np.array([0.9, 0.8, 0.8, 0.5, 0.1])
POSITIVE = np.array([True, True, False, False, True])
labelled = st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=2, max_size=40).filter(
    lambda pairs: 0 < sum(bad for _, bad in pairs) < len(pairs)
)


def test_curve_by_hand():
    curve = detection_curve(SCORES, POSITIVE)
    assert curve.thresholds.tolist() == [np.inf, 0.9, 0.8, 0.5, 0.1]
    assert curve.recall == pytest.approx([0, 1 / 3, 2 / 3, 2 / 3, 1])
    assert curve.false_alarms == pytest.approx([0, 0, 1 / 2, 1, 1])
    assert curve.precision == pytest.approx([1, 1, 2 / 3, 1 / 2, 3 / 5])
    assert average_precision(SCORES, POSITIVE) == pytest.approx(1 / 3 + 1 / 3 * 2 / 3 + 1 / 3 * 3 / 5)
    assert recall_at_false_alarms(SCORES, POSITIVE, 0.4) == pytest.approx(1 / 3)
    assert recall_at_false_alarms(SCORES, POSITIVE, 0.5) == pytest.approx(2 / 3)


@given(labelled)
def test_the_area_under_the_curve_is_the_auroc(pairs):
    scores, bad = np.array([s for s, _ in pairs], float), np.array([b for _, b in pairs])
    curve = detection_curve(scores, bad)
    area = (np.diff(curve.false_alarms) * (curve.recall[1:] + curve.recall[:-1]) / 2).sum()
    assert area == pytest.approx(auroc(scores, bad))
    assert (curve.false_alarms[-1], curve.recall[-1]) == (1, 1)
    assert curve.precision[-1] == pytest.approx(bad.mean())


@given(labelled, st.floats(0, 1))
def test_retention_of_a_constant_score_is_a_random_filter(pairs, kept):
    bad = np.array([b for _, b in pairs])
    dropped = len(bad) - round(kept * len(bad))
    assert recall_at_retention(np.zeros(len(bad)), bad, kept) == pytest.approx(dropped / len(bad))


def test_retention_by_hand():
    scores, bad = np.arange(100.0), np.zeros(100, bool)
    bad[[97, 99, 50, 0]] = True
    assert recall_at_retention(scores, bad, 0.96) == pytest.approx(2 / 4)
    assert recall_at_retention(scores, bad, 0.5) == pytest.approx(3 / 4)
    assert recall_at_retention(scores, bad, 1.0) == 0
    assert np.isnan(recall_at_retention(scores, np.zeros(100, bool)))
    with pytest.raises(ValueError, match="kept=96"):
        recall_at_retention(scores, bad, 96)


def test_confusion_counts_the_threshold_itself_as_at_risk():
    found = confusion(SCORES, POSITIVE, 0.8)
    assert (found.tp, found.fp, found.fn, found.tn) == (2, 1, 1, 1)


@pytest.mark.parametrize("scores", [np.array([np.nan, 1.0]), np.array([1.0])])
def test_scores_that_are_none_are_refused(scores):
    with pytest.raises(ValueError, match="scores"):
        auroc(scores, np.array([True, False]))


def test_no_curve_where_all_labels_are_the_same():
    with pytest.raises(ValueError, match="2 hallucinated and 0 valid"):
        detection_curve(np.array([1.0, 2.0]), np.array([True, True]))
    assert np.isnan(average_precision(np.array([1.0, 2.0]), np.array([True, True])))
    assert np.isnan(recall_at_false_alarms(np.array([1.0, 2.0]), np.array([False, False])))


def test_bootstrap_of_a_mean_has_the_normal_interval():
    x = np.random.default_rng(1).standard_normal(400)
    found = bootstrap(lambda i: float(x[i].mean()), len(x), resamples=2000)
    assert found.value == pytest.approx(x.mean())
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * x.std() / np.sqrt(len(x)), rel=0.06)
    assert bootstrap(lambda i: 3.0, 5).low == 3.0
    assert np.isnan(bootstrap(lambda i: float("nan"), 5).high)
    with pytest.raises(ValueError, match="n=0"):
        bootstrap(lambda i: 0.0, 0)


def test_mode_shares_and_their_distance():
    shares = mode_shares(np.array([0, 0, 2, -1]), 3)
    assert shares == pytest.approx([2 / 3, 0, 1 / 3])
    assert total_variation(shares, np.full(3, 1 / 3)) == pytest.approx(1 / 3)
    for modes in ([-1, -1], [0, 3]):
        with pytest.raises(ValueError, match="mode_shares"):
            mode_shares(np.array(modes), 3)
    with pytest.raises(ValueError, match="differ"):
        total_variation(shares, np.ones(1))


def test_spread_within_modes_ignores_where_the_modes_are():
    rng = np.random.default_rng(0)
    modes = np.repeat(np.arange(5), 800)
    x = 10 * rng.standard_normal((5, 2))[modes] + 0.3 * rng.standard_normal((4000, 2))
    assert spread_within(x, modes) == pytest.approx(0.3, rel=0.03)
    assert spread_within(np.array([[0.0], [2.0], [9.0]]), np.array([0, 0, -1])) == pytest.approx(np.sqrt(2))
    assert np.isnan(spread_within(np.zeros((2, 1)), np.array([0, 1])))
