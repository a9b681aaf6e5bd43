"""The samplers by name: each sets the noise grid and what happens at a step, and runs the one loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import inf
from typing import Literal

import torch
from torch import Tensor

from rods.ablation import ablation_sampler
from rods.correctors import (
    Corrector,
    Window,
    cas,
    check_window,
    every,
    gate,
    in_window,
    overshoot,
    random_shift,
    sas,
    tag,
    within,
)
from rods.detectors import h_index
from rods.evaluation import BoundDenoiser, Gradient, bind
from rods.trajectory import Churn, Solver, check_solver, last, start, trajectory
from rods.types import AnyDenoiser, RodsResult, SampleRecord, Step

__all__ = [
    "ablation_sampler",
    "edm_sampler",
    "euler_sampler",
    "overshoot_sampler",
    "random_sampler",
    "rods_sampler",
    "sigma_offset_sampler",
    "tag_sampler",
    "trajectory",
]


def edm_sampler(
    denoiser: AnyDenoiser,
    latents: Tensor,
    class_labels: Tensor | None = None,
    *,
    randn_like: Callable[[Tensor], Tensor] = torch.randn_like,
    num_steps: int = 18,
    sigma_min: float = 0.002,
    sigma_max: float = 80,
    time_rho: float = 7,
    S_churn: float = 0,
    S_min: float = 0,
    S_max: float = inf,
    S_noise: float = 1,
) -> Tensor:
    """EDM's sampler: Heun steps with churn (EDM paper, Algorithm 2).

    `latents` [B, C, H, W] are unit normal and are scaled here; `class_labels` None or [B, label_dim]. The range of
    noise levels is clipped to the denoiser's. `randn_like` is called once per step on the float64 state, also where no
    noise is added. Returns images [B, C, H, W], float64, detached. Raises ValueError for arguments out of range.
    Cost: 2N - 1 F.
    """
    denoise, x, sigmas = start(denoiser, latents, class_labels, num_steps, sigma_min, sigma_max, time_rho)
    churn = Churn(S_churn, S_min, S_max, S_noise, randn_like)
    return last(trajectory(denoise, x, sigmas, solver="heun", churn=churn))


def euler_sampler(
    denoiser: AnyDenoiser,
    latents: Tensor,
    class_labels: Tensor | None = None,
    *,
    num_steps: int = 40,
    sigma_min: float = 0.002,
    sigma_max: float = 80,
    time_rho: float = 7,
) -> Tensor:
    """Euler steps on EDM's grid (the baseline of the RODS paper). Arguments and result as `edm_sampler`. Cost: N F."""
    denoise, x, sigmas = start(denoiser, latents, class_labels, num_steps, sigma_min, sigma_max, time_rho)
    return last(trajectory(denoise, x, sigmas))


