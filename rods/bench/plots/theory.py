"""The figures of docs/theory.md, on densities whose denoiser is known: nothing here is learned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rods.bench.plots.drawing import figure, save
from rods.densities import Mixture
from rods.detectors import curvature_index
from rods.schedules import edm_grid
from rods.theory import curvature_limit, diffusion_as_continuation, f_t, theorem_1_constant

LEVELS = (4.0, 1.5, 0.8, 0.4, 0.15, 0.0)
EXTENT = 3.0


def three_modes() -> Mixture:
    """A mixture of three Gaussians in the plane, of unequal weight."""
    mu = torch.tensor([[-1.5, -0.8], [1.4, -1.0], [0.2, 1.5]], dtype=torch.float64)
    return Mixture(mu[:, :, None, None], torch.tensor([0.5, 0.3, 0.2]), 0.25)


def grid_with_zero(num_steps: int, *, sigma_max: float) -> Tensor:
    return torch.cat([edm_grid(num_steps, sigma_min=0.002, sigma_max=sigma_max), torch.zeros(1, dtype=torch.float64)])


def fig2(out: Path, *, num_steps: int = 60, num_samples: int = 24, seed: int = 0) -> Path:
    """Paper, Figure 2: the objective f_t from smooth to sharp, and samples that follow it down (Algorithm 1)."""
    density, top = three_modes(), LEVELS[0]
    latents = torch.randn(num_samples, 2, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    path = list(diffusion_as_continuation(density, top * latents, grid_with_zero(num_steps, sigma_max=top)))
    fig, axes = figure(2, 3, width=9.6, height=6.6)
    for ax, t in zip(axes.flat, LEVELS, strict=True):
        reach = EXTENT + 1.5 * t
        line = torch.linspace(-reach, reach, 121, dtype=torch.float64)
        points = torch.stack(torch.meshgrid(line, line, indexing="xy"), dim=-1).reshape(-1, 2, 1, 1)
        energy = f_t(density, points, t).reshape(121, 121).numpy()
        energy = energy - energy.min()
        ax.contourf(line, line, np.sqrt(energy), levels=18, cmap="Blues_r")
        done = [x for level, x in path if level >= t - 1e-9]
        tracks = torch.stack(done)[:, :, :, 0, 0].numpy()  # [steps, N, 2]
        ax.plot(tracks[:, :, 0], tracks[:, :, 1], color="0.25", linewidth=0.6, alpha=0.6)
        ax.plot(tracks[-1, :, 0], tracks[-1, :, 1], "o", color="tab:orange", markersize=4)
        ax.set(title=f"t = {t:g}", xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal", xticks=[], yticks=[])
    fig.suptitle("Sampling as continuation: contours of f_t, samples by gradient descent with eta = t (t - t_next)")
    return save(fig, out / "fig2.png")


def theorems(out: Path, *, seed: int = 0) -> Path:
    """Theorem 1 (the gap does not depend on x) and appendix A.2 (H / rho against the largest eigenvalue)."""
    density = three_modes()
    levels = [float(t) for t in np.geomspace(0.1, 8, 15)]
    latents = torch.randn(60, 2, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    fig, axes = figure(1, 2, width=9.6, height=3.8)
    _theorem_1(axes[0, 0], density, levels, latents)
    _appendix_a2(axes[0, 1], density, levels, latents)
    return save(fig, out / "theorems.png")


def _theorem_1(ax: Any, density: Mixture, levels: list[float], latents: Tensor) -> None:
    gaps = [-density.log_density((1 + t) * latents, t) - f_t(density, (1 + t) * latents, t) for t in levels]
    ax.plot(levels, torch.stack(gaps).numpy(), ".", color="tab:orange", markersize=5)
    ax.plot(levels, [theorem_1_constant(density, t) for t in levels], color="0.2", linewidth=1)
    ax.set(title="Theorem 1: -log p_t - f_t at 60 points, and its constant", xlabel="t", xscale="log")


def _appendix_a2(ax: Any, density: Mixture, levels: list[float], latents: Tensor) -> None:
    rows = []
    for t in levels:
        x = density.mu[torch.arange(len(latents)) % 3] + (density.s0**2 + t**2) ** 0.5 * latents  # draws of p_t
        along, top = curvature_limit(density, x, t)
        H = curvature_index(density, x, t, rho=1e-3) / 1e-3
        rows.append([np.median(v.numpy()) for v in (top, along, H)])
    top, along, H = np.array(rows).T
    ax.plot(levels, top, color="0.2", label="largest |eigenvalue| of Hess(n)")
    ax.plot(levels, along, color="tab:blue", label="||Hess(n) u||")
    ax.plot(levels, H, "o", color="tab:orange", markersize=4, label="H / rho, rho = .001")
    ax.set(title="Appendix A.2: medians over 60 draws of p_t", xlabel="t", xscale="log", yscale="log")
    ax.legend(fontsize=8)
