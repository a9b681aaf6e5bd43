"""Exact denoisers: Tweedie's formula, special cases, normalisation, validation."""

from __future__ import annotations

import math

import pytest
import torch
from exact import latents, mixture
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rods import Mixture, finite_dataset, gaussian


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=30, deadline=None)
@given(sigma=st.floats(0.05, 80), seed=st.integers(0, 99), which=st.sampled_from(["mixture", "gaussian", "data"]))
def test_tweedie(sigma: float, seed: int, which: str) -> None:
    """(D(x; sigma) - x) / sigma^2 = grad log p_sigma(x)."""
    density = {"mixture": mixture(), "gaussian": gaussian(draw(2, 3, 3), 0.7), "data": finite_dataset(draw(5, 2, 3, 3))}
    x = (sigma * draw(4, 2, 3, 3, seed=seed)).requires_grad_(True)
    p = density[which]
    (score,) = torch.autograd.grad(p.log_density(x, sigma).sum(), x)
    torch.testing.assert_close((p(x, sigma) - x) / sigma**2, score, rtol=1e-7, atol=1e-8 / sigma**2)


def test_mixture_by_the_definition() -> None:
    """r_k and D written out with distances and exponentials."""
    p, x, sigma = mixture(), latents(), torch.tensor(0.6, dtype=torch.float64)
    var = p.s0**2 + sigma**2
    square = (x[:, None] - p.mu).flatten(2).square().sum(dim=2)  # [B, K]
    joint = p.weights * (-square / (2 * var)).exp()
    r = (joint / joint.sum(dim=1, keepdim=True))[:, :, None, None, None]
    expected = (r * (p.mu + p.s0**2 / var * (x[:, None] - p.mu))).sum(dim=1)
    torch.testing.assert_close(p(x, sigma), expected, rtol=1e-12, atol=1e-12)
    log_p = joint.sum(dim=1).log() - 9 * (2 * math.pi * var).log()
    torch.testing.assert_close(p.log_density(x, sigma), log_p, rtol=1e-12, atol=1e-12)


def test_gaussian_is_linear() -> None:
    mean, x = draw(2, 3, 3), draw(4, 2, 3, 3, seed=1)
    D = gaussian(mean, 0.7)(x, torch.tensor(2.0, dtype=torch.float64))
    torch.testing.assert_close(D, mean + 0.49 / 4.49 * (x - mean), rtol=1e-13, atol=1e-13)


def test_finite_dataset_at_both_ends_of_the_noise() -> None:
    images = draw(5, 2, 3, 3)
    p = finite_dataset(images)
    torch.testing.assert_close(p(images + 1e-3, 1e-2), images, rtol=0, atol=1e-12)  # the nearest image
    torch.testing.assert_close(p(images, 1e6), images.mean(dim=0).expand_as(images), rtol=0, atol=1e-9)


def test_protocol_attributes() -> None:
    p = mixture()
    assert (p.img_channels, p.img_resolution, p.label_dim) == (2, 3, 0)
    assert (p.sigma_min, p.sigma_max) == (0, math.inf)
    assert p.weights.sum() == pytest.approx(1)
    assert p.round_sigma(torch.tensor(0.3)) == torch.tensor(0.3)
    assert p(latents().float(), 1.0).dtype == torch.float64


def test_impossible_densities_are_refused() -> None:
    with pytest.raises(ValueError, match="mu, weights"):
        Mixture(draw(4, 18), torch.ones(4), 0.1)
    with pytest.raises(ValueError, match="mu, weights"):
        Mixture(draw(4, 2, 3, 3), torch.ones(3), 0.1)
    with pytest.raises(ValueError, match="weights, s0"):
        Mixture(draw(4, 2, 3, 3), torch.zeros(4), 0.1)
    with pytest.raises(ValueError, match="weights, s0"):
        Mixture(draw(4, 2, 3, 3), torch.ones(4), -0.1)