def rods_sampler(
    denoiser: AnyDenoiser,
    latents: Tensor,
    class_labels: Tensor | None = None,
    *,
    randn_like: Callable[[Tensor], Tensor] = torch.randn_like,
    method: Literal["cas", "sas"] = "cas",
    eps: float,
    rho: float,
    window: Window = (0.1, 0.5),
    num_steps: int = 40,
    sigma_min: float = 0.002,
    sigma_max: float = 80,
    time_rho: float = 7,
    solver: Solver = "euler",
    ascent_steps: int = 1,
    sas_sign: Literal["uphill", "downhill"] = "uphill",
    detect: bool = True,
    gradient: Gradient = "backward",
    probe_every: int = 1,
    S_churn: float = 0,
    S_min: float = 0,
    S_max: float = inf,
    S_noise: float = 1,
) -> RodsResult:
    """RODS (paper, Algorithm 2): where the curvature index is >= eps, step along the direction found at x + delta.

    `latents` [B, C, H, W] are unit normal and are scaled here. `eps` is the threshold (0: every sample, inf: detect
    only, the images are those of `euler_sampler`); `rho` the radius ||delta|| in units of the state; `window` the steps
    lo*N <= i < hi*N or a `SigmaWindow`. `ascent_steps` belongs to CAS, `sas_sign` to SAS. `detect=False` skips H, which
    needs eps = 0. `gradient` "difference" takes one F for each B: g by a finite difference (see `Point.g`).
    `probe_every` k measures g and H at every k-th step of the window; in between the last flags and the last direction
    of g stand (see `every`). `S_churn` > 0 adds EDM's churn before the steps, with `S_min`, `S_max` and `S_noise` as in
    `edm_sampler`; `randn_like` is then called once per step, and never without it.
    Returns images (float64, detached) and a `SampleRecord` for each.
    Raises ValueError for arguments out of range.
    Cost per step in the window: 2F + 2B; with `detect=False` 2F + B (CAS) or 2F (SAS); SAS with detection one F more
    for flagged samples. Outside, and between probed steps: F, and there SAS one F more for flagged samples (CAS with
    more ascent steps: what these spend). With Heun, one F more per step but the last.
    """
    check_solver(solver)
    if not detect and eps != 0:
        raise ValueError(f"detect: off with eps {eps}; a threshold needs detection (eps 0 corrects all)")
    if gradient not in ("backward", "difference"):
        raise ValueError(f"gradient: unknown kind {gradient!r}; give backward or difference")
    if method == "sas" and not detect and (gradient, probe_every) != ("backward", 1):
        raise ValueError("gradient, probe_every: sas without detection measures no gradient; leave them out")
    correct = within(window, rods_correction(method, eps, rho, ascent_steps, sas_sign, detect, probe_every))
    denoise, x, sigmas = start(denoiser, latents, class_labels, num_steps, sigma_min, sigma_max, time_rho)
    churn = Churn(S_churn, S_min, S_max, S_noise, randn_like)
    stirred = churn if S_churn > 0 else None
    steps = trajectory(denoise, x, sigmas, correct=correct, solver=solver, churn=stirred, gradient=gradient)
    return collect(denoise, steps, rho=rho)


def rods_correction(
    method: Literal["cas", "sas"],
    eps: float,
    rho: float,
    ascent_steps: int,
    sas_sign: Literal["uphill", "downhill"],
    detect: bool,
    probe_every: int,
) -> Corrector:
    """gate(h_index(rho), eps, cas(rho) or sas(rho)); without detection the corrector alone; `every` around both."""
    fixes = {"cas": lambda: cas(rho, ascent_steps), "sas": lambda: sas(rho, sas_sign)}
    if method not in fixes:
        raise ValueError(f"method: unknown method {method!r}; give cas or sas")
    correct = fixes[method]()
    shared = float(rho) if method == "cas" and ascent_steps == 1 else None
    return every(probe_every, gate(h_index(rho), eps, correct) if detect else correct, correct, rho=shared)


def overshoot_sampler(
    denoiser: AnyDenoiser,
    latents: Tensor,
    class_labels: Tensor | None = None,
    *,
    rho: float,
    window: Window = (0.1, 0.5),
    num_steps: int = 40,
    sigma_min: float = 0.002,
    sigma_max: float = 80,
    time_rho: float = 7,
) -> Tensor:
    """The zero-cost control: Euler with d scaled by 1 + rho / ||t d|| in the window (spec method.md, section 4).

    Arguments and result as `rods_sampler`'s and `edm_sampler`'s. Cost: N F.
    """
    denoise, x, sigmas = start(denoiser, latents, class_labels, num_steps, sigma_min, sigma_max, time_rho)
    return last(trajectory(denoise, x, sigmas, correct=within(window, overshoot(rho))))


