"""The curvature index and the corrections one by one, on densities where they are known."""

from __future__ import annotations

import math

import pytest
import torch
from exact import Axes, Counting, close, golden, latents, mixture
from hypothesis import given, settings
from hypothesis import strategies as st
from rods.evaluation import norms, unit
from torch import Tensor

from rods import (
    Point,
    bind,
    cas,
    curvature_index,
    euler_sampler,
    gaussian,
    overshoot,
    rods_sampler,
    sas,
    trajectory,
)


def same(x: Tensor, y: Tensor) -> bool:
    return torch.equal(x, y)


def a_point(denoiser, sigma: float = 2.0) -> Point:  # type: ignore[no-untyped-def]
    return Point(bind(denoiser, 6), sigma * latents(), torch.tensor(sigma, dtype=torch.float64), 0, 1)


# -- reference vectors ------------------------------------------------------------------------------------------------


def test_euler_trajectory_and_gradients_are_the_reference() -> None:
    z = golden("rods/mixture")
    denoise = bind(mixture(), 6)
    for i, step in enumerate(trajectory(denoise, z["t_steps"][0] * latents(), z["t_steps"])):
        assert close(step.x, z["x"][i], tol=1e-7)
        cur = Point(denoise, step.x, step.sigma)
        assert close(norms(cur.d / cur.sigma), z["norm_v"][i], tol=1e-7)
        assert close(cur.g, z["grad_norm_v"][i], tol=1e-7)
    assert close(euler_sampler(mixture(), latents()), z["euler_40"], tol=1e-7)


@pytest.mark.parametrize("rho", [0.1, 0.5])
def test_curvature_index_is_the_reference(rho: float) -> None:
    z = golden("rods/mixture")
    records = rods_sampler(mixture(), latents(), eps=math.inf, rho=rho, window=(0, 1)).records
    for i in range(40):
        H, known = curvature_index(mixture(), z["x"][i], z["t_steps"][i], rho=rho), z[f"H_rho{rho}"][i]
        allowed = 1e-7 * known + 1e-11 * norms(z["grad_norm_v"][i])
        assert ((H - known).abs() <= allowed).all()
        recorded = torch.tensor([record.H[i] for record in records], dtype=torch.float64)
        assert ((recorded - known).abs() <= allowed).all()


# -- curvature on known densities -------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(sigma=st.floats(0.02, 50), rho=st.floats(0.01, 20), seed=st.integers(0, 99))
def test_curvature_of_an_anisotropic_gaussian(sigma: float, rho: float, seed: int) -> None:
    """n = ||A x|| has g = A^2 x / ||A x|| in closed form: so has H."""
    draws = torch.randn(7, 2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    density, x = Axes(draws[0].square() + 0.01), sigma * draws[1:]
    g = density.g(x, sigma)
    delta = rho * g / g.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)
    H = (density.g(x + delta, sigma) - g).flatten(1).norm(dim=1)
    torch.testing.assert_close(curvature_index(density, x, sigma, rho=rho), H, rtol=1e-7, atol=1e-12 * g.abs().max())


@pytest.mark.parametrize("sigma", [0.01, 1.0, 60.0])
def test_an_isotropic_gaussian_has_no_curvature(sigma: float) -> None:
    H = curvature_index(gaussian(torch.zeros(2, 3, 3), 0.5), sigma * latents(), sigma, rho=2.0)
    slope = 1 / (0.25 + sigma**2)
    assert H.max() <= 1e-15 / sigma**2 + 1e-14 * slope  # v is a difference divided by sigma^2


def test_curvature_is_second_order_in_small_radii() -> None:
    """H / rho -> ||Hess(n) u|| as rho -> 0 (paper, appendix A.2), the Hessian by autograd."""
    sigma = torch.tensor(2.0, dtype=torch.float64)
    x = sigma * latents()
    u = unit(a_point(mixture()).g)

    def n_sum(y: Tensor) -> Tensor:
        return norms((y - mixture()(y, sigma)) / sigma**2).sum()

    Hess_u = torch.autograd.functional.hvp(n_sum, x, u)[1]
    H = curvature_index(mixture(), x, 2.0, rho=1e-5)
    torch.testing.assert_close(H / 1e-5, norms(Hess_u), rtol=1e-3, atol=0)


