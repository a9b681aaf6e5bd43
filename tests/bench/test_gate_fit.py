"""fit_gate.py: from real images alone to a preset that generate.py restarts by; nothing is labelled."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from commands import SMALL, generated, records, said

from rods.bench.gate_fit import halves, levels_of, separation, tail_heaviness
from rods.gate import DensityRatio
from rods.runs.presets import read_preset
from scripts import fit_gate as command
from training.checkpoint import load_denoiser


def real_folder(folder: Path, net: torch.nn.Module, n: int) -> Path:
    folder.mkdir()
    rng = np.random.default_rng(0)
    shape = (net.img_resolution, net.img_resolution) + ((3,) if net.img_channels == 3 else ())
    for i in range(n):
        PIL.Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(folder / f"{i:03d}.png")
    return folder


def test_a_level_is_the_step_whose_image_a_restart_would_score() -> None:
    begin = [80.0, 10.0, 1.0, 0.5, 0.1]
    found = levels_of(begin, [(0.5, 0.3), (0.6, 0.3), (0.01, 0.1)])
    assert [(level.i, level.t) for level in found] == [(2, 1.0), (4, 0.1)], "one of each step"


def test_tails_and_separation() -> None:
    normal = torch.randn(4000, generator=torch.Generator().manual_seed(0))
    heavy = torch.cat([normal, normal[:400] + 12])
    assert tail_heaviness(heavy) > 2 * tail_heaviness(normal)
    assert separation(normal, normal + 100) == 1
    assert abs(separation(normal[:2000], normal[2000:]) - 0.5) < 0.03
    even, odd = halves(5)
    assert (even.tolist(), odd.tolist()) == ([0, 2, 4], [1, 3])


@pytest.mark.parametrize("samples", [0, 40])
def test_from_images_to_a_preset_that_restarts(samples: int, tmp_path: Path) -> None:
    net = load_denoiser(SMALL)
    options = [f"--network={SMALL}", f"--real={real_folder(tmp_path / 'real', net, 64)}", "--steps=8", "--batch=16",
               f"--samples={samples}", "--trial=16", "--threads=1", "--device=cpu", f"--out={tmp_path / 'out'}",
               f"--dest={tmp_path / 'my.preset.json'}"]  # fmt: skip
    said(command.main, *options)
    preset = read_preset(tmp_path / "my.preset.json")
    gate = preset.fitted["density-ratio"]
    assert isinstance(gate, DensityRatio)
    assert preset.samplers["restart"].detector == gate
    first = (tmp_path / "my.density-ratio.safetensors").read_bytes()
    said(command.main, *options)  # the same command again
    assert (tmp_path / "my.density-ratio.safetensors").read_bytes() == first
    log = [json.loads(line) for line in (tmp_path / "my.gate.jsonl").read_text().splitlines()]
    assert {"gate", "score_at", "sigma_r"} <= {next(iter(line)) for line in log}

    generated(tmp_path / "run", f"--preset={tmp_path / 'my.preset.json'}", "--sampler=restart", "--seeds=0-7")
    assert all("restart" in line for line in records(tmp_path / "run"))


def test_too_few_images_are_one_line(tmp_path: Path) -> None:
    net = load_denoiser(SMALL)
    real = real_folder(tmp_path / "real", net, 10)
    options = f"--network={SMALL}", f"--real={real}", f"--dest={tmp_path / 'a.preset.json'}"
    assert re.search(r"--real.*64 or more", said(command.main, *options, code=2))
