"""Detectors: how much a state, a trajectory or an image is at risk [B]; higher = more, no threshold inside.

A detector is a frozen dataclass behind one protocol, `Detector`; `needs` says what it reads:

- "step": one state; `measure(cur)`. RODS asks it at each step, everybody else over the steps of a noise range.
- "trajectory": the finished steps of a run; `follow(...)` returns what sees them one by one.
- "image": the finished image, or D(x_t) in flight; `score(denoise, image, noise)`.

Whatever it needs, `follow` gives a `Follower` that a `for` loop over a sampler's steps feeds: restarts, filters, accept
and the benchmark use nothing else. rods/config.py registers detectors and writes them as text; gate.py has those that
read the network's own activations, variance.py and asced.py those of a trajectory, costly_detectors.py the costly ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor

from rods.denoiser import TINY, BoundDenoiser, bind, norms
from rods.state import State
from rods.trajectory import Solver
from rods.types import AnyDenoiser, Step, state_dtype

Needs = Literal["step", "trajectory", "image"]


class Follower(Protocol):
    """Sees some rows' finished steps, and scores their images [b, C, H, W] -> [b]."""

    def add(self, step: Step) -> None: ...

    def select(self, index: Tensor) -> Follower:
        """The same of the rows `index` [b'], which are those that go on."""
        ...

    def score(self, image: Tensor) -> Tensor: ...


class Detector:
    """What is measured of each image. A subclass is a frozen dataclass and says what it `needs`."""

    needs: ClassVar[Needs] = "image"
    least_steps: ClassVar[int] = 1  # in flight: so many it must have read, of a detector that reads steps

    @property
    def num_draws(self) -> int:
        """How many unit normal draws [C, H, W] an image's score takes."""
        return 0

    @property
    def max_sigma(self) -> float:
        """The largest noise level whose steps the score reads: 0 for the image alone, inf for the whole run."""
        return {"image": 0.0, "trajectory": inf, "step": inf}[self.needs]

    @property
    def min_sigma(self) -> float:
        """The smallest of them."""
        return 0.0

    def check(self, denoiser: AnyDenoiser, levels: Sequence[float]) -> None:
        """ValueError where it cannot score runs of this network whose steps begin at these noise levels."""

    def follow(self, denoise: BoundDenoiser, noise: Tensor, *, solver: Solver = "euler") -> Follower:
        """What sees a run's steps and then scores its images.

        `noise` [num_draws, b, C, H, W] holds the rows' own draws; `solver` is the base sampler's.
        """
        return _OfImage(self, denoise, noise)

    def score(self, denoise: BoundDenoiser, image: Tensor, *, noise: Tensor) -> Tensor:
        """The score [b] of images [b, C, H, W], of a detector that needs nothing else."""
        raise NotImplementedError(f"{type(self).__name__} needs a {self.needs}; feed what `follow` returns")


class _OfImage:
    """The follower of a detector that reads no step."""

    def __init__(self, detector: Detector, denoise: BoundDenoiser, noise: Tensor) -> None:
        self.detector, self.denoise, self.noise = detector, denoise, noise

    def add(self, step: Step) -> None:
        pass

    def select(self, index: Tensor) -> Follower:
        return _OfImage(self.detector, self.denoise.rows(index), self.noise[:, index])

    def score(self, image: Tensor) -> Tensor:
        return self.detector.score(self.denoise, image, noise=self.noise)


