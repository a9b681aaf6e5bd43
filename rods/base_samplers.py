"""The samplers without a correction, and what all samplers have in common.

A sampler is a frozen dataclass whose fields are its options: rods/config.py makes command lines, presets and JSON of
them. `along` yields its steps from a state on a noise grid, `steps` from latents; `sample` runs it to its end.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from math import inf
from numbers import Integral
from typing import ClassVar, Literal

import torch
from torch import Tensor

from rods.denoiser import BoundDenoiser, Noise, bind, unbound
from rods.records import Recorder
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
from rods.trajectory import Churn, Solver, check_latents, start, trajectory, with_zero
from rods.types import AnyDenoiser, RodsResult, Steps, option

MAX_STEPS = 100_000


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """A sampler and all of its options. A subclass has `along`, its steps; `sample` runs it to its end.

    Raises ValueError, as "option: what is wrong; remedy", for a value that is out of range.
    """

    num_steps: int = option(40, help="Sampling steps.", flag="--steps", least=1, most=MAX_STEPS)
    sigma_min: float = option(0.002, help="Lowest noise level.")
    sigma_max: float = option(80, help="Highest noise level.")
    time_rho: float = option(7, help="Exponent of the noise grid, EDM's --rho.")

    restarts: ClassVar[bool] = False  # whether it takes some rows' steps again

    def __post_init__(self) -> None:
        for f in fields(self):
            value, least, most = getattr(self, f.name), f.metadata.get("least"), f.metadata.get("most")
            if (least is not None or most is not None) and not isinstance(value, Integral):
                raise ValueError(f"{f.name}: {value!r} is no whole number; give one")
            if least is not None and value < least:
                raise ValueError(f"{f.name}: {value} is too few; give a whole number >= {least}")
            if most is not None and value > most:
                raise ValueError(f"{f.name}: {value} is too many; give {most} or fewer")

    @property
    def base_solver(self) -> Solver:
        """What integrates where nothing is corrected."""
        return "euler"

    @property
    def stream(self) -> Literal["first", "second"]:
        """The stream of a seed that it draws from: EDM's noise (churn) is of the first, other draws of the second."""
        return "first"

    def steps(self, denoiser: AnyDenoiser, latents: Tensor, class_labels: Tensor | None = None) -> Steps:
        """The trajectory of `latents` [B, C, H, W] (unit normal, scaled here), step by step; see `types.Step`.

        `denoiser` is D(x, sigma), or bound already (`bind`), whose counters then tell F and B and whose `randn_like`
        draws. `class_labels`: None, one-hot rows [B, label_dim], or the numbers of classes [B]. Raises ValueError for
        latents of another form and for options that do not suit the denoiser.
        """
        check_latents(latents, denoiser)
        denoise, x, sigmas = self._start(denoiser, latents, class_labels)
        yield from self.along(denoise, x, sigmas)

    def along(self, denoise: BoundDenoiser, x: Tensor, sigmas: Tensor) -> Steps:
        """The trajectory from a state `x` at the noise level sigmas[0] over levels of one's own [N + 1], to 0.

        Not of `Ablation`, whose state may be scaled.
        """
        raise NotImplementedError

    def levels(self, denoiser: AnyDenoiser) -> list[float]:
        """The noise levels at which its N steps begin. Raises ValueError where the denoiser leaves no such range."""
        denoise = bind(unbound(denoiser), 1)
        _, _, sigmas = self._start(denoise, torch.zeros(1, 1, 1, 1), None)
        return [float(t) for t in sigmas[:-1]]

    def check(self, denoiser: AnyDenoiser) -> None:
        """ValueError where the options do not suit the denoiser: everything that can be known before the run."""
        self.levels(denoiser)

    def recorder(self) -> Recorder:
        """What makes images and records of the steps."""
        return Recorder()

    def sample(
        self,
        denoiser: AnyDenoiser,
        latents: Tensor,
        class_labels: Tensor | None = None,
        *,
        randn_like: Noise | None = None,
    ) -> RodsResult:
        """Run to the end: images (float64, detached) and a record of each, with measured F and B.

        Raises ValueError for latents of another form, and as `check` does.
        """
        check_latents(latents, denoiser)
        self.check(denoiser)
        denoise = bind(denoiser, len(latents), class_labels, randn_like=randn_like)
        recorder = self.recorder()
        for step in self.steps(denoise, latents):
            recorder.add(step)
        return recorder.result(denoise)

    def _start(
        self, denoiser: AnyDenoiser, latents: Tensor, class_labels: Tensor | None
    ) -> tuple[BoundDenoiser, Tensor, Tensor]:
        """D with its labels, the first state, and the grid [N + 1] that ends with 0."""
        return start(
            denoiser,
            latents,
            class_labels,
            num_steps=self.num_steps,
            sigma_min=self.sigma_min,
            sigma_max=self.sigma_max,
            time_rho=self.time_rho,
        )


@dataclass(frozen=True, kw_only=True)
class Churned(Sampler):
    """A sampler with EDM's stochasticity."""

    S_churn: float = option(0, help="Stochasticity strength.", flag="--S_churn")
    S_min: float = option(0, help="Lowest noise level with churn.", flag="--S_min")
    S_max: float = option(inf, help="Highest noise level with churn.", flag="--S_max")
    S_noise: float = option(1, help="Noise inflation.", flag="--S_noise")

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.churn

    @property
    def churn(self) -> Churn:
        return Churn(self.S_churn, self.S_min, self.S_max, self.S_noise)


