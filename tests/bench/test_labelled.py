"""rods.bench.labelled and label_run: what a labelled run folder says in numbers, with and without its images."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import small_tasks
import torch
from small_tasks import PICTURES, POINTS

from dnnlib.errors import UserError
from rods.base_samplers import Euler
from rods.bench.compare import total_variance
from rods.bench.labelled import read_run
from rods.bench.methods import Method
from rods.bench.pooled import FEATURES_NAME, GROUP, values_of
from rods.bench.run import label_run, run_methods, source_of
from rods.eval.labels import Label
from rods.labels.labels import LABELS_NAME, ImageLabel, read_labels, write_labels

METHODS = ["euler", "lid detector=lid:sigma=.1,draws=2", "h-index rho=.02 window=0,1", "lmi", "overshoot", "restart"]


@pytest.fixture(scope="module")
def points(tmp_path_factory):
    return small_tasks.run(POINTS, tmp_path_factory.mktemp("points"), METHODS)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return small_tasks.run(PICTURES, tmp_path_factory.mktemp("images"), ["euler", "overshoot"])


def test_what_a_run_of_points_says(points) -> None:
    base = points["euler"]
    assert base.seeds.tolist() == list(range(64))
    assert base.is_points
    x = base.features.reshape(-1, 2, 1, 1)
    assert np.array_equal(base.labels, POINTS.label(x))
    assert np.array_equal(base.modes, POINTS.kinds(x))
    assert (base.nfe == [6, 0]).all()
    assert (base.scores, base.own_scores, base.step_scores) == (None, None, None)
    for score in ("lid", "h-index", "lmi"):
        assert points[score].is_score
        assert np.array_equal(points[score].features, base.features), "a score changes no sample"
        assert np.isfinite(points[score].scores).all()
    levels, steps = points["h-index"].step_scores
    assert steps.shape == (64, len(levels))
    assert points["h-index"].scores == pytest.approx(steps.max(axis=1))
    restart = points["restart"]
    unchanged = np.array([line["restart"]["kept"] == 0 for line in restart.samples])
    assert np.array_equal(restart.features[unchanged], base.features[unchanged])
    assert np.array_equal(restart.own_scores[unchanged], restart.scores[unchanged])
    assert (restart.own_scores <= restart.scores).all()


def test_what_a_run_of_images_says(images, tmp_path: Path) -> None:
    run = images["overshoot"]
    pixels = np.stack([run.image(i) for i in range(len(run))])
    assert pixels.shape == (32, 1, 16, 16)
    unit = pixels / 255.0
    assert run.features == pytest.approx(unit.reshape(32, 8, 2, 8, 2).mean(axis=(2, 4)).reshape(32, 64), abs=0.006)
    expected = values_of(pixels).reshape(32, -1).var(axis=0).sum()
    assert total_variance(run.groups()) == pytest.approx(expected, rel=0.01)
    assert len(run.groups()[0]) == 32 // GROUP

    bare = tmp_path / "bare"
    shutil.copytree(run.path, bare, ignore=shutil.ignore_patterns("*.png"))
    again = read_run(bare)
    assert np.array_equal(again.features, run.features), "what comparisons need is kept beside the labels"
    assert [np.array_equal(a, b) for a, b in zip(again.groups(), run.groups(), strict=True)] == [True] * 3
    assert again.image(0) is None
    (bare / FEATURES_NAME).unlink()
    with pytest.raises(UserError, match=r"000000\.png is missing, and features\.jsonl does not have it"):
        _ = read_run(bare).features


def test_only_some_seeds(points) -> None:
    run = points["restart"].only(set(range(16, 48)))
    assert run.seeds.tolist() == list(range(16, 48))
    assert np.array_equal(run.labels, points["restart"].labels[16:48])
    assert len(run.modes) == len(run.keys) == 32
    assert {seed for chunk in run.timing for seed in chunk["seeds"]} == set(range(16, 48))
    assert points["restart"].only(set(range(100))) is points["restart"]


def test_labels_say_who_gave_them(points, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(points["euler"].path, run)
    name = "000003.png"
    write_labels(run, [ImageLabel(name, "uncertain", "alice")])
    with pytest.raises(UserError, match="has labels of 'program points', 'alice'; name one by --labels"):
        read_run(run)
    mine = read_run(run, source="alice")
    assert (mine.seeds.tolist(), mine.labels.tolist(), mine.modes) == ([3], [Label.UNCERTAIN], None)
    assert np.array_equal(read_run(run, source=source_of(POINTS)).labels, points["euler"].labels)
    assert label_run(POINTS, run) == 0, "what has a label keeps it"
    lines = (run / LABELS_NAME).read_text().splitlines()
    (run / LABELS_NAME).write_text("".join(f"{line}\n" for line in lines if name not in line))
    assert label_run(POINTS, run) == 1
    assert np.array_equal(read_run(run).labels, points["euler"].labels)


def test_folders_that_are_no_labelled_run_are_refused_in_a_line(points, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    with pytest.raises(UserError, match=r"is not a run: it has no options\.json"):
        read_run(run)
    with pytest.raises(UserError, match="has no samples"):
        label_run(POINTS, run)
    shutil.copytree(points["euler"].path, run, dirs_exist_ok=True)
    (run / LABELS_NAME).unlink()
    with pytest.raises(UserError, match=r"has no labels\.jsonl; label it, such as by scripts/bench\.py label"):
        read_run(run)
    write_labels(run, [ImageLabel("other.png", "valid", "alice")])
    with pytest.raises(UserError, match="has no labelled sample"):
        read_run(run)
    label_run(POINTS, run)
    for text in ("{}", "[]", "hello"):
        (run / "options.json").write_text(text)
        with pytest.raises(UserError, match=r"options\.json"):
            read_run(run, source=source_of(POINTS))
    for text in ("hello\n", "{}\n", '{"name": "a", "label": "odd", "source": "x"}\n'):
        (run / LABELS_NAME).write_text(text)
        with pytest.raises(UserError, match="is not a file of labels"):
            read_labels(run)


def test_samples_that_are_no_numbers_are_hallucinated_and_counted(tmp_path: Path) -> None:
    class Broken:
        img_channels, img_resolution, label_dim = 2, 1, 0
        sigma_min, sigma_max = 0.0, float("inf")

        def round_sigma(self, sigma):
            return sigma

        def __call__(self, x, sigma, class_labels=None):
            return torch.where(x[:, :1] > 0, float("nan"), 0 * x)

    network = replace(POINTS.networks["exact"](), denoiser=Broken())
    run_methods(POINTS, network, [Method("euler", Euler(num_steps=6))], range(8), out=tmp_path, batch=8)
    run = read_run(small_tasks.folder(POINTS, tmp_path, "euler"))
    broken = np.array([line["x"] is None for line in run.samples])
    assert 0 < run.not_finite == broken.sum() < 8
    assert (run.labels[broken] == Label.HALLUCINATED).all()
    assert (run.modes[broken] == -1).all()
    text = (run.path / LABELS_NAME).read_text()
    assert all("sha256" not in json.loads(line) for line in text.splitlines())
