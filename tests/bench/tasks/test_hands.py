"""Drawn hands: the generator, the finger counter and its audit, and the controls of its labels."""

import numpy as np
import pytest
from scipy import ndimage

from rods.bench.tasks.hands.data import CHUNK, draw_hands
from rods.bench.tasks.hands.hand_counter import NO_HAND, count_fingers, label_hands
from rods.bench.tasks.hands.task import MAX_FALSE_FLAGS, MIN_FOUND, audit, faults, real_hands
from rods.bench.tasks.tone_control import as_unit, impose_tone, levels, measure_tone, tone_control
from rods.eval.labels import Label

SEED = 77


@pytest.fixture(scope="module")
def real():
    return draw_hands(CHUNK + 14, seed=SEED)  # more than one chunk


@pytest.fixture(scope="module")
def mixed():
    """160 real hands and 40 of each planted number of fingers, as floats in -1..1."""
    numbers = [(5, 160), (3, 40), (4, 40), (6, 40), (7, 40)]
    hands = np.concatenate([draw_hands(n, seed=SEED + f, num_fingers=f) for f, n in numbers])
    return hands.astype(np.float32) / 127.5 - 1


def test_hands_can_be_drawn_in_any_order_and_number(real):
    np.testing.assert_array_equal(draw_hands([CHUNK + 5, 3, 3], seed=SEED), real[[CHUNK + 5, 3, 3]])
    assert draw_hands(0, seed=SEED).shape == (0, 32, 32)


def test_hands_vary_and_lie_inside_the_frame(real):
    level = levels(as_unit(real))
    assert (level[:, 1] - level[:, 0]).min() > 0.3
    assert level.std(axis=0).min() > 0.05
    hand = as_unit(real) > level.mean(axis=1)[:, None, None]
    assert not hand[:, 0].any()
    assert not hand[:, :20, [0, -1]].any()
    assert hand[:, -1].any(axis=1).all(), "the wrist leaves through the bottom edge"
    assert hand.mean(axis=(1, 2)).std() > 0.02
    thumb_side = hand[:, :, :16].sum(axis=(1, 2)) > hand[:, :, 16:].sum(axis=(1, 2))
    assert 0.3 < thumb_side.mean() < 0.7


def test_hands_faults_name_the_count():
    for fingers in (4, 5, 6):
        hands = draw_hands(10, seed=5, num_fingers=fingers)[:, None] / 127.5 - 1
        assert set(faults(hands)) == {"" if fingers == 5 else f"{fingers} fingers"}
    assert list(faults(np.zeros((1, 1, 32, 32)))) == ["no hand"]
    with pytest.raises(ValueError, match="seed=-1"):
        real_hands(1, -1)


def test_planted_errors_differ_from_the_real_hand_by_fingers_only(real):
    """Shade and background stay; each missing finger takes area away."""
    for fingers in (3, 4):
        fewer = draw_hands(len(real), seed=SEED, num_fingers=fingers)
        np.testing.assert_allclose(levels(as_unit(fewer)), levels(as_unit(real)), atol=0.01)
        area = [(as_unit(x) > levels(as_unit(x)).mean(axis=1)[:, None, None]).sum(axis=(1, 2)) for x in (fewer, real)]
        assert np.median(area[1] - area[0]) > 8 * (5 - fingers)
    for fingers in (6, 7):
        np.testing.assert_allclose(
            levels(as_unit(draw_hands(len(real), seed=SEED, num_fingers=fingers))), levels(as_unit(real)), atol=0.01
        )


@pytest.mark.parametrize("resolution", [48, 64])
def test_counter_follows_the_resolution(resolution):
    for fingers in (4, 5, 6):
        counts = count_fingers(draw_hands(40, seed=SEED, resolution=resolution, num_fingers=fingers))
        assert (counts == fingers).all(axis=1).mean() >= 0.97


def test_counts_are_exact_on_nearly_all_hands(real):
    counts = count_fingers(real)
    assert counts.shape == (len(real), 3)
    assert (counts == 5).all(axis=1).mean() > 0.98
    for fingers in (3, 4, 6, 7):
        counts = count_fingers(draw_hands(60, seed=SEED, num_fingers=fingers))
        assert (counts == fingers).all(axis=1).mean() > 0.95


@pytest.mark.slow
def test_audit_meets_the_bar_on_ten_thousand_hands():
    real, uncertain, *others = audit()
    assert (real.share.n, real.label) == (10_000, "hallucinated")
    assert real.share.high <= MAX_FALSE_FLAGS, "by the upper bound, not only the rate"
    assert uncertain.share.rate < 0.03
    for line in others:
        if line.what.startswith("planted"):
            assert line.share.low >= MIN_FOUND, line


