"""EDM's ablation sampler: every discretisation, schedule, scaling and solver on the one loop."""

from __future__ import annotations

from collections.abc import Callable
from math import inf

import torch
from torch import Tensor

from rods.evaluation import bind
from rods.schedules import (
    Discretization,
    Scaling,
    ScheduleName,
    VPSigma,
    clip_range,
    default_range,
    edm_grid,
    iddpm_grid,
    schedule_of,
    ve_grid,
    vp_grid,
)
from rods.trajectory import Churn, Solver, check_latents, check_solver, last, trajectory, with_zero
from rods.types import AnyDenoiser


def ablation_sampler(
    denoiser: AnyDenoiser,
    latents: Tensor,
    class_labels: Tensor | None = None,
    *,
    randn_like: Callable[[Tensor], Tensor] = torch.randn_like,
    num_steps: int = 18,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    time_rho: float = 7,
    solver: Solver = "heun",
    discretization: Discretization = "edm",
    schedule: ScheduleName = "linear",
    scaling: Scaling = "none",
    epsilon_s: float = 1e-3,
    C_1: float = 0.001,
    C_2: float = 0.008,
    M: int = 1000,
    alpha: float = 1,
    S_churn: float = 0,
    S_min: float = 0,
    S_max: float = inf,
    S_noise: float = 1,
) -> Tensor:
    """The samplers that EDM compares (EDM paper, Algorithm 1 with churn; spec edm-compat.md, section 3).

    `discretization` vp|ve|iddpm|edm is the noise grid, and gives the range of noise levels where none is given;
    `schedule` vp|ve|linear is sigma(t); `scaling` vp|none is s(t); `alpha` places Heun's second evaluation.
    `latents` [B, C, H, W] are unit normal and are scaled here. `randn_like` is called once per step.
    Returns images [B, C, H, W], float64, detached; with the defaults those of `edm_sampler`, to rounding.
    Raises ValueError for unknown names and arguments out of range. Cost: Heun 2N - 1 F, Euler N F.
    """
    check_latents(latents)
    check_solver(solver)
    if not 0 < alpha <= 1:
        raise ValueError(f"alpha: {alpha} is not a place between two steps; give 0 < alpha <= 1")
    denoise = bind(denoiser, len(latents), class_labels)
    lo, hi = default_range(discretization, epsilon_s=epsilon_s)
    lo, hi = clip_range(
        lo if sigma_min is None else sigma_min,
        hi if sigma_max is None else sigma_max,
        allowed=(denoise.sigma_min, denoise.sigma_max),
        num_steps=num_steps,
    )

    vp = VPSigma.through(sigma_min=lo, sigma_max=hi, epsilon_s=epsilon_s)
    grids = {
        "vp": lambda: vp_grid(num_steps, vp=vp, epsilon_s=epsilon_s),
        "ve": lambda: ve_grid(num_steps, sigma_min=lo, sigma_max=hi),
        "iddpm": lambda: iddpm_grid(num_steps, sigma_min=lo, sigma_max=hi, C_1=C_1, C_2=C_2, M=M),
        "edm": lambda: edm_grid(num_steps, sigma_min=lo, sigma_max=hi, time_rho=time_rho),
    }
    sigmas = with_zero(grids[discretization](), denoise, latents)
    ode = schedule_of(schedule, scaling, vp)

    t_0 = ode.time(sigmas[0])
    x = latents.detach().to(sigmas.dtype) * ode.sigma(t_0) * ode.s(t_0)
    churn = Churn(S_churn, S_min, S_max, S_noise, randn_like)
    return last(trajectory(denoise, x, sigmas, solver=solver, schedule=ode, alpha=alpha, churn=churn))
