"""The losses against closed forms, and their randomness as a function of (seed, image counter) alone."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from torch_utils.persistence import WIRE_CLASSES
from training.loss import EDM2Loss, EDMLoss, Loss, VELoss, VPLoss, build_loss, image_draws, stream_seed
from training.networks import PRECOND_OPTIONS, EDMPrecond, Precond, VPPrecond


class Shrink(nn.Module):
    """D(x; s) = factor(s) x."""

    def __init__(self, exact_for: float | None) -> None:
        super().__init__()
        self.exact_for = exact_for

    def forward(
        self, x: Tensor, sigma: Tensor, labels: Tensor | None, *, augment_labels: Tensor | None = None
    ) -> Tensor:
        return x * (self.exact_for**2 / (self.exact_for**2 + sigma**2)) if self.exact_for else 0 * x


def gaussian_loss(net: nn.Module, loss: Loss, *, n: Tensor, sigma_data: float) -> Tensor:
    """The loss [B, C, H, W] on images from N(0, sigma_data^2)."""
    g = torch.Generator().manual_seed(1)
    y = sigma_data * torch.randn(len(n), 1, 8, 8, generator=g)
    return loss(net, y, None, n=n, noise=torch.randn(y.shape, generator=g))


# --- what is expected of the exact denoiser -------------------------------------------------------------------------


@pytest.mark.parametrize("sigma_data", [0.5, 0.2])
def test_the_exact_denoiser_of_a_gaussian_loses_one_at_every_noise_level(sigma_data: float) -> None:
    n = torch.linspace(-2.5, 2.5, 2000)
    loss = gaussian_loss(Shrink(sigma_data), EDMLoss(sigma_data=sigma_data), n=n, sigma_data=sigma_data)
    by_noise_level = loss.reshape(10, -1).mean(1)  # 12,800 values each: standard error .0125
    torch.testing.assert_close(by_noise_level, torch.ones(10), rtol=0, atol=0.06)


@pytest.mark.parametrize("loss", [VELoss(), VPLoss()], ids=["ve", "vp"])
def test_the_exact_denoiser_of_a_gaussian_loses_its_posterior_variance_over_sigma_squared(loss: Loss) -> None:
    """E ||D - y||^2 = (sd s)^2 / (sd^2 + s^2), so the loss is sd^2 / (sd^2 + s^2)."""
    n = torch.linspace(-2.5, 2.5, 2000)
    expected = 0.25 / (0.25 + loss.sigma(n) ** 2)
    found = gaussian_loss(Shrink(0.5), loss, n=n, sigma_data=0.5).mean(dim=(1, 2, 3)) / expected
    torch.testing.assert_close(found.reshape(10, -1).mean(1), torch.ones(10), rtol=0, atol=0.06)


def test_the_weight_is_that_of_table_1() -> None:
    """D = 0 leaves y: E = sd^2 (s^2 + sd^2) / (s sd)^2 = 1 + (sd / s)^2."""
    for n in (-1.0, 0.0, 2.0):
        loss = gaussian_loss(Shrink(None), EDMLoss(P_mean=-0.6, P_std=1.3), n=torch.full([2000], n), sigma_data=0.5)
        assert float(loss.mean()) == pytest.approx(1 + (0.5 / math.exp(-0.6 + 1.3 * n)) ** 2, rel=0.02)


# --- the distribution of noise levels -------------------------------------------------------------------------------

QUANTILES = (0.001, 0.1, 0.5, 0.9, 0.999)


def test_noise_levels_of_edm_are_log_normal() -> None:
    n = torch.distributions.Normal(0, 1).icdf(torch.tensor(QUANTILES))
    expected = [math.exp(-1.2 + 1.2 * z) for z in (-3.090232, -1.281552, 0, 1.281552, 3.090232)]
    torch.testing.assert_close(EDMLoss().sigma(n), torch.tensor(expected), rtol=1e-5, atol=0)


def test_noise_levels_of_ve_are_log_uniform() -> None:
    n = torch.distributions.Normal(0, 1).icdf(torch.tensor(QUANTILES))
    expected = [0.02 ** (1 - q) * 100**q for q in QUANTILES]
    torch.testing.assert_close(VELoss().sigma(n), torch.tensor(expected), rtol=1e-5, atol=0)


def test_noise_levels_of_vp_come_from_uniform_times() -> None:
    """t(sigma) of the network undoes sigma(t)."""
    n = torch.distributions.Normal(0, 1).icdf(torch.tensor(QUANTILES))
    t = VPPrecond(8, 1, model_channels=8, channel_mult=[1], num_blocks=1).sigma_inv(VPLoss().sigma(n))
    torch.testing.assert_close(t, torch.tensor([1e-5 + q * (1 - 1e-5) for q in QUANTILES]), rtol=1e-3, atol=0)


def test_the_range_of_noise_levels_is_the_network_s() -> None:
    extreme = torch.tensor([-40.0, 40.0])
    assert VELoss().sigma(extreme).tolist() == pytest.approx([0.02, 100])
    low, high = VPLoss().sigma(extreme).tolist()
    assert low == pytest.approx(math.sqrt(math.expm1(1e-6 + 19.9e-10 / 2)), rel=1e-5)
    assert high == pytest.approx(152.16697693, rel=1e-5)  # sigma_max of the published VP networks
    net = VPPrecond(8, 1, model_channels=8, channel_mult=[1], num_blocks=1)
    assert net.sigma_min <= low <= high <= net.sigma_max * (1 + 1e-6)


# --- names and constants --------------------------------------------------------------------------------------------


def test_the_losses_are_those_that_edm_s_files_name() -> None:
    losses = {name: c.loss for name, c in PRECOND_OPTIONS.items()}
    assert losses == {"vp": VPLoss, "ve": VELoss, "edm": EDMLoss, "edm2": EDM2Loss}
    assert {loss.__name__ for loss in losses.values() if loss} <= WIRE_CLASSES


def test_a_loss_shares_the_constants_of_its_network() -> None:
    assert build_loss(EDMLoss, {"sigma_data": 0.2, "dropout": 0.1}, P_mean=-0.6) == EDMLoss(P_mean=-0.6, sigma_data=0.2)
    assert build_loss(EDMLoss, {}) == EDMLoss()
    assert build_loss(VELoss, {"sigma_max": 50, "img_channels": 3}, P_mean=9) == VELoss(sigma_max=50)
    assert build_loss(VPLoss, {"epsilon_t": 1e-3}) == VPLoss(epsilon_t=1e-3)


@pytest.mark.parametrize("precond", PRECOND_OPTIONS.values())
def test_every_loss_trains_its_network(precond: type[Precond]) -> None:
    torch.manual_seed(0)
    kwargs = {"model_type": "SongUNet", "model_channels": 8, "channel_mult": [1], "num_blocks": 1, "augment_dim": 9}
    net = precond(8, 1, **kwargs)
    n, noise, _ = image_draws(0, range(8), (1, 8, 8), flip=False)
    y, draws = torch.zeros(8, 1, 8, 8), {"n": n, "noise": noise}
    build_loss(net.loss, kwargs)(net, y, None, **draws, augment_labels=torch.ones(8, 9)).sum().backward()
    gradients = {k: p.grad for k, p in net.named_parameters()}
    assert all(g is not None and g.isfinite().all() for g in gradients.values())
    assert gradients[f"{net.model_name}.map_augment.weight"].norm() > 0


# --- draws ----------------------------------------------------------------------------------------------------------


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


def test_draws_are_those_of_earlier_versions() -> None:
    """A run that was started before resumes with the same noise: these are the numbers of the first version."""
    n, noise, flips = image_draws(3, range(10, 14), (1, 4, 4), flip=True)
    assert n.tolist() == [-1.33766770362854, -0.5187821388244629, -0.6364699602127075, 0.10011683404445648]
    assert flips.tolist() == [False, True, False, False]
    # 16 and more values come from vector code, whose last bits depend on the processor
    first = [0.8336923718452454, 2.3927950859069824, -0.954212486743927, -1.0612781047821045]
    torch.testing.assert_close(noise[0].flatten()[:4], torch.tensor(first), rtol=1e-5, atol=1e-6)
    assert float(noise[0].sum()) == pytest.approx(-0.8568025, abs=1e-4)


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
    uses = range(4)
    seeds = [stream_seed(seed, counter, use=use) for seed in (0, 1) for use in uses for counter in range(20_000)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= s < 2**32 for s in (*seeds[:10], stream_seed(2**32 - 1, 10**12, use=1)))


def test_the_uses_of_a_run_never_meet() -> None:
    """The streams of use 1 are those of use 0 at counters 626 million further on; the longest runs take 200 million."""
    inverse = pow(0xD192ED03, -1, 1 << 32)
    for use in (1, 2, 3):
        apart = (stream_seed(0, 0, use=use) * inverse) % (1 << 32)
        assert min(apart, (1 << 32) - apart) > 600_000_000
