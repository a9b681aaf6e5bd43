"""docs/how-to/calibrate.md does what it says: its commands, its snippet and its preset work together."""

from __future__ import annotations

import json
import re
import runpy
from math import inf
from pathlib import Path

import pytest
import torch
from commands import SMALL, files, generated, options_json, records
from pages import Page

from rods import RodsCas
from rods.presets import parse_preset
from training.checkpoint import load_denoiser

PAGE = Page("how-to/calibrate")
# Not other seeds, as the page asks for: on these the share that is flagged is known.
FEWER = {"--seeds=10000-10511": "--seeds=10000-10039", "--seeds=0-255": "--seeds=10000-10039"}


def run(command: list[str]) -> str:
    options = [FEWER.get(option, option) for option in command if option != "--network=my-network.pkl"]
    return generated(Path(), *options, steps=None)


def test_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    measure, plain, repair = PAGE.commands[-3:]  # those before need a readout
    run(measure)
    (snippet,) = PAGE.blocks
    Path("snippet.py").write_text(snippet)
    runpy.run_path("snippet.py")

    preset = json.loads(Path("my-network.preset.json").read_text())
    largest = [max(line["H"]) for line in records(Path("measured"))]
    eps = preset["samplers"]["rods-cas"]["eps"]
    assert sum(h >= eps for h in largest) == 2, "one in twenty of forty"
    assert preset["source"].endswith("seeds 10000 to 10039")

    run(plain)
    assert "Preset my-network (95 % quantile of max H, seeds 10000 to 10039)" in run(repair)
    identity = options_json(Path("repaired"))["identity"]
    assert (identity["eps"], identity["rho"], identity["window"], identity["num_steps"]) == (eps, 8, "0.1,0.5", 40)
    before, after = files(Path("plain")), files(Path("repaired"))
    flagged = {line["name"] for line in records(Path("repaired")) if line["flagged"]}
    assert len(flagged) == 2
    assert {name for name in before if name[0].isdigit() and after[name] != before[name]} <= flagged
    other = ["--sampler=rods-sas", "--preset=my-network.preset.json", "--seeds=0"]
    assert "--sas-sign=downhill" in generated(Path("sas"), *other, steps=None)


def test_the_evaluations_that_it_names() -> None:
    sampler = RodsCas(eps=inf, rho=8, window=(0.1, 0.5))
    (record,) = sampler.sample(load_denoiser(SMALL), torch.zeros(1, 1, 8, 8)).records
    assert f"{record.forward} F + {record.backward} B an image for 40 steps" in PAGE.text


def test_the_preset_that_it_shows() -> None:
    (shown,) = re.findall(r'^    (\{"name".*\}\}\})', PAGE.text, re.DOTALL | re.MULTILINE)
    preset = parse_preset(json.loads(shown), where="the page")
    assert preset.samplers["rods-cas"] == RodsCas(eps=0.1, rho=8, window=(0.1, 0.5), num_steps=40)