@dataclass(frozen=True, kw_only=True)
class StepDetector(Detector):
    """A detector of states. Of a trajectory its score is the largest value over the steps from `hi` to `lo`, or the
    mean. A subclass has `measure`, and `comparable` where its values at different noise levels do not compare.
    """

    lo: float = 0.5
    hi: float = 3
    mean: bool = False

    needs: ClassVar[Needs] = "step"
    reads_gradient: ClassVar[bool] = True  # whether `measure` reads `cur.g`, which a gate then evaluates first

    def __post_init__(self) -> None:
        if not 0 <= self.lo <= self.hi < inf:
            raise ValueError(f"lo, hi: {self.lo}, {self.hi} is not a range of noise levels; give 0 <= lo <= hi")

    @property
    def max_sigma(self) -> float:
        return self.hi

    @property
    def min_sigma(self) -> float:
        return self.lo

    @property
    def probed_radii(self) -> tuple[float, ...]:
        """The radii rho at whose points `cur.uphill(rho)` `measure` reads g."""
        return ()

    def measure(self, cur: State, *, noise: Tensor | None = None) -> Tensor:
        """The value [B] at a state; `noise` [num_draws, B, C, H, W], None: draw it."""
        raise NotImplementedError

    def comparable(self, value: Tensor, sigma: float) -> Tensor:
        """Values [B] at a noise level, scaled so that the steps of a trajectory compare."""
        return value

    def check(self, denoiser: AnyDenoiser, levels: Sequence[float]) -> None:
        if not any(self.lo <= t <= self.hi for t in levels):
            raise ValueError(f"lo, hi: no step lies at noise levels {self.lo:g} to {self.hi:g}; widen the range")

    def follow(self, denoise: BoundDenoiser, noise: Tensor, *, solver: Solver = "euler") -> Follower:
        return _OverSteps(self, denoise, noise)


class _OverSteps:
    def __init__(self, detector: StepDetector, denoise: BoundDenoiser, noise: Tensor) -> None:
        self.detector, self.denoise, self.noise = detector, denoise, noise
        self.values: list[Tensor] = []  # of [b]

    def add(self, step: Step) -> None:
        t, detector = float(step.sigma), self.detector
        if detector.lo <= t <= detector.hi:
            cur = State(self.denoise, step.x, step.sigma, step.i, step.num_steps)
            self.values.append(detector.comparable(detector.measure(cur, noise=self.noise), t))

    def select(self, index: Tensor) -> Follower:
        part = _OverSteps(self.detector, self.denoise.rows(index), self.noise[:, index])
        part.values = [value[index] for value in self.values]
        return part

    def score(self, image: Tensor) -> Tensor:
        if not self.values:
            self.detector.check(self.denoise, [])
        values = torch.stack(self.values)  # [n, b]
        return values.mean(dim=0) if self.detector.mean else values.amax(dim=0)


# -- of a state -------------------------------------------------------------------------------------------------------


def check_radius(rho: float) -> float:
    """`rho` as a float; ValueError unless it is a finite radius >= 0."""
    if not 0 <= rho < float("inf"):
        raise ValueError(f"rho: {rho} is not a radius; give a finite number >= 0")
    return float(rho)


def at_least(name: str, value: int, least: int) -> None:
    """ValueError unless the whole number is large enough."""
    if value < least:
        raise ValueError(f"{name}: {value} is too few; give a whole number >= {least}")


def noise_level(sigma: Tensor | float, like: Tensor, *, name: str = "sigma") -> Tensor:
    """`sigma` [] in the precision of the state; ValueError unless it is one finite number > 0."""
    level = torch.as_tensor(sigma, device=like.device, dtype=state_dtype(like.device))
    if level.ndim != 0 or not 0 < level < inf:
        raise ValueError(f"{name}: {sigma} is not a noise level; give one number > 0")
    return level


@dataclass(frozen=True)
class CurvatureIndex(StepDetector):
    """H(x) = ||g(x + rho u) - g(x)||, g = grad_x ||v||, u = g / ||g||, v = (x - D(x; t)) / t^2 (RODS paper, eq. 8).

    H is 0 where ||g|| < 1e-12, and never NaN. Over a trajectory, `scaled` takes its scale-free companion H t^3 / rho,
    without which the last step of the range decides, for H grows as t falls. Cost per step: 2F + 2B; as RODS's gate
    the step's own F is among them.
    """

    rho: float = 1
    scaled: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_radius(self.rho)

    def check(self, denoiser: AnyDenoiser, levels: Sequence[float]) -> None:
        super().check(denoiser, levels)
        if self.rho == 0:
            raise ValueError("rho: 0 leaves no neighbourhood to probe; give a radius > 0")

    @property
    def probed_radii(self) -> tuple[float, ...]:
        return (float(self.rho),)

    def measure(self, cur: State, *, noise: Tensor | None = None) -> Tensor:
        return curvature(cur, float(self.rho))

    def comparable(self, value: Tensor, sigma: float) -> Tensor:
        return value * sigma**3 / self.rho if self.scaled and self.rho else value


