"""docs/rivals.md, method.md and api.md: commands and code run, detectors have their defaults, modules are there."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import SMALL, generated
from pages import Page

from rods import gaussian
from rods.config import DETECTORS, FITTED, SAMPLERS, detector_from_text, from_text
from rods.detectors import Detector

RIVALS = Page("rivals")


@pytest.mark.parametrize("options", RIVALS.commands, ids=" ".join)
def test_the_commands_of_rivals_run(options: list[str], tmp_path: Path) -> None:
    few = [option for option in options if not option.startswith(("--seeds", "--outdir"))]
    of_preset = any(option.startswith("--preset=") for option in few)  # which is for the embedded network
    generated(tmp_path, "--seeds=0", *few, network=None if of_preset else SMALL, steps=10)


def test_rivals_names_every_sampler() -> None:
    assert {options[0].removeprefix("--sampler=") for options in RIVALS.commands} == set(SAMPLERS)


def test_rivals_has_every_detector_with_its_defaults() -> None:
    table = RIVALS.text[RIVALS.text.index("## Detectors") : RIVALS.text.index("## Filters")]
    shown = re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE)
    assert {text.partition(":")[0] for text in shown} == {*DETECTORS, *FITTED}
    for text in shown:
        name = text.partition(":")[0]
        if name in DETECTORS:
            assert detector_from_text(text) == from_text(Detector, name, option="detector")


def test_the_block_of_rivals_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (block,) = RIVALS.blocks
    (made,) = re.findall(r"# generate\.py (.*)", block)
    options = [option.replace("10000-10511", "10000-10049") for option in made.split() if "--outdir" not in option]
    generated(Path("scored"), *options, steps=2)
    found: dict[str, float] = {}
    exec(block, found)
    threshold = f"--filter-threshold={found['threshold']!r}"
    output = generated(Path("kept"), *(threshold if "threshold" in option else option for option in options), steps=2)
    assert "2 of 50 dropped" in output


def test_the_blocks_of_method_run() -> None:
    found: dict[str, Any] = {"net": gaussian(torch.zeros(3, 64, 64), 0.5)}
    for block in Page("method").blocks:
        exec(block, found)
    assert len(found["result"].images) == 4


def test_the_api_page_names_modules_that_there_are() -> None:
    modules = re.findall(r"^::: (\S+)$", Page("api").text, re.MULTILINE)
    assert len(modules) > 10
    assert [name for name in modules if importlib.util.find_spec(name) is None] == []
