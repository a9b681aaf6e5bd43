"""Scores of images behind one seam: what is measured, from a run's steps or from its image.

A score is a frozen value (`Lid(sigma=1.2)`); restart, filter and accept take any of them, combined_scores.py makes one
of several, and score_text.py writes and reads them. `watch` gives something that sees the finished steps of some rows
of a batch, one by one through `add`, and then says through `score` how much their images are at risk [b]: higher =
more, no threshold inside.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import Protocol

import torch
from torch import Tensor

from rods.correctors import SigmaWindow
from rods.detectors import check_radius, curvature_index, largest_eigenvalue, noise_level
from rods.evaluation import BoundDenoiser, Point, norms
from rods.scores import TrajectoryVariance, lid
from rods.trajectory import Solver, last, trajectory
from rods.types import Step


class Watch(Protocol):
    """Sees some rows' steps, and scores their images [b, C, H, W]: [b]."""

    def add(self, step: Step) -> None: ...

    def score(self, image: Tensor) -> Tensor: ...


class Score(Protocol):
    """What is measured. `noise` [k, b, C, H, W], k = `draws`, are the rows' own unit normal draws.

    `limit` is the value that the score will be compared with, inf where it is only recorded.
    """

    @property
    def draws(self) -> int: ...

    @property
    def sees(self) -> float:
        """The highest noise level whose steps matter; 0 where only the image does, inf where all do."""
        ...

    def watch(self, denoise: BoundDenoiser, noise: Tensor, *, limit: float, solver: Solver) -> Watch: ...


class OfImage:
    """The watch of a score that no step matters to."""

    def __init__(self, score: Callable[[Tensor], Tensor]) -> None:
        self.score = score

    def add(self, step: Step) -> None:
        pass


def check_range(lo: float, hi: float) -> None:
    """ValueError unless these are noise levels in this order."""
    if not 0 <= lo <= hi < inf:
        raise ValueError(f"lo, hi: {lo}, {hi} is no range of noise levels; give 0 <= lo <= hi")


def at_least(name: str, value: int, least: int) -> None:
    """ValueError unless the whole number is large enough."""
    if value < least:
        raise ValueError(f"{name}: {value} is too few; give a whole number >= {least}")


# -- one score each ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Lid:
    """`lid` of the image (arXiv 2605.05026) at the noise level `sigma`. Cost: `draws` F.

    With `first` > 0, that many draws decide where they leave no doubt: only images whose score from these lies within
    the part `near` of the limit get the other draws. Whether they do depends on their own draws alone; a score that is
    only recorded gets all draws.
    """

    sigma: float = 1.2
    draws: int = 4
    first: int = 0
    near: float = 0.2

    def __post_init__(self) -> None:
        if not 0 < self.sigma < inf:
            raise ValueError(f"sigma: {self.sigma} is not a noise level; give a finite number > 0")
        at_least("draws", self.draws, 1)
        if not 0 <= self.first < self.draws:
            raise ValueError(f"first: {self.first} of {self.draws} draws; give fewer than all (0: all at once)")
        if not 0 <= self.near < inf:
            raise ValueError(f"near: {self.near} is not a part of the limit; give a finite number >= 0, such as .2")

    @property
    def sees(self) -> float:
        return 0

    def watch(self, denoise: BoundDenoiser, noise: Tensor, *, limit: float, solver: Solver) -> Watch:
        def score(image: Tensor) -> Tensor:
            sigma = noise_level(self.sigma, image)
            if not self.first or limit == inf:
                return lid(denoise, image, sigma, noise=noise)
            risk = lid(denoise, image, sigma, noise=noise[: self.first])  # [b]
            index = ((risk - limit).abs() <= self.near * limit).nonzero().flatten()
            if len(index) == 0:
                return risk
            rest = lid(denoise.rows(index), image[index], sigma, noise=noise[self.first :, index])
            share = self.first / self.draws
            return risk.index_copy(0, index, share * risk[index] + (1 - share) * rest)

        return OfImage(score)


@dataclass(frozen=True)
class Tvf:
    """Trajectory variance (arXiv 2406.09358) over the steps at noise levels up to `sigma`. Cost: nothing."""

    sigma: float = 2

    def __post_init__(self) -> None:
        if not 0 < self.sigma < inf:
            raise ValueError(f"sigma: {self.sigma} is not a noise level; give a finite number > 0")

    @property
    def draws(self) -> int:
        return 0

    @property
    def sees(self) -> float:
        return self.sigma

    def watch(self, denoise: BoundDenoiser, noise: Tensor, *, limit: float, solver: Solver) -> Watch:
        return _Spread(self.sigma)


class _Spread:
    def __init__(self, sigma: float) -> None:
        self.sigma, self.spread = sigma, TrajectoryVariance(SigmaWindow(0, sigma))
        self.add = self.spread.add

    def score(self, image: Tensor) -> Tensor:
        if self.spread.count == 0:
            raise ValueError(f"the score's range: no step lies at noise levels up to {self.sigma:g}; widen it")
        return self.spread.score()


