"""scripts/demo.py and scripts/calibrate.py end to end on the embedded network, small."""

from __future__ import annotations

import json
import re

import PIL.Image
import pytest
import torch
from click.testing import CliRunner

from rods.presets import parse_preset
from scripts import calibrate, demo


@pytest.fixture(autouse=True)
def restored_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
    torch.set_flush_denormal(False)


def run(command, *args):
    result = CliRunner().invoke(command, [str(a) for a in args], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_demo_writes_a_picture_and_a_table_and_repeats_itself(tmp_path):
    args = ("--seeds=0-3", "--steps=6", "--batch=4", "--threads=1")
    output = run(demo.main, *args, f"--outdir={tmp_path / 'a'}")
    run(demo.main, *args, f"--outdir={tmp_path / 'b'}")
    names = ["euler", "heun", "rods-cas", "rods-sas", "overshoot"]
    assert re.findall(r"^\| ([a-z-]+) +\|", output, re.MULTILINE) == ["sampler", *names]
    assert "Tone control" in output
    assert "AUROC" in output
    with PIL.Image.open(tmp_path / "a" / "pairs.png") as picture:
        assert picture.size[0] > 3 * 3 * 128
        first = picture.tobytes()
    with PIL.Image.open(tmp_path / "b" / "pairs.png") as picture:
        assert picture.tobytes() == first
    rows = json.loads((tmp_path / "a" / "demo.json").read_text())["rows"]
    assert rows[1]["passes"] == "11+0", "Heun: 2N - 1"
    assert rows[4]["passes"] == "6+0", "overshoot costs nothing"


def test_demo_of_a_network_without_a_preset_says_what_to_do(tmp_path):
    stranger = tmp_path / "stranger.safetensors"
    stranger.write_bytes((demo.MODELS / "hands-32.safetensors").read_bytes())
    result = CliRunner().invoke(demo.main, [f"--network={stranger}", f"--outdir={tmp_path / 'out'}"])
    assert result.exit_code == 2
    assert "calibrate" in result.output
    assert not (tmp_path / "out").exists()


def test_calibration_writes_a_preset_that_parses(tmp_path):
    dest = tmp_path / "preset.json"
    output = run(
        calibrate.main,
        "--seeds=10000-10005",
        "--steps=6",
        "--try=.1,.5:4",
        f"--dest={dest}",
        "--threads=1",
        "--batch=6",
    )
    preset = parse_preset(json.loads(dest.read_text()), where="test")
    assert set(preset.samplers) == {"rods-cas", "rods-sas", "overshoot"}
    assert preset.samplers["rods-cas"]["window"] == "0.1,0.5"
    assert "seeds from 10000" in preset.source
    assert output.count("AUROC") == 2


@pytest.mark.parametrize("bad", ["--try=.1,.5", "--try=.5:a", "--seeds=3-1"])
def test_calibration_refuses_bad_options(tmp_path, bad):
    result = CliRunner().invoke(calibrate.main, [bad, f"--dest={tmp_path / 'p.json'}"])
    assert result.exit_code == 2
    assert bad.split("=")[0] in result.output
    assert not (tmp_path / "p.json").exists()