def curvature(cur: State, rho: float) -> Tensor:
    """H of a state [B]: F + B, and F + B once more unless these evaluations were made before."""
    sure = norms(cur.g) >= TINY
    H = norms(cur.uphill(rho).g - cur.g)
    # A network that returns NaN shows in the image; its H is 0, so that a gate leaves that row alone.
    return torch.where(sure, H, 0.0).nan_to_num(nan=0.0, posinf=float("inf"))


def curvature_index(denoise: AnyDenoiser, x: Tensor, sigma: Tensor | float, *, rho: float) -> Tensor:
    """The curvature index H [B] of states `x` [B, C, H, W] at the noise level `sigma` (a number > 0); 0 for rho = 0.

    `denoise` is D(x, sigma). Returns float64; nothing depends on the other samples of the batch. Cost: 2F + 2B.
    Raises ValueError for a negative rho or a sigma that is not > 0.
    """
    level = noise_level(sigma, x)
    x = x.detach().to(level.dtype)
    return curvature(State(bind(denoise, len(x)), x, level), check_radius(rho))


# -- of an image ------------------------------------------------------------------------------------------------------


MOST_DRAWS = 10_000


@dataclass(frozen=True)
class Lid(Detector):
    """The mean over `draws` draws e of ||(D(x0 + t e; t) - x0) / t||^2 at t = `sigma` (arXiv 2605.05026).

    How far the denoiser moves an image that is a little noisy, in units of the noise. Where the image lies on a
    manifold of the data it is about the manifold's dimension. The noise level matters more than the formula.
    Cost: `draws` F.
    """

    sigma: float = 1.2
    draws: int = 4

    needs: ClassVar[Needs] = "image"

    def __post_init__(self) -> None:
        if not 0 < self.sigma < inf:
            raise ValueError(f"sigma: {self.sigma} is not a noise level; give a finite number > 0")
        at_least("draws", self.draws, 1)
        if self.draws > MOST_DRAWS:
            raise ValueError(f"draws: {self.draws} are too many to hold; give {MOST_DRAWS} at most")

    @property
    def num_draws(self) -> int:
        return self.draws

    def score(self, denoise: BoundDenoiser, image: Tensor, *, noise: Tensor) -> Tensor:
        """LID [b] of images [b, C, H, W]: not a number where the image or the network is not."""
        level, image = self._checked(image, noise)
        with torch.no_grad():
            moved = [norms((denoise(image + level * e, level) - image) / level).square() for e in noise]  # k of [b]
        return torch.stack(moved).mean(dim=0)

    def score_and_gradient(self, denoise: BoundDenoiser, image: Tensor, *, noise: Tensor) -> tuple[Tensor, Tensor]:
        """LID [b] and its gradient with respect to the image [b, C, H, W]. Cost: `draws` (F + B)."""
        level, image = self._checked(image, noise)
        score, gradient = image.new_zeros(len(image)), torch.zeros_like(image)

        def residual(e: Tensor, denoise: BoundDenoiser, x: Tensor, part: slice) -> tuple[Tensor, Tensor]:
            moved = norms((denoise(x + level * e[part], level) - x) / level).square()  # [b]
            return moved, moved

        for e in noise:  # one graph at a time
            moved, slope = denoise.with_gradient(image, partial(residual, e))
            score, gradient = score + moved / len(noise), gradient + slope / len(noise)
        return score, gradient

    def _checked(self, image: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        level = noise_level(self.sigma, image)
        if noise.ndim != image.ndim + 1 or noise.shape[1:] != image.shape or len(noise) == 0:
            raise ValueError(f"noise: shape {list(noise.shape)}: must be [draws >= 1, *{list(image.shape)}]")
        return level, image.detach().to(level.dtype)
