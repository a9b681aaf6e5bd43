"""Noise grids, windows of steps, and the schedules sigma(t) and scalings s(t) of the ODE (EDM paper, table 1).

Grids are float64 tensors on the CPU, [N], decreasing, without the final 0; they are evaluated there so that every
device starts from the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf, log, pi
from typing import Literal

import torch
from torch import Tensor

Discretization = Literal["vp", "ve", "iddpm", "edm"]
ScheduleName = Literal["vp", "ve", "linear"]
Scaling = Literal["vp", "none"]


def _ramp(num_steps: int) -> Tensor:
    """i / (N - 1), i < N; [0] for N = 1."""
    return torch.arange(num_steps, dtype=torch.float64) / max(num_steps - 1, 1)


# -- grids ------------------------------------------------------------------------------------------------------------


def edm_grid(num_steps: int, *, sigma_min: float, sigma_max: float, time_rho: float = 7) -> Tensor:
    """t_i = (smax^(1/r) + i/(N-1) (smin^(1/r) - smax^(1/r)))^r  [N]. ValueError unless 0 < r < inf."""
    if not 0 < time_rho < inf:
        raise ValueError(f"time_rho: {time_rho} is not an exponent; give a finite number > 0")
    lo, hi = sigma_min ** (1 / time_rho), sigma_max ** (1 / time_rho)
    levels: Tensor = (hi + _ramp(num_steps) * (lo - hi)) ** time_rho
    return levels


def vp_grid(num_steps: int, *, vp: VPSigma, epsilon_s: float) -> Tensor:
    """sigma(t) at times uniform from 1 to epsilon_s  [N]."""
    return vp.sigma(1 + _ramp(num_steps) * (epsilon_s - 1))


def ve_grid(num_steps: int, *, sigma_min: float, sigma_max: float) -> Tensor:
    """sigma^2 geometric from smax^2 to smin^2  [N]."""
    return (sigma_max**2 * (sigma_min**2 / sigma_max**2) ** _ramp(num_steps)).sqrt()


def iddpm_grid(num_steps: int, *, sigma_min: float, sigma_max: float, C_1: float, C_2: float, M: int) -> Tensor:
    """Levels of iDDPM's table u_j inside the range, evenly spaced in j  [N]."""
    levels = iddpm_levels(C_1=C_1, C_2=C_2, M=M)
    levels = levels[(levels >= sigma_min) & (levels <= sigma_max)]
    if len(levels) == 0:
        raise ValueError(f"sigma_min, sigma_max: no iddpm level in [{sigma_min}, {sigma_max}]; widen the range")
    return levels[((len(levels) - 1) * _ramp(num_steps)).round().long()]


def iddpm_levels(*, C_1: float, C_2: float, M: int) -> Tensor:
    """u_M = 0, u_{j-1} = sqrt((u_j^2 + 1) / max(abar_{j-1}/abar_j, C_1) - 1): [M + 1], decreasing."""
    j = torch.arange(M + 1)
    abar = (0.5 * pi * j / M / (C_2 + 1)).sin() ** 2  # float32, as the table was made
    ratio = (abar[:-1] / abar[1:]).clamp(min=C_1).double().tolist()  # [M] abar_{j-1} / abar_j
    u = [0.0]
    for step in reversed(ratio):
        u.append(((u[-1] ** 2 + 1) / step - 1) ** 0.5)
    return torch.tensor(u[::-1], dtype=torch.float64)


# -- the ODE ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class VPSigma:
    """sigma(t) = sqrt(exp(beta_d t^2 / 2 + beta_min t) - 1)."""

    beta_d: float = 19.9
    beta_min: float = 0.1

    @staticmethod
    def through(*, sigma_min: float, sigma_max: float, epsilon_s: float) -> VPSigma:
        """The one with sigma(epsilon_s) = sigma_min and sigma(1) = sigma_max."""
        hi = log(sigma_max**2 + 1)
        beta_d = 2 * (log(sigma_min**2 + 1) / epsilon_s - hi) / (epsilon_s - 1)
        return VPSigma(beta_d, hi - beta_d / 2)

    def sigma(self, t: Tensor) -> Tensor:
        return (self.beta_d * t**2 / 2 + self.beta_min * t).expm1().sqrt()

    def sigma_dot(self, t: Tensor) -> Tensor:
        sigma = self.sigma(t)
        return (self.beta_d * t + self.beta_min) * (sigma + 1 / sigma) / 2

    def time(self, sigma: Tensor) -> Tensor:
        return ((self.beta_min**2 + 2 * self.beta_d * (sigma**2).log1p()).sqrt() - self.beta_min) / self.beta_d


