"""Scores of how much a state is at risk: one function each, no threshold inside.

A detector is called as detector(denoise, prev, cur) and returns a score [B], higher = more at risk. `prev` is the
finished step before (None at the first), `cur` the state now; `denoise` evaluates the network for the same rows.
Scores of finished images and of whole trajectories are in scores.py.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Protocol

import torch
from torch import Tensor

from rods.evaluation import TINY, BoundDenoiser, Point, bind, fresh, norms, per_sample, unit
from rods.types import AnyDenoiser, Step, state_dtype


class Detector(Protocol):
    def __call__(self, denoise: BoundDenoiser, prev: Step | None, cur: Point) -> Tensor: ...


def check_radius(rho: float) -> float:
    """`rho` as a float; ValueError unless it is a finite radius >= 0."""
    if not 0 <= rho < float("inf"):
        raise ValueError(f"rho: {rho} is not a radius; give a finite number >= 0")
    return float(rho)


def noise_level(sigma: Tensor | float, like: Tensor, *, name: str = "sigma") -> Tensor:
    """`sigma` [] in the precision of the state; ValueError unless it is one finite number > 0."""
    level = torch.as_tensor(sigma, device=like.device, dtype=state_dtype(like.device))
    if level.ndim != 0 or not 0 < level < inf:
        raise ValueError(f"{name}: {sigma} is not a noise level; give one number > 0")
    return level


def curvature(cur: Point, rho: float) -> Tensor:
    """H of a point [B]: F + B, and F + B once more unless these evaluations were made before."""
    sure = norms(cur.g) >= TINY
    H = norms(cur.uphill(rho).g - cur.g)
    # A network that returns NaN shows in the image; its H is 0, so that a gate leaves that row alone.
    return torch.where(sure, H, 0.0).nan_to_num(nan=0.0, posinf=float("inf"))


def curvature_index(denoise: AnyDenoiser, x: Tensor, sigma: Tensor | float, *, rho: float) -> Tensor:
    """Curvature index H(x) = ||g(x + rho u) - g(x)||, g = grad_x ||v||, u = g / ||g||, v = (x - D(x; t)) / t^2.

    RODS paper, eq. (8), with the probe of Algorithm 2 (spec method.md, section 1).
    `denoise` is D(x, sigma); `x` [B, C, H, W] is the state at the noise level `sigma` (a number > 0). Returns H [B] in
    float64, never NaN: 0 where ||g|| < 1e-12, and for rho = 0. Nothing depends on the other samples of the batch.
    Cost: 2F + 2B. Raises ValueError for a negative rho or a sigma that is not > 0.
    """
    level = noise_level(sigma, x)
    x = x.detach().to(level.dtype)
    return curvature(Point(bind(denoise, len(x)), x, level), check_radius(rho))


def h_index(rho: float) -> Detector:
    """The curvature index as a detector, radius `rho`. Cost per step: 2F + 2B, the step's own F among them."""
    rho = check_radius(rho)

    def detect(denoise: BoundDenoiser, prev: Step | None, cur: Point) -> Tensor:
        return curvature(cur, rho)

    return detect


def largest_eigenvalue(cur: Point, start: Tensor, *, iterations: int, h: float) -> Tensor:
    """The largest |eigenvalue| [B] of Hess(n) by Lanczos steps from `start` [B, C, H, W]: (iterations + 1)(F + B).

    Hess(n) q is the finite difference (g(x + h q) - g(x)) / h. Too low where the steps are few, never too high.
    """
    q = unit(start)
    basis: list[Tensor] = []
    alphas, betas = [], []
    for _ in range(min(iterations, start[0].numel())):
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


def lambda_max(
    iterations: int = 4, *, h: float = 0.01, randn_like: Callable[[Tensor], Tensor] = torch.randn_like
) -> Detector:
    """The largest |eigenvalue| of Hess(n), n = ||v||, as a detector: what H / rho is a lower bound of.

    RODS paper, appendix A.2 read correctly: as rho -> 0, H / rho -> ||Hess(n) u|| <= largest |eigenvalue| (spec
    method.md, sections 1 and 2). `iterations` Lanczos steps from a random direction; `h` is the finite difference's
    length in units of the noise level. `randn_like` is called once per probed step, for the whole batch.
    Cost per step: (iterations + 1)(F + B), the step's own F among them. Raises ValueError for arguments out of range.
    """
    if iterations < 1:
        raise ValueError(f"iterations: {iterations} is too few; give a whole number >= 1")
    if not 0 < h < inf:
        raise ValueError(f"h: {h} is not a length; give a finite number > 0")

    def detect(denoise: BoundDenoiser, prev: Step | None, cur: Point) -> Tensor:
        start = fresh(denoise, cur.x, randn_like)
        return largest_eigenvalue(cur, start, iterations=iterations, h=h * float(cur.sigma))

    return detect
