"""The learned counter of rendered hands: what it sees, what it says, its file, and the pictures it learned from."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from dnnlib.errors import UserError
from rods.bench.counter import (
    CLASSES,
    COUNTER,
    FIVE,
    MEMBERS,
    NO_HAND,
    Counter,
    CountingNet,
    Thresholds,
    count_rendered,
    label_rendered,
    labels_of,
    load_counter,
    prepare,
    probabilities,
    save_counter,
)
from rods.bench.counter_training import (
    FALSE_FLAGS,
    FALSE_PASSES,
    Recipe,
    batches,
    choose_thresholds,
    measure,
    spoilt,
    train_member,
)
from rods.bench.hand_mesh import INSTALL
from rods.bench.rendered_task import MAX_FALSE_FLAGS, audit
from rods.bench.spoil import SPOILERS, augment, spoil
from rods.bench.tone_audit import imposed_tone_line
from rods.eval.labels import Label

GOLDEN = Path(__file__).resolve().parent / "golden" / "rendered" / "hands-8.png"
needs_anny = pytest.mark.skipif(importlib.util.find_spec("anny") is None, reason=f"no package anny; {INSTALL}")


@pytest.fixture(scope="module")
def hands():
    """Six hands of each number of fingers, uint8 [6, 64, 64]."""
    sheet = np.asarray(Image.open(GOLDEN)).reshape(3, 64, 6, 64).transpose(0, 2, 1, 3)
    return dict(zip((4, 5, 6), sheet, strict=True))


@pytest.fixture(scope="module")
def everything(hands):
    return np.concatenate(list(hands.values()))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_it_counts_the_golden_hands(hands):
    for k, fingers in enumerate((4, 5, 6)):
        assert (count_rendered(hands[fingers]) == k).mean() >= 5 / 6, fingers
    assert (label_rendered(hands[5]) != Label.BAD).all()
    assert (label_rendered(np.concatenate([hands[4], hands[6]])) != Label.WELL).all()


def test_blank_noisy_and_flat_pictures_are_no_hand():
    noise = np.random.default_rng(0).integers(0, 256, (4, 64, 64)).astype(np.uint8)
    blank = np.full((2, 64, 64), 255, dtype=np.uint8)
    pictures = np.concatenate([noise, blank, blank // 2])
    assert (count_rendered(pictures) == NO_HAND).all()
    assert (label_rendered(pictures) == Label.BAD).all()


def test_tone_moves_no_label(everything):
    x = everything / 127.5 - 1
    before = label_rendered(x)
    for change in (0.5 * x, 0.25 * x + 0.5, 0.6 * x - 0.35, ndimage.gaussian_filter(x, (0, 0.5, 0.5))):
        after = label_rendered(change)
        sure = (before != Label.AMBIGUOUS) & (after != Label.AMBIGUOUS)
        np.testing.assert_array_equal(before[sure], after[sure])
    assert imposed_tone_line(everything, label_rendered).share.k == 0


def test_a_mirrored_hand_gets_the_same_answer(everything):
    np.testing.assert_allclose(probabilities(everything), probabilities(everything[:, :, ::-1].copy()), atol=1e-5)


def test_probabilities_do_not_depend_on_batch_mates(everything):
    p = probabilities(everything)
    assert p.shape == (18, MEMBERS, len(CLASSES))
    np.testing.assert_allclose(p.sum(axis=2), 1, atol=1e-5)
    np.testing.assert_allclose(probabilities(everything[7:8]), p[7:8], atol=1e-5)
    assert probabilities(everything[:0]).shape == (0, MEMBERS, len(CLASSES))


def test_it_reads_colours_larger_pictures_and_floats(everything):
    expected = probabilities(everything)
    large = everything.repeat(2, axis=1).repeat(2, axis=2)
    colour = np.repeat(everything[:, None], 3, axis=1)
    for pictures in (large, colour, colour / 127.5 - 1, everything[:, None] / 127.5 - 1):
        np.testing.assert_allclose(probabilities(pictures), expected, atol=1e-3)


@pytest.mark.parametrize(
    ("pictures", "words"),
    [
        (np.zeros((2, 60, 60), np.uint8), "64x64 or a multiple, not 60x60"),
        (np.zeros((2, 64, 32), np.uint8), r"\[2, 64, 32\]"),
        (np.full((1, 64, 64), np.nan), "not finite"),
        (np.zeros((1, 64, 64), np.int32), "int32"),
    ],
)
def test_other_pictures_are_refused(pictures, words):
    with pytest.raises(ValueError, match=words):
        prepare(pictures)


def test_the_embedded_file_is_small_and_says_what_was_measured():
    assert COUNTER.stat().st_size < 1e6
    facts = load_counter().facts
    assert facts["classes"] == list(CLASSES)
    assert facts["labels"]["5 fingers"]["bad"][0] <= MAX_FALSE_FLAGS
    assert len(facts["confusion"]["5 fingers"]) == len(CLASSES)


def test_save_and_load(tmp_path, everything):
    members = []
    for seed in range(MEMBERS):
        torch.manual_seed(seed)
        net = CountingNet().eval().requires_grad_(False)
        net.load_state_dict({k: v.bfloat16() if v.is_floating_point() else v for k, v in net.state_dict().items()})
        members.append(net)
    counter = Counter(tuple(members), Thresholds(0.25, 0.75), {"seeds": {"train": 1}})
    save_counter(tmp_path / "c.safetensors", counter)
    again = load_counter(tmp_path / "c.safetensors")
    assert (again.thresholds, again.facts) == (counter.thresholds, counter.facts)
    np.testing.assert_array_equal(probabilities(everything, again), probabilities(everything, counter))


def test_damaged_files_are_one_line(tmp_path):
    path = tmp_path / "c.safetensors"
    with pytest.raises(UserError, match="is missing"):
        load_counter(path)
    path.write_bytes(COUNTER.read_bytes()[:1000])
    with pytest.raises(UserError, match="is not a counter") as e:
        load_counter(path)
    assert "\n" not in str(e.value)
    path.write_bytes((COUNTER.parent / "hands-32.safetensors").read_bytes())
    load_counter.cache_clear()
    with pytest.raises(UserError, match="is not a counter"):
        load_counter(path)


def test_labels_are_sure_only_where_all_members_agree_at_both_thresholds():
    p = np.zeros((4, 2, 4), np.float32)
    p[:, :, FIVE] = [[0.95, 0.92], [0.1, 0.05], [0.95, 0.1], [0.5, 0.5]]
    expected = [Label.WELL, Label.BAD, Label.AMBIGUOUS, Label.AMBIGUOUS]
    np.testing.assert_array_equal(labels_of(p, Thresholds(0.2, 0.9)), expected)


def test_thresholds_keep_their_promises_on_the_data_they_were_chosen_on():
    rng = np.random.default_rng(3)
    five, other = np.zeros((4000, 3, 4), np.float32), np.zeros((3000, 3, 4), np.float32)
    five[:, :, FIVE], other[:, :, FIVE] = rng.beta(6, 1, (4000, 3)), rng.beta(1, 6, (3000, 3))
    thresholds = choose_thresholds(five, other)
    assert 0.02 <= thresholds.low <= thresholds.high <= 0.95
    assert (labels_of(five, thresholds) == Label.BAD).mean() <= FALSE_FLAGS + 1e-3
    assert (labels_of(other, thresholds) == Label.WELL).mean() <= FALSE_PASSES + 1e-3
    facts = measure({"5 fingers": five, "no hand": other}, thresholds)
    assert sum(facts["confusion"]["5 fingers"]) == 4000
    assert sum(rate for rate, _, _ in facts["labels"]["no hand"].values()) == pytest.approx(1)


@pytest.mark.parametrize("spoiler", SPOILERS, ids=lambda f: f.__name__)
def test_every_way_of_spoiling_changes_every_hand_and_keeps_its_range(spoiler, hands):
    x = prepare(hands[5])[0]
    spoiled = spoiler(x, x.roll(1, 0), generator())
    assert spoiled.shape == x.shape
    assert torch.isfinite(spoiled).all()
    assert (spoiled - x).abs().mean(dim=(1, 2, 3)).min() > 0.015
    assert spoiled.min() >= -1.01
    assert spoiled.max() <= 2.01


def test_the_generator_decides_what_is_spoilt_and_augmented(everything):
    x = prepare(everything)[0]
    for change in (spoil, augment):
        np.testing.assert_array_equal(change(x, generator(1)), change(x, generator(1)))
        assert not torch.equal(change(x, generator(1)), change(x, generator(2)))


def test_batches_hold_every_class_and_training_lowers_the_loss(hands):
    recipe = Recipe(steps=8, per_class=6)
    x, y = next(batches(hands, recipe, 0))
    assert x.shape == (24, 1, 64, 64)
    assert torch.bincount(y).tolist() == [6] * 4
    recipe = Recipe(steps=30, per_class=4)
    losses = [loss for _, loss, _ in train_member(hands, recipe, seed=0)]
    assert losses[:3] == [loss for (_, loss, _), _ in zip(train_member(hands, recipe, seed=0), range(3), strict=False)]
    assert np.mean(losses[-8:]) < np.mean(losses[:8]) - 0.1


def test_spoilt_pictures_are_pictures(hands):
    pictures = spoilt(hands, seed=4, num=9)
    assert (pictures.shape, pictures.dtype) == ((9, 64, 64), np.uint8)
    assert (count_rendered(pictures) != FIVE).mean() > 0.6


@needs_anny
def test_the_audit_passes_on_a_few_fresh_hands():
    lines = {(line.what, line.label): line for line in audit(num=60, num_planted=30)}
    assert lines["real data, fresh", "surely bad"].share.k <= 1
    assert lines["tone: mean tone of blurred, duller pictures imposed", "repaired or broken"].share.k == 0
    for what in ("planted: 4 fingers", "planted: 6 fingers", "planted: a spoilt hand"):
        assert lines[what, "surely well"].share.rate <= 0.1
    with pytest.raises(ValueError, match="no pictures"):
        audit(num=0, num_planted=1)
