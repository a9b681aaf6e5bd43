"""The picture of a training run: equal each time, and of networks that draw nothing finite too."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import PIL.Image
import torch
from commands import SMALL, tiny

from rods.runs.snapshot_grid import SEEDS, draw_grid, radius
from training.checkpoint import load_denoiser


def test_the_radius_is_near_those_found_for_hands() -> None:
    assert radius((1, 32, 32)) == 4  # the preset of hands-32
    assert 27 < radius((3, 128, 128)) < 28  # the paper: 30


def test_the_same_network_gives_the_same_picture_and_moves_no_random_number(tmp_path: Path) -> None:
    net, pictures = load_denoiser(SMALL), [tmp_path / "a.png", tmp_path / "b.png"]
    torch.manual_seed(7)
    before = torch.get_rng_state()
    for path in pictures:
        draw_grid(net, path, device=torch.device("cpu"))
    assert torch.equal(torch.get_rng_state(), before)
    assert pictures[0].read_bytes() == pictures[1].read_bytes()
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_what_is_not_finite_is_black(tmp_path: Path) -> None:
    net = load_denoiser(tiny(tmp_path / "broken.safetensors", first_weight=float("nan")))
    draw_grid(net, tmp_path / "grid.png", device=torch.device("cpu"))
    with PIL.Image.open(tmp_path / "grid.png") as image:
        pixels = np.asarray(image)
    tile = (pixels.shape[1] - 4) // 4 - 4
    assert len(SEEDS) == 8
    assert not pixels[4 : 4 + tile, 4 : 4 + tile].any()
