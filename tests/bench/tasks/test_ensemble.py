"""The learned labeller: what it reads, how it decides, its file."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from dnnlib.errors import UserError
from rods.bench.tasks import TASKS
from rods.bench.tasks.ensemble import HEADER, Ensemble, Member, load_ensemble, prepare, save_ensemble
from rods.bench.tasks.mnist import labeller as mnist
from rods.bench.tasks.rendered import labeller as rendered
from rods.eval.labels import Label
from training.model_zoo import MODELS

MODULES = {"mnist": mnist, "hands-64r": rendered}
learned = pytest.mark.parametrize("name", MODULES)


@pytest.fixture
def images(all_hands, golden_digits):
    """Real images by task."""
    return {"mnist": golden_digits[0], "hands-64r": all_hands}


def fresh(spec) -> Ensemble:
    """An untrained ensemble whose numbers are those of bfloat16, as files hold them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        members = [Member(spec).bfloat16().float().eval().requires_grad_(False) for _ in range(spec.members)]
    return Ensemble(spec, tuple(members), (0.25, 0.5, 0.75)[: spec.num_thresholds], {"seed": 1})


def test_every_learned_labeller_of_the_registry_is_tested_here():
    assert {name for name, make in TASKS.items() if make().labeller} == set(MODULES)


@learned
def test_the_embedded_file_is_small_and_says_how_it_was_made(name):
    assert MODULES[name].PATH.stat().st_size < 1e6
    ensemble = MODULES[name].load()
    assert list(ensemble.thresholds) == sorted(ensemble.thresholds)
    assert ensemble.facts


@learned
def test_probabilities_are_independent_of_batch_composition(name, images):
    ensemble, x = MODULES[name].load(), images[name]
    p = ensemble.probabilities(x)
    assert p.shape == (len(x), ensemble.spec.members, len(ensemble.spec.classes))
    np.testing.assert_allclose(p.sum(axis=2), 1, atol=1e-5)
    np.testing.assert_allclose(ensemble.probabilities(x[7:8]), p[7:8], atol=1e-5)
    assert ensemble.probabilities(x[:0]).shape == (0, *p.shape[1:])
    if ensemble.spec.mirrored:
        np.testing.assert_allclose(ensemble.probabilities(x[:, :, ::-1].copy()), p, atol=1e-5)


@learned
def test_it_reads_colours_larger_images_and_floats(name, images):
    ensemble, x = MODULES[name].load(), images[name]
    expected = ensemble.probabilities(x)
    large = x.repeat(2, axis=1).repeat(2, axis=2)
    colour = np.repeat(x[:, None], 3, axis=1)
    for same in (large, colour, colour / 127.5 - 1, x[:, None] / 127.5 - 1):
        np.testing.assert_allclose(ensemble.probabilities(same), expected, atol=1e-3)


@learned
def test_flat_images_are_of_the_last_class(name):
    ensemble = MODULES[name].load()
    R = ensemble.spec.resolution
    flat = np.stack([np.full((R, R), v, np.uint8) for v in (0, 128, 255)])
    assert (ensemble.probabilities(flat)[:, :, -1] == 1).all()
    assert (ensemble.label(flat) == Label.HALLUCINATED).all()


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (np.zeros((2, 60, 60), np.uint8), r"\[2, 60, 60\], the labeller reads 64x64 or a multiple"),
        (np.zeros((2, 64, 32), np.uint8), r"\[2, 64, 32\]"),
        (np.full((1, 64, 64), np.nan), "not finite"),
        (np.zeros((1, 64, 64), np.int32), "int32"),
    ],
)
def test_other_images_are_refused(images, words):
    with pytest.raises(ValueError, match=words):
        prepare(rendered.SPEC, images)


def test_all_members_decide_at_all_thresholds():
    p = np.zeros((4, 2, 4), np.float32)
    p[:, :, rendered.FIVE] = [[0.95, 0.92], [0.1, 0.05], [0.95, 0.1], [0.5, 0.5]]
    ensemble = replace(fresh(rendered.SPEC), thresholds=(0.2, 0.9))
    expected = [Label.VALID, Label.HALLUCINATED, Label.UNCERTAIN, Label.UNCERTAIN]
    np.testing.assert_array_equal(ensemble.labels_of(p), expected)


def test_the_mean_decides_at_all_thresholds():
    p = np.zeros((4, 2, 11), np.float32)
    p[:, :, 3] = [[0.1, 0.3], [0.4, 0.4], [0.9, 0.3], [0.9, 0.7]]
    p[:, :, -1] = 1 - p[:, :, 3]  # whatever "no digit" has does not count
    ensemble = replace(fresh(mnist.SPEC), thresholds=(0.3, 0.5, 0.7))
    expected = [Label.HALLUCINATED, Label.UNCERTAIN, Label.UNCERTAIN, Label.VALID]
    np.testing.assert_array_equal(ensemble.labels_of(p), expected)


@learned
def test_save_and_load(name, images, tmp_path):
    ensemble = fresh(MODULES[name].SPEC)
    for file in ("a", "b"):
        save_ensemble(tmp_path / f"{file}.safetensors", ensemble)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    again = load_ensemble(tmp_path / "a.safetensors", ensemble.spec, made_by="make it")
    assert (again.thresholds, again.facts) == (ensemble.thresholds, ensemble.facts)
    x = images[name]
    np.testing.assert_array_equal(again.probabilities(x), ensemble.probabilities(x))


@pytest.mark.parametrize(
    "damage",
    ["empty", "text", "cut", "network", "no header", "a tensor less", "a tensor more", "shape", "bounds", "two"],
)
def test_other_files_are_refused_in_one_line(tmp_path, damage):
    path, spec = tmp_path / f"{damage.replace(' ', '-')}.safetensors", mnist.SPEC
    save_ensemble(path, fresh(spec))
    tensors = {f"{m}.{k}": v for m, member in enumerate(fresh(spec).members) for k, v in member.state_dict().items()}
    thresholds = [0.1, 0.2, 7.0 if damage == "bounds" else 0.3][: 2 if damage == "two" else 3]
    header = {HEADER: json.dumps({"thresholds": thresholds, "facts": {}})}
    if damage == "a tensor less":
        del tensors["2.head.bias"]
    if damage == "a tensor more":
        tensors["more"] = torch.zeros(1)
    if damage == "shape":
        tensors["0.head.bias"] = torch.zeros(12)
    if damage in ("empty", "text"):
        path.write_text("no network" if damage == "text" else "")
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:1000])
    elif damage == "network":
        path.write_bytes((MODELS / "hands-32.safetensors").read_bytes())
    else:
        save_file(tensors, path, metadata={} if damage == "no header" else header)
    with pytest.raises(UserError, match=rf"{path.name} is not a labeller of this task \([^\n]*make it with `make it`"):
        load_ensemble(path, spec, made_by="make it")
    with pytest.raises(UserError, match=r"nothing\.safetensors is missing"):
        load_ensemble(tmp_path / "nothing.safetensors", spec, made_by="make it")
