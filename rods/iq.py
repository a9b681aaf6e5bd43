"""IQ: move the denoised image down its own LID score while sampling."""

from __future__ import annotations

from collections.abc import Callable
from math import inf, isnan

import torch
from torch import Tensor

from rods.correctors import Correction, Corrector, Window, within
from rods.detectors import noise_level
from rods.evaluation import BoundDenoiser, Point, fresh, norms, per_sample, unit
from rods.samplers import collect
from rods.scores import lid_gradient
from rods.trajectory import start, trajectory
from rods.types import AnyDenoiser, RodsResult, Step


def iq(
    strength: float, threshold: float, *, sigma: float, draws: int, randn_like: Callable[[Tensor], Tensor]
) -> Corrector:
    """IQ (arXiv 2605.05026; spec method.md, section 2): x0-hat minus a step down the gradient of LID(x0-hat).

    x0-hat = D(x; t) becomes x0-hat - lambda ||x0-hat - x|| grad / ||grad|| where LID(x0-hat) > threshold, grad that of
    `lid` at the noise level `sigma` with `draws` draws. The paper's factor t^2 cancels in its own normalisation, and
    its mask is a quantile of a reference set: here its value, so that a sample does not depend on its mates. In terms
    of directions: d + lambda ||d|| grad / ||grad||. lambda is `strength`, .05 to .2 there. `randn_like` is called
    `draws` times per step, for the whole batch: so not behind a gate.
    Cost: F, and draws (F + B). Raises ValueError for arguments out of range.
    """
    if not 0 <= strength < inf:
        raise ValueError(f"strength: {strength} is not a length; give a finite number >= 0, such as .1")
    if isnan(threshold) or threshold < 0:
        raise ValueError(f"threshold: {threshold} is not a score; give a number >= 0 (inf: only record the scores)")
    if draws < 1:
        raise ValueError(f"draws: {draws} is too few; give a whole number >= 1")

    def correct(denoise: BoundDenoiser, prev: Step | None, cur: Point) -> Correction:
        d = cur.d
        noise = torch.stack([fresh(denoise, cur.x, randn_like) for _ in range(draws)])  # [k, B, C, H, W]
        score, gradient = lid_gradient(denoise, cur.denoised, sigma, noise=noise)
        flagged = score > threshold
        moved = d + per_sample(strength * norms(d), d) * unit(gradient)
        return Correction(torch.where(per_sample(flagged, d), moved, d), score, flagged)

    return correct


def iq_sampler(
    denoiser: AnyDenoiser,
    latents: Tensor,
    class_labels: Tensor | None = None,
    *,
    randn_like: Callable[[Tensor], Tensor] = torch.randn_like,
    strength: float,
    threshold: float,
    window: Window,
    lid_sigma: float = 1.2,
    draws: int = 4,
    num_steps: int = 40,
    sigma_min: float = 0.002,
    sigma_max: float = 80,
    time_rho: float = 7,
) -> RodsResult:
    """IQ on Euler steps: see `iq`. `strength` 0 or `threshold` inf give the images of `euler_sampler`.

    `window` is narrow in the paper: calibrate it, in noise levels, and `threshold` with it. `latents` [B, C, H, W] are
    unit normal and are scaled here. Returns images (float64, detached) and records with `scores` (the LID of x0-hat
    at each step of the window) and `flagged`. Raises ValueError for arguments out of range.
    Cost: N F, and in the window draws (F + B) more per step.
    """
    denoise, x, sigmas = start(denoiser, latents, class_labels, num_steps, sigma_min, sigma_max, time_rho)
    noise_level(lid_sigma, x, name="lid_sigma")
    correct = within(window, iq(strength, threshold, sigma=lid_sigma, draws=draws, randn_like=randn_like))
    return collect(denoise, trajectory(denoise, x, sigmas, correct=correct), rho=None)
