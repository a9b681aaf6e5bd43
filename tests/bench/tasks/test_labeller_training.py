"""Training of learned labellers: the negatives, a member, an ensemble, the command."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from commands import refusal, said
from overridden import last_of_each

from rods.bench.tasks.corruptions import DIGIT_NEGATIVES, HAND_CORRUPTIONS, corrupt_hands, digit_negatives
from rods.bench.tasks.ensemble import Ensemble, load_ensemble, prepare
from rods.bench.tasks.labeller_training import LabellerTraining, Recipe, measure, train_ensemble, train_member
from rods.bench.tasks.mnist import data as digits
from rods.bench.tasks.mnist import labeller as mnist
from rods.bench.tasks.real_data import read_images
from rods.bench.tasks.rendered import labeller as rendered
from scripts import train_labellers as command


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def trainings(golden_digits, golden_hands):
    """Small trainings on the golden images, by task."""
    spec = replace(mnist.SPEC, members=1), replace(rendered.SPEC, members=1)
    return {
        "mnist": LabellerTraining(
            spec[0],
            mnist.PATH,
            Recipe(steps=40, lr=mnist.LR),
            lambda g: mnist.batches(*golden_digits, g, batch=10, negatives=5),
            lambda ensemble: (0.2, 0.3, 0.4),
            lambda ensemble: {},
        ),
        "hands-64r": LabellerTraining(
            spec[1],
            rendered.PATH,
            replace(rendered.RECIPE, steps=30),
            lambda g: rendered.batches(golden_hands, g, per_class=4),
            lambda ensemble: (0.2, 0.8),
            lambda ensemble: {},
        ),
    }


@pytest.mark.parametrize("name", ["mnist", "hands-64r"])
def test_training_is_a_function_of_its_seed_and_learns(trainings, name):
    losses = [loss for _, loss, _ in train_member(trainings[name], seed=1)]
    again = [loss for (_, loss, _), _ in zip(train_member(trainings[name], seed=1), range(3), strict=False)]
    assert losses[:3] == again
    assert next(train_member(trainings[name], seed=2))[1] != losses[0]
    assert np.mean(losses[-8:]) < np.mean(losses[:8]) - 0.1


def test_finished_members_are_not_trained_again(trainings, tmp_path):
    training = replace(trainings["hands-64r"], spec=rendered.SPEC, recipe=Recipe(steps=2, lr=1e-3))
    seen = []
    first = train_ensemble(training, seed=5, folder=tmp_path, report=lambda m, step, loss: seen.append((m, step)))
    assert seen == [(m, step) for m in range(3) for step in (1, 2)]
    (tmp_path / "member-6.safetensors").unlink()
    second = train_ensemble(training, seed=5, folder=tmp_path, report=lambda m, step, loss: seen.append((m, step)))
    assert seen[6:] == [(1, 1), (1, 2)]
    assert (first.facts, first.thresholds) == ({"seed": 5, "steps": 2}, (0.2, 0.8))
    for a, b in zip(first.members, second.members, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))
        assert all(torch.equal(p, p.bfloat16().float()) for p in a.parameters()), "measured as the file holds them"


def test_measures_add_up():
    p = np.random.default_rng(0).dirichlet(np.ones(4), (50, 3)).astype(np.float32)
    facts = measure(Ensemble(rendered.SPEC, (), (0.2, 0.8)), {"5 fingers": p})
    assert sum(facts["confusion"]["5 fingers"]) == 50
    assert set(facts["labels"]["5 fingers"]) == {"valid", "hallucinated", "uncertain"}
    assert sum(rate for rate, _, _ in facts["labels"]["5 fingers"].values()) == pytest.approx(1)


@pytest.mark.parametrize("corrupt", HAND_CORRUPTIONS, ids=lambda f: f.__name__)
def test_every_corruption_changes_every_hand_and_keeps_its_range(corrupt, golden_hands):
    x = prepare(rendered.SPEC, golden_hands[5])[0]
    corrupted = corrupt(x, x.roll(1, 0), generator())
    assert corrupted.shape == x.shape
    assert torch.isfinite(corrupted).all()
    assert (corrupted - x).abs().mean(dim=(1, 2, 3)).min() > 0.015
    assert corrupted.min() >= -1.01
    assert corrupted.max() <= 2.01


def test_the_generator_decides_what_is_corrupted_and_augmented(all_hands):
    x = prepare(rendered.SPEC, all_hands)[0]
    for change in (corrupt_hands, rendered.augment):
        np.testing.assert_array_equal(change(x, generator(1)), change(x, generator(1)))
        assert not torch.equal(change(x, generator(1)), change(x, generator(2)))


def test_digit_negatives_are_images_of_every_kind(golden_digits):
    x, y = torch.from_numpy(golden_digits[0] / np.float32(255))[:, None], torch.from_numpy(golden_digits[1])
    for make, share in DIGIT_NEGATIVES:
        negatives = make(x, y, 6, generator())
        assert share > 0
        assert negatives.shape == (6, 1, 32, 32)
        assert torch.isfinite(negatives).all()
        nearest = (negatives[:, None] - x[None]).abs().mean(dim=(2, 3, 4)).amin(dim=1)
        assert (nearest > 0.01).all(), f"{make.__name__} left a digit as it was"
    negatives = digit_negatives(x, y, 20, generator(1))
    assert torch.equal(negatives, digit_negatives(x, y, 20, generator(1)))
    torch.testing.assert_close(negatives.amax(dim=(1, 2, 3)), torch.ones(20))
    assert digit_negatives(x, y, 0, generator()).shape == (0, 1, 32, 32)


def test_batches_hold_every_class(golden_hands, golden_digits):
    x, y = next(rendered.batches(golden_hands, generator(), per_class=6))
    assert x.shape == (24, 1, 64, 64)
    assert torch.bincount(y).tolist() == [6] * 4
    x, y = next(mnist.batches(*golden_digits, generator(), batch=40, negatives=9))
    assert x.shape == (49, 1, 32, 32)
    assert (y == digits.CLASSES).sum() == 9


def test_distortions_keep_the_range_and_differ(golden_digits):
    x = torch.from_numpy(golden_digits[0][:8] / np.float32(255))[:, None]
    moved = mnist.distorted(x, generator())
    assert moved.shape == x.shape
    assert moved.min() >= 0
    assert moved.max() <= 1
    assert ((moved - x).abs().mean(dim=(1, 2, 3)) > 0.01).all()
    assert ((moved > 0.5).float().mean(dim=(1, 2, 3)) > 0.02).all(), "the digit is still there"


@pytest.fixture
def few_hands(monkeypatch):
    """Batches of the hands' labeller small enough for a test."""
    monkeypatch.setattr(rendered, "PER_CLASS", 2)


