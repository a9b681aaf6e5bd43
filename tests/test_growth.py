"""Series of the speed bench: ratios, what is varied, and that time and memory are measured where they arise."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from commands import SMALL

from rods.bench import growth
from rods.bench.growth import Point, Series, by_batch, by_flagged, by_ranks, by_resolution, by_seeds, by_steps, table
from training.checkpoint import load_denoiser

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))

import bench_speed as command


def test_ratios_are_of_the_time_per_image_in_the_same_round() -> None:
    s = Series("batch", (Point(1, 1, (1.0, 2.0, 3.0)), Point(4, 4, (2.0, 2.0, 9.0), "busy")))
    assert [p.rate for p in s.points] == [0.5, 2.0]
    assert s.ratio(s.points[1]) == 0.5  # of 0.5, 0.25, 0.75
    assert table([s]).splitlines()[2].split() == ["batch", "4", "2.00", "0.50x", "busy"]
    assert json.loads(json.dumps(s.describe()))["points"][1]["ratio"] == 0.5


def test_what_is_varied(monkeypatch: pytest.MonkeyPatch) -> None:
    net = load_denoiser(SMALL)
    monkeypatch.setattr(growth, "RESOLUTIONS", (8, 16))
    assert [p.images for p in by_batch(net, steps=1, repeats=1).points] == [1, 4, 16]
    assert [p.value for p in by_steps(net, batch=1, repeats=1).points] == [5, 10, 20]
    assert [p.value for p in by_resolution(net, batch=1, steps=1, repeats=1).points] == [8, 16]
    flagged = by_flagged(net, batch=2, steps=5, rho=1.0, repeats=2).points
    assert [p.note.split()[0] for p in flagged] == ["0%", "50%", "100%"]
    assert all(len(p.seconds) == 2 for p in flagged)


def test_a_streamed_run_says_time_and_memory() -> None:
    (point,) = by_seeds([3]).points
    assert point.images == 3
    assert 20 < float(point.note.split()[0]) < 2000


def test_ranks_are_timed_by_the_difference_of_two_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    now, runs = [0.0], []

    def run(call: list[str], **options: Any) -> None:
        seeds = int(next(o for o in call if o.startswith("--seeds=")).split("-")[-1]) + 1
        ranks = int(next(o for o in call if o.startswith("--nproc")).split("=")[1])
        runs.append((ranks, seeds))
        now[0] += 5 + seeds / ranks

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    s = by_ranks("x.safetensors", steps=2, batch=4)
    assert runs == [(1, 8), (1, 24), (2, 8), (2, 24)]
    assert [p.rate for p in s.points] == [1.0, 2.0]  # the start-up's five seconds are left out


def test_the_command_adds_the_series(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    s = Series("batch", (Point(1, 1, (1.0,)),))
    monkeypatch.setattr(command, "measure", lambda *args, **options: [])
    for name in ("by_batch", "by_steps", "by_resolution", "by_flagged", "by_seeds", "by_ranks"):
        monkeypatch.setattr(growth, name, lambda *args, **options: s)
    out = tmp_path / "bench.json"
    options = [f"--network={SMALL}", "--batch=2", "--steps=2", "--repeats=1", "--threads=1", f"--out={out}"]
    result = CliRunner().invoke(command.main, options)
    assert result.exit_code == 0, result.output
    written = json.loads(out.read_text())
    assert len(written["growth"]) == 6
    assert 0 < written["files_share"] < 1
    assert "PNG and JSON lines: " in result.output
