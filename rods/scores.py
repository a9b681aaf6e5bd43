"""Scores of finished images and of whole trajectories: higher = more at risk, no threshold inside."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import torch
from torch import Tensor

from rods.correctors import Window, check_window, in_window
from rods.detectors import noise_level
from rods.evaluation import BoundDenoiser, bind, norms
from rods.types import AnyDenoiser, Step


def lid(denoise: AnyDenoiser, x0: Tensor, sigma: Tensor | float, *, noise: Tensor) -> Tensor:
    """Score of finished images: the mean over k draws e of ||(D(x0 + t e; t) - x0) / t||^2.

    The score of IQ (arXiv 2605.05026; spec method.md, sections 2 and 4): how far the denoiser moves an image that is
    a little noisy, in units of the noise. Where the image lies on a manifold of the data it is about the manifold's
    dimension. The noise level matters more than the formula: calibrate t.
    `x0` [B, C, H, W] is the image, `sigma` t, `noise` [k, B, C, H, W] unit normal; give the same draws to images that
    are compared. Returns [B], not a number where the image or the network is not.
    Cost: k F. Raises ValueError for a sigma that is not > 0 and for noise of another shape.
    """
    level = check_draws(sigma, x0, noise)
    denoise, x0 = bind(denoise, len(x0)), x0.detach().to(level.dtype)
    with torch.no_grad():
        moved = [norms((denoise(x0 + level * e, level) - x0) / level).square() for e in noise]  # k of [B]
    return torch.stack(moved).mean(dim=0)


def lid_gradient(denoise: AnyDenoiser, x0: Tensor, sigma: Tensor | float, *, noise: Tensor) -> tuple[Tensor, Tensor]:
    """`lid` [B] and its gradient with respect to the image [B, C, H, W]; arguments as there. Cost: k (F + B)."""
    level = check_draws(sigma, x0, noise)
    denoise, x0 = bind(denoise, len(x0)), x0.detach().to(level.dtype)
    score, gradient = x0.new_zeros(len(x0)), torch.zeros_like(x0)

    def residual(e: Tensor, denoise: BoundDenoiser, x: Tensor, part: slice) -> tuple[Tensor, Tensor]:
        moved = norms((denoise(x + level * e[part], level) - x) / level).square()  # [b]
        return moved, moved

    for e in noise:  # one graph at a time
        moved, slope = denoise.with_gradient(x0, partial(residual, e))
        score, gradient = score + moved / len(noise), gradient + slope / len(noise)
    return score, gradient


def check_draws(sigma: Tensor | float, x0: Tensor, noise: Tensor) -> Tensor:
    """`sigma` as a noise level []; ValueError unless it is one and `noise` holds draws for every image."""
    level = noise_level(sigma, x0)
    if noise.ndim != x0.ndim + 1 or noise.shape[1:] != x0.shape or len(noise) == 0:
        raise ValueError(f"noise: shape {list(noise.shape)} will not do; give [draws >= 1, *{list(x0.shape)}]")
    return level


class TrajectoryVariance:
    """Trajectory variance: the variance over the steps of a window of D(x_t), mean over pixels (arXiv 2406.09358).

    It sees finished steps, one by one through `add`, and keeps two images; `score` [B] is what they amount to, 0 after
    fewer than two steps in the window. The variance is that of these steps (divided by their number). Cost: nothing.
    """

    def __init__(self, window: Window = (0.5, 1)) -> None:
        check_window(window)
        self.window = window
        self.count = 0
        self._mean: Tensor | float = 0.0  # [B, C, H, W]
        self._squares: Tensor | float = 0.0  # sum of squared distances from the mean (Welford)

    def add(self, step: Step) -> None:
        """Take a finished step into account, if it is one of the window."""
        if not in_window(self.window, i=step.i, num_steps=step.num_steps, sigma=float(step.sigma)):
            return
        self.count += 1
        off = step.denoised - self._mean
        self._mean = self._mean + off / self.count
        self._squares = self._squares + off * (step.denoised - self._mean)

    def score(self) -> Tensor:
        """The trajectory variance of the steps so far [B]. ValueError where none was in the window."""
        if not isinstance(self._squares, Tensor):
            raise ValueError(f"window: no step lies in {self.window}; widen it")
        return (self._squares / self.count).flatten(1).mean(dim=1)


def tvf(steps: Iterable[Step], *, window: Window = (0.5, 1)) -> Tensor:
    """Trajectory variance of a whole trajectory [B]: see `TrajectoryVariance`. Cost: nothing."""
    spread = TrajectoryVariance(window)
    for step in steps:
        spread.add(step)
    return spread.score()
