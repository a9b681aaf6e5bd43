"""Sampling as a continuation method: the paper's theory as functions on exact densities (paper, section 3, appendix A).

The paper writes x_{i-1} = x_i - dt grad f_t(x_i) and calls dt the step. With f_t = -log p_t and grad f_t = d/t, the
Euler step x + (t_next - t) d is gradient descent with the step eta = t (t - t_next): that is how Algorithm 1 and
Theorem 2 are read here. Nothing here calls a network; see docs/theory.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from math import log

import torch
from torch import Tensor
from torch.autograd.functional import hessian

from rods.denoiser import per_sample
from rods.densities import Mixture


def continuation_method(
    argmin: Callable[[Tensor, float], Tensor], x: Tensor, *, lambda_0: float, alpha: float, stop: float
) -> Iterator[tuple[float, Tensor]]:
    """Algorithm 3: yields (lambda_k, x^(k+1)) while lambda_k > stop, each solved from the last solution.

    `argmin(x, lam)` minimises f + lam R from the initial guess x. Raises ValueError unless 0 < alpha < 1 and stop > 0,
    without which it would not end.
    """
    if not 0 < alpha < 1 or not stop > 0:
        raise ValueError(f"alpha, stop: {alpha} and {stop} never end; give 0 < alpha < 1 and stop > 0")
    lam = lambda_0
    while lam > stop:
        x = argmin(x, lam)
        yield lam, x
        lam *= alpha


def f_t(density: Mixture, x: Tensor, t: float) -> Tensor:
    """The paper's smoothed objective of Theorem 1  [B], for a mixture with s0 > 0.

    f_t = -log p_0 - log sum_k w~_k(x) exp(||x - mu_k||^2 t^2 / (2 s0^2 (s0^2 + t^2))), w~ the posterior weights at 0.
    Raises ValueError for s0 = 0, where p_0 has no density.
    """
    if density.s0 == 0:
        raise ValueError("s0: 0 has no density at t = 0; give a mixture with s0 > 0")
    x = x.double()
    s0_2 = density.s0**2
    square = (x[:, None] - density.mu[None]).flatten(2).square().sum(dim=2)  # [B, K]
    log_w = (density.weights.log() - square / (2 * s0_2)).log_softmax(dim=1)
    tilt = square * t**2 / (2 * s0_2 * (s0_2 + t**2))
    return -density.log_density(x, 0.0) - (log_w + tilt).logsumexp(dim=1)


def theorem_1_constant(density: Mixture, t: float) -> float:
    """-log p_t - f_t = (dim / 2) log(1 + t^2 / s0^2): the same at every x, so both have the same minimisers."""
    return density.mu[0].numel() / 2 * log(1 + t**2 / density.s0**2)


def grad_f(density: Mixture, x: Tensor, t: float) -> Tensor:
    """grad f_t = d / t = (x - D(x; t)) / t^2, minus the score  [B, C, H, W]. Cost: 1 F."""
    return (x - density(x, t)) / t**2


def step_size(t: float, t_next: float) -> float:
    """eta = t (t - t_next): the gradient-descent step that Euler's step from t to t_next is (Theorem 2)."""
    return t * (t - t_next)


def diffusion_as_continuation(density: Mixture, x: Tensor, sigmas: Tensor) -> Iterator[tuple[float, Tensor]]:
    """Algorithm 1: yields (t_i, x_i) from the start x at sigmas[0], a gradient-descent step on f_t per noise level.

    `sigmas` [N + 1] descends to 0 and x [B, C, H, W] is the state at sigmas[0]. Equal to Euler's method on the
    probability-flow ODE. Cost: N F.
    """
    levels = [float(s) for s in sigmas]
    yield levels[0], x
    for t, t_next in pairwise(levels):
        x = x - step_size(t, t_next) * grad_f(density, x, t)
        yield t_next, x


def proximal_point(
    density: Mixture, x: Tensor, t: float, eta: float, *, tolerance: float = 1e-12, max_iterations: int = 10_000
) -> Tensor:
    """argmin_y f_t(y) + ||y - x||^2 / (2 eta): y = x - eta grad f_t(y) (Theorem 2, eq. 7), the minimum near x.

    By damped fixed-point iterations, 1 F each. Raises ValueError where they do not settle: eta is too large for the
    curvature of f_t, and the subproblem may have more than one minimum.
    """
    y = x
    damping = 1 / (1 + eta / t**2)  # the largest curvature of f_t is at most 1 / t^2
    for _ in range(max_iterations):
        y_new = (1 - damping) * y + damping * (x - eta * grad_f(density, y, t))
        if (y_new - y).abs().max() <= tolerance * x.abs().max():
            return y_new
        y = y_new
    raise ValueError(f"eta: {eta} is too large for a proximal point at t = {t}; give less")


def score_norm(density: Mixture, t: float) -> Callable[[Tensor], Tensor]:
    """n(x) = ||grad f_t(x)|| of one state [C, H, W], differentiable."""

    def n(x: Tensor) -> Tensor:
        return grad_f(density, x[None], t).square().sum().sqrt()

    return n


def curvature_limit(density: Mixture, x: Tensor, t: float) -> tuple[Tensor, Tensor]:
    """What H / rho tends to as rho -> 0, and its upper bound: ||Hess(n) u||  [B], largest |eigenvalue| of Hess(n)  [B].

    n = ||grad f_t||, u = grad n / ||grad n||. Appendix A.2, read correctly: the two are equal only if u is a top
    eigenvector; the first is 0 on an isotropic Gaussian. Exact, by second derivatives: for a few dozen dimensions.
    """
    n = score_norm(density, t)
    x = x.detach().requires_grad_()
    (g,) = torch.autograd.grad(torch.stack([n(row) for row in x]).sum(), x)
    u = g / per_sample(g.flatten(1).norm(dim=1), g)
    dim = x[0].numel()
    hess = torch.stack([hessian(n, row.detach()).reshape(dim, dim) for row in x])  # type: ignore[no-untyped-call]
    along = torch.einsum("bij,bj->bi", hess, u.flatten(1)).norm(dim=1)
    return along, torch.linalg.eigvalsh(hess).abs().amax(dim=1)
