"""The paper's theorems on exact densities: each would fail if it were misread as the paper prints it."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from exact import latents, mixture
from hypothesis import given, settings
from hypothesis import strategies as st

from rods import Mixture, curvature_index, euler_sampler, gaussian
from rods.schedules import edm_grid
from rods.theory import (
    continuation_method,
    curvature_limit,
    diffusion_as_continuation,
    f_t,
    grad_f,
    proximal_point,
    step_size,
    theorem_1_constant,
)


def a_mixture(seed: int, *, s0: float = 0.4, K: int = 3) -> Mixture:
    g = torch.Generator().manual_seed(seed)
    return Mixture(torch.randn(K, 2, 2, 2, generator=g), torch.rand(K, generator=g) + 0.1, s0)


def states(seed: int, t: float, n: int = 5) -> torch.Tensor:
    return torch.randn(n, 2, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * (1 + t)


@settings(max_examples=40, deadline=None)
@given(t=st.floats(0.01, 80), s0=st.floats(0.1, 2), seed=st.integers(0, 99))
def test_theorem_1_holds_exactly_for_a_mixture(t: float, s0: float, seed: int) -> None:
    density, x = a_mixture(seed, s0=s0), states(seed, t)
    gap = -density.log_density(x, t) - f_t(density, x, t)
    torch.testing.assert_close(gap, torch.full_like(gap, theorem_1_constant(density, t)), rtol=1e-9, atol=1e-7)


def test_theorem_1_has_the_two_ends_that_the_proof_names() -> None:
    """f_0 = -log p_0; for t -> infinity, p_t is the single Gaussian N(mean, s0^2 + t^2), and at t = 1 it is not."""
    density, x = a_mixture(0), states(0, 0.5)
    torch.testing.assert_close(f_t(density, x, 0.0), -density.log_density(x, 0.0))
    mean = (density.weights[:, None, None, None] * density.mu).sum(dim=0)

    def differs(t: float) -> float:
        """How far -log p_t is from the single Gaussian's, a constant apart."""
        gap = density.log_density(x * t, t) - gaussian(mean, density.s0).log_density(x * t, t)
        return float(gap.max() - gap.min())

    assert differs(1e4) < 1e-3 < 1e-2 < differs(1.0)


def test_theorem_1_refuses_a_density_that_is_none() -> None:
    with pytest.raises(ValueError, match="s0"):
        f_t(Mixture(torch.zeros(1, 1, 1, 1), torch.ones(1), 0.0), torch.zeros(1, 1, 1, 1), 1.0)


@settings(max_examples=20, deadline=None)
@given(t=st.floats(0.05, 40), seed=st.integers(0, 99))
def test_the_gradient_of_f_is_d_over_t(t: float, seed: int) -> None:
    density, x = a_mixture(seed), states(seed, t).requires_grad_()
    (by_autograd,) = torch.autograd.grad(f_t(density, x, t).sum(), x)
    torch.testing.assert_close(grad_f(density, x.detach(), t), by_autograd, rtol=1e-6, atol=1e-9)


def test_algorithm_1_is_the_euler_sampler() -> None:
    sigmas = torch.cat([edm_grid(40, sigma_min=0.002, sigma_max=80.0), torch.zeros(1, dtype=torch.float64)])
    levels, path = zip(*diffusion_as_continuation(mixture(), 80.0 * latents().double(), sigmas), strict=True)
    torch.testing.assert_close(path[-1], euler_sampler(mixture(), latents()), rtol=1e-9, atol=1e-12)
    assert levels[0] == pytest.approx(80)
    assert levels[-1] == 0
    assert len(levels) == 41


def test_a_step_of_dt_as_the_paper_prints_it_is_not_the_euler_step() -> None:
    """eta = t (t - t_next), not t - t_next: the two differ by the factor t."""
    density, x, t, t_next = a_mixture(1), states(1, 3.0), 3.0, 2.5
    euler = x + (t_next - t) * (x - density(x, t)) / t
    torch.testing.assert_close(x - step_size(t, t_next) * grad_f(density, x, t), euler)
    assert not torch.allclose(x - (t - t_next) * grad_f(density, x, t), euler, rtol=1e-2)


def test_theorem_2_the_proximal_point_agrees_with_euler_to_second_order() -> None:
    density, x, t = a_mixture(2), states(2, 1.0), 1.0
    gaps = []
    for eta in (0.02, 0.01, 0.005):
        y = proximal_point(density, x, t, eta)
        torch.testing.assert_close(y, x - eta * grad_f(density, y, t), rtol=1e-10, atol=1e-11)
        gaps.append(float((y - (x - eta * grad_f(density, x, t))).norm()))
    orders = [math.log2(a / b) for a, b in pairwise(gaps)]
    assert all(abs(order - 2) < 0.05 for order in orders)


def test_the_proximal_point_is_exact_for_a_gaussian() -> None:
    """f_t = ||x||^2 / (2 v), v = s0^2 + t^2, so the point is x v / (v + eta) for any eta."""
    density, x, v = gaussian(torch.zeros(2, 2, 2), 0.5), states(3, 1.0), 0.25 + 1.0
    torch.testing.assert_close(proximal_point(density, x, 1.0, 3.0), x * v / (v + 3.0))


def test_h_over_rho_tends_to_the_hessian_along_u_and_stays_below_the_top_eigenvalue() -> None:
    density, t = a_mixture(4), 0.8
    x = states(4, t)
    along, top = curvature_limit(density, x, t)
    for rho, tol in ((1e-3, 2e-2), (1e-5, 1e-3)):
        H = curvature_index(density, x, t, rho=rho)
        torch.testing.assert_close(H / rho, along, rtol=tol, atol=1e-6)
    assert (along < top).all()  # equality, as the paper's appendix has it, would need u to be a top eigenvector


def test_an_isotropic_gaussian_has_no_index_but_a_top_eigenvalue() -> None:
    """n = ||x|| / v: its Hessian is (I - u u^T) / (v ||x||), which u does not see."""
    x = states(5, 1.0)
    along, top = curvature_limit(gaussian(torch.zeros(2, 2, 2), 0.5), x, 1.0)
    torch.testing.assert_close(along, torch.zeros_like(along), atol=1e-12, rtol=0)
    torch.testing.assert_close(top, 1 / (1.25 * x.flatten(1).norm(dim=1)))


def test_algorithm_3_follows_the_minimum_that_a_plain_descent_misses() -> None:
    """f has a poor minimum near 2 and the best near -2.2; R = x^2. From 3, descent stays, continuation arrives."""

    def descend(x: torch.Tensor, lam: float) -> torch.Tensor:
        for _ in range(4000):
            x = x - 1e-2 * (4 * x * (x**2 - 4) + 3 + 2 * lam * x) / (1 + 2 * lam / 10)
        return x

    start = torch.tensor(3.0, dtype=torch.float64)
    assert descend(start, 0.0) > 1.5
    lambdas, path = zip(*continuation_method(descend, start, lambda_0=64.0, alpha=0.5, stop=0.01), strict=True)
    assert path[-1] < -1.9
    assert list(lambdas) == [64 * 0.5**k for k in range(13)]


@pytest.mark.parametrize(("alpha", "stop"), [(1.0, 0.1), (0.5, 0.0)])
def test_algorithm_3_refuses_what_would_not_end(alpha: float, stop: float) -> None:
    with pytest.raises(ValueError, match="never end"):
        next(continuation_method(lambda x, lam: x, torch.zeros(()), lambda_0=1.0, alpha=alpha, stop=stop))
