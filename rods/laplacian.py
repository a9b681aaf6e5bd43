"""Laplacian correction: the score without a part of its Laplacian."""

from __future__ import annotations

from collections.abc import Callable
from math import inf

import torch
from torch import Tensor

from rods.correctors import Correction, Corrector, Window, within
from rods.evaluation import BoundDenoiser, Point, fresh
from rods.trajectory import last, start, trajectory
from rods.types import AnyDenoiser, Step


def laplacian_of_d(denoise: BoundDenoiser, cur: Point, *, h: float, randn_like: Callable[[Tensor], Tensor]) -> Tensor:
    """One Hutchinson probe of the Laplacian of d at a point, sum_i d^2 d / d x_i^2 [B, C, H, W]. Cost: 2F, and F for d.

    (d(x + h z) - 2 d(x) + d(x - h z)) / h^2 with random signs z: its expectation is the Laplacian, up to O(h^2).
    """
    z = fresh(denoise, cur.x, randn_like).sign()
    return (cur.moved(h * z).d - 2 * cur.d + cur.moved(-h * z).d) / h**2


def laplacian(strength: float, *, probes: int, h: float, randn_like: Callable[[Tensor], Tensor]) -> Corrector:
    """Score minus alpha t^2 times its Laplacian, by Hutchinson probes (arXiv 2511.07496; spec method.md, section 2).

    As d is -t times the score, d becomes d - alpha t^2 Laplacian(d). alpha is `strength`, in units of the noise's
    variance t^2, so that one value serves all noise levels; `h` is the finite difference's length, in units of t.
    `randn_like` is called `probes` times per step, for the whole batch: so not behind a gate.
    Cost: F, and 2 probes F. Raises ValueError for arguments out of range.
    """
    if not -inf < strength < inf:
        raise ValueError(f"strength: {strength} is not a scale; give a finite number")
    if probes < 1:
        raise ValueError(f"probes: {probes} is too few; give a whole number >= 1")
    if not 0 < h < inf:
        raise ValueError(f"probe_radius: {h} is not a length; give a finite number > 0")

    def correct(denoise: BoundDenoiser, prev: Step | None, cur: Point) -> Correction:
        d, length = cur.d, h * float(cur.sigma)
        estimates = [laplacian_of_d(denoise, cur, h=length, randn_like=randn_like) for _ in range(probes)]
        return Correction(d - strength * cur.sigma**2 * torch.stack(estimates).mean(dim=0))

    return correct


def laplacian_sampler(
    denoiser: AnyDenoiser,
    latents: Tensor,
    class_labels: Tensor | None = None,
    *,
    randn_like: Callable[[Tensor], Tensor] = torch.randn_like,
    strength: float,
    window: Window = (0.1, 0.5),
    probes: int = 1,
    probe_radius: float = 0.1,
    num_steps: int = 40,
    sigma_min: float = 0.002,
    sigma_max: float = 80,
    time_rho: float = 7,
) -> Tensor:
    """Laplacian correction on Euler steps: see `laplacian`; `strength` 0 gives the images of `euler_sampler`.

    `probe_radius` is the finite difference's length in units of t. `latents` [B, C, H, W] are unit normal and are
    scaled here. Returns images [B, C, H, W], float64, detached. Raises ValueError for arguments out of range.
    Cost: N F, and in the window 2 probes F more per step.
    """
    denoise, x, sigmas = start(denoiser, latents, class_labels, num_steps, sigma_min, sigma_max, time_rho)
    correct = within(window, laplacian(strength, probes=probes, h=probe_radius, randn_like=randn_like))
    return last(trajectory(denoise, x, sigmas, correct=correct))
