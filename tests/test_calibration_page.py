"""docs/calibration.md does what it says: its commands, its snippet and its preset work together."""

from __future__ import annotations

import json
import re
import runpy
import shlex
from pathlib import Path

import pytest
import torch
from commands import SMALL, files, generated, options_json, records
from rods.pipeline import SamplerConfig
from vectors import ROOT

from rods.presets import parse_preset
from training.checkpoint import load_denoiser

PAGE = (ROOT / "docs" / "calibration.md").read_text()
COMMANDS = [shlex.split(text) for text in re.findall(r"python generate\.py (.+)", PAGE.replace("\\\n", " "))]
# Not other seeds, as the page asks for: on these the share that is flagged is known.
FEWER = {"--seeds=10000-10511": "--seeds=10000-10039", "--seeds=0-255": "--seeds=10000-10039"}


def run(command: list[str]) -> str:
    options = [FEWER.get(option, option) for option in command if option != "--network=my-network.pkl"]
    return generated(Path(), *options, steps=None)


def test_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    measure, plain, repair = COMMANDS[:3]  # those of a readout: tests/test_readout.py
    run(measure)
    (snippet,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
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


def test_the_passes_that_it_names() -> None:
    config = SamplerConfig("rods-cas", {"eps": float("inf"), "rho": 8.0, "window": (0.1, 0.5)})
    (record,) = config.run(load_denoiser(SMALL), torch.zeros(1, 1, 8, 8)).records
    assert f"{record.forward} F + {record.backward} B an image for 40 steps" in PAGE


def test_the_preset_that_it_shows() -> None:
    (shown,) = re.findall(r'^    (\{"name".*\}\}\})', PAGE, re.DOTALL | re.MULTILINE)
    preset = parse_preset(json.loads(shown), where="the page")
    assert preset.config("rods-cas", {}).options["window"] == (0.1, 0.5)
