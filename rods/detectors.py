"""Scores of how much a state is at risk: one function each, no threshold inside.

A detector is called as detector(denoise, prev, cur) and returns a score [B], higher = more at risk. `prev` is the
finished step before (None at the first), `cur` the state now; `denoise` evaluates the network for the same rows.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from rods.evaluation import TINY, BoundDenoiser, Point, bind, norms
from rods.types import AnyDenoiser, Step, state_dtype


class Detector(Protocol):
    def __call__(self, denoise: BoundDenoiser, prev: Step | None, cur: Point) -> Tensor: ...


def check_radius(rho: float) -> float:
    """`rho` as a float; ValueError unless it is a finite radius >= 0."""
    if not 0 <= rho < float("inf"):
        raise ValueError(f"rho: {rho} is not a radius; give a finite number >= 0")
    return float(rho)


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
    level = torch.as_tensor(sigma, device=x.device, dtype=state_dtype(x.device))
    if level.ndim != 0 or not level > 0:
        raise ValueError(f"sigma: {sigma} is not a noise level; give one number > 0")
    x = x.detach().to(level.dtype)
    return curvature(Point(bind(denoise, len(x)), x, level), check_radius(rho))


def h_index(rho: float) -> Detector:
    """The curvature index as a detector, radius `rho`. Cost per step: 2F + 2B, the step's own F among them."""
    rho = check_radius(rho)

    def detect(denoise: BoundDenoiser, prev: Step | None, cur: Point) -> Tensor:
        return curvature(cur, rho)

    return detect
