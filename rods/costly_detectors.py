"""Detectors that cost several runs or gradients an image: the largest eigenvalue of Hess(n), and perturbed runs."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import ClassVar

import torch
from torch import Tensor

from rods.denoiser import BoundDenoiser, norms, per_sample, unit
from rods.detectors import Detector, Follower, Needs, StepDetector, at_least
from rods.state import State
from rods.trajectory import Solver, last, trajectory
from rods.types import Step


@dataclass(frozen=True)
class LambdaMax(StepDetector):
    """The largest |eigenvalue| of Hess(n), n = ||v||, which bounds H / rho as rho -> 0 (RODS paper, appendix A.2).

    By `iterations` Lanczos steps from a random direction, with finite differences of length `h` t. Over a trajectory it
    is multiplied by t^3, which makes it free of scale, and all steps of a sample begin with the same direction.
    Cost per step: (iterations + 1)(F + B); as RODS's gate the step's own F is among them.
    """

    iterations: int = 4
    h: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("iterations", self.iterations, 1)
        if not 0 < self.h < inf:
            raise ValueError(f"h: {self.h} is not a length; give a finite number > 0")

    @property
    def num_draws(self) -> int:
        return 1

    def measure(self, cur: State, *, noise: Tensor | None = None) -> Tensor:
        start = cur.denoise.draw(cur.x) if noise is None else noise[0]
        return largest_eigenvalue(cur, start, iterations=self.iterations, h=self.h * float(cur.sigma))

    def comparable(self, value: Tensor, sigma: float) -> Tensor:
        return sigma**3 * value


def largest_eigenvalue(cur: State, start: Tensor, *, iterations: int, h: float) -> Tensor:
    """The largest |eigenvalue| [B] of Hess(n) by Lanczos steps from `start` [B, C, H, W]: (iterations + 1)(F + B).

    Hess(n) q is the finite difference (g(x + h q) - g(x)) / h. Too low where the steps are few, never too high.
    """
    q = unit(start)
    basis: list[Tensor] = []
    alphas, betas = [], []
    for _ in range(min(iterations, start.shape[1:].numel())):
        basis.append(q)
        w = (cur.moved(h * q).g - cur.g) / h
        alphas.append((w * q).flatten(1).sum(dim=1))
        for e in 2 * basis:  # once leaves rounding errors along the earlier vectors, and spurious eigenvalues
            w = w - per_sample((w * e).flatten(1).sum(dim=1), w) * e
        betas.append(norms(w))
        q = unit(w)
    T = torch.diag_embed(torch.stack(alphas, dim=1))  # [B, k, k]
    if len(alphas) > 1:
        off = torch.stack(betas[:-1], dim=1)
        T = T + torch.diag_embed(off, 1) + torch.diag_embed(off, -1)
    # As with H: a network that returns NaN shows in the image, and its score leaves that row alone.
    eigenvalues: Tensor = torch.linalg.eigvalsh(T.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0))  # [B, k]
    return eigenvalues.abs().amax(dim=1)


@dataclass(frozen=True)
class Lmi(Detector):
    """The trace of the covariance of the sampler's output under small latent noise (LMI, arXiv 2605.05026).

    The run's first state gets `runs` times noise of `eps` its noise level; the plain solver takes each to the end over
    the same noise levels. The unbiased covariance of these images, over eps^2: as eps -> 0, the squared Frobenius norm
    of the output's Jacobian by the latents, estimated. Of a restarted part, the state it begins with is the first.
    Cost: `runs` times the plain steps.
    """

    eps: float = 0.01
    runs: int = 4

    needs: ClassVar[Needs] = "trajectory"

    def __post_init__(self) -> None:
        at_least("runs", self.runs, 2)
        if not 0 < self.eps < inf:
            raise ValueError(f"eps: {self.eps} is not a length; give a finite number > 0, such as .01")

    @property
    def num_draws(self) -> int:
        return self.runs

    def follow(self, denoise: BoundDenoiser, noise: Tensor, *, solver: Solver = "euler") -> Follower:
        return _Perturbed(self.eps, denoise, noise, solver)


class _Perturbed:
    def __init__(self, eps: float, denoise: BoundDenoiser, noise: Tensor, solver: Solver) -> None:
        self.eps, self.denoise, self.noise, self.solver = eps, denoise, noise, solver
        self.first: Tensor | None = None
        self.levels: list[Tensor] = []

    def add(self, step: Step) -> None:
        if self.first is None:
            self.first, self.levels = step.x, [step.sigma]
        self.levels.append(step.sigma_next)

    def select(self, index: Tensor) -> Follower:
        part = _Perturbed(self.eps, self.denoise.rows(index), self.noise[:, index], self.solver)
        part.first, part.levels = None if self.first is None else self.first[index], list(self.levels)
        return part

    def score(self, image: Tensor) -> Tensor:
        assert self.first is not None, "a run has steps"
        sigmas = torch.stack(self.levels)
        starts = (self.first + self.eps * sigmas[0] * e for e in self.noise)
        ends = torch.stack([last(trajectory(self.denoise, x, sigmas, solver=self.solver)) for x in starts])  # [k, ...]
        return norms((ends - ends.mean(dim=0)).transpose(0, 1)).square() / (len(ends) - 1) / self.eps**2
