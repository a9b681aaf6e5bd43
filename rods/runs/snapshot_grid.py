"""An image of what a network draws while it is trained: fixed seeds, plain Euler beside RODS."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch

from rods.base_samplers import Euler
from rods.runs.chunk import Chunk, sample_chunk
from rods.runs.images import contact_sheet, save_png, to_uint8
from rods.samplers import RodsCas
from rods.types import AnyDenoiser

SEEDS = tuple(range(8))
STEPS = 18


def radius(shape: tuple[int, ...]) -> float:
    """sqrt(C H W) / 8: 4 for 32x32x1 and 28 for 128x128x3, near the radii that were found for hands there (4 and 30).

    A rule of thumb, and no calibration.
    """
    return round(math.sqrt(math.prod(shape)) / 8, 3)


def draw_grid(denoiser: AnyDenoiser, path: Path, *, device: torch.device) -> None:
    """Writes a PNG with two tiles a seed: Euler, and RODS-CAS with every sample corrected in 10-50 % of the steps.

    Tiles that are not finite are left black. Per image 26 F + 8 B in 18 steps at most, from streams of its own: no
    other random number moves.
    """
    shape = (denoiser.img_channels, denoiser.img_resolution, denoiser.img_resolution)  # type: ignore[attr-defined]
    rho = radius(shape)
    samplers = {
        "Euler": Euler(num_steps=STEPS),
        f"RODS rho {rho:g}": RodsCas(num_steps=STEPS, eps=0, rho=rho, window=(0.1, 0.5)),
    }
    images: list[np.ndarray] = []
    for sampler in samplers.values():
        result = sample_chunk(denoiser, Chunk(0, SEEDS), sampler, device=device)
        x = result.images.cpu().numpy()
        finite = np.isfinite(x).all(axis=(1, 2, 3), keepdims=True)
        images.append(to_uint8(np.where(finite, x, -1)))
    tiles = [image[row] for row in range(len(SEEDS)) for image in images]
    captions = [f"{name}, {seed}" for seed in SEEDS for name in samplers]
    save_png(contact_sheet(tiles, captions, columns=4), path)
