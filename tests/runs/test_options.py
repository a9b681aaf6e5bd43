"""Options of the commands: how they are spelt, which sampler they choose, and values that are texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from commands import files, generated, records, refused
from exact import latents, mixture

from dnnlib.errors import UserError
from rods import Cas, Corrected, CurvatureIndex, Lid, Restart, RodsCas, RodsSas, SigmaWindow, Tag
from rods.config import REQUIRED, SAMPLERS
from rods.presets import PAPER_PRESETS, parse_preset
from rods.runs.options import (
    add_sampler_options,
    all_options,
    given_options,
    respell,
    sampler_choice,
    sampler_from_options,
)


def parsed(*args: str, sampler: str) -> object:
    """The sampler that a command line asks for."""
    found: list[object] = []

    @click.command()
    @add_sampler_options
    def command(**opts: object) -> None:
        found.append(sampler_from_options(sampler, given_options(opts), None, "net"))

    result = CliRunner().invoke(command, list(args), standalone_mode=False)
    if result.exception:
        raise result.exception
    return found[0]


def test_options_become_a_sampler() -> None:
    assert parsed("--eps=.1", "--rho=2", "--window=sigma:1,5", sampler="rods-cas") == RodsCas(
        eps=0.1, rho=2, window=SigmaWindow(1, 5)
    )
    assert parsed("--eps=inf", "--rho=2", "--detector=h-index:rho=4", "--detect=true", sampler="rods-cas") == RodsCas(
        eps=float("inf"), rho=2, detector=CurvatureIndex(rho=4)
    )
    restart = parsed("--threshold=9", "--sigma-r=2", "--detector=lid:draws=2", "--inside=cas:rho=.5", sampler="restart")
    assert restart == Restart(threshold=9, sigma_r=2, detector=Lid(draws=2), inside=Cas(0.5))
    assert parsed("--eta=1.2", "--steps=7", "--sigma_min=.01", sampler="tag") == Corrected(
        correct=Tag(1.2), window=(0, 1), num_steps=7, sigma_min=0.01
    )


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_what_a_sampler_needs_is_asked_for_by_its_flag(sampler: str) -> None:
    needed = [kinds[sampler].flag for kinds in all_options().values()
              if sampler in kinds and kinds[sampler].default is REQUIRED]  # fmt: skip
    if not needed:
        parsed(sampler=sampler)
        return
    with pytest.raises(UserError, match=rf"^({'|'.join(needed)})\b.* need"):
        parsed(sampler=sampler)


@pytest.mark.parametrize(
    ("args", "sampler", "says"),
    [
        (["--rho=1"], "edm", "^--rho is an option of .*; --sampler=edm has none: .*--time-rho$"),
        (["--S_churn=1"], "euler", "^--S_churn is an option of .*; --sampler=euler has none"),
        (["--eps=nan", "--rho=1"], "rods-cas", "^--eps: "),
        (["--eps=1", "--rho=1", "--detector=lid"], "rods-cas", "^--detector: "),
        (["--threshold=1", "--sigma-r=2", "--detector=best"], "restart", "^--detector: "),
        (["--threshold=1", "--sigma-r=2", "--detector=readout"], "restart", "^--detector: .*scripts/fit_readout.py"),
        (["--threshold=1", "--sigma-r=2", "--inside=cas"], "restart", "^--inside: "),
        (["--threshold=1", "--sigma-r=2", "--inside=laplacian:strength=1"], "restart", "^--inside: "),
    ],
)
def test_what_is_refused_names_the_flag(args: list[str], sampler: str, says: str) -> None:
    with pytest.raises(UserError, match=says) as error:
        parsed(*args, sampler=sampler)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("args", [["--detector=learned"], ["--detector=screen(tvf>.1;lid)"], ["--window=all"],
                                  ["--window=.5,.1"], ["--steps=0"], ["--solver=rk4"]])  # fmt: skip
def test_what_click_refuses(args: list[str]) -> None:
    with pytest.raises(click.UsageError):
        parsed(*args, sampler="edm")


ALL_CORRECTED: dict[str, list[str]] = {
    "cas": ["--sampler=rods-cas", "--preset=none", "--eps=0", "--rho=1", "--window=0,1"],
    "cas, other options": ["--sampler=rods-cas", "--preset=none", "--eps=0", "--rho=1", "--window=0,1",
                           "--probe-every=3", "--ascent-steps=2", "--solver=heun", "--gradient=difference"],
    "sas": ["--sampler=rods-sas", "--preset=none", "--eps=0", "--rho=1"],
    "cas by a preset": ["--sampler=rods-cas", "--preset=hands-128-ve"],
    "sas by a preset": ["--sampler=rods-sas", "--preset=hands-128-ve"],
}  # fmt: skip


@pytest.mark.parametrize("name", ALL_CORRECTED)
def test_where_all_are_corrected_detection_is_left_out_and_no_byte_changes(name: str, tmp_path: Path) -> None:
    options = [*ALL_CORRECTED[name], "--seeds=0-2", "--batch=2"]
    plain, full = tmp_path / "plain", tmp_path / "full"
    generated(plain, *options, steps=10)
    generated(full, *options, "--detect=true", steps=10)
    assert {k: v for k, v in files(plain).items() if k.endswith(".png")} == {
        k: v for k, v in files(full).items() if k.endswith(".png")
    }
    assert [(line["H"] == [], line["flagged"]) for line in records(plain)] == [
        (True, line["flagged"]) for line in records(full)
    ]
    before = files(full)
    for folder, more, was, wanted in ((full, (), "True", "False"), (plain, ("--detect=true",), "False", "True")):
        told = refused(folder, *options, *more, steps=10)
        assert f"holds images made with --detect={was}, not {wanted}; repeat what made them" in told
    generated(full, *options, "--detect=True", steps=10)
    assert files(full) == before


@pytest.mark.parametrize(
    ("sampler", "given", "cost"),
    [
        ("rods-cas", [], (56, 16)),
        ("rods-cas", ["--detect=true"], (56, 32)),
        ("rods-cas", ["--detector=h-index:rho=1"], (56, 32)),
        ("rods-cas", ["--eps=inf"], (56, 32)),
        ("rods-cas", ["--probe-every=2"], (48, 8)),
        ("rods-sas", [], (56, 0)),
        ("rods-sas", ["--detect=true"], (72, 32)),
        ("rods-sas", ["--probe-every=4"], (60, 8)),  # which needs something to measure
        ("rods-sas", ["--gradient=difference"], (104, 0)),
    ],
)
def test_what_a_command_that_corrects_all_costs(sampler: str, given: list[str], cost: tuple[int, int]) -> None:
    eps = [] if "--eps=inf" in given else ["--eps=0"]
    found: Any = parsed(*eps, "--rho=1", *given, sampler=sampler)
    record = found.sample(mixture(), latents()).records[0]
    assert (record.forward, record.backward) == cost


def test_a_presets_own_detector_and_threshold_are_measured() -> None:
    data: dict[str, Any] = {"name": "p", "network": None, "source": "", "samplers": {
        "rods-cas": {"eps": 1, "rho": 2, "detector": "h-index:rho=2"},
        "rods-sas": {"eps": 1, "rho": 2, "probe_every": 2, "gradient": "difference"}}}  # fmt: skip
    preset = parse_preset(data, where="p")
    cas: Any = sampler_from_options("rods-cas", {"eps": 0.0}, preset, "net")
    assert (cas.detect, cas.detector) == (True, CurvatureIndex(2))
    assert sampler_from_options("rods-sas", {}, preset, "net") == preset.samplers["rods-sas"]
    assert sampler_from_options("rods-sas", {"eps": 0.0}, preset, "net") == RodsSas(eps=0, rho=2, detect=False)
    assert PAPER_PRESETS["hands-128-ve"].sampler("rods-cas", {}) == RodsCas(eps=0, rho=30), (
        "the library's is the paper's"
    )


def test_a_presets_options_are_replaced_by_those_given() -> None:
    data = {"name": "p", "network": None, "source": "", "samplers": {"rods-cas": {"eps": 1, "rho": 2}}}
    preset = parse_preset(data, where="p")
    assert sampler_from_options("rods-cas", {"rho": 3.0}, preset, "net") == RodsCas(eps=1, rho=3.0)


def test_messages_spell_options_as_the_command_line_does() -> None:
    assert respell("num_steps: 0 is too few") == "--steps: 0 is too few"
    assert respell("S_min, S_max: 2, 1 is no range") == "--S_min, --S_max: 2, 1 is no range"
    assert respell("this is: a sentence, not an option") == "this is: a sentence, not an option"
    assert respell("nothing to respell") == "nothing to respell"


def test_the_choice_of_a_sampler() -> None:
    said: list[str] = []
    assert sampler_choice("rods-cas", {"solver": "heun"}, say=said.append) == "rods-cas"
    assert sampler_choice(None, {"num_steps": 3}, say=said.append) == "edm"
    assert said == []
    for option, spelt in {"solver": "--solver", "discretization": "--disc", "schedule": "--schedule"}.items():
        assert sampler_choice(None, {option: "x"}, say=said.append) == "ablation"
        assert said.pop() == f"{spelt} given without --sampler: using --sampler=ablation"
