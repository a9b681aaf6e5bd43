"""scripts/demo.py end to end on the embedded network, small."""

from __future__ import annotations

import json
import re

import PIL.Image
from click.testing import CliRunner
from vectors import ROOT

from scripts import demo


def run(*args):
    result = CliRunner().invoke(demo.main, [str(a) for a in args], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout  # a progress bar appears only on a slow machine


def test_demo_writes_a_picture_and_a_table_and_repeats_itself(tmp_path):
    args = ("--seeds=0-2", "--steps=4", "--batch=3", "--threads=1", f"--outdir={tmp_path / 'a'}")
    output = run(*args)
    picture = (tmp_path / "a" / "pairs.png").read_bytes()
    again = run(*args)
    assert again == output, "what is there is not sampled again: times are those of the first run"
    assert (tmp_path / "a" / "pairs.png").read_bytes() == picture
    names = ["euler", "restart-gate", "restart", "heun", "rods-cas", "rods-sas-all", "overshoot"]
    assert re.findall(r"^\| ([a-z-]+) +\|", output, re.MULTILINE)[:8] == ["sampler", *names]
    assert "Tone control" in output
    assert "AUROC" in output
    with PIL.Image.open(tmp_path / "a" / "pairs.png") as pairs:
        assert pairs.size[0] > 2 * 4 * 128
    rows = json.loads((tmp_path / "a" / "demo.json").read_text())["rows"]
    assert rows[3]["forward"] == 7, "Heun: 2N - 1"
    assert (rows[6]["forward"], rows[6]["backward"]) == (4, 0), "overshoot costs nothing"
    assert rows[4]["recipe"]["rho"] == 4.0


def test_the_demo_has_as_many_samplers_as_is_said_of_it():
    assert len(demo.demo_methods(demo.TASKS["hands-32"](), *demo.demo_presets("hands-32"))) == 7
    for name in ("scripts/demo.py", "Makefile", "README.md", "docs/start.md"):
        assert set(re.findall(r"(\w+) samplers on|with (\w+) samplers", (ROOT / name).read_text())) <= {
            ("seven", ""), ("", "seven"),
        }  # fmt: skip


def test_demo_of_a_network_without_a_preset_says_what_to_do(tmp_path):
    stranger = tmp_path / "stranger.safetensors"
    stranger.write_bytes((demo.MODELS / "hands-32.safetensors").read_bytes())
    result = CliRunner().invoke(demo.main, [f"--network={stranger}", f"--outdir={tmp_path / 'out'}"])
    assert result.exit_code == 2
    assert "calibrate" in result.output
    assert not (tmp_path / "out").exists()
