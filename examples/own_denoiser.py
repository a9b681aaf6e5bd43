"""Bring your own denoiser: any function D(x, sigma) is corrected. Here: twelve points that a smoothed model blurs.

python examples/own_denoiser.py
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that it runs without installing the project

from rods import finite_dataset, rods_sampler

ANGLES = torch.arange(12) * torch.pi / 6
POINTS = torch.stack([ANGLES.cos(), ANGLES.sin()], dim=1).reshape(12, 2, 1, 1)


def denoise(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """The posterior mean of the points for a noise level that is too high: it blurs neighbours into each other."""
    return finite_dataset(POINTS)(x, (sigma**2 + 0.18**2).sqrt())


def distance(images: torch.Tensor) -> float:
    """Mean distance to the nearest of the points."""
    return float((images[:, None] - POINTS[None]).flatten(2).norm(dim=2).amin(dim=1).mean())


def main() -> None:
    latents = torch.randn(200, 2, 1, 1, generator=torch.Generator().manual_seed(0))
    for rho in (0.0, 0.05, 0.1):
        done = rods_sampler(denoise, latents, eps=0.0, rho=rho, window=(0.5, 0.95), num_steps=20)
        passes = done.records[0].forward, done.records[0].backward
        print(f"rho {rho:4.2f}: mean distance to the data {distance(done.images):.4f}, {passes[0]} F + {passes[1]} B")


if __name__ == "__main__":
    main()