@dataclass(frozen=True)
class Schedule:
    """sigma(t), its derivative and its inverse, and whether the state is scaled by s(t) = 1/sqrt(1 + sigma^2)."""

    sigma: Callable[[Tensor], Tensor]
    sigma_dot: Callable[[Tensor], Tensor]
    time: Callable[[Tensor], Tensor]
    scaled: bool = False

    def s(self, t: Tensor) -> Tensor:
        return (1 + self.sigma(t) ** 2).rsqrt() if self.scaled else torch.ones_like(t)

    def rate(self, t: Tensor, x: Tensor, d: Tensor) -> Tensor:
        """dx/dt = s sigma' d + (s'/s) x, d = (x/s - D(x/s; sigma)) / sigma: EDM's direction in these coordinates.

        The same as (sigma'/sigma + s'/s) x - (sigma' s / sigma) D(x/s; sigma); for EDM's own schedule it is d.
        """
        if not self.scaled:
            return self.sigma_dot(t) * d
        sigma, sigma_dot, s = self.sigma(t), self.sigma_dot(t), self.s(t)
        return s * sigma_dot * d - sigma * sigma_dot * s**2 * x  # s' = -sigma sigma' s^3


def _itself(t: Tensor) -> Tensor:
    return t


LINEAR = Schedule(sigma=_itself, sigma_dot=torch.ones_like, time=_itself)
"""EDM's: sigma(t) = t, s(t) = 1."""


def schedule_of(schedule: ScheduleName, scaling: Scaling, vp: VPSigma) -> Schedule:
    """The schedule and scaling of these names; `vp` gives the betas. ValueError for an unknown name."""
    if schedule not in ("vp", "ve", "linear"):
        raise ValueError(f"schedule: unknown schedule {schedule!r}; give vp, ve or linear")
    if scaling not in ("vp", "none"):
        raise ValueError(f"scaling: unknown scaling {scaling!r}; give vp or none")
    scaled = scaling == "vp"
    if schedule == "vp":
        return Schedule(vp.sigma, vp.sigma_dot, vp.time, scaled)
    if schedule == "ve":
        return Schedule(torch.sqrt, lambda t: 0.5 / t.sqrt(), torch.square, scaled)
    return Schedule(_itself, torch.ones_like, _itself, scaled)


def default_range(discretization: Discretization, *, epsilon_s: float) -> tuple[float, float]:
    """(sigma_min, sigma_max) that go with a noise grid. ValueError for an unknown name."""
    if not 0 < epsilon_s < 1:
        raise ValueError(f"epsilon_s: {epsilon_s} is not a time; give 0 < epsilon_s < 1")
    lo, hi = VPSigma().sigma(torch.tensor([epsilon_s, 1.0], dtype=torch.float64)).tolist()
    ranges = {"vp": (lo, hi), "ve": (0.02, 100.0), "iddpm": (0.002, 81.0), "edm": (0.002, 80.0)}
    if discretization not in ranges:
        raise ValueError(f"discretization: unknown noise grid {discretization!r}; give vp, ve, iddpm or edm")
    return ranges[discretization]


# -- what a denoiser allows -------------------------------------------------------------------------------------------


def check_steps(num_steps: int) -> None:
    """ValueError unless at least one step is asked for."""
    if num_steps < 1:
        raise ValueError(f"num_steps: {num_steps} is too few; give a whole number >= 1")


def clip_range(
    sigma_min: float, sigma_max: float, *, allowed: tuple[float, float], num_steps: int
) -> tuple[float, float]:
    """(sigma_min, sigma_max) clipped to the levels that the network allows. ValueError unless a range is left."""
    check_steps(num_steps)
    lo, hi = max(float(sigma_min), allowed[0]), min(float(sigma_max), allowed[1])
    if not (lo > 0 and hi < inf and (lo < hi or (lo == hi and num_steps == 1))):
        clipped = "" if (lo, hi) == (sigma_min, sigma_max) else f" (clipped to the network's range: {lo}, {hi})"
        raise ValueError(
            f"sigma_min, sigma_max: {sigma_min}, {sigma_max}{clipped} is not a range; give 0 < sigma_min < sigma_max"
        )
    return lo, hi


# -- windows ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SigmaWindow:
    """The steps with lo <= sigma <= hi: the form of a window that transfers between data sets and step counts."""

    lo: float
    hi: float

    def __post_init__(self) -> None:
        if not 0 <= self.lo <= self.hi:
            raise ValueError(f"window: sigma:{self.lo},{self.hi} is not a range; give 0 <= lo <= hi in noise levels")


Window = tuple[float, float] | SigmaWindow
"""(lo, hi): steps lo*N <= i < hi*N; or a range of noise levels."""


def check_window(window: Window) -> None:
    """ValueError unless `window` is 0 <= lo <= hi <= 1 or a `SigmaWindow`."""
    if isinstance(window, SigmaWindow):
        return
    if len(window) != 2 or not 0 <= window[0] <= window[1] <= 1:
        raise ValueError(f"window: {window} is not a range of steps; give fractions 0 <= lo <= hi <= 1")


def in_window(window: Window, *, i: int, num_steps: int, sigma: float) -> bool:
    """Whether step `i` of `num_steps`, at the noise level `sigma`, lies in the window."""
    if isinstance(window, SigmaWindow):
        return window.lo <= sigma <= window.hi
    # .28 * 25 is a little above 7: the slack keeps a fraction's own step on the right side.
    lo, hi = (fraction * num_steps - 1e-9 for fraction in window)
    return lo <= i < hi
