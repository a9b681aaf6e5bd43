"""A detector of a trajectory: how much D(x_t) still varies over the last steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import ClassVar

from torch import Tensor

from rods.denoiser import BoundDenoiser
from rods.detectors import Detector, Follower, Needs
from rods.trajectory import Solver
from rods.types import AnyDenoiser, Step


@dataclass(frozen=True)
class Tvf(Detector):
    """The variance over the steps at noise levels up to `sigma` of D(x_t), mean over pixels (arXiv 2406.09358).

    Cost: nothing.
    """

    sigma: float = 2

    needs: ClassVar[Needs] = "trajectory"
    least_steps: ClassVar[int] = 2  # one has no variance

    def __post_init__(self) -> None:
        if not 0 < self.sigma < inf:
            raise ValueError(f"sigma: {self.sigma} is not a noise level; give a finite number > 0")

    @property
    def max_sigma(self) -> float:
        return self.sigma

    def check(self, denoiser: AnyDenoiser, levels: Sequence[float]) -> None:
        if not any(t <= self.sigma for t in levels):
            raise ValueError(f"sigma: no step lies at noise levels up to {self.sigma:g}; widen the range")

    def follow(self, denoise: BoundDenoiser, noise: Tensor, *, solver: Solver = "euler") -> Follower:
        return _Variance(self)


class _Variance:
    """Welford's running variance, divided by the number of steps: it keeps two images."""

    def __init__(self, detector: Tvf) -> None:
        self.detector, self.count = detector, 0
        self._mean: Tensor | float = 0.0  # [B, C, H, W]
        self._squares: Tensor | float = 0.0  # sum of squared distances from the mean

    def add(self, step: Step) -> None:
        if float(step.sigma) > self.detector.sigma:
            return
        self.count += 1
        off = step.denoised - self._mean
        self._mean = self._mean + off / self.count
        self._squares = self._squares + off * (step.denoised - self._mean)

    def select(self, index: Tensor) -> Follower:
        part = _Variance(self.detector)
        if isinstance(self._mean, Tensor) and isinstance(self._squares, Tensor):
            part.count, part._mean, part._squares = self.count, self._mean[index], self._squares[index]
        return part

    def score(self, image: Tensor) -> Tensor:
        if not isinstance(self._squares, Tensor):
            raise ValueError(f"sigma: no step lies at noise levels up to {self.detector.sigma:g}; widen the range")
        return (self._squares / self.count).flatten(1).mean(dim=1)
