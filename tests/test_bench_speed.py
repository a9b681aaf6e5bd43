"""The speed bench: its order of runs, ratios and table, and the command."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from exact import GOLDEN, mixture

from rods.bench.speed import Row, interleaved, measure, table, variants

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))

import bench_speed as command

NETWORK = GOLDEN / "pickles" / "edm-ddpmpp-uncond.pkl"


def test_runs_are_interleaved_and_timed_one_by_one() -> None:
    now, order = [0.0], []

    def run(name: str, seconds: float):
        def it() -> None:
            order.append(name)
            now[0] += seconds

        return it

    times = interleaved({"a": run("a", 1), "b": run("b", 2.5)}, repeats=3, clock=lambda: now[0])
    assert order == ["a", "b"] * 3
    assert times == {"a": [1, 1, 1], "b": [2.5, 2.5, 2.5]}


def test_a_row_is_its_median_ratio_and_the_table_shows_it_per_image() -> None:
    row = Row("rods-cas", seconds=(4.0, 9.0, 6.0), ratios=(2.0, 1.5, 3.0), forward=56, backward=16, peak_mib=300.4)
    assert row.ratio == 2.0
    line = table([row], batch=2).splitlines()[1]
    assert line.split() == ["rods-cas", "2.00x", "1.50-3.00", "3.0000", "56.0", "16.0", "300"]
    assert json.loads(json.dumps(row.describe()))["ratios"] == [2.0, 1.5, 3.0]


def test_measured_ratios_passes_and_memory_on_an_exact_density() -> None:
    latents = torch.randn(3, 2, 3, 3, generator=torch.Generator().manual_seed(1))
    rows = {row.name: row for row in measure(mixture(), latents, variants(num_steps=10, rho=0.1), repeats=3)}
    # steps 1..4 of 10 are in the window
    assert {name: (row.forward, row.backward) for name, row in rows.items()} == {
        "euler": (10, 0),
        "heun": (19, 0),
        "overshoot": (10, 0),
        "rods-cas": (14, 8),
        "rods-cas, no detection": (14, 4),
        "rods-cas, difference": (22, 0),
        "rods-cas, every 4th": (11, 2),
        "rods-cas, every 4th, no detection": (11, 1),
        "rods-sas": (18, 8),
        "rods-sas, no detection": (14, 0),
    }
    assert rows["euler"].ratios == (1, 1, 1)
    heun = rows["heun"]
    assert heun.ratios == tuple(a / b for a, b in zip(heun.seconds, rows["euler"].seconds, strict=True))
    assert all(20 < row.peak_mib < 4000 for row in rows.values())


def test_no_repeats_is_refused() -> None:
    with pytest.raises(ValueError, match="repeats: 0 is too few"):
        measure(mixture(), torch.zeros(1, 2, 3, 3), variants(num_steps=2, rho=0.1), repeats=0)


def test_the_command_prints_the_table_and_writes_json(tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    options = [f"--network={NETWORK}", "--batch=2", "--steps=3", "--repeats=1", "--threads=1", f"--out={out}"]
    result = CliRunner().invoke(command.main, [*options, "--no-growth"])
    assert result.exit_code == 0, result.output
    written = json.loads(out.read_text())
    assert (written["batch"], written["steps"], written["threads"]) == (2, 3, 1)
    for row in written["samplers"]:
        (line,) = (line for line in result.output.splitlines() if line.startswith(f"{row['name']:<24}"))
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
