"""The profile of a run: work and bytes against closed forms, and the command."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from commands import SMALL
from torch import nn

from rods.bench.profiling import Work, breakdown, evaluations, roofline, seconds
from rods.pipeline import SamplerConfig
from training.checkpoint import load_denoiser

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))

import profile_run as command

CPU = torch.device("cpu")


class OneConvolution(nn.Module):
    """D = a 3x3 convolution of two channels."""

    label_dim = 0

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, 2, 3, 3), requires_grad=False)

    def forward(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.conv2d(x.float(), self.weight, padding=1)


def test_the_flops_of_a_convolution() -> None:
    x = torch.ones(3, 2, 5, 5, dtype=torch.float64)
    found = roofline(OneConvolution(), x, dtype=torch.float32, repeats=1)
    forward = 2 * 2 * 2 * 9 * 25  # multiply and add, C_in, C_out, taps, pixels
    assert found["forward"]["flop_per_image"] == forward
    assert found["probe"]["flop_per_image"] == 2 * forward  # and the convolution's transpose, back to x
    e = found["forward"]
    assert e["times_the_peak"] == pytest.approx(e["seconds"] / (3 * forward / found["matmul_flop_per_s"]))
    assert 0.5 < sum(o["share"] for o in e["operations"]) <= 1.0001


def test_bytes_touched_counts_reads_and_writes_and_no_views() -> None:
    x = torch.ones(10, 10)
    with Work() as work:
        x.t()[:5].view(torch.int32)
    assert (work.bytes, work.flops) == (0, 0)
    with Work() as work:
        x + x
    assert (work.bytes, work.flops) == (4 * 300, 0)
    with Work() as work:
        x @ x
    assert (work.bytes, work.flops) == (4 * 300, 2 * 1000)


def test_the_first_round_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([0.0, 100.0, 0.0, 1.0, 0.0, 5.0, 0.0, 2.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(ticks))
    assert seconds(lambda: None, CPU, repeats=3) == 2.0


def test_a_run_is_split_into_parts_that_add_up() -> None:
    net = load_denoiser(SMALL)
    config = SamplerConfig("rods-cas", {"num_steps": 4, "window": (0, 1), "eps": 0.0, "rho": 1.0})
    run = breakdown(net, config, batch=2, device=CPU, dtype="float32", repeats=1)
    assert (run["forward"], run["backward"]) == (8, 8)
    parts = run["random_numbers"] + run["network_forward"] + run["sampler_and_backward"]
    assert parts == pytest.approx(run["sampling"])
    assert 0 < run["files_share"] < 1
    assert min(run[k] for k in ("random_numbers", "network_forward", "sampler_and_backward", "files")) > 0
    assert set(evaluations(net, torch.ones(1, 1, 8, 8, dtype=torch.float64))) == {"forward", "probe"}


def test_the_command_writes_one_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "peak_mib", lambda *_: 12.0)
    out = tmp_path / "profile.json"
    options = [f"--network={SMALL}", "--batch=2", "--steps=2", "--repeats=1", "--device=cpu", "--threads=1"]
    result = CliRunner().invoke(command.main, [*options, f"--out={out}"])
    assert result.exit_code == 0, result.output
    written = json.loads(out.read_text())
    assert [run["sampler"]["sampler"] for run in written["runs"]] == ["euler", "rods-cas"]
    assert written["torch"] == torch.__version__
    assert "rods-cas: " in result.output
    assert "GFLOP/s" in result.output
    result = CliRunner().invoke(command.main, ["--out=no/such/profile.json"])
    assert (result.exit_code, result.output) == (
        2, "Error: --out=no/such/profile.json: there is no folder no/such; make it first\n"
    )  # fmt: skip