def test_guards() -> None:
    """||g|| < 1e-12: no probe, H = 0; NaN stays in the image and out of H."""
    still = curvature_index(lambda x, sigma: x + 0 * sigma, latents(), 1.0, rho=3.0)
    assert same(still, torch.zeros(6, dtype=torch.float64))
    assert same(a_point(lambda x, sigma: x * 1.0).uphill(3.0).x, 2 * latents())

    def broken(x: Tensor, sigma: Tensor) -> Tensor:
        return mixture()(x, sigma) * torch.tensor([1, math.nan, 1, 1, 1, 1][: len(x)]).reshape(-1, 1, 1, 1)

    H = curvature_index(broken, 2 * latents(), 2.0, rho=0.1)
    assert H[1] == 0
    assert same(H[2:], curvature_index(mixture(), 2 * latents(), 2.0, rho=0.1)[2:])
    for eps in (0, math.inf):
        result = rods_sampler(broken, latents(), eps=eps, rho=0.1)
        assert result.images[1].isnan().all()
        assert result.images[2:].isfinite().all()
        assert all(h == h for record in result.records for h in record.H)
    calls: list[Tensor] = []

    def broken_at_the_probe(x: Tensor, sigma: Tensor) -> Tensor:
        calls.append(x)
        return mixture()(x, sigma) * (math.nan if len(calls) == 2 else 1)

    assert same(curvature_index(broken_at_the_probe, latents(), 1.0, rho=0.1), torch.zeros(6, dtype=torch.float64))
    assert same(curvature_index(mixture(), 2 * latents(), 2.0, rho=0), torch.zeros(6, dtype=torch.float64))


def test_curvature_index_costs_2f_and_2b_and_leaves_parameters_alone() -> None:
    layer = torch.nn.Conv2d(2, 2, 3, padding=1, dtype=torch.float64)
    count = Counting(lambda x, sigma: layer(x).tanh())
    with torch.no_grad():
        curvature_index(count, latents(), 1.0, rho=0.1)
    assert (count.forward, count.backward) == (12, 12)
    assert layer.weight.requires_grad
    assert layer.weight.grad is None


# -- the probe and the corrections ------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(rho=st.floats(1e-3, 30), sigma=st.floats(0.05, 50))
def test_every_correction_looks_at_distance_rho(rho: float, sigma: float) -> None:
    asked: list[Tensor] = []

    def remembering(x: Tensor, level: Tensor) -> Tensor:
        asked.append(x.detach())
        return mixture()(x, level)

    for correct in (cas(rho), cas(rho, 5), sas(rho, "uphill"), sas(rho, "downhill")):
        cur = a_point(remembering, sigma)
        asked.clear()
        correct(cur.denoise, None, cur)
        for x in asked[1:]:
            assert ((norms(x - cur.x) / rho - 1).abs() < 1e-9).all()


def test_cas_climbs_the_score_norm() -> None:
    """n at the probe is above n at x, and more ascent steps do not lead lower."""
    x = 2 * latents()
    heights = []
    for steps in (1, 2, 10):
        cur = a_point(mixture())
        d = cas(0.5, steps)(cur.denoise, None, cur).d
        heights.append(norms(d))
        assert (heights[-1] > norms(cur.d)).all()
    assert (heights[2] >= heights[0] * (1 - 1e-9)).all()
    cur = a_point(mixture())
    two = cur.x - x + 0.5 * unit(cur.uphill(0.5).x - cur.x + 0.5 * unit(cur.uphill(0.5).g))  # the formula, K = 2
    assert same(cas(0.5, 2)(cur.denoise, None, cur).d, cur.moved(two).d)


def test_sas_and_overshoot_by_their_formulas() -> None:
    for sign, signed in (("uphill", 1), ("downhill", -1)):
        cur = a_point(mixture())
        x = cur.x + signed * 0.5 * cur.d / norms(cur.d).reshape(-1, 1, 1, 1)
        expected = (x - mixture()(x, cur.sigma)) / cur.sigma
        torch.testing.assert_close(sas(0.5, sign)(cur.denoise, None, cur).d, expected, rtol=1e-9, atol=1e-12)  # type: ignore[arg-type]
    cur = a_point(mixture())
    moved = overshoot(0.5)(cur.denoise, None, cur).d
    lengths = norms(cur.sigma * moved) - norms(cur.sigma * cur.d)
    torch.testing.assert_close(lengths, torch.full_like(lengths, 0.5), rtol=1e-9, atol=0)  # t d grows by rho
    torch.testing.assert_close(unit(moved), unit(cur.d), rtol=0, atol=1e-12)
    at_rest = a_point(lambda x, sigma: x * 1.0)
    assert same(overshoot(0.5)(at_rest.denoise, None, at_rest).d, torch.zeros_like(at_rest.x))


def test_the_step_goes_from_x_along_the_direction_at_the_probe() -> None:
    t = golden("rods/mixture")["t_steps"]
    for step in trajectory(mixture(), t[0] * latents(), t, correct=cas(0.1)):
        cur = Point(bind(mixture(), 6), step.x, step.sigma)
        probe = step.x + 0.1 * cur.g / norms(cur.g).reshape(-1, 1, 1, 1)
        d = (probe - mixture()(probe, step.sigma)) / step.sigma
        torch.testing.assert_close(step.d_used, d, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(step.x_next, step.x + (step.sigma_next - step.sigma) * d, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(step.denoised, mixture()(step.x, step.sigma), rtol=0, atol=1e-12)
        assert step.flagged.all()
