"""Task hands-64r: what its labeller says of rendered hands, and where they come from."""

from __future__ import annotations

import numpy as np
import pytest

from dnnlib.errors import UserError
from rods.bench.tasks.ensemble import Ensemble
from rods.bench.tasks.rendered import data, labeller
from rods.bench.tasks.rendered.labeller import FIVE, count_rendered, label_rendered
from rods.bench.tasks.rendered.task import MAX_FALSE_FLAGS, audit, faults, planted, real_hands
from rods.eval.labels import Label

NO_HAND = len(labeller.CLASSES) - 1


def test_it_counts_the_golden_hands(golden_hands):
    for k, fingers in enumerate((4, 5, 6)):
        assert (count_rendered(golden_hands[fingers]) == k).mean() >= 5 / 6, fingers
        found = list(faults(golden_hands[fingers][:, None] / 127.5 - 1))
        assert found.count("" if fingers == 5 else f"{fingers} fingers") >= 5
    assert list(faults(np.zeros((1, 1, 64, 64)))) == ["no hand"]
    assert (label_rendered(golden_hands[5]) != Label.HALLUCINATED).all()
    assert (label_rendered(np.concatenate([golden_hands[4], golden_hands[6]])) != Label.VALID).all()


def test_the_embedded_file_says_what_was_measured():
    facts = labeller.load().facts
    assert facts["classes"] == list(labeller.CLASSES)
    assert facts["labels"]["5 fingers"]["bad"][0] <= MAX_FALSE_FLAGS  # written with an older word
    assert len(facts["confusion"]["5 fingers"]) == len(labeller.CLASSES)


def test_thresholds_keep_their_promises_on_the_data_they_were_chosen_on():
    rng = np.random.default_rng(3)
    five, other = np.zeros((4000, 3, 4), np.float32), np.zeros((3000, 3, 4), np.float32)
    five[:, :, FIVE], other[:, :, FIVE] = rng.beta(6, 1, (4000, 3)), rng.beta(1, 6, (3000, 3))
    low, high = labeller.choose_thresholds(five, other)
    assert 0.02 <= low <= high <= 0.95
    ensemble = Ensemble(labeller.SPEC, (), (low, high))
    assert (ensemble.labels_of(five) == Label.HALLUCINATED).mean() <= labeller.FALSE_FLAGS + 1e-3
    assert (ensemble.labels_of(other) == Label.VALID).mean() <= labeller.FALSE_PASSES + 1e-3


def test_corrupted_hands_are_images_without_a_hand(golden_hands):
    images = labeller.corrupted_hands(golden_hands, seed=4, num=9)
    assert (images.shape, images.dtype) == ((9, 64, 64), np.uint8)
    assert (count_rendered(images) != FIVE).mean() > 0.6


def test_missing_hands_are_named_with_what_renders_them(tmp_path, monkeypatch):
    monkeypatch.setenv("RODS_DATA", str(tmp_path))
    renderer = r"`python tools/rendered-hands/render_hands\.py --dest=data/hands-64r"
    with pytest.raises(UserError, match=rf"hands-64r-heldout\.zip is missing: {renderer}-heldout\.zip .*--seed="):
        real_hands(3, 1)
    with pytest.raises(UserError, match=rf"{renderer}-audit-4\.zip --num=500 --seed=1000003 .* --fingers=4`"):
        planted(3)
    with pytest.raises(UserError, match="audit-4"):
        audit()


@pytest.mark.usefixtures("without_data_sets")
def test_an_audit_needs_images():
    with pytest.raises(ValueError, match="no images"):
        audit(num=0, num_planted=1)


def test_all_sets_of_hands_have_seeds_of_their_own():
    sets = (data.AUDIT, data.LABELLER_TRAINING, data.LABELLER_THRESHOLDS, data.LABELLER_FRESH)
    assert len({files.seed for files in sets} | {0}) == 5
    assert len({files.name for files in sets}) == 4
