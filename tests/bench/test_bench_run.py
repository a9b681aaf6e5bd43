"""rods.bench.run, results and methods: files that go on where they were cut, and what is in them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import bench_tasks
import numpy as np
import pytest
import torch
from bench_tasks import PICTURES, POINTS
from rods.bench.results import read_results
from rods.pipeline import SAMPLERS

from dnnlib.errors import UserError
from rods.bench.compare import total_variance
from rods.bench.methods import METHODS, resolve, split_methods
from rods.bench.run import PICTURES as PICTURES_FOLDER
from rods.bench.run import Place, run_methods
from rods.eval.labels import Label
from rods.presets import Preset
from rods.runs.images import to_uint8

ALL = ["euler", "lid", "h-index", "lmi", "overshoot", "restart"]


def samples(path: Path) -> list[list]:
    return [v for v in map(json.loads, path.read_text().splitlines()) if isinstance(v, list)]


def test_a_run_cut_anywhere_goes_on_to_the_same_samples(tmp_path):
    whole = bench_tasks.run(POINTS, tmp_path / "a", ALL)
    bench_tasks.run(POINTS, tmp_path / "b", ALL, list(range(32)))
    for name, results in whole.items():
        cut = tmp_path / "b" / "points" / "exact" / results.path.name
        content = cut.read_bytes()
        cut.write_bytes(content[: content.rfind(b'{"chunk"') + 10])  # within the last line
        with open(cut, "ab") as f:
            f.write(b"[1,2")
        assert len(samples_complete(cut)) == 16, name
    again = bench_tasks.run(POINTS, tmp_path / "b", ALL)
    for name, results in whole.items():
        assert again[name].rows == results.rows
        assert len(again[name].runs) == 2, "each invocation says who it is"
    before = {p: p.read_bytes() for p in (tmp_path / "b").rglob("*.jsonl")}
    bench_tasks.run(POINTS, tmp_path / "b", ALL)
    assert {p: p.read_bytes() for p in before} == before, "nothing to do, nothing written"


def samples_complete(path: Path) -> list:
    return read_results(path).rows


def test_what_a_file_says_of_points(tmp_path):
    results = bench_tasks.run(POINTS, tmp_path, ALL)
    base = results["euler"]
    assert base.columns == ("seed", "label", "kind", "F", "B", "x")
    assert base.seeds.tolist() == list(range(64))
    x = base.features.reshape(-1, 2, 1, 1)
    assert np.array_equal(base.labels, POINTS.label(x))
    assert np.array_equal(base.kinds, POINTS.kinds(x))
    assert (base.passes == [6, 0]).all()
    assert results["lid"].rows != base.rows
    for score in ("lid", "h-index", "lmi"):
        assert np.array_equal(results[score].features, base.features), "a score changes no sample"
        assert np.isfinite(results[score].scores).all()
    levels, steps = results["h-index"].step_scores
    assert steps.shape == (64, len(levels))
    assert results["h-index"].scores == pytest.approx(steps.max(axis=1))
    kept = [row[0] for row in results["restart"].column("restart")]
    unchanged = np.array(kept) == 0
    assert np.array_equal(results["restart"].features[unchanged], base.features[unchanged])
    assert not (tmp_path / PICTURES_FOLDER).exists()


def test_what_a_file_says_of_pictures(tmp_path):
    results = bench_tasks.run(PICTURES, tmp_path, ["euler", "overshoot"])
    run = results["overshoot"]
    place = Place(tmp_path, "bars", "exact")
    pictures = np.concatenate([np.load(place.pictures("overshoot.jsonl", (s, 8))) for s in range(0, 32, 8)])
    assert pictures.shape == (32, 1, 16, 16)
    unit = pictures / 255.0
    assert run.features == pytest.approx(unit.reshape(32, 8, 2, 8, 2).mean(axis=(2, 4)).reshape(32, 64), abs=0.006)
    expected = (2 * unit - 1).reshape(32, -1).var(axis=0).sum()
    assert total_variance(run.groups()) == pytest.approx(expected, rel=0.01)
    assert (tmp_path / PICTURES_FOLDER / ".gitignore").read_text() == "*\n"
    assert run.path.stat().st_size < 32 * 400


def test_times_stand_beside_the_baselines_of_the_same_run(tmp_path):
    first = bench_tasks.run(POINTS, tmp_path, ["euler", "overshoot"])
    assert all(c["baseline_seconds"] == c["seconds"] for c in first["euler"].chunks)
    assert all(c["baseline_seconds"] > 0 for c in first["overshoot"].chunks)
    late = bench_tasks.run(POINTS, tmp_path, ["euler", "heun"])["heun"]
    assert ["baseline_seconds" in c for c in late.chunks] == [True, False, False, False], "every fourth, timed again"


def test_a_changed_recipe_is_refused(tmp_path):
    bench_tasks.run(POINTS, tmp_path, ["euler"])
    for other, what in ((replace(POINTS, num_steps=7), "num_steps 6, not 7"), (replace(POINTS, batch=9), "batch 16")):
        with pytest.raises(UserError, match=what):
            bench_tasks.run(other, tmp_path, ["euler"])
    moved = tmp_path / "points" / "exact" / "heun.jsonl"
    moved.write_bytes((tmp_path / "points" / "exact" / "euler.jsonl").read_bytes())
    with pytest.raises(UserError, match="method euler, not heun"):
        bench_tasks.run(POINTS, tmp_path, ["euler", "heun"])


@pytest.mark.parametrize(
    "content", ["", "{}\n", "[1]\n", "hello\n", '{"format":1,"recipe":{},"columns":["seed"]}\n[1,2]\n{"chunk":1}\n']
)
def test_files_that_are_none_are_refused_in_a_line(tmp_path, content):
    path = tmp_path / "euler.jsonl"
    path.write_text(content)
    with pytest.raises(UserError, match=r"euler\.jsonl"):
        read_results(path)


def test_the_baseline_comes_first_and_names_differ(tmp_path):
    network = POINTS.networks["exact"]()
    for names, what in ((["heun", "euler"], "euler comes first"), (["euler", "heun", "heun"], "'heun' is there twice")):
        settings = [resolve(name, POINTS, None) for name in names]
        with pytest.raises(UserError, match=what):
            run_methods(POINTS, network, settings, [0], out=tmp_path, batch=4)


def test_samples_that_are_no_numbers_are_bad_and_counted(tmp_path):
    class Broken:
        img_channels, img_resolution, label_dim = 2, 1, 0

        def __call__(self, x, sigma, class_labels=None):
            return torch.where(x[:, :1] > 0, float("nan"), 0 * x)

    network = replace(POINTS.networks["exact"](), denoiser=Broken())
    run_methods(POINTS, network, [resolve("euler", POINTS, None)], list(range(8)), out=tmp_path, batch=8)
    found = read_results(tmp_path / "points" / "exact" / "euler.jsonl")
    broken = found.chunks[0]["not_finite"]
    assert 0 < broken <= 8
    assert (found.labels == Label.BAD).sum() >= broken
    assert (found.kinds == -1).sum() >= broken


def test_settings_come_from_the_line_the_table_the_preset_and_the_task():
    preset = Preset("p", "exact", "", {"overshoot": {"rho": 3.0, "num_steps": 99}, "tag": {"eta": 1.5}})
    assert resolve("overshoot", POINTS, None).config.options["rho"] == 0.02
    calibrated = resolve("overshoot", POINTS, preset).config.options
    assert (calibrated["rho"], calibrated["num_steps"]) == (3.0, 6), "methods are compared at the task's steps"
    given = resolve("overshoot rho=.5 window=sigma:.1,2", POINTS, preset)
    assert given.config.describe()["window"] == "sigma:0.1,2"
    assert given.config.options["rho"] == 0.5
    assert given.file_name == "overshoot_rho=.5_window=sigma_.1_2.jsonl"
    assert resolve("tag", POINTS, preset).config.options["eta"] == 1.1
    assert resolve("euler-200", POINTS, None).config.options["num_steps"] == 200


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("sorcery", "'sorcery' is no method"),
        ("overshoot rho", "'rho' after overshoot"),
        ("overshoot size=3", "size: overshoot has no such option"),
        ("sigma-offset", "kappa: sigma-offset needs a value"),
        ("overshoot rho=big", "rho: 'big' will not do"),
    ],
)
def test_methods_that_will_not_do_name_the_option_and_the_remedy(text, what):
    with pytest.raises(UserError, match=what):
        resolve(text, POINTS, None)


def test_a_list_of_methods_splits_at_methods_only():
    text = "euler,rods-cas window=.1,.5 rho=4, heun"
    assert split_methods(text) == ["euler", "rods-cas window=.1,.5 rho=4", "heun"]
    one = "restart detector=lid:sigma=1.6,draws=8 sigma_r=2"
    assert split_methods(f"{one},lid") == [one, "lid"]


def test_the_table_names_samplers_that_exist_and_covers_them():
    used = {m.sampler for m in METHODS.values()}
    assert used == set(SAMPLERS)
    assert next(iter(METHODS)) == "euler"


def test_pictures_are_those_that_are_hashed(tmp_path):
    run = bench_tasks.run(PICTURES, tmp_path, ["euler"])["euler"]
    latents = torch.stack([torch.randn(1, 16, 16, generator=torch.Generator().manual_seed(s)) for s in range(8)])
    setting = resolve("euler", PICTURES, None)
    images = to_uint8(setting.config.run(PICTURES.networks["exact"]().denoiser, latents).images.numpy())
    stored = np.load(Place(tmp_path, "bars", "exact").pictures("euler.jsonl", (0, 8)))
    assert np.array_equal(stored, images)
    assert len(set(run.column("sha"))) == 32
