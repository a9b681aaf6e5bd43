"""Detectors against closed forms: H, lambda-max, LID, TVF and LMI on densities where they are known."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from exact import CPU, SEEDS, Axes, Counting, broken_row, close, golden, isotropic, latents, mixture, normal, state
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rods import (
    CurvatureIndex,
    Detector,
    LambdaMax,
    Lid,
    Lmi,
    Step,
    Tvf,
    bind,
    curvature_index,
    rods_sampler,
    trajectory,
)
from rods.denoiser import norms, unit
from rods.restart import draws_of
from rods.schedules import edm_grid
from torch_utils.rng import SeedStreams

S0 = 0.5
LEVELS = torch.cat([edm_grid(10, sigma_min=0.002, sigma_max=80, time_rho=7), torch.zeros(1, dtype=torch.float64)])


def run(denoiser: Any) -> list[Step]:
    return list(trajectory(denoiser, 80 * latents().double(), LEVELS))


def draws(k: int) -> Tensor:
    third = bind(mixture(), 6, randn_like=SeedStreams(SEEDS, CPU).third().randn_like)
    return draws_of(third, latents().double(), k)


def scored(detector: Detector, denoiser: Any = None) -> tuple[Tensor, Any]:
    """The score of the run's images, and the denoiser that was asked for it."""
    steps, denoise = run(denoiser or mixture()), bind(denoiser or mixture(), 6)
    follower = detector.follow(denoise, draws(detector.num_draws))
    for step in steps:
        follower.add(step)
    return follower.score(steps[-1].x_next), denoise


def lid(denoiser: Any, x: Tensor, sigma: float, *, noise: Tensor) -> Tensor:
    return Lid(sigma, len(noise)).score(bind(denoiser, len(x)), x, noise=noise)


# -- the curvature index ----------------------------------------------------------------------------------------------


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


@settings(max_examples=30, deadline=None)
@given(sigma=st.floats(0.02, 50), rho=st.floats(0.01, 20), seed=st.integers(0, 99))
def test_curvature_of_an_anisotropic_gaussian(sigma: float, rho: float, seed: int) -> None:
    """n = ||A x|| has g = A^2 x / ||A x|| in closed form: so has H."""
    numbers = normal(7, 2, 3, 3, seed=seed)
    density, x = Axes(numbers[0].square() + 0.01), sigma * numbers[1:]
    g = density.g(x, sigma)
    delta = rho * g / g.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)
    H = (density.g(x + delta, sigma) - g).flatten(1).norm(dim=1)
    torch.testing.assert_close(curvature_index(density, x, sigma, rho=rho), H, rtol=1e-7, atol=1e-12 * g.abs().max())


@pytest.mark.parametrize("sigma", [0.01, 1.0, 60.0])
def test_an_isotropic_gaussian_has_no_curvature(sigma: float) -> None:
    H = curvature_index(isotropic(), sigma * latents(), sigma, rho=2.0)
    slope = 1 / (0.25 + sigma**2)
    assert H.max() <= 1e-15 / sigma**2 + 1e-14 * slope  # v is a difference divided by sigma^2


def test_curvature_is_second_order_in_small_radii() -> None:
    """H / rho -> ||Hess(n) u|| as rho -> 0 (paper, appendix A.2), the Hessian by autograd."""
    sigma = torch.tensor(2.0, dtype=torch.float64)
    x = sigma * latents()
    u = unit(state(mixture()).g)

    def n_sum(y: Tensor) -> Tensor:
        return norms((y - mixture()(y, sigma)) / sigma**2).sum()

    Hess_u = torch.autograd.functional.hvp(n_sum, x, u)[1]
    H = curvature_index(mixture(), x, 2.0, rho=1e-5)
    torch.testing.assert_close(H / 1e-5, norms(Hess_u), rtol=1e-3, atol=0)


