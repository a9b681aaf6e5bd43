"""Correctors: changes of a step's direction.

A corrector is a frozen dataclass; called as correct(cur, prev) it returns a `Correction`: the direction for every row
of the state `cur`. combinators.py puts them in windows and behind gates. A `NamedCorrector` that is registered in
rods/config.py becomes a sampler of its own: Euler steps, corrected in a window.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, isnan, pow
from typing import ClassVar, Literal

import torch
from torch import Tensor

from rods.denoiser import TINY, BoundDenoiser, norms, per_sample, unit
from rods.detectors import Lid, check_radius
from rods.schedules import Window
from rods.state import State
from rods.trajectory import Correction, Corrector
from rods.types import Probe, Step, option


class NamedCorrector(Corrector):
    """A corrector that makes a sampler by itself."""

    random: ClassVar[bool] = False  # whether it draws: then not behind a gate, where draws would depend on other rows
    window: ClassVar[Window | None] = (0.1, 0.5)  # the sampler's default; None: it has to be given
    scores: ClassVar[bool] = False  # whether it scores the steps that it sees, by a detector of its own


# -- RODS -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cas(Corrector):
    """Curvature-Aware Sampling: the direction at x + delta, delta uphill in the score norm (RODS paper, section 4.2).

    delta_1 = rho u(x); for more ascent steps delta_{k+1} = rho normalise(delta_k + rho u(x + delta_k)), on the sphere.
    Cost: F + B for u(x), then F at the point (the detector's probe where that has the same radius: nothing), and F + B
    for every further ascent step.
    """

    rho: float
    ascent_steps: int = 1

    def __post_init__(self) -> None:
        check_radius(self.rho)
        if self.ascent_steps < 1:
            raise ValueError(f"ascent_steps: {self.ascent_steps} is too few; give a whole number >= 1")

    def __call__(self, cur: State, prev: Step | None) -> Correction:
        worst = cur.uphill(float(self.rho))
        for _ in range(self.ascent_steps - 1 if self.rho > 0 else 0):
            delta = self.rho * unit(worst.x - cur.x + self.rho * unit(worst.g))
            worst = cur.moved(delta)
        return Correction(worst.d)

    def needs_gradient(self, cur: State, prev: Step | None) -> bool:
        return self.rho > 0

    def probed_radii(self, cur: State, prev: Step | None) -> tuple[float, ...]:
        return (float(self.rho),) if self.rho > 0 and self.ascent_steps > 1 else ()

    def held(self, cur: State, prev: Step | None, probe: Probe) -> Correction:
        """With one ascent step the network is evaluated once: at x + rho u in flagged rows, at x in the others."""
        if self.ascent_steps > 1 or probe.u is None:
            return super().held(cur, prev, probe)
        worst = cur.moved(torch.where(per_sample(probe.flagged, cur.x), self.rho * probe.u, 0.0))
        return Correction(worst.d, flagged=probe.flagged, at=worst)


@dataclass(frozen=True)
class Sas(Corrector):
    """Sharpness-Aware Sampling: the direction at x + delta, delta = +-rho d / ||d|| (RODS paper, section 4.2).

    Uphill in f_t is the paper's formula; which sign repairs depends on the data. Cost: F at x and F at the point.
    """

    rho: float
    sas_sign: Literal["uphill", "downhill"] = "uphill"

    def __post_init__(self) -> None:
        check_radius(self.rho)
        if self.sas_sign not in ("uphill", "downhill"):
            raise ValueError(f"sas_sign: unknown sign {self.sas_sign!r}; give uphill or downhill")

    def __call__(self, cur: State, prev: Step | None) -> Correction:
        if self.rho == 0:
            return Correction(cur.d)
        radius = self.rho if self.sas_sign == "uphill" else -self.rho
        return Correction(cur.moved(float(radius) * unit(cur.d)).d)


# -- rivals and controls ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Overshoot(NamedCorrector):
    """The control without a second evaluation: d times 1 + rho / ||t d||. Cost: F."""

    rho: float = option(help="How far the denoised image is overshot, in units of the state.")

    def __post_init__(self) -> None:
        check_radius(self.rho)

    def __call__(self, cur: State, prev: Step | None) -> Correction:
        length = norms(cur.sigma * cur.d)
        return Correction(cur.d * per_sample(1 + torch.where(length >= TINY, float(self.rho) / length, 0.0), cur.d))


@dataclass(frozen=True)
class SigmaOffset(NamedCorrector):
    """The other control at no cost: D(x; t (1 + kappa)) for D(x; t); that level is kept in the network's range.

    The direction is (x - D(x; t (1 + kappa))) / t: only what the network is told changes. Cost: F.
    """

    kappa: float = option(help="Relative offset of the noise level that the network is told.")

    def __post_init__(self) -> None:
        if not -1 < self.kappa < inf:
            raise ValueError(f"kappa: {self.kappa} is not an offset; give a finite number > -1")

    def __call__(self, cur: State, prev: Step | None) -> Correction:
        denoise = cur.denoise
        level = denoise.round_sigma((cur.sigma * (1 + self.kappa)).clamp(denoise.sigma_min, denoise.sigma_max))
        with torch.no_grad():
            told = cur.with_D(denoise(cur.x, level))
        return Correction(told.d, at=told)


@dataclass(frozen=True)
class Tag(NamedCorrector):
    """Tangential amplifying guidance: P d + eta (d - P d), P the projection on x / ||x|| (arXiv 2510.04533).

    The part of the direction that changes the state's length stays as it is, the part along the sphere is scaled: eta
    is 1 to 1.2 there, and 1 changes nothing. Cost: F.
    """

    eta: float = option(help="Scale of the direction's part along the sphere.")
    window: ClassVar[Window | None] = (0, 1)

    def __post_init__(self) -> None:
        if not 0 <= self.eta < inf:
            raise ValueError(f"eta: {self.eta} is not a scale; give a finite number >= 0, such as 1.1")

    def __call__(self, cur: State, prev: Step | None) -> Correction:
        normal = unit(cur.x)
        along = per_sample((cur.d * normal).flatten(1).sum(dim=1), cur.d) * normal  # P d
        return Correction(cur.d + (self.eta - 1) * (cur.d - along))


@dataclass(frozen=True)
class SgPrev(NamedCorrector):
    """Self-guidance that costs nothing: D + w (D - D of the step before), the first step as it is (arXiv 2412.05827).

    The step before is at a higher noise level, so that its D stands for that of a worse network; w is `strength`. A
    `guidance.Noisier` guide evaluates that level at the state itself, for F more. Cost: F.
    """

    strength: float = option(help="Weight of the difference from the denoised image of the step before.")
    window: ClassVar[Window | None] = (0, 1)

    def __post_init__(self) -> None:
        if not -inf < self.strength < inf:
            raise ValueError(f"strength: {self.strength} is not a weight; give a finite number (0: no guidance)")

    def __call__(self, cur: State, prev: Step | None) -> Correction:
        if prev is None or self.strength == 0:
            return Correction(cur.d)
        return Correction(cur.d - self.strength * (cur.D - prev.denoised) / cur.sigma)


@dataclass(frozen=True)
class RandomShift(NamedCorrector):
    """The control of all corrections: the direction of a denoised image that is off by rho, d + rho u / t, u random.

    What `Overshoot` does towards the denoised image, this does anywhere. Cost: F.
    """

    rho: float = option(help="How far the denoised image is moved, anywhere, in units of the state.")
    random: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_radius(self.rho)

    def __call__(self, cur: State, prev: Step | None) -> Correction:
        return Correction(cur.d + float(self.rho) * unit(cur.denoise.draw(cur.x)) / cur.sigma)


@dataclass(frozen=True)
class Laplacian(NamedCorrector):
    """Score minus alpha t^2 times its Laplacian, by Hutchinson probes (arXiv 2511.07496).

    As d is -t times the score, d becomes d - alpha t^2 Laplacian(d). alpha is `strength`, in units of the noise's
    variance t^2, so that one value serves all noise levels; `probe_radius` h is the finite difference's length, in
    units of t: (d(x + h z) - 2 d(x) + d(x - h z)) / h^2 with random signs z. Cost: F, and 2 `probes` F.
    """

    strength: float = option(help="Weight of the Laplacian, in units of t^2.")
    probes: int = option(1, help="Random probes per step.", least=1, most=1000)
    probe_radius: float = option(0.1, help="Length of the finite differences, in units of the noise level.")
    random: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not -inf < self.strength < inf:
            raise ValueError(f"strength: {self.strength} is not a scale; give a finite number")
        if self.probes < 1:
            raise ValueError(f"probes: {self.probes} is too few; give a whole number >= 1")
        if not 0 < self.probe_radius < inf:
            raise ValueError(f"probe_radius: {self.probe_radius} is not a length; give a finite number > 0")

    def __call__(self, cur: State, prev: Step | None) -> Correction:
        d, h = cur.d, self.probe_radius * float(cur.sigma)
        estimates = [laplacian_of_d(cur, h=h) for _ in range(self.probes)]
        return Correction(d - self.strength * cur.sigma**2 * torch.stack(estimates).mean(dim=0))


def laplacian_of_d(cur: State, *, h: float) -> Tensor:
    """One Hutchinson probe of the Laplacian of d at a state, sum_i d^2 d / d x_i^2 [B, C, H, W]. Cost: 2F, and F for d.

    Its expectation over the random signs is the Laplacian, up to O(h^2).
    """
    z = cur.denoise.draw(cur.x).sign()
    estimate: Tensor = (cur.moved(h * z).d - 2 * cur.d + cur.moved(-h * z).d) / h**2
    return estimate


@dataclass(frozen=True)
class Iq(NamedCorrector):
    """x0-hat minus a step down the gradient of LID(x0-hat) (after IQ, arXiv 2605.05026).

    x0-hat = D(x; t) becomes x0-hat - lambda ||x0-hat - x|| grad / ||grad|| where LID(x0-hat) > threshold, grad that of
    `Lid(lid_sigma, draws)`; lambda is `strength`, .05 to .2 there. In terms of directions: d + lambda ||d|| grad /
    ||grad||. Differences from the paper: the gradient is taken at D and not through it (`IqThrough` does), and the mask
    is a value of LID instead of a quantile of a reference set, so that a sample does not depend on its batch.
    Cost: F, and draws (F + B).
    """

    strength: float = option(help="How far to move, as a part of the way to the denoised image.")
    threshold: float = option(help="Denoised images that score higher are moved; 0: all, inf: none, only recorded.")
    lid_sigma: float = option(1.2, help="The noise level at which LID looks.")
    draws: int = option(4, help="Noise draws of LID.", least=1, most=1000)
    random: ClassVar[bool] = True
    window: ClassVar[Window | None] = None  # narrow in the paper, and of one network
    scores: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 <= self.strength < inf:
            raise ValueError(f"strength: {self.strength} is not a length; give a finite number >= 0, such as .1")
        if isnan(self.threshold) or self.threshold < 0:
            raise ValueError(f"threshold: {self.threshold} is not a score; give a number >= 0 (inf: only record them)")
        if not 0 < self.lid_sigma < inf:
            raise ValueError(f"lid_sigma: {self.lid_sigma} is not a noise level; give one number > 0")
        if self.draws < 1:
            raise ValueError(f"draws: {self.draws} is too few; give a whole number >= 1")

    def __call__(self, cur: State, prev: Step | None) -> Correction:
        d = cur.d
        noise = torch.stack([cur.denoise.draw(cur.x) for _ in range(self.draws)])  # [k, B, C, H, W]
        score, gradient = self.score_and_gradient(cur, noise)
        flagged = score > self.limit(cur)
        moved = d + per_sample(self.strength * norms(d), d) * unit(gradient)
        return Correction(torch.where(per_sample(flagged, d), moved, d), score, flagged)

    def score_and_gradient(self, cur: State, noise: Tensor) -> tuple[Tensor, Tensor]:
        """LID of D(x; t) [B], and the direction in which it grows [B, C, H, W]."""
        return Lid(self.lid_sigma, self.draws).score_and_gradient(cur.denoise, cur.D, noise=noise)

    def limit(self, cur: State) -> float:
        """The score above which an image is moved."""
        return self.threshold


@dataclass(frozen=True)
class IqThrough(Iq):
    """IQ with the gradient of LID(D(x; t)) by x, taken through D, and a threshold for each noise level.

    As `Iq`, which takes the gradient at D: here it is J^T grad, J the Jacobian of D at x. Scores above threshold
    t^growth are moved, so that two noise levels can have a quantile of their own each (the paper's mask).
    Cost: F, and (draws + 1) (F + B).
    """

    draws: int = option(32, help="Noise draws of LID.", least=1, most=1000)
    growth: float = option(0, help="How the threshold grows with the noise level t: it is threshold t^growth.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not -inf < self.growth < inf:
            raise ValueError(f"growth: {self.growth} is not an exponent; give a finite number (0: one threshold)")

    def score_and_gradient(self, cur: State, noise: Tensor) -> tuple[Tensor, Tensor]:
        score, gradient = super().score_and_gradient(cur, noise)

        def along(denoise: BoundDenoiser, x: Tensor, part: slice) -> tuple[Tensor, Tensor]:
            value = (denoise(x, cur.sigma) * gradient[part]).flatten(1).sum(dim=1)  # its gradient by x: J^T gradient
            return value, value

        return score, cur.denoise.with_gradient(cur.x, along)[1]

    def limit(self, cur: State) -> float:
        return self.threshold * pow(float(cur.sigma), self.growth)
