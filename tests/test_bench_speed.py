"""The speed bench: its order of runs, ratios and tables, and the command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from exact import GOLDEN, mixture

from scripts import bench_speed as command

NETWORK = GOLDEN / "pickles" / "edm-ddpmpp-uncond.pkl"


def test_runs_are_interleaved() -> None:
    order: list[str] = []
    times = command.interleaved({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, repeats=3)
    per_round = len(order) // 6  # each timing warms up first
    assert order == [*["a"] * per_round, *["b"] * per_round] * 3
    assert {name: len(seconds) for name, seconds in times.items()} == {"a": 3, "b": 3}


def test_a_row_is_its_median_ratio_and_the_table_shows_it_per_image() -> None:
    rows = command.compared({"euler": [2.0, 4.0, 3.0], "heun": [4.0, 9.0, 6.0]}, baseline="euler", images=2)
    assert [row["ratio"] for row in rows] == [1.0, 2.0]
    line = command.table([{**rows[1], "F": 79.0, "B": 0.0}]).splitlines()[1]
    assert line.split() == ["heun", "2.00x", "2.00-2.25", "3.0000", "79.0", "0.0"]
    assert json.loads(json.dumps(rows))[1]["ratios"] == [2.0, 2.25, 2.0]


def test_passes_on_an_exact_density() -> None:
    latents = torch.randn(3, 2, 3, 3, generator=torch.Generator().manual_seed(1))
    configs = command.samplers(num_steps=10, rho=0.1)
    rows = {row["name"]: row for row in command.time_samplers(mixture(), latents, configs, repeats=1)}
    # steps 1..4 of 10 are in the window
    assert {name: (row["F"], row["B"]) for name, row in rows.items()} == {
        "euler": (10, 0),
        "heun": (19, 0),
        "overshoot": (10, 0),
        "rods-cas": (14, 8),
        "rods-cas, no detection": (14, 4),
        "rods-cas, every 4th": (11, 2),
        "rods-sas": (18, 8),
        "rods-sas, no detection": (14, 0),
    }
    assert rows["euler"]["ratios"] == [1]


def test_the_command_prints_the_tables_and_writes_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = {"arch": "ddpmpp", "cbase": 4, "cres": (1,), "blocks": 1, "attn": ()}
    monkeypatch.setitem(command.RECIPES, command.RECIPE, tiny)
    monkeypatch.setattr(command, "RESOLUTION", 8)
    out = tmp_path / "bench.json"
    options = [f"--network={NETWORK}", "--batch=2", "--steps=3", "--repeats=1", "--threads=1", f"--out={out}"]
    result = CliRunner().invoke(command.main, options)
    assert result.exit_code == 0, result.output
    written = json.loads(out.read_text())
    assert (written["batch"], written["steps"], written["threads"]) == (2, 3, 1)
    assert [row["name"] for row in written["training"]] == [command.PLAIN, *command.VARIANTS]
    for row in [*written["samplers"], *written["training"]]:
        (line,) = (line for line in result.output.splitlines() if line.startswith(f"{row['name']:<32}"))
        assert f"{row['ratio']:.2f}x" in line


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--network=nowhere.pkl"], "nowhere.pkl: there is no such file"),
        ([f"--network={NETWORK}", "--out=no/such/bench.json"], "--out=no/such/bench.json: there is no folder no/such"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(options: list[str], message: str) -> None:
    result = CliRunner().invoke(command.main, options)
    assert result.exit_code == 2
    assert message in result.output
    assert "Traceback" not in result.output