def sigma_offset_sampler(
    denoiser: AnyDenoiser,
    latents: Tensor,
    class_labels: Tensor | None = None,
    *,
    kappa: float,
    window: Window = (0.1, 0.5),
    num_steps: int = 40,
    sigma_min: float = 0.002,
    sigma_max: float = 80,
    time_rho: float = 7,
) -> Tensor:
    """The other zero-cost control: Euler with D(x; t (1 + kappa)) for D(x; t) in the window (method.md, section 4).

    The direction is (x - D(x; t (1 + kappa))) / t: only what the network is told changes; that level is kept in the
    network's range. Arguments and result as `overshoot_sampler`'s; kappa > -1. Cost: N F.
    """
    check_window(window)
    if not -1 < kappa < inf:
        raise ValueError(f"kappa: {kappa} is not an offset; give a finite number > -1")
    denoise, x, sigmas = start(denoiser, latents, class_labels, num_steps, sigma_min, sigma_max, time_rho)
    levels = sigmas[:-1].tolist()
    inside = {t for i, t in enumerate(levels) if in_window(window, i=i, num_steps=num_steps, sigma=t)}

    def offset(x: Tensor, sigma: Tensor) -> Tensor:
        if float(sigma) in inside:
            told = (sigma * (1 + kappa)).clamp(denoise.sigma_min, denoise.sigma_max)
            sigma = denoise.round_sigma(told)
        return denoise(x, sigma)

    return last(trajectory(bind(offset, len(x)).watched(denoise.watch), x, sigmas))


def tag_sampler(
    denoiser: AnyDenoiser,
    latents: Tensor,
    class_labels: Tensor | None = None,
    *,
    eta: float,
    window: Window = (0, 1),
    num_steps: int = 40,
    sigma_min: float = 0.002,
    sigma_max: float = 80,
    time_rho: float = 7,
) -> Tensor:
    """Tangential amplifying guidance on Euler steps (arXiv 2510.04533): see `tag`; eta = 1 is `euler_sampler`.

    Arguments and result as `overshoot_sampler`'s. Cost: N F.
    """
    denoise, x, sigmas = start(denoiser, latents, class_labels, num_steps, sigma_min, sigma_max, time_rho)
    return last(trajectory(denoise, x, sigmas, correct=within(window, tag(eta))))


def random_sampler(
    denoiser: AnyDenoiser,
    latents: Tensor,
    class_labels: Tensor | None = None,
    *,
    randn_like: Callable[[Tensor], Tensor] = torch.randn_like,
    rho: float,
    window: Window = (0.1, 0.5),
    num_steps: int = 40,
    sigma_min: float = 0.002,
    sigma_max: float = 80,
    time_rho: float = 7,
) -> Tensor:
    """The random control: Euler with the denoised image shifted by rho anywhere in the window; see `random_shift`.

    `randn_like` is called once per step of the window. Arguments and result as `overshoot_sampler`'s. Cost: N F.
    """
    denoise, x, sigmas = start(denoiser, latents, class_labels, num_steps, sigma_min, sigma_max, time_rho)
    return last(trajectory(denoise, x, sigmas, correct=within(window, random_shift(rho, randn_like))))


def collect(denoise: BoundDenoiser, steps: Iterable[Step], *, rho: float | None) -> RodsResult:
    """Run the trajectory and write down, for each sample, what was measured, corrected and spent.

    `rho` is the radius of the curvature index; None where the steps' scores are another detector's.
    """
    probed, sigmas, measured, flagged = [], [], [], []
    for step in steps:
        flagged.append(step.flagged)
        if step.score is not None:
            probed.append(step.i)
            sigmas.append(float(step.sigma))
            measured.append(step.score.tolist())  # [B]
    x = step.x_next
    flags = torch.stack(flagged, dim=1).tolist()  # [B, N]
    records = []
    for b in range(len(x)):
        row = tuple(scores[b] for scores in measured)
        H = () if rho is None else row
        records.append(
            SampleRecord(
                probed=tuple(probed),
                sigma=tuple(sigmas),
                H=H,
                H_scaled=tuple(h * t**3 / rho if rho else 0.0 for h, t in zip(H, sigmas, strict=False)),
                flagged=tuple(i for i, flag in enumerate(flags[b]) if flag),
                forward=int(denoise.forward[b]),
                backward=int(denoise.backward[b]),
                scores=row if rho is None else (),
            )
        )
    return RodsResult(images=x, records=tuple(records))
