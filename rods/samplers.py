"""RODS, the samplers that it is compared with, and a public function for each sampler.

    for step in RodsCas(eps=0.1, rho=1).steps(denoise, latents): ...      # score, record, plot, report progress
    result = rods_sampler(denoise, latents, eps=0.1, rho=1)               # or run it to its end

Algorithm 2 of the RODS paper is `Rods.corrector`, on Euler steps. The sampler that restarts is in restart.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from math import inf
from typing import Literal

from torch import Tensor

from rods.base_samplers import MAX_STEPS, Churned, Edm, Euler, Sampler, check_solver
from rods.combinators import Every, Gate, Within
from rods.correctors import Cas, NamedCorrector, Sas
from rods.denoiser import BoundDenoiser, Noise
from rods.detectors import CurvatureIndex, Detector
from rods.records import Recorder
from rods.schedules import Window
from rods.state import Gradient
from rods.trajectory import Corrector, Solver, trajectory
from rods.types import AnyDenoiser, RodsResult, Steps, option

# -- RODS -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Rods(Churned):
    """RODS (RODS paper, Algorithm 2): where the curvature index is >= eps, step along the direction at x + delta.

    At a step of the window, with d(x) = (x - D(x; t)) / t, v = d / t and g = grad_x ||v||:

        u = g(x) / ||g(x)||                          the worst direction nearby
        H = ||g(x + rho u) - g(x)||                  the curvature index, eq. (8)
        where H >= eps:  d <- d(x + delta)           CAS: delta = rho u;  SAS: delta = +-rho d / ||d||
        x <- x + (t_next - t) d

    Cost per step in the window: 2F + 2B; without detection 2F + B (CAS) or 2F (SAS); SAS with detection one F more for
    flagged samples. Outside, and between probed steps: F, and there SAS one F more for flagged samples (CAS with more
    ascent steps: what these spend). With Heun, one F more per step but the last.
    """

    eps: float = option(help="Correct where the curvature index H >= eps; 0 corrects all, inf only records H.")
    rho: float = option(help="Radius of the neighbourhood, in units of the state. Not EDM's exponent.")
    window: Window = option((0.1, 0.5), help="Where to act: fractions of the steps, or sigma:lo,hi in noise levels.")
    solver: Solver = option("euler", help="Integrator.")
    detector: Detector | None = option(None, help="What is compared with --eps, a detector of steps; without it, H.")
    detect: bool = option(True, help="Measure H; false needs --eps=0 and makes the same images for fewer evaluations.")
    gradient: Gradient = option("backward", help="The gradient of the score norm: a backward pass, or by a finite "
                                                 "difference for one F.")  # fmt: skip
    probe_every: int = option(
        1, help="Measure H and the gradient at every k-th step of the window only.", least=1, most=MAX_STEPS
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_solver(self.solver)
        if not self.detect and self.eps != 0:
            raise ValueError(f"detect: off with eps {self.eps}; a threshold needs detection (eps 0 corrects all)")
        if not self.detect and self.detector is not None:
            raise ValueError("detector: it needs detection; leave out detect=false, or the detector")
        if self.gradient not in ("backward", "difference"):
            raise ValueError(f"gradient: unknown kind {self.gradient!r}; give backward or difference")
        _ = self.corrector

    @property
    def change(self) -> Corrector:
        """What replaces the direction of a flagged sample."""
        raise NotImplementedError

    @property
    def corrector(self) -> Corrector:
        """Algorithm 2 as a value: Within(window, Gate(CurvatureIndex(rho), eps, Cas(rho))), with Every inside."""
        correct = self.change
        if self.detect:
            correct = Gate(self.detector or CurvatureIndex(self.rho), self.eps, correct)
        return Within(self.window, correct if self.probe_every == 1 else Every(self.probe_every, correct))

    @property
    def base_solver(self) -> Solver:
        return self.solver

    def recorder(self) -> Recorder:
        return Recorder("H", rho=self.rho) if self.detector is None else Recorder("scores")

    def along(self, denoise: BoundDenoiser, x: Tensor, sigmas: Tensor) -> Steps:
        churn = self.churn if self.S_churn > 0 else None  # without it no random number is drawn
        yield from trajectory(
            denoise, x, sigmas, correct=self.corrector, solver=self.solver, churn=churn, gradient=self.gradient
        )


@dataclass(frozen=True, kw_only=True)
class RodsCas(Rods):
    """RODS with Curvature-Aware Sampling; see `Rods`."""

    ascent_steps: int = option(1, help="Inner ascent steps of CAS.", least=1, most=1000)

    @property
    def change(self) -> Corrector:
        return Cas(self.rho, self.ascent_steps)


@dataclass(frozen=True, kw_only=True)
class RodsSas(Rods):
    """RODS with Sharpness-Aware Sampling; see `Rods`."""

    sas_sign: Literal["uphill", "downhill"] = option("uphill", help="Which way SAS looks.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.detect and (self.gradient, self.probe_every) != ("backward", 1):
            raise ValueError("gradient, probe_every: sas without detection measures no gradient; leave them out")

    @property
    def change(self) -> Corrector:
        return Sas(self.rho, self.sas_sign)


# -- rivals and controls: Euler steps with a corrector in a window ----------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Corrected(Sampler):
    """Euler steps, changed by a corrector in a window. Its options are the corrector's, the window and the grid."""

    correct: NamedCorrector
    window: Window = option(help="Where to act: fractions of the steps, or sigma:lo,hi in noise levels.")

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = Within(self.window, self.correct)

    @property
    def stream(self) -> Literal["first", "second"]:
        return "second" if self.correct.random else "first"

    def recorder(self) -> Recorder:
        return Recorder("scores") if self.correct.scores else Recorder()

    def along(self, denoise: BoundDenoiser, x: Tensor, sigmas: Tensor) -> Steps:
        yield from trajectory(denoise, x, sigmas, correct=Within(self.window, self.correct))


