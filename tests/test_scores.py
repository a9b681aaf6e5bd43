"""Scores against closed forms: lid and tvf on a Gaussian, lambda_max where Hess(n) is known; second streams."""

from __future__ import annotations

import math

import pytest
import torch
from exact import Axes, Counting, latents, mixture
from torch import Tensor

from rods import (
    Point,
    SigmaWindow,
    TrajectoryVariance,
    bind,
    curvature_index,
    gaussian,
    lambda_max,
    lid,
    trajectory,
    tvf,
)
from rods.schedules import edm_grid
from torch_utils.rng import SECOND, SeedStreams

CPU = torch.device("cpu")
S0 = 0.5


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def isotropic():  # type: ignore[no-untyped-def]
    return gaussian(torch.zeros(2, 3, 3), S0)


# -- lid --------------------------------------------------------------------------------------------------------------


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
    x0 = lam.reshape(2, 3, 3) * normal(6, 2, 3, 3)
    score = lid(density, x0, 1e-3, noise=normal(4000, 6, 2, 3, 3, seed=1))
    torch.testing.assert_close(score, torch.full([6], 3.0, dtype=torch.float64), rtol=0.05, atol=0)


def test_lid_knows_no_mates_and_costs_its_draws() -> None:
    x0, noise = normal(6, 2, 3, 3), normal(5, 6, 2, 3, 3, seed=1)
    counting = Counting(mixture())
    denoise = bind(counting, 6)
    together = lid(denoise, x0, 0.7, noise=noise)
    assert denoise.forward.tolist() == [5] * 6
    assert (counting.forward, counting.backward) == (30, 0)
    for b in range(6):
        alone = lid(mixture(), x0[b, None], 0.7, noise=noise[:, b, None])
        torch.testing.assert_close(alone[0], together[b], rtol=1e-12, atol=0)


@pytest.mark.parametrize("sigma", [0, -1, math.nan, math.inf])
def test_lid_needs_a_noise_level(sigma: float) -> None:
    with pytest.raises(ValueError, match=f"sigma: {sigma} is not a noise level"):
        lid(mixture(), latents(), sigma, noise=normal(1, 6, 2, 3, 3))


@pytest.mark.parametrize("shape", [(6, 2, 3, 3), (0, 6, 2, 3, 3), (1, 5, 2, 3, 3)])
def test_lid_needs_draws_for_every_image(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"noise: shape .* will not do"):
        lid(mixture(), latents(), 1.0, noise=normal(*shape))


# -- trajectory variance ----------------------------------------------------------------------------------------------


def test_tvf_of_euler_on_a_gaussian() -> None:
    """Every step scales the state by 1 + (t' - t) t / (s0^2 + t^2), and D = s0^2 / (s0^2 + t^2) x: so the variance."""
    t = torch.cat([edm_grid(30, sigma_min=0.01, sigma_max=20, time_rho=7), torch.zeros(1, dtype=torch.float64)])
    x, late, scale, factors = normal(6, 2, 3, 3), slice(15, 30), 20.0, []
    for now, after in zip(t[:-1].tolist(), t[1:].tolist(), strict=True):
        factors.append(S0**2 / (S0**2 + now**2) * scale)
        scale *= 1 + (after - now) * now / (S0**2 + now**2)
    c = torch.tensor(factors[late], dtype=torch.float64)
    expected = c.var(correction=0) * x.square().flatten(1).mean(dim=1)
    score = tvf(trajectory(isotropic(), 20 * x, t))
    torch.testing.assert_close(score, expected, rtol=1e-9, atol=0)


def test_tvf_of_the_exact_path_of_a_gaussian() -> None:
    """Euler's converges to that of x(t) = x(T) sqrt((s0^2 + t^2) / (s0^2 + T^2)), of first order in 1 / N."""
    errors, window = [], SigmaWindow(0.1, 1.0)
    for N in (200, 400):
        t = edm_grid(N, sigma_min=0.01, sigma_max=20, time_rho=7)
        x = normal(3, 2, 3, 3)
        steps = list(trajectory(isotropic(), 20 * x, t))
        inside = t[:-1][(t[:-1] >= 0.1) & (t[:-1] <= 1.0)]
        c = 20 * S0**2 / ((S0**2 + inside**2) * (S0**2 + 20**2)).sqrt()
        expected = c.var(correction=0) * x.square().flatten(1).mean(dim=1)
        errors.append(float((tvf(steps, window=window) / expected - 1).abs().max()))
    assert errors[0] < 0.1
    assert errors[1] == pytest.approx(errors[0] / 2, rel=0.1)


def test_tvf_is_free_and_knows_its_steps() -> None:
    t = edm_grid(8, sigma_min=0.01, sigma_max=20)
    counting = Counting(mixture())
    steps = list(trajectory(counting, 20 * latents(), t))
    calls = counting.calls
    late = torch.stack([step.denoised for step in steps[4:]])
    torch.testing.assert_close(tvf(steps), late.var(dim=0, correction=0).flatten(1).mean(dim=1))
    assert counting.calls == calls == 7
    assert tvf(steps[:5]).tolist() == [0.0] * 6  # one step varies not
    with pytest.raises(ValueError, match="window: no step lies in"):
        TrajectoryVariance(SigmaWindow(50, 60)).score()
    with pytest.raises(ValueError, match=r"window: .* is not a range"):
        TrajectoryVariance((0.9, 0.1))