@dataclass(frozen=True, kw_only=True)
class Edm(Churned):
    """EDM's sampler: Heun steps with churn (EDM paper, Algorithm 2). Noise is drawn at every step. Cost: 2N - 1 F."""

    num_steps: int = option(18, help="Sampling steps.", flag="--steps", least=1, most=MAX_STEPS)

    @property
    def base_solver(self) -> Solver:
        return "heun"

    def along(self, denoise: BoundDenoiser, x: Tensor, sigmas: Tensor) -> Steps:
        yield from trajectory(denoise, x, sigmas, solver="heun", churn=self.churn)


@dataclass(frozen=True, kw_only=True)
class Euler(Sampler):
    """Euler steps on EDM's grid: the baseline of the RODS paper. Cost: N F."""

    def along(self, denoise: BoundDenoiser, x: Tensor, sigmas: Tensor) -> Steps:
        yield from trajectory(denoise, x, sigmas)


@dataclass(frozen=True, kw_only=True)
class Ablation(Churned):
    """The samplers that EDM compares (EDM paper, Algorithm 1 and table 1, with churn). Cost: Heun 2N - 1 F, Euler N F.

    With the defaults its images are those of `Edm`, to rounding.
    """

    num_steps: int = option(18, help="Sampling steps.", flag="--steps", least=1, most=MAX_STEPS)
    sigma_min: float | None = option(None, help="Lowest noise level; without it, by --disc.")  # type: ignore[assignment]
    sigma_max: float | None = option(None, help="Highest noise level; without it, by --disc.")  # type: ignore[assignment]
    solver: Solver = option("heun", help="Integrator.")
    discretization: Discretization = option("edm", help="Noise grid.", flag="--disc")
    schedule: ScheduleName = option("linear", help="Noise schedule sigma(t).")
    scaling: Scaling = option("none", help="Signal scaling s(t).")

    # Not options of a command, as in EDM's own: constants of the grids that it compares.
    epsilon_s: float = 1e-3
    C_1: float = 0.001
    C_2: float = 0.008
    M: int = 1000
    alpha: float = 1  # where Heun's second evaluation is, in units of the step

    def __post_init__(self) -> None:
        super().__post_init__()
        check_solver(self.solver)
        default_range(self.discretization, epsilon_s=self.epsilon_s)
        schedule_of(self.schedule, self.scaling, VPSigma())
        if not 0 < self.alpha <= 1:
            raise ValueError(f"alpha: {self.alpha} is not a place between two steps; give 0 < alpha <= 1")

    @property
    def base_solver(self) -> Solver:
        return self.solver

    def _grid(self, denoise: BoundDenoiser) -> tuple[Tensor, VPSigma]:
        """The noise levels [N] of the discretization, and the VP schedule through its range."""
        lo, hi = default_range(self.discretization, epsilon_s=self.epsilon_s)
        lo, hi = clip_range(
            lo if self.sigma_min is None else self.sigma_min,
            hi if self.sigma_max is None else self.sigma_max,
            allowed=(denoise.sigma_min, denoise.sigma_max),
            num_steps=self.num_steps,
        )
        vp = VPSigma.through(sigma_min=lo, sigma_max=hi, epsilon_s=self.epsilon_s)
        if self.discretization == "vp":
            return vp_grid(self.num_steps, vp=vp, epsilon_s=self.epsilon_s), vp
        if self.discretization == "ve":
            return ve_grid(self.num_steps, sigma_min=lo, sigma_max=hi), vp
        if self.discretization == "iddpm":
            return iddpm_grid(self.num_steps, sigma_min=lo, sigma_max=hi, C_1=self.C_1, C_2=self.C_2, M=self.M), vp
        return edm_grid(self.num_steps, sigma_min=lo, sigma_max=hi, time_rho=self.time_rho), vp

    def levels(self, denoiser: AnyDenoiser) -> list[float]:
        denoise = bind(unbound(denoiser), 1)
        return [float(t) for t in with_zero(self._grid(denoise)[0], denoise, torch.zeros(1))[:-1]]

    def steps(self, denoiser: AnyDenoiser, latents: Tensor, class_labels: Tensor | None = None) -> Steps:
        check_latents(latents, denoiser)
        denoise = bind(denoiser, len(latents), class_labels)
        levels, vp = self._grid(denoise)
        sigmas = with_zero(levels, denoise, latents)
        ode = schedule_of(self.schedule, self.scaling, vp)
        t_0 = ode.time(sigmas[0])
        x = latents.detach().to(sigmas.dtype) * ode.sigma(t_0) * ode.s(t_0)
        yield from trajectory(denoise, x, sigmas, solver=self.solver, schedule=ode, alpha=self.alpha, churn=self.churn)


def check_solver(solver: str) -> None:
    """ValueError unless `solver` is known."""
    if solver not in ("euler", "heun"):
        raise ValueError(f"solver: unknown solver {solver!r}; give euler or heun")