def test_unit_types_give_the_same_counts(real):
    floats = real[:60].astype(np.float64) / 127.5 - 1
    np.testing.assert_array_equal(count_fingers(floats[:, None]), count_fingers(real[:60]))


def disk(y, x, radius, size=32):
    rows, columns = np.mgrid[:size, :size]
    return np.hypot(rows - y, columns - x) < radius


def test_what_is_no_hand_is_hallucinated(real):
    rng = np.random.default_rng(0)
    hand = real[0].copy()
    cut, loose = hand.copy(), hand.copy()
    cut[26:] = hand[0, 0]  # the wrist ends in the air
    loose[0:4, 0:4] = hand.max()  # a second piece
    pictures = {
        "empty": np.full((32, 32), 40),
        "white": np.full((32, 32), 255),
        "flat noise": rng.integers(40, 44, (32, 32)),
        "noise": rng.integers(0, 256, (32, 32)),
        "two blobs": 200 * (disk(16, 8, 5) | disk(16, 23, 5)),
        "blob on a stalk": 200
        * (disk(14, 16, 5) | (np.abs(np.mgrid[:32, :32][1] - 16) < 3) & (np.mgrid[:32, :32][0] > 14)),
        "half filled": 200 * (np.mgrid[:32, :32][0] > 12),
        "wrist cut": cut,
        "loose piece": loose,
    }
    labels = label_hands(np.stack(list(pictures.values())).astype(np.uint8))
    assert dict(zip(pictures, labels.tolist(), strict=True)) == dict.fromkeys(pictures, Label.HALLUCINATED)
    assert label_hands(hand[None])[0] == Label.VALID
    assert (count_fingers(np.stack([cut, loose])) == NO_HAND).all()


def test_a_finger_that_fades_away_is_uncertain_on_its_way(real):
    """Blending a hand into the same hand without one finger passes valid, uncertain, hallucinated, in this order."""
    fewer = draw_hands(50, seed=SEED, num_fingers=4).astype(np.float32) / 127.5 - 1
    whole = real[:50].astype(np.float32) / 127.5 - 1
    seen = np.stack([label_hands(whole + t * (fewer - whole)) for t in (0.0, 0.5, 1.0)])
    assert (seen[0] == Label.VALID).mean() > 0.95
    assert (seen[1] == Label.UNCERTAIN).mean() > 0.5
    assert (seen[2] == Label.HALLUCINATED).mean() > 0.95


def test_tone_is_measured_and_imposed(real):
    other = draw_hands(range(1000, 1200), seed=SEED).astype(np.float32) / 127.5 - 1
    target = measure_tone(ndimage.gaussian_filter(0.7 * other - 0.1, (0, 0.45, 0.45)))
    before, after = measure_tone(real), measure_tone(impose_tone(real, target))
    assert abs(before.contrast - target.contrast) > 0.05, "the two sets must differ for the test to mean something"
    assert abs(before.sharpness - target.sharpness) > 0.03
    assert after.background == pytest.approx(target.background, abs=0.005)
    assert after.contrast == pytest.approx(target.contrast, abs=0.005)
    assert after.sharpness == pytest.approx(target.sharpness, abs=0.005)


def test_imposing_a_sets_own_tone_changes_nothing(real):
    np.testing.assert_allclose(impose_tone(real, measure_tone(real)), as_unit(real) * 2 - 1, atol=0.01)


def test_counterfactual_control_shows_no_repairs_and_no_breaks(mixed):
    like = ndimage.gaussian_filter(0.8 * mixed - 0.1, (0, 0.45, 0.45))
    outcome = tone_control(mixed, like=like, label=label_hands)
    assert outcome.hallucinated_before.k > 150
    assert outcome.repaired.k == outcome.broken.k == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: draw_hands(3, seed=-1), "seed -1"),
        (lambda: draw_hands(-3, seed=1), "negative"),
        (lambda: draw_hands([0, -2], seed=1), "negative"),
        (lambda: draw_hands(3, seed=1, resolution=16), "resolution 16"),
        (lambda: draw_hands(3, seed=1, num_fingers=8), "num_fingers 8"),
        (lambda: count_fingers(np.zeros((2, 32, 30), np.uint8)), r"shape \[2, 32, 30\]"),
        (lambda: count_fingers(np.zeros((2, 3, 32, 32), np.uint8)), "grey"),
        (lambda: count_fingers(np.zeros((2, 32, 32), np.int64)), "int64"),
        (lambda: count_fingers(np.full((1, 32, 32), np.nan)), "not finite"),
        (lambda: count_fingers(np.zeros((1, 32, 32)), thresholds=(0.5, 1.5)), "thresholds"),
        (lambda: measure_tone(np.zeros((0, 32, 32))), "no images"),
        (lambda: audit(num=0, num_planted=1), "no images"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
