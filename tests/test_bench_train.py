"""The bench of the training loop: its ratios, and the command."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))

import bench_train as command


def test_a_loop_of_half_the_time_is_twice_as_fast(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seconds = {command.PLAIN: [2.0, 4.0, 3.0], "ours": [1.0, 2.0, 1.0]}
    command.report(seconds, images={command.PLAIN: 8, "ours": 8}, about={"batch": 4}, out=tmp_path / "bench.json")
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[-3] == ["plain", "float32", "loop", "2.7", "1.00x", "1.00-1.00"]
    assert lines[-2] == ["ours", "8.0", "2.00x", "2.00-3.00"]
    written = json.loads((tmp_path / "bench.json").read_text())
    assert [row["speed"] for row in written["loops"]] == [1, 2]


def test_a_loop_that_is_timed_over_fewer_images_has_its_rate(tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    images = {command.PLAIN: 8, "ours": 2}
    command.report({command.PLAIN: [2.0], "ours": [2.0]}, images=images, about={}, out=out)
    rows = json.loads(out.read_text())["loops"]
    assert [(row["images_per_s"], row["speed"]) for row in rows] == [(4, 1), (1, 0.25)]


def test_only_slow_loops_are_timed_over_one_step(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 0.0

    def loop(seconds: float, steps: int) -> None:
        nonlocal clock
        clock += seconds * steps

    monkeypatch.setattr(command.time, "perf_counter", lambda: clock)
    loops = {command.PLAIN: partial(loop, 1.0), "fast": partial(loop, 3.5), "slow": partial(loop, 4.5)}
    assert command.steps_each(loops, 4) == {command.PLAIN: 4, "fast": 4, "slow": 1}


def test_the_command_times_every_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = {"arch": "ddpmpp", "cbase": 4, "cres": (1,), "blocks": 1, "attn": ()}
    monkeypatch.setitem(command.PRESETS, "hands-32", tiny)
    out = tmp_path / "bench.json"
    options = ["--resolution=8", "--batch=2", "--steps=1", "--repeats=1", "--device=cpu", "--threads=1", f"--out={out}"]
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    result = CliRunner().invoke(command.main, options)
    assert result.exit_code == 0, result.output
    written = json.loads(out.read_text())
    assert [row["name"] for row in written["loops"]] == [command.PLAIN, *command.VARIANTS]
    assert all(row["images_per_s"] > 0 for row in written["loops"])
    assert written["loops"][0]["ratios"] == [1.0]


def test_a_missing_folder_is_said_before_anything_runs() -> None:
    result = CliRunner().invoke(command.main, ["--out=no/such/bench.json"])
    assert (result.exit_code, result.output) == (
        2, "Error: --out=no/such/bench.json: there is no folder no/such; make it first\n"
    )  # fmt: skip
