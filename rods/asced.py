"""Pixels whose denoised value jumps: a score of a trajectory, and a sampler that draws their noise anew.

After ASCED (arXiv 2503.16218), which we know by a summary. Both read how much each pixel of D(x_t) has changed since
the step before, and call a pixel an outlier by the median and the median absolute deviation (MAD) of its own image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import ClassVar, Literal

import torch
from torch import Tensor

from rods.base_samplers import Sampler
from rods.denoiser import TINY, BoundDenoiser, per_sample
from rods.detectors import Detector, Follower, Needs, at_least
from rods.schedules import Window, check_window, in_window
from rods.trajectory import Solver, trajectory
from rods.types import AnyDenoiser, Step, Steps, option

NORMAL_MAD = 1.4826
"""A normal distribution's standard deviation as a multiple of its median absolute deviation."""


def outlyingness(D: Tensor, D_before: Tensor, *, blur: int) -> Tensor:
    """How far above its image's median each pixel's change is, in robust standard deviations: [B, 1, H, W].

    The change is |D - D_before|, mean over channels, and over `blur` x `blur` pixels. 0 where the MAD is 0.
    """
    change = (D - D_before).abs().mean(dim=1, keepdim=True)
    change = torch.nn.functional.avg_pool2d(change, blur, stride=1, padding=blur // 2, count_include_pad=False)
    above = change - per_sample(change.flatten(1).median(dim=1).values, change)
    spread = NORMAL_MAD * above.abs().flatten(1).median(dim=1).values  # [B]
    return torch.where(per_sample(spread >= TINY, above), above / per_sample(spread.clamp(min=TINY), above), 0.0)


def check_blur(blur: int) -> None:
    """ValueError unless `blur` is an odd number of pixels."""
    at_least("blur", blur, 1)
    if blur % 2 == 0:
        raise ValueError(f"blur: {blur} has no middle; give an odd number of pixels (1: no blur)")


@dataclass(frozen=True)
class Jump(Detector):
    """The largest `outlyingness` of a pixel over the steps from `hi` to `lo`. Cost: nothing."""

    lo: float = 0.5
    hi: float = 3
    blur: int = 3

    needs: ClassVar[Needs] = "trajectory"

    def __post_init__(self) -> None:
        check_blur(self.blur)
        if not 0 <= self.lo <= self.hi < inf:
            raise ValueError(f"lo, hi: {self.lo}, {self.hi} is not a range of noise levels; give 0 <= lo <= hi")

    @property
    def max_sigma(self) -> float:
        return self.hi

    def check(self, denoiser: AnyDenoiser, levels: Sequence[float]) -> None:
        if not any(self.lo <= t <= self.hi for t in levels[1:]):
            raise ValueError(
                f"lo, hi: no step but the first lies at noise levels {self.lo:g} to {self.hi:g}; widen the range"
            )

    def follow(self, denoise: BoundDenoiser, noise: Tensor, *, solver: Solver = "euler") -> Follower:
        return _Jumps(self)


class _Jumps:
    def __init__(self, detector: Jump) -> None:
        self.detector = detector
        self.before: Tensor | None = None  # D at the step before [B, C, H, W]
        self.values: list[Tensor] = []  # of [B]

    def add(self, step: Step) -> None:
        if self.before is not None and self.detector.lo <= float(step.sigma) <= self.detector.hi:
            z = outlyingness(step.denoised, self.before, blur=self.detector.blur)
            self.values.append(z.flatten(1).amax(dim=1))
        self.before = step.denoised

    def select(self, index: Tensor) -> Follower:
        part = _Jumps(self.detector)
        part.before = None if self.before is None else self.before[index]
        part.values = [value[index] for value in self.values]
        return part

    def score(self, image: Tensor) -> Tensor:
        if not self.values:
            lo, hi = self.detector.lo, self.detector.hi
            raise ValueError(f"lo, hi: no step but the first lies at noise levels {lo:g} to {hi:g}; widen the range")
        return torch.stack(self.values).amax(dim=0)


@dataclass(frozen=True, kw_only=True)
class Asced(Sampler):
    """Euler steps; where a pixel of D jumps, its noise is drawn anew: x' = D + t' e there, at the next noise level t'.

    At the steps of the window, pixels whose `outlyingness` is above `deviations` are those that go on from the denoised
    image with fresh noise; all others take the Euler step. Cost: N F.
    """

    deviations: float = option(3, help="Robust standard deviations above its image's median at which a pixel jumps.")
    blur: int = option(3, help="Side of the square that a pixel's change is averaged over.", least=1, most=999)
    window: Window = option((0.4, 0.6), help="Where to act: fractions of the steps, or sigma:lo,hi in noise levels.")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_blur(self.blur)
        check_window(self.window)
        if not self.deviations >= 0:
            raise ValueError(f"deviations: {self.deviations} is no limit; give a number >= 0 (inf: none is above)")

    @property
    def stream(self) -> Literal["first", "second"]:
        return "second"

    def along(self, denoise: BoundDenoiser, x: Tensor, sigmas: Tensor) -> Steps:
        num_steps, before = len(sigmas) - 1, None
        for i in range(num_steps):
            (step,) = trajectory(denoise, x, sigmas[i : i + 2])
            step = replace(step, i=i, num_steps=num_steps)
            if before is not None and in_window(self.window, i=i, num_steps=num_steps, sigma=float(step.sigma)):
                step = self._renoised(step, before, denoise.draw(step.x))
            going_on = yield step
            x, before = step.x_next, step.denoised
            if going_on is not None:
                denoise, x, before = denoise.rows(going_on), x[going_on], before[going_on]

    def _renoised(self, step: Step, before: Tensor, e: Tensor) -> Step:
        """The step with the pixels that jump denoised and noised again by `e` [B, C, H, W]."""
        jumps = outlyingness(step.denoised, before, blur=self.blur) > self.deviations  # [B, 1, H, W]
        x_next = torch.where(jumps, step.denoised + step.sigma_next * e, step.x_next)
        flagged = jumps.flatten(1).any(dim=1)
        d_used = torch.where(per_sample(flagged, e), (x_next - step.x) / (step.sigma_next - step.sigma), step.d)
        return replace(step, x_next=x_next, d_used=d_used, flagged=flagged)
