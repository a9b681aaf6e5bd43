"""The EDM loss against closed forms, and its randomness as a function of (seed, image counter) alone."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from training.loss import EDMLoss, image_draws, stream_seed
from training.networks import EDMPrecond

torch.set_num_threads(1)


class Shrink(nn.Module):
    """D(x; s) = factor(s) x."""

    def __init__(self, exact_for: float | None) -> None:
        super().__init__()
        self.exact_for = exact_for

    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
        return x * (self.exact_for**2 / (self.exact_for**2 + sigma**2)) if self.exact_for else 0 * x


def gaussian_loss(net: nn.Module, loss: EDMLoss, *, n: Tensor, sigma_data: float) -> Tensor:
    """The loss [B, C, H, W] on images from N(0, sigma_data^2)."""
    g = torch.Generator().manual_seed(1)
    y = sigma_data * torch.randn(len(n), 1, 8, 8, generator=g)
    return loss(net, y, None, n=n, noise=torch.randn(y.shape, generator=g))


@pytest.mark.parametrize("sigma_data", [0.5, 0.2])
def test_the_exact_denoiser_of_a_gaussian_loses_one_at_every_noise_level(sigma_data: float) -> None:
    n = torch.linspace(-2.5, 2.5, 2000)
    loss = gaussian_loss(Shrink(sigma_data), EDMLoss(sigma_data=sigma_data), n=n, sigma_data=sigma_data)
    by_noise_level = loss.reshape(10, -1).mean(1)  # 12,800 values each: standard error .0125
    torch.testing.assert_close(by_noise_level, torch.ones(10), rtol=0, atol=0.06)


def test_the_weight_is_that_of_table_1() -> None:
    """D = 0 leaves y: E = sd^2 (s^2 + sd^2) / (s sd)^2 = 1 + (sd / s)^2."""
    for n in (-1.0, 0.0, 2.0):
        loss = gaussian_loss(Shrink(None), EDMLoss(P_mean=-0.6, P_std=1.3), n=torch.full([2000], n), sigma_data=0.5)
        assert float(loss.mean()) == pytest.approx(1 + (0.5 / math.exp(-0.6 + 1.3 * n)) ** 2, rel=0.02)


def test_gradients_of_a_batch_are_those_of_its_parts() -> None:
    """What accumulation and several ranks stand on."""
    torch.manual_seed(0)
    net = EDMPrecond(8, 1, model_type="SongUNet", model_channels=8, channel_mult=[1], num_blocks=1, dropout=0)
    y = torch.rand(4, 1, 8, 8) * 2 - 1
    for part in (4, 2, 1):
        for start in range(0, 4, part):
            n, noise, _ = image_draws(7, range(100 + start, 100 + start + part), (1, 8, 8), flip=False)
            (EDMLoss()(net, y[start : start + part], None, n=n, noise=noise).sum() / 4).backward()
        gradients = torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])
        net.zero_grad()
        if part == 4:
            whole = gradients
            assert whole.norm() > 0
    torch.testing.assert_close(gradients, whole, rtol=1e-4, atol=1e-5)


def test_draws_depend_on_seed_and_counter_alone() -> None:
    whole = image_draws(3, range(10, 18), (1, 4, 4), flip=True)
    torch.manual_seed(123)
    torch.randn(7)
    parts = [image_draws(3, range(start, start + 2), (1, 4, 4), flip=True) for start in (10, 12, 14, 16)]
    for i in range(3):
        assert torch.equal(whole[i], torch.cat([p[i] for p in parts]))
    assert not torch.equal(whole[1], image_draws(4, range(10, 18), (1, 4, 4), flip=True)[1])
    assert len(set(whole[0].tolist())) == 8
    assert image_draws(3, range(10, 18), (1, 4, 4), flip=False)[2].sum() == 0


def test_draws_are_standard_normal_and_independent() -> None:
    n, noise, flips = image_draws(0, range(20_000), (1, 2, 1), flip=True)
    e = noise.flatten(1)[:, 0]
    normal = torch.distributions.Normal(0, 1).cdf(n.sort().values)
    ks = (normal - (torch.arange(20_000) + 0.5) / 20_000).abs().max() * 20_000**0.5
    assert ks < 2  # beyond 1.95 once in a thousand
    for a, b in [(n[:-1], n[1:]), (n[:-64], n[64:]), (n, e), (n, flips.float() - 0.5), (e[:-1], e[1:])]:
        assert abs(float(torch.corrcoef(torch.stack([a, b]))[0, 1])) * 20_000**0.5 < 4
    assert abs(float(flips.float().mean()) - 0.5) < 0.015


def test_streams_differ_in_the_32_bits_that_torch_keeps() -> None:
    seeds = [stream_seed(seed, counter, use=use) for seed in (0, 1) for use in (0, 1) for counter in range(20_000)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= s < 2**32 for s in (*seeds[:10], stream_seed(2**32 - 1, 10**12, use=1)))