@pytest.mark.usefixtures("few_hands")
@pytest.mark.parametrize("name", ["mnist", "hands-64r"])
def test_the_command_trains_a_labeller(data_folder, tmp_path, name):
    module = {"mnist": mnist, "hands-64r": rendered}[name]
    for run in ("a", "b"):
        options = [f"--dest={tmp_path / run}.safetensors", f"--outdir={tmp_path / run}", "--steps=2", "--seed=4"]
        said(command.main, name, *options)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    ensemble = load_ensemble(tmp_path / "a.safetensors", module.SPEC, made_by="x")
    assert (ensemble.facts["seed"], ensemble.facts["steps"]) == (4, 2)
    output = refusal(command.main, name, f"--outdir={tmp_path / 'a'}", "--steps=3")
    assert "members trained with other options" in output
    for file in data_folder.iterdir():
        file.unlink()
    read_images.cache_clear()
    assert "is missing: `" in refusal(command.main, name, f"--dest={tmp_path / 'c.safetensors'}")
    assert not (tmp_path / "c.safetensors").exists()


@pytest.mark.parametrize("arg", ["--steps=0", "--seed=-1", "--epochs=3"])
def test_the_command_refuses_bad_options_in_one_line(arg):
    assert arg.split("=")[0] in refusal(command.main, "mnist", arg)


def test_the_command_trains_the_networks_of_the_grid_that_are_missing(tmp_path):
    args = ["grid25", f"--outdir={tmp_path / 'new'}", "--seeds=0-1", "--steps=8", "--batch=16"]

    said(command.main, *args)
    files = {p.name: p.read_bytes() for p in (tmp_path / "new").iterdir()}
    assert set(files) == {"grid25-0.safetensors", "grid25-1.safetensors"}
    assert files["grid25-0.safetensors"] != files["grid25-1.safetensors"]
    assert said(command.main, *args).count("is there already") == 2
    (tmp_path / "new" / "grid25-1.safetensors").unlink()
    said(command.main, *args)
    assert {p.name: p.read_bytes() for p in (tmp_path / "new").iterdir()} == files


@pytest.mark.parametrize("arg", ["--steps=0", "--batch=x", "--seeds=3-1", "--outdir={file}"])
def test_the_command_for_the_grid_refuses_bad_options_in_one_line(arg, tmp_path):
    file = tmp_path / "file"
    file.touch()
    given = [f"--outdir={tmp_path}", arg.format(file=file)]
    assert arg.split("=")[0] in refusal(command.main, "grid25", *last_of_each(given))


def test_a_recipe_has_steps():
    with pytest.raises(ValueError, match="steps must be at least 1"):
        Recipe(steps=0, lr=1.0)