# -- the largest eigenvalue of Hess(n) --------------------------------------------------------------------------------


def eigenvalue(density, x: Tensor, sigma: float, iterations: int, h: float = 1e-6, seed: int = 5) -> Tensor:  # type: ignore[no-untyped-def]
    denoise = bind(density, len(x))
    detect = lambda_max(iterations, h=h, randn_like=lambda like: normal(*like.shape, seed=seed))
    return detect(denoise, None, Point(denoise, x, torch.tensor(sigma, dtype=torch.float64)))


@pytest.mark.parametrize("sigma", [0.3, 2.0])
def test_lambda_max_of_an_isotropic_gaussian(sigma: float) -> None:
    """Hess(n) = (I - x x^T / ||x||^2) / ((s0^2 + sigma^2) ||x||): two eigenvalues, of which H sees the lower, 0."""
    x = sigma * latents()
    known = 1 / ((S0**2 + sigma**2) * x.flatten(1).norm(dim=1))
    torch.testing.assert_close(eigenvalue(isotropic(), x, sigma, 3), known, rtol=1e-4, atol=0)


def test_lambda_max_of_an_anisotropic_gaussian() -> None:
    """n = ||A x|| has Hess(n) = A^2 / n - (A^2 x)(A^2 x)^T / n^3."""
    lam, sigma, x = normal(2, 3, 3).square() + 0.01, 0.5, 0.5 * latents()
    A = (1 / (lam + sigma**2)).flatten()
    known, flat = [], x.flatten(1)
    for row in flat:
        n, b = (A * row).norm(), A**2 * row
        known.append(torch.linalg.eigvalsh(torch.diag(A**2) / n - torch.outer(b, b) / n**3).abs().max())
    exact = torch.stack(known)
    torch.testing.assert_close(eigenvalue(Axes(lam), x, sigma, 18), exact, rtol=1e-4, atol=0)
    found = [eigenvalue(Axes(lam), x, sigma, k) for k in (1, 2, 4, 8)]
    for fewer, more in zip(found, [*found[1:], exact], strict=True):
        assert (fewer <= more * (1 + 1e-4)).all()
    assert (found[2] > 0.6 * exact).all()


def test_lambda_max_bounds_the_curvature_index() -> None:
    x = 2 * latents()
    ratio = curvature_index(mixture(), x, 2.0, rho=1e-4) / 1e-4
    bound = eigenvalue(mixture(), x, 2.0, 18)
    assert (ratio <= bound * (1 + 1e-3)).all()


def test_lambda_max_costs_what_it_says_and_knows_no_mates() -> None:
    counting, x = Counting(mixture()), 2 * latents()
    denoise = bind(counting, 6)
    detect = lambda_max(3, randn_like=lambda like: normal(*like.shape, seed=5))
    cur = Point(denoise, x, torch.tensor(2.0, dtype=torch.float64))
    together = detect(denoise, None, cur)
    assert (denoise.forward.tolist(), denoise.backward.tolist()) == ([4] * 6, [4] * 6)
    assert (counting.forward, counting.backward) == (24, 24)
    index = torch.tensor([4, 1])
    part = detect(denoise.rows(index), None, cur.rows(index))
    torch.testing.assert_close(part, together[index], rtol=1e-9, atol=0)
    assert detect(denoise, None, Point(denoise, x * math.nan, cur.sigma)).tolist() == [0.0] * 6
    with pytest.raises(ValueError, match="iterations: 0 is too few"):
        lambda_max(0)
    with pytest.raises(ValueError, match="h: 0 is not a length"):
        lambda_max(h=0)


# -- second streams ---------------------------------------------------------------------------------------------------


def test_a_second_stream_is_its_seeds_own() -> None:
    streams = SeedStreams([5, 1, 2**32 + 7], CPU)
    untouched = SeedStreams([5, 1, 2**32 + 7], CPU)
    second = streams.second()
    drawn = second.randn([2, 3])
    assert torch.equal(streams.randn([2, 3]), untouched.randn([2, 3]))
    for row, seed in enumerate([5, 1, 7]):
        generator = torch.Generator().manual_seed(seed ^ SECOND)
        assert torch.equal(drawn[row], torch.randn(2, 3, generator=generator))
    assert torch.equal(drawn[1:2], SeedStreams([1], CPU).second().randn([2, 3]))
    assert len(SeedStreams([5], CPU, rows_per_seed=4).second()) == 4


def test_small_seeds_have_large_second_seeds() -> None:
    """So no two streams of a run with seeds below 2^28 are the same."""
    assert min(seed ^ SECOND for seed in (0, 2**28 - 1, *(2**k for k in range(28)))) >= 2**30
