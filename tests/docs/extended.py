"""What docs/extending.md adds to generate.py, to presets and to the benchmark.

Not collected by itself: tests/docs/test_extending.py runs it with the plugin extension.py, together with the laws.
"""

from __future__ import annotations

import json
from math import inf
from pathlib import Path

import my_methods
import pytest
import torch
from click.testing import CliRunner
from commands import files, generated, options_json, records, refused
from exact import latents, mixture
from pages import Page

from generate import main
from rods import Euler, RodsCas
from rods.bench.methods import METHODS

PAGE = Page("extending")


# -- options ----------------------------------------------------------------------------------------------------------


def test_help_has_them() -> None:
    text = " ".join(CliRunner().invoke(main, ["--help"]).output.split())
    assert "--weight FLOAT straighten: Share of the direction of the step before." in text
    assert "jump, roughness, noise-length, readout, density-ratio." in text.replace("- ", "-")  # lines end at hyphens
    assert "|straighten|heun-overshoot]" in text
    assert "heun-overshoot: How far the denoised image is overshot" in text
    assert "straighten" in text[text.index("--inside") : text.index("--kappa")]


@pytest.mark.parametrize("command", PAGE.commands, ids=lambda command: " ".join(command[:2]))
def test_the_commands_run_and_complete_themselves(command: list[str], tmp_path: Path) -> None:
    options = [*(part for part in command if not part.startswith(("--outdir", "--steps"))), "--seeds=0-2"]
    generated(tmp_path, *options, steps=10)
    before = files(tmp_path)
    generated(tmp_path, *options, steps=10)
    assert files(tmp_path) == before
    identity = options_json(tmp_path)["identity"]
    ours = ("noise-length", "roughness", "straighten", "heun-overshoot")
    assert any(name in json.dumps(identity) for name in ours)


def test_a_preset_holds_them(tmp_path: Path) -> None:
    shown = PAGE.text[PAGE.text.index('`"restart": {') + 1 :]
    restart = json.loads("{" + shown[: shown.index("`")] + "}")
    samplers = {**restart, "straighten": {"weight": 0.3, "window": ".2,.8"}}
    preset = tmp_path / "my.preset.json"
    preset.write_text(json.dumps({"name": "my", "network": None, "source": "a test", "samplers": samplers}))
    for sampler in samplers:
        out = tmp_path / sampler
        generated(out, f"--preset={preset}", f"--sampler={sampler}", "--seeds=0", steps=10)
    assert "noise-length" in options_json(tmp_path / "restart")["identity"]["detector"]
    assert options_json(tmp_path / "straighten")["identity"]["weight"] == 0.3
    assert records(tmp_path / "restart")[0]["restart"]["scores"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--sampler=rods-cas", "--eps=0", "--rho=1", "--detector=noise-length:scale=0"], "scale: 0.0 is not a length"),
        (["--sampler=straighten", "--weight=2"], "--weight: 2.0 is not a share"),
        (["--sampler=straighten"], "weight: straighten needs a value"),
        (["--sampler=euler", "--weight=.5"], "--weight is an option of straighten"),
    ],
)
def test_a_wrong_option_is_one_line(options: list[str], said: str, tmp_path: Path) -> None:
    assert said in refused(tmp_path / "out", *options)


def test_the_benchmark_has_rows_for_them() -> None:
    assert METHODS["noise-length"].is_score
    assert METHODS["roughness"].is_score
    assert METHODS["straighten"].sampler == "straighten"
    assert "heun-overshoot" in METHODS


# -- in the library ---------------------------------------------------------------------------------------------------


def test_as_a_gate_the_detector_costs_nothing_and_changes_no_image() -> None:
    gated = RodsCas(eps=inf, rho=1, num_steps=8, detector=my_methods.NoiseLength())
    done = gated.sample(mixture(), latents())
    assert {(record.forward, record.backward, len(record.scores)) for record in done.records} == {(8, 0, 3)}
    assert torch.equal(done.images, Euler(num_steps=8).sample(mixture(), latents()).images)


def test_a_trajectory_is_watched_by_a_for_loop() -> None:
    sigmas = torch.tensor([20.0, 5.0, 1.0, 0.2, 0.0], dtype=torch.float64)
    found, forward, backward = my_methods.scores_of(mixture(), 20 * latents().double(), sigmas)
    assert len(found) == 3
    assert forward.tolist() == [4] * 6
    assert backward.tolist() == [0] * 6


# -- a wrapper --------------------------------------------------------------------------------------------------------


def test_the_wrapper_counts_both_networks() -> None:
    done = Euler(num_steps=5).sample(my_methods.Mean(mixture(), mixture()), latents())
    assert torch.equal(done.images, Euler(num_steps=5).sample(mixture(), latents()).images)
    assert {record.forward for record in done.records} == {10}
