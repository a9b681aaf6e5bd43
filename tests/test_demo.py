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
    names = ["euler", "heun", "rods-cas", "rods-sas-all", "overshoot"]
    assert re.findall(r"^\| ([a-z-]+) +\|", output, re.MULTILINE)[:6] == ["sampler", *names]
    assert "Tone control" in output
    assert "AUROC" in output
    with PIL.Image.open(tmp_path / "a" / "pairs.png") as pairs:
        assert pairs.size[0] > 3 * 3 * 128
    rows = json.loads((tmp_path / "a" / "demo.json").read_text())["rows"]
    assert rows[1]["forward"] == 7, "Heun: 2N - 1"
    assert (rows[4]["forward"], rows[4]["backward"]) == (4, 0), "overshoot costs nothing"
    assert rows[2]["recipe"]["rho"] == 4.0


def test_the_demo_has_as_many_samplers_as_is_said_of_it():
    preset = demo.demo_preset("hands-32")
    assert len(demo.demo_methods(demo.TASKS["hands-32"](), preset)) == 6
    for name in ("scripts/demo.py", "Makefile", "README.md", "docs/start.md"):
        assert set(re.findall(r"(\w+) samplers on|with (\w+) samplers", (ROOT / name).read_text())) <= {
            ("six", ""), ("", "six"),
        }  # fmt: skip


def test_demo_of_a_network_without_a_preset_says_what_to_do(tmp_path):
    stranger = tmp_path / "stranger.safetensors"
    stranger.write_bytes((demo.MODELS / "hands-32.safetensors").read_bytes())
    result = CliRunner().invoke(demo.main, [f"--network={stranger}", f"--outdir={tmp_path / 'out'}"])
    assert result.exit_code == 2
    assert "calibrate" in result.output
    assert not (tmp_path / "out").exists()