def test_h_is_never_nan() -> None:
    """||g|| < 1e-12: no probe, H = 0; NaN stays in the image and out of H."""
    zeros = torch.zeros(6, dtype=torch.float64)
    assert torch.equal(curvature_index(lambda x, sigma: x + 0 * sigma, latents(), 1.0, rho=3.0), zeros)
    assert torch.equal(state(lambda x, sigma: x * 1.0).uphill(3.0).x, 2 * latents())
    H = curvature_index(broken_row, 2 * latents(), 2.0, rho=0.1)
    assert H[1] == 0
    assert torch.equal(H[2:], curvature_index(mixture(), 2 * latents(), 2.0, rho=0.1)[2:])
    for eps in (0, math.inf):
        result = rods_sampler(broken_row, latents(), eps=eps, rho=0.1)
        assert result.images[1].isnan().all()
        assert result.images[2:].isfinite().all()
        assert all(h == h for record in result.records for h in record.H)
    calls: list[Tensor] = []

    def broken_at_the_probe(x: Tensor, sigma: Tensor) -> Tensor:
        calls.append(x)
        return mixture()(x, sigma) * (math.nan if len(calls) == 2 else 1)

    assert torch.equal(curvature_index(broken_at_the_probe, latents(), 1.0, rho=0.1), zeros)
    assert torch.equal(curvature_index(mixture(), 2 * latents(), 2.0, rho=0), zeros)


def test_curvature_index_costs_2f_and_2b_and_leaves_parameters_alone() -> None:
    layer = torch.nn.Conv2d(2, 2, 3, padding=1, dtype=torch.float64)
    count = Counting(lambda x, sigma: layer(x).tanh())
    with torch.no_grad():
        curvature_index(count, latents(), 1.0, rho=0.1)
    assert (count.forward, count.backward) == (12, 12)
    assert layer.weight.requires_grad
    assert layer.weight.grad is None


@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("mean", [True, False])
def test_of_a_trajectory_h_is_the_largest_or_mean_over_the_steps_of_its_range(scaled: bool, mean: bool) -> None:
    inside = [step for step in run(mixture()) if 0.2 <= float(step.sigma) <= 3]
    assert len(inside) > 1
    H = torch.stack([curvature_index(mixture(), step.x, step.sigma, rho=0.3) for step in inside])
    if scaled:
        H = H * torch.tensor([float(step.sigma) ** 3 / 0.3 for step in inside])[:, None]
    score, _ = scored(CurvatureIndex(rho=0.3, lo=0.2, hi=3, scaled=scaled, mean=mean))
    torch.testing.assert_close(score, H.mean(dim=0) if mean else H.amax(dim=0))
    assert scored(CurvatureIndex(rho=0.3, lo=0.2, hi=3), isotropic())[0].abs().max() < 1e-9


# -- the largest eigenvalue of Hess(n) --------------------------------------------------------------------------------


def eigenvalue(density: Any, x: Tensor, sigma: float, iterations: int) -> Tensor:
    detector = LambdaMax(iterations, h=1e-6 / sigma)
    return detector.measure(state(density, sigma, x=x), noise=normal(1, *x.shape, seed=5))


@pytest.mark.parametrize("sigma", [0.3, 2.0])
def test_lambda_max_of_an_isotropic_gaussian(sigma: float) -> None:
    """Hess(n) = (I - x x^T / ||x||^2) / ((s0^2 + sigma^2) ||x||): two eigenvalues, of which H sees the lower, 0."""
    x = sigma * latents().double()
    known = 1 / ((S0**2 + sigma**2) * norms(x))
    torch.testing.assert_close(eigenvalue(isotropic(), x, sigma, 3), known, rtol=1e-4, atol=0)


def test_lambda_max_of_an_anisotropic_gaussian() -> None:
    """n = ||A x|| has Hess(n) = A^2 / n - (A^2 x)(A^2 x)^T / n^3; fewer iterations find less, never more."""
    lam, sigma, x = normal(2, 3, 3).square() + 0.01, 0.5, 0.5 * latents().double()
    A = (1 / (lam + sigma**2)).flatten()
    known = []
    for row in x.flatten(1):
        n, b = (A * row).norm(), A**2 * row
        known.append(torch.linalg.eigvalsh(torch.diag(A**2) / n - torch.outer(b, b) / n**3).abs().max())
    exact = torch.stack(known)
    torch.testing.assert_close(eigenvalue(Axes(lam), x, sigma, 18), exact, rtol=1e-4, atol=0)
    found = [eigenvalue(Axes(lam), x, sigma, k) for k in (1, 2, 4, 8)]
    for fewer, more in zip(found, [*found[1:], exact], strict=True):
        assert (fewer <= more * (1 + 1e-4)).all()
    assert (found[2] > 0.6 * exact).all()


