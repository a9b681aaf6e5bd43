"""How near the finite difference of `gradient="difference"` comes to the backward pass, along a trajectory."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from rods.detectors import check_radius, curvature
from rods.evaluation import BoundDenoiser, Point, unit
from rods.trajectory import start, trajectory
from rods.types import AnyDenoiser


@dataclass(frozen=True)
class GradientRow:
    """One step, medians over the samples. The cosines are those to u = g / ||g|| of the backward pass."""

    i: int
    sigma: float
    H: float  # by backward passes
    difference: float  # cosine of the difference's u
    difference_least: float  # of the sample where it is lowest
    d: float  # cosine of d itself: the direction of SAS, which costs nothing
    H_error: float  # |H by differences - H| / H


def compare_gradients(denoiser: AnyDenoiser, latents: Tensor, *, num_steps: int = 40, rho: float) -> list[GradientRow]:
    """Both gradients and both curvature indices at every state of an Euler trajectory from `latents` [B, C, H, W].

    The two are equal to first order where the Jacobian of v is symmetric; a learned one is not everywhere.
    Cost per step: F for the trajectory, 2F + 2B and 4F for the two. Raises ValueError: num_steps or rho out of range.
    """
    check_radius(rho)
    denoise, x, sigmas = start(denoiser, latents, None, num_steps, 0.002, 80, 7)
    return [_row(denoise, step.i, step.x, step.sigma, rho) for step in trajectory(denoise, x, sigmas)]


def _row(denoise: BoundDenoiser, i: int, x: Tensor, sigma: Tensor, rho: float) -> GradientRow:
    exact, cheap = Point(denoise, x, sigma), Point(denoise, x, sigma, gradient="difference")
    H, H_cheap = curvature(exact, rho), curvature(cheap, rho)
    error = (H_cheap - H).abs() / H.where(H > 0, 1.0)  # 0 where both are 0
    cosines = (exact.u * cheap.u).flatten(1).sum(dim=1)  # [B]
    return GradientRow(
        i=i,
        sigma=float(sigma),
        H=float(H.median()),
        difference=float(cosines.median()),
        difference_least=float(cosines.min()),
        d=float((exact.u * unit(exact.d)).flatten(1).sum(dim=1).median()),
        H_error=float(error.median()),
    )


def table(rows: list[GradientRow]) -> str:
    """The rows as text."""
    head = f"{'step':>4}{'sigma':>10}{'H':>11}{'cos':>9}{'least':>9}{'cos of d':>10}{'H off by':>10}"
    lines = [
        f"{r.i:>4}{r.sigma:>10.4f}{r.H:>11.3g}{r.difference:>9.4f}{r.difference_least:>9.4f}{r.d:>10.4f}{r.H_error:>10.2%}"
        for r in rows
    ]
    return "\n".join([head, *lines])
