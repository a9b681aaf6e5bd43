"""docs/how-to/own-model.md, typed by somebody with a pickle that the project does not know and a zip of images."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from commands import PLAIN, generated, options_json, refusal, said
from pages import Page

from scripts import bench, dataset_tool, fit_gate

PAGE = Page("how-to/own-model")
FEWER = {"scripts/fit_gate": ["--steps=8", "--samples=16", "--trial=16", "--batch=16"], "generate": ["--steps=8"]}


def test_the_four_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(PLAIN, "my-network.pkl")
    rng = np.random.default_rng(0)
    with zipfile.ZipFile("images.zip", "w") as archive:
        for i in range(64):
            data = BytesIO()
            PIL.Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(data, "PNG")
            archive.writestr(f"{i:03d}.png", data.getvalue())

    commands = re.findall(r"^    python (\S+)\.py (.*)$", PAGE.text, re.MULTILINE)
    assert [name for name, _ in commands] == ["scripts/fit_gate", "generate", "generate", "scripts/bench"]
    for name, line in commands:
        options = [o.replace("--seeds=0-255", "--seeds=0-3") for o in shlex.split(line)] + FEWER.get(name, [])
        if name == "generate":
            output = generated(Path(), *options, network=None, steps=None)
        else:
            main = {"scripts/fit_gate": fit_gate.main, "scripts/bench": bench.main}[name]
            output = said(main, *options)
        if name == "scripts/fit_gate":
            for part in ("Gate: the last", "numbers, at noise level", "real images", "sends", "Forecast"):
                assert part in output
                assert part in PAGE.text, "the page explains this line"
    assert "4 seeds" in output
    restart = json.loads(Path("my-network.preset.json").read_text())["samplers"]["restart"]
    assert options_json(Path("out/restart"))["identity"]["threshold"] == restart["threshold"], (
        "found beside the network"
    )


def test_images_of_another_size_are_converted_as_the_refusal_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(PLAIN, "my-network.pkl")
    Path("photos").mkdir()
    for i in range(64):
        PIL.Image.new("L", (24, 24), i).save(f"photos/{i:03d}.png")
    options = ["--network=my-network.pkl", "--dest=my-network.preset.json", "--steps=8"]
    told = refusal(fit_gate.main, *options, "--real=photos")
    assert "images of shape [1, 24, 24], and the network makes [3, 16, 16]" in told
    command = told.partition("python scripts/dataset_tool.py ")[2]
    said(dataset_tool.main, *shlex.split(command))
    with zipfile.ZipFile("converted.zip") as archive:
        assert sum(name.endswith(".png") for name in archive.namelist()) == 64
    assert "--source=photos --dest=images.zip --resolution=32x32 --mode=grey" in PAGE.text