def test_lambda_max_bounds_the_curvature_index() -> None:
    x = 2 * latents().double()
    ratio = curvature_index(mixture(), x, 2.0, rho=1e-4) / 1e-4
    assert (ratio <= eigenvalue(mixture(), x, 2.0, 18) * (1 + 1e-3)).all()
    H = scored(CurvatureIndex(rho=1e-4, lo=0.2, hi=3))[0]
    assert (scored(LambdaMax(iterations=18, lo=0.2, hi=3))[0] > 0.999 * H).all()
    assert eigenvalue(mixture(), x * math.nan, 2.0, 3).tolist() == [0.0] * 6


# -- LID --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("t", [0.02, 0.5, 7.0])
def test_lid_of_a_gaussian_is_its_expectation(t: float) -> None:
    """E ||(a (x0 + t e) - x0) / t||^2 = (1 - a)^2 ||x0||^2 / t^2 + a^2 dim, exact for draws with E e e^T = I."""
    dim, x0 = 18, normal(6, 2, 3, 3)
    axes = math.sqrt(dim) * torch.eye(dim, dtype=torch.float64).reshape(dim, 1, 2, 3, 3).expand(-1, 6, -1, -1, -1)
    a = S0**2 / (S0**2 + t**2)
    expected = (1 - a) ** 2 * x0.flatten(1).square().sum(dim=1) / t**2 + a**2 * dim
    score = lid(isotropic(), x0, t, noise=torch.cat([axes, -axes]))
    torch.testing.assert_close(score, expected, rtol=1e-10, atol=0)


def test_lid_counts_the_dimensions_of_the_data() -> None:
    """On a Gaussian that fills 3 of 18 dimensions, images of it score about 3 at a noise level far below its spread."""
    lam = torch.zeros(18, dtype=torch.float64)
    lam[:3] = 1.0
    density = Axes(lam.reshape(2, 3, 3))
    score = lid(density, lam.reshape(2, 3, 3) * normal(6, 2, 3, 3), 1e-3, noise=normal(4000, 6, 2, 3, 3, seed=1))
    torch.testing.assert_close(score, torch.full([6], 3.0, dtype=torch.float64), rtol=0.05, atol=0)


