"""What docs/extending.md adds, checked in a process of its own: my_methods.py, the page's blocks, is on the path.

Not collected by itself; tests/docs/test_extending.py runs it.
"""

from __future__ import annotations

import json
from math import inf
from pathlib import Path

import my_methods  # registers; before generate.py, whose options are made when it is imported
import pytest
import torch
from click.testing import CliRunner
from commands import files, generate, generated, options_json, records
from exact import Counting, latents, mixture
from pages import Page

from generate import main
from rods import RodsCas, Sampler, bind
from rods.bench.methods import METHODS
from rods.config import build, detector_from_text, from_json, to_json
from rods.detectors import Detector
from rods.restart import draws_of

PAGE = Page("extending")
STRAIGHTEN = {"weight": 0.3, "window": (0.2, 0.8), "num_steps": 8}
SAMPLERS = [
    build("straighten", STRAIGHTEN),
    build("heun-overshoot", {"rho": 0.5, "num_steps": 8}),
    build("rods-cas", {"eps": 0.1, "rho": 0.3, "num_steps": 8, "detector": detector_from_text("noise-length")}),
    build("restart", {"threshold": 0.2, "sigma_r": 2, "detector": detector_from_text("noise-length:hi=2"),
                      "inside": my_methods.Straighten(0.3)}),
]  # fmt: skip


def fixed_noise(sampler: Sampler, rows: slice):  # type: ignore[no-untyped-def]
    """Draws that belong to the rows of the whole batch, whichever are sampled."""
    g = torch.Generator().manual_seed(5)
    return lambda x: torch.randn(6, *x.shape[1:], generator=g, dtype=x.dtype)[rows]


# -- options ----------------------------------------------------------------------------------------------------------


def test_help_has_them() -> None:
    text = " ".join(CliRunner().invoke(main, ["--help"]).output.split())
    assert "--weight FLOAT straighten: Share of the direction of the step before." in text
    assert "lmi, noise-length, readout." in text
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
    assert "noise-length" in json.dumps(identity) or identity["sampler"] in command[0] or "straighten" in str(identity)


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
    code, output = generate(tmp_path / "out", *options)
    assert code == 2
    assert said in output
    assert len(output.strip().splitlines()) == 1


def test_the_benchmark_has_rows_for_them() -> None:
    assert METHODS["noise-length"].is_score
    assert METHODS["straighten"].sampler == "straighten"
    assert "heun-overshoot" in METHODS


# -- laws -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)
def test_json_reads_them_back(sampler: Sampler) -> None:
    assert from_json(json.loads(json.dumps(to_json(sampler)))) == sampler


@pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)
def test_an_image_does_not_depend_on_its_batch(sampler: Sampler) -> None:
    whole = sampler.sample(mixture(), latents(), randn_like=fixed_noise(sampler, slice(None)))
    for b in range(6):
        alone = sampler.sample(mixture(), latents()[b : b + 1], randn_like=fixed_noise(sampler, slice(b, b + 1)))
        assert (alone.images[0] - whole.images[b]).abs().max() <= 1e-12
        assert alone.records[0].flagged == whole.records[b].flagged
        assert alone.records[0].scores == pytest.approx(whole.records[b].scores, abs=1e-12)


@pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)
def test_evaluations_are_counted(sampler: Sampler) -> None:
    net = Counting(mixture())
    done = sampler.sample(net, latents(), randn_like=fixed_noise(sampler, slice(None)))
    assert sum(record.forward for record in done.records) == net.forward
    assert sum(record.backward for record in done.records) == net.backward


def test_their_cost_is_what_their_docstrings_say() -> None:
    straighten, heun, _, _ = SAMPLERS
    assert straighten.sample(mixture(), latents()).records[0].forward == 8
    assert heun.sample(mixture(), latents()).records[0].forward == 2 * 8 - 1
    gated = RodsCas(eps=inf, rho=1, num_steps=8, detector=my_methods.NoiseLength())
    (record, *_) = gated.sample(mixture(), latents()).records
    assert (record.forward, record.backward) == (8, 0)
    assert len(record.scores) == 3  # steps .1 * 8 <= i < .5 * 8


def test_the_detector_changes_no_image() -> None:
    gated = RodsCas(eps=inf, rho=1, num_steps=8, detector=my_methods.NoiseLength())
    plain = build("euler", {"num_steps": 8})
    assert torch.equal(gated.sample(mixture(), latents()).images, plain.sample(mixture(), latents()).images)


def test_a_followed_score_does_not_depend_on_its_batch() -> None:
    detector: Detector = my_methods.NoiseLength(lo=0.1, hi=10)

    def score(x: torch.Tensor) -> torch.Tensor:
        denoise = bind(mixture(), len(x))
        follower = detector.follow(denoise, draws_of(denoise, x.double(), detector.num_draws))
        for step in build("euler", {"num_steps": 8}).steps(denoise, x):
            follower.add(step)
        return follower.score(step.x_next)

    whole = score(latents())
    for b in range(6):
        assert abs(float(score(latents()[b : b + 1])) - float(whole[b])) <= 1e-12


def test_a_trajectory_is_watched_by_a_for_loop() -> None:
    sigmas = torch.tensor([20.0, 5.0, 1.0, 0.2, 0.0], dtype=torch.float64)
    found, forward, backward = my_methods.scores_of(mixture(), 20 * latents().double(), sigmas)
    assert len(found) == 3
    assert forward.tolist() == [4] * 6
    assert backward.tolist() == [0] * 6