class _OverSteps:
    """The largest value over the steps of a range of noise levels, or their mean."""

    def __init__(self, of: HIndex | LambdaMax, measure: Callable[[Step], Tensor]) -> None:
        self.lo, self.hi, self.mean, self.measure = of.lo, of.hi, of.mean, measure
        self.values: list[Tensor] = []  # of [b]

    def add(self, step: Step) -> None:
        if self.lo <= float(step.sigma) <= self.hi:
            self.values.append(self.measure(step))

    def score(self, image: Tensor) -> Tensor:
        if not self.values:
            raise ValueError(f"the score's range: no step lies at noise levels {self.lo:g} to {self.hi:g}; widen it")
        values = torch.stack(self.values)  # [n, b]
        return values.mean(dim=0) if self.mean else values.amax(dim=0)


@dataclass(frozen=True)
class HIndex:
    """The curvature index H (RODS paper, eq. 8) with the radius `rho`, largest or mean over the steps from hi to lo.

    `scaled`: its scale-free companion H t^3 / rho (spec method.md, section 1), without which the last step of the range
    decides, for H grows as t falls. Cost: 2F + 2B per step of the range.
    """

    rho: float = 1
    lo: float = 0.5
    hi: float = 3
    scaled: bool = True
    mean: bool = False

    def __post_init__(self) -> None:
        check_range(self.lo, self.hi)
        if check_radius(self.rho) == 0:
            raise ValueError("rho: 0 leaves no neighbourhood to probe; give a radius > 0")

    @property
    def draws(self) -> int:
        return 0

    @property
    def sees(self) -> float:
        return self.hi

    def watch(self, denoise: BoundDenoiser, noise: Tensor, *, limit: float, solver: Solver) -> Watch:
        def measure(step: Step) -> Tensor:
            H = curvature_index(denoise, step.x, step.sigma, rho=self.rho)
            return H * float(step.sigma) ** 3 / self.rho if self.scaled else H

        return _OverSteps(self, measure)


@dataclass(frozen=True)
class LambdaMax:
    """t^3 times the largest |eigenvalue| of Hess(n) by Lanczos steps (`lambda_max`), over the steps from hi to lo.

    t^3 makes it free of scale, as H t^3 / rho is, of which it is the upper bound as rho -> 0. All steps of a sample
    begin with the same random direction. Cost: (iterations + 1)(F + B) per step of the range.
    """

    iterations: int = 4
    lo: float = 0.5
    hi: float = 3
    mean: bool = False

    def __post_init__(self) -> None:
        check_range(self.lo, self.hi)
        at_least("iterations", self.iterations, 1)

    @property
    def draws(self) -> int:
        return 1

    @property
    def sees(self) -> float:
        return self.hi

    def watch(self, denoise: BoundDenoiser, noise: Tensor, *, limit: float, solver: Solver) -> Watch:
        def measure(step: Step) -> Tensor:
            t, cur = float(step.sigma), Point(denoise, step.x, step.sigma)
            return t**3 * largest_eigenvalue(cur, noise[0], iterations=self.iterations, h=0.01 * t)

        return _OverSteps(self, measure)


@dataclass(frozen=True)
class Lmi:
    """The trace of the covariance of the sampler's output under small latent noise (spec method.md, section 2).

    The run's first state gets `runs` times noise of `eps` its noise level; the plain solver takes each to the end over
    the same noise levels. The unbiased covariance of these images, over eps^2: as eps -> 0, the squared Frobenius norm
    of the output's Jacobian by the latents, estimated. Of a restarted part, the state it begins with is the first.
    Cost: `runs` times the plain steps.
    """

    eps: float = 0.01
    runs: int = 4

    def __post_init__(self) -> None:
        at_least("runs", self.runs, 2)
        if not 0 < self.eps < inf:
            raise ValueError(f"eps: {self.eps} is not a length; give a finite number > 0, such as .01")

    @property
    def draws(self) -> int:
        return self.runs

    @property
    def sees(self) -> float:
        return inf

    def watch(self, denoise: BoundDenoiser, noise: Tensor, *, limit: float, solver: Solver) -> Watch:
        return _Perturbed(self.eps, denoise, noise, solver)


class _Perturbed:
    def __init__(self, eps: float, denoise: BoundDenoiser, noise: Tensor, solver: Solver) -> None:
        self.eps, self.noise, self.solver = eps, noise, solver
        self.denoise = denoise.watched(None)  # its own runs are no steps of the sampler
        self.first: Tensor | None = None
        self.levels: list[Tensor] = []

    def add(self, step: Step) -> None:
        if self.first is None:
            self.first, self.levels = step.x, [step.sigma]
        self.levels.append(step.sigma_next)

    def score(self, image: Tensor) -> Tensor:
        assert self.first is not None, "a run has steps"
        sigmas = torch.stack(self.levels)
        starts = (self.first + self.eps * sigmas[0] * e for e in self.noise)
        ends = torch.stack([last(trajectory(self.denoise, x, sigmas, solver=self.solver)) for x in starts])  # [k, ...]
        return norms((ends - ends.mean(dim=0)).transpose(0, 1)).square() / (len(ends) - 1) / self.eps**2