def test_the_gradient_of_lid_is_its_slope() -> None:
    x, e = latents().double(), normal(3, 6, 2, 3, 3)
    score, gradient = Lid(0.7, 3).score_and_gradient(bind(mixture(), 6), x, noise=e)
    torch.testing.assert_close(score, lid(mixture(), x, 0.7, noise=e))
    step = normal(6, 2, 3, 3, seed=9)
    ahead, behind = (lid(mixture(), x + h * step, 0.7, noise=e) for h in (1e-6, -1e-6))
    along = (gradient * step).flatten(1).sum(dim=1)
    torch.testing.assert_close(along, (ahead - behind) / 2e-6, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("shape", [(6, 2, 3, 3), (0, 6, 2, 3, 3), (1, 5, 2, 3, 3)])
def test_lid_needs_draws_for_every_image(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"^noise: "):
        Lid(1.0).score(bind(mixture(), 6), latents(), noise=normal(*shape))


# -- trajectory variance ----------------------------------------------------------------------------------------------


def test_tvf_of_euler_on_a_gaussian() -> None:
    """Every step scales the state by 1 + (t' - t) t / (s0^2 + t^2), and D = s0^2 / (s0^2 + t^2) x: so the variance."""
    scale, factors = 80.0, []
    for now, after in pairwise(LEVELS.tolist()):
        if now <= 2:
            factors.append(S0**2 / (S0**2 + now**2) * scale)
        scale *= 1 + (after - now) * now / (S0**2 + now**2)
    assert 1 < len(factors) < 10
    c = torch.tensor(factors, dtype=torch.float64)
    expected = c.var(correction=0) * latents().double().square().flatten(1).mean(dim=1)
    torch.testing.assert_close(scored(Tvf(2), isotropic())[0], expected, rtol=1e-9, atol=0)


def test_tvf_is_the_variance_over_the_steps_of_its_range() -> None:
    steps = run(mixture())
    late = torch.stack([step.denoised for step in steps if float(step.sigma) <= 1.5])
    torch.testing.assert_close(scored(Tvf(1.5))[0], late.var(dim=0, correction=0).flatten(1).mean(dim=1))


# -- LMI --------------------------------------------------------------------------------------------------------------


def test_lmi_of_a_linear_sampler_is_known() -> None:
    """On a Gaussian each Euler step scales the state: the images' covariance is that of the noise, scaled."""
    scale = 80.0
    for t, t_next in pairwise(LEVELS.tolist()):
        scale *= 1 + (t_next - t) * t / (S0**2 + t**2)
    known = scale**2 * draws(5).var(dim=0, unbiased=True).flatten(1).sum(dim=1)
    torch.testing.assert_close(scored(Lmi(eps=0.01, runs=5), isotropic())[0], known, rtol=1e-9, atol=0)
    halved = scored(Lmi(eps=1e-4, runs=5))[0]
    torch.testing.assert_close(scored(Lmi(eps=1e-5, runs=5))[0], halved, rtol=1e-2, atol=0)


# -- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("detector", [CurvatureIndex(lo=0.6, hi=0.61), LambdaMax(lo=0.6, hi=0.61), Tvf(1e-4)])
def test_a_range_without_steps_is_refused_before_the_run_and_after(detector: Detector) -> None:
    with pytest.raises(ValueError, match="no step lies at noise levels"):
        detector.check(mixture(), LEVELS[:-1].tolist())
    with pytest.raises(ValueError, match="no step lies at noise levels"):
        scored(detector)


@pytest.mark.parametrize(
    ("make", "option"),
    [
        (lambda: Lid(sigma=0), "sigma"),
        (lambda: Lid(sigma=math.nan), "sigma"),
        (lambda: Lid(draws=0), "draws"),
        (lambda: Tvf(sigma=-1), "sigma"),
        (lambda: CurvatureIndex(rho=-1), "rho"),
        (lambda: CurvatureIndex(lo=3, hi=1), "lo, hi"),
        (lambda: CurvatureIndex(rho=0).check(mixture(), [1.0]), "rho"),
        (lambda: LambdaMax(iterations=0), "iterations"),
        (lambda: LambdaMax(h=0), "h"),
        (lambda: Lmi(runs=1), "runs"),
        (lambda: Lmi(eps=0), "eps"),
        (lambda: curvature_index(mixture(), latents(), 1.0, rho=-1), "rho"),
        (lambda: curvature_index(mixture(), latents(), 0, rho=1), "sigma"),
    ],
)
def test_bad_options_are_one_line_that_names_the_option(make: Any, option: str) -> None:
    with pytest.raises(ValueError, match=f"^{option}: ") as error:
        make()
    assert "\n" not in str(error.value)


def test_draws_are_for_the_whole_batch_and_none_where_none_are_needed() -> None:
    calls: list[Tensor] = []

    def draw(x: Tensor) -> Tensor:
        calls.append(x)
        return torch.ones_like(x)

    rows = bind(mixture(), 6, randn_like=draw).rows(torch.tensor([4, 1]))
    assert draws_of(rows, latents()[[4, 1]], 2).shape == (2, 6, 2, 3, 3)
    assert draws_of(rows, latents()[[4, 1]], 0).shape == (0, 6, 2, 3, 3)
    assert len(calls) == 2
    assert close(draws(3)[:2], draws(2), tol=0)
