"""The profile of a run: FLOP against a closed form, passes, and the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from commands import SMALL
from torch import Tensor, nn

from rods.config import build
from scripts import profile_run as command


class OneConvolution(nn.Module):
    """D = a 3x3 convolution of two channels."""

    label_dim, sigma_min, sigma_max = 0, 0.0, float("inf")

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, 2, 3, 3) / 18, requires_grad=False)

    def round_sigma(self, sigma: Tensor) -> Tensor:
        return torch.as_tensor(sigma)

    def forward(self, x: Tensor, sigma: Tensor, class_labels: Tensor | None = None) -> Tensor:
        return nn.functional.conv2d(x.float(), self.weight, padding=1)


def test_flop_and_passes_of_a_run() -> None:
    convolution = 2 * 2 * 2 * 9 * 25  # multiply and add, C_in, C_out, taps, pixels
    options: dict[str, Any] = {"num_steps": 4, "window": (0, 1), "eps": 0.0, "rho": 1.0}
    config = build("rods-cas", options)
    run = command.profiled(OneConvolution(), config, torch.ones(3, 2, 5, 5, dtype=torch.float64), trace=None)
    assert (run["forward"], run["backward"]) == (8, 8)
    assert run["gflop_per_image"] == pytest.approx(16 * convolution / 1e9)
    assert run["images_per_s"] == pytest.approx(3 / run["seconds"])
    assert 0.3 < sum(o["share"] for o in run["operations"]) <= 1.0001


def test_the_command_writes_one_json_and_a_trace(tmp_path: Path) -> None:
    out, trace = tmp_path / "profile.json", tmp_path / "trace.json"
    options = [f"--network={SMALL}", "--batch=2", "--steps=2", "--device=cpu", "--threads=1", "--channels-last"]
    result = CliRunner().invoke(command.main, [*options, "--dtype=bf16", f"--out={out}", f"--trace={trace}"])
    assert result.exit_code == 0, result.output
    written = json.loads(out.read_text())
    assert [run["sampler"] for run in written["runs"]] == ["euler", "rods-cas"]
    assert written["torch"] == torch.__version__
    assert "rods-cas: " in result.output
    assert "GFLOP/s" in result.output
    assert json.loads(trace.read_text())["traceEvents"]
    result = CliRunner().invoke(command.main, ["--out=no/such/profile.json"])
    assert (result.exit_code, result.output) == (
        2, "Error: --out=no/such/profile.json: there is no folder no/such; make it first\n"
    )  # fmt: skip
