"""rods.bench.methods: what a method of the benchmark is, by the table, the command line and an experiment's file."""

from __future__ import annotations

from math import inf
from pathlib import Path

import pytest
from small_tasks import POINTS

from dnnlib.errors import UserError
from rods.bench.methods import METHODS, read_experiments, resolve, split_methods
from rods.config import DETECTORS, FITTED, SAMPLERS, build
from rods.detectors import Lid
from rods.presets import Preset
from rods.schedules import SigmaWindow


def test_options_come_from_the_line_the_table_the_preset_and_the_task() -> None:
    samplers = {
        "overshoot": build("overshoot", {"rho": 3.0, "num_steps": 99, "window": (0, 1)}),
        "tag": build("tag", {"eta": 1.5}),
    }
    preset = Preset("p", "exact", "", samplers)
    assert resolve("overshoot", POINTS).sampler.correct.rho == 0.02
    calibrated = resolve("overshoot", POINTS, preset).sampler
    assert (calibrated.correct.rho, calibrated.num_steps) == (3.0, 6), "methods are compared at the task's steps"
    given = resolve("overshoot", POINTS, preset, given={"rho": 0.5, "window": "sigma:.1,2"}, name="near")
    assert (given.sampler.correct.rho, given.sampler.window) == (0.5, SigmaWindow(0.1, 2))
    assert (given.name, given.folder) == ("near", "near")
    assert resolve("tag", POINTS, preset).sampler.correct.eta == 1.1
    assert resolve("euler-200", POINTS).sampler.num_steps == 200


def test_a_detector_changes_no_image() -> None:
    for name in DETECTORS:
        method = resolve(name, POINTS, given={"rho": 0.02} if name == "h-index" else {})
        assert method.is_score
        assert inf in (getattr(method.sampler, "threshold", 0), getattr(method.sampler, "eps", 0))
    assert resolve("lid", POINTS, given={"detector": "lid:sigma=.1,draws=2"}).sampler.detector == Lid(0.1, 2)


@pytest.mark.parametrize(
    ("method", "given", "what"),
    [
        ("sorcery", {}, "unknown method 'sorcery'; use euler, heun"),
        ("overshoot", {"size": 3}, "size: unknown option of overshoot; it has rho, window"),
        ("sigma-offset", {}, "kappa: sigma-offset needs a value for it"),
        ("overshoot", {"rho": "big"}, "rho: 'big': must be a number"),
        ("overshoot", {"rho": -1.0}, "rho"),
        ("readout", {}, "the preset in use has no weights of readout"),
    ],
)
def test_methods_that_cannot_be_made_name_the_option_and_the_remedy(method, given, what) -> None:
    with pytest.raises(UserError, match=what):
        resolve(method, POINTS, given=given)


def test_a_method_that_does_not_suit_the_network_is_refused_before_the_run() -> None:
    denoiser = POINTS.networks["exact"]().denoiser
    with pytest.raises(UserError, match="on points: sigma_r: 99"):
        resolve("restart", POINTS, None, denoiser, given={"sigma_r": 99.0})


def test_a_line_is_several_methods_or_one_with_options() -> None:
    assert split_methods("euler, heun") == [("euler", {}), ("heun", {})]
    assert split_methods("restart sigma_r=2 detector=lid:sigma=1.6,draws=8") == [
        ("restart", {"sigma_r": "2", "detector": "lid:sigma=1.6,draws=8"})
    ]
    with pytest.raises(UserError, match="'rho' after overshoot is not an option; write option=value"):
        split_methods("overshoot rho")
    with pytest.raises(UserError, match="options belong to one method; give 'overshoot' by itself"):
        split_methods("euler,overshoot rho=3")


def test_the_table_names_everything_that_is_registered() -> None:
    assert {m.sampler for m in METHODS.values()} == set(SAMPLERS)
    assert {*DETECTORS, *FITTED, *SAMPLERS} <= set(METHODS)
    assert next(iter(METHODS)) == "euler"


EXPERIMENT = """
[[table]]
task = "points"
batch = 8
seeds = "0-15"

[[table.run]]
methods = ["euler", "heun"]

[[table.run]]
method = "lid"
name = "lid-near"
detector = "lid:sigma=.1,draws=2"
seeds = "0-7"
"""


def test_an_experiment_is_tables_of_runs(tmp_path: Path) -> None:
    path = tmp_path / "e.toml"
    path.write_text(EXPERIMENT)
    (table,) = read_experiments(path)
    assert (table.task, table.network, table.preset, table.batch, table.seeds) == ("points", None, None, 8, "0-15")
    assert table.methods == [
        (None, "euler", {}, None),
        (None, "heun", {}, None),
        ("lid-near", "lid", {"detector": "lid:sigma=.1,draws=2"}, "0-7"),
    ]


POINTS_TABLE, ONE_RUN = "[[table]]\ntask = 'points'\n", "[[table.run]]\nmethod = 'euler'\n"


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "table: must be"),
        ("table = 5", "table: must be"),
        ("table = [5]", "table: must be"),
        ("[table]\ntask = 'points'", "table: must be"),
        ("[[table]]\nrun = []", "task: is missing"),
        ("[[table]]\ntask = 'points'\nrun = []", "run: must be a list of runs"),
        ("[[table]]\ntask = 'points'\nrun = ['euler']", "run: must be a list of runs"),
        (POINTS_TABLE + "seeds = [0, 1]\n" + ONE_RUN, r"seeds: \[0, 1\]: must be a text"),
        (POINTS_TABLE + "batch = 0\n" + ONE_RUN, "batch: 0: must be a whole number from 1"),
        (POINTS_TABLE + "batch = true\n" + ONE_RUN, "batch: True: must be a whole number from 1"),
        (POINTS_TABLE + "preset = 5\n" + ONE_RUN, "preset: 5: must be a text"),
        (POINTS_TABLE + ONE_RUN + "seeds = 3", "seeds: 3: must be a text"),
        (POINTS_TABLE + ONE_RUN + "name = '..'", "name: '..': names the run's folder"),
        (POINTS_TABLE + ONE_RUN + "name = ''", "name: '': names the run's folder"),
        (POINTS_TABLE + "[[table.run]]\nmethod = 'heun'\nname = 'euler'", "name: 'euler' is what the others"),
        (POINTS_TABLE + "[[table.run]]\nmethods = 'euler'", "methods: 'euler': must be a list of texts"),
        (POINTS_TABLE + ONE_RUN + "methods = ['heun']", "run: needs one of"),
        (EXPERIMENT + "\n[other]\n", "unknown key 'other'"),
        ("[[table]]\ntask = 'points'\nsize = 3\n[[table.run]]\nmethod = 'euler'", "unknown key 'size'"),
        ("[[table]]\ntask = 'points'\n[[table.run]]\nrho = 3", "run: needs one of"),
        ("[[", "Invalid"),
    ],
)
def test_files_that_are_no_experiment_are_refused_in_a_line(tmp_path: Path, text: str, what: str) -> None:
    path = tmp_path / "e.toml"
    path.write_text(text)
    with pytest.raises(UserError, match=r"e\.toml is not an experiment: .*" + what):
        read_experiments(path)