# -- as functions -----------------------------------------------------------------------------------------------------


def edm_sampler(
    denoiser: AnyDenoiser,
    latents: Tensor,
    class_labels: Tensor | None = None,
    *,
    randn_like: Noise | None = None,
    num_steps: int = 18,
    sigma_min: float = 0.002,
    sigma_max: float = 80,
    time_rho: float = 7,
    S_churn: float = 0,
    S_min: float = 0,
    S_max: float = inf,
    S_noise: float = 1,
) -> Tensor:
    """EDM's sampler: Heun steps with churn (EDM paper, Algorithm 2). Cost: 2N - 1 F.

    Args:
        denoiser: D(x, sigma), or bound already.
        latents: [B, C, H, W], unit normal; scaled here.
        class_labels: None, one-hot rows [B, label_dim], or the numbers of classes [B].
        randn_like: called once per step on the float64 state, also where no noise is added.
        sigma_min: clipped to the denoiser's range.
        sigma_max: clipped to the denoiser's range.
    Returns:
        Images [B, C, H, W], float64, detached.
    Raises:
        ValueError: an argument out of range.
    """
    sampler = Edm(
        num_steps=num_steps,
        sigma_min=sigma_min,
        sigma_max=sigma_max,
        time_rho=time_rho,
        S_churn=S_churn,
        S_min=S_min,
        S_max=S_max,
        S_noise=S_noise,
    )
    return sampler.sample(denoiser, latents, class_labels, randn_like=randn_like).images


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
    sampler = Euler(num_steps=num_steps, sigma_min=sigma_min, sigma_max=sigma_max, time_rho=time_rho)
    return sampler.sample(denoiser, latents, class_labels).images


def rods_sampler(
    denoiser: AnyDenoiser,
    latents: Tensor,
    class_labels: Tensor | None = None,
    *,
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
    randn_like: Noise | None = None,
) -> RodsResult:
    """RODS (RODS paper, Algorithm 2): where the curvature index is >= eps, step along the direction found at x + delta.

    Args:
        denoiser: D(x, sigma), or bound already.
        latents: [B, C, H, W], unit normal; scaled here.
        class_labels: None, one-hot rows [B, label_dim], or the numbers of classes [B].
        method: `RodsCas` or `RodsSas`, whose fields the other arguments are. `ascent_steps` belongs to CAS, `sas_sign`
            to SAS.
        eps: the threshold; 0: every sample, inf: detect only (the images are those of `euler_sampler`).
        rho: the radius ||delta||, in units of the state.
        window: the steps lo*N <= i < hi*N, or a `SigmaWindow`.
        randn_like: called once per step where S_churn > 0, and never without.
    Returns:
        Images (float64, detached) and a `SampleRecord` of each.
    Raises:
        ValueError: an argument out of range.
    """
    if method not in ("cas", "sas"):
        raise ValueError(f"method: unknown method {method!r}; give cas or sas")
    kind = partial(RodsCas, ascent_steps=ascent_steps) if method == "cas" else partial(RodsSas, sas_sign=sas_sign)
    sampler = kind(
        eps=eps,
        rho=rho,
        window=window,
        num_steps=num_steps,
        sigma_min=sigma_min,
        sigma_max=sigma_max,
        time_rho=time_rho,
        solver=solver,
        detect=detect,
        gradient=gradient,
        probe_every=probe_every,
        S_churn=S_churn,
        S_min=S_min,
        S_max=S_max,
        S_noise=S_noise,
    )
    return sampler.sample(denoiser, latents, class_labels, randn_like=randn_like)
