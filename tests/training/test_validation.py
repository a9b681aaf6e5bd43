"""Held-out loss against closed forms; the same numbers in any batch and on any number of ranks."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from torch import Tensor, nn

from training import validation
from training.dataset import ImageDataset
from training.loss import EDMLoss, VELoss
from training.networks import EDMPrecond
from training.validation import bin_draws, held_out_loss

CPU = torch.device("cpu")
SIGMA_DATA = 0.2


class Linear(nn.Module):
    """D(x; s) = sd^2 / (sd^2 + s^2) x, the exact denoiser of N(0, sd^2); with `off`, D = 0."""

    def __init__(self, *, off: bool = False) -> None:
        super().__init__()
        self.off, self.calls = off, 0
        self.eval()

    def forward(
        self, x: Tensor, sigma: Tensor, labels: Tensor | None, *, augment_labels: Tensor | None = None
    ) -> Tensor:
        self.calls += len(x)
        return 0 * x if self.off else x * SIGMA_DATA**2 / (SIGMA_DATA**2 + sigma**2)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ImageDataset:
    """48 images of white noise with standard deviation .2, in two classes."""
    path, rng = tmp_path_factory.mktemp("noise"), np.random.default_rng(0)
    for i in range(48):
        image = (rng.standard_normal((16, 16)) * SIGMA_DATA + 1) * 127.5
        PIL.Image.fromarray(image.round().clip(0, 255).astype(np.uint8)).save(path / f"{i:02d}.png")
    (path / "dataset.json").write_text(json.dumps({"labels": [[f"{i:02d}.png", i % 2] for i in range(48)]}))
    return ImageDataset(path)


def evaluated(net: nn.Module, data: ImageDataset, **options: Any) -> dict[str, Any]:
    return held_out_loss(net, EDMLoss(sigma_data=SIGMA_DATA), data, device=CPU, **options)


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    options = {"model_channels": 8, "channel_mult": [1], "num_blocks": 1, "label_dim": 2}
    net = EDMPrecond(16, 1, model_type="SongUNet", **options).eval()
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.1)
    return net


def test_the_exact_denoiser_loses_one_in_every_bin(data: ImageDataset) -> None:
    result = evaluated(Linear(), data, num_bins=4)
    assert result["val_images"] == 48
    assert result["val_loss"] == pytest.approx(1, abs=0.04)
    assert result["val_loss_by_sigma"] == pytest.approx([1] * 4, abs=0.06)
    assert result["val_loss_se"] == pytest.approx((2 / 256 / 4 / 48) ** 0.5, rel=0.5)  # chi^2 of 256 pixels


def test_the_mean_over_bins_is_the_training_loss(data: ImageDataset) -> None:
    """D = 0 loses 1 + (sd / s)^2, whose mean over log-normal s is 1 + sd^2 exp(2 P_std^2 - 2 P_mean)."""
    loss = EDMLoss(P_mean=-1, P_std=0.5, sigma_data=SIGMA_DATA)
    result = held_out_loss(Linear(off=True), loss, data, device=CPU, num_bins=16)
    assert result["val_loss"] == pytest.approx(1 + SIGMA_DATA**2 * math.exp(2 * 0.5**2 + 2), rel=0.03)


def test_bins_go_from_fine_to_coarse_noise_and_name_their_median(data: ImageDataset) -> None:
    result = evaluated(Linear(), data, num_bins=2)
    expected = [math.exp(-1.2 + 1.2 * z) for z in (-0.6744898, 0.6744898)]  # the quartiles of a normal
    assert result["val_sigma"] == pytest.approx(expected, rel=1e-3)
    ve = held_out_loss(Linear(), VELoss(), data, device=CPU, num_bins=2, num_images=1)
    assert ve["val_sigma"] == pytest.approx([0.02 * 5000**0.25, 0.02 * 5000**0.75], rel=1e-3)
    by_sigma = evaluated(Linear(off=True), data, num_bins=4)["val_loss_by_sigma"]
    assert by_sigma == sorted(by_sigma, reverse=True)


def test_draws_stay_in_their_bin() -> None:
    normal = torch.distributions.Normal(0, 1)
    for k in range(3):
        u = normal.cdf(torch.stack([bin_draws(i, 3, k, (1,))[0] for i in range(200)]))
        assert k / 3 <= u.min() < k / 3 + 0.03
        assert (k + 1) / 3 - 0.03 < u.max() <= (k + 1) / 3 + 1e-6


def test_every_evaluation_is_the_same_and_spreads_over_the_images(data: ImageDataset, network: nn.Module) -> None:
    first = evaluated(network, data, num_images=10, num_bins=3)
    torch.manual_seed(9)
    assert evaluated(network, data, num_images=10, num_bins=3) == first
    assert evaluated(network, data, num_images=10, num_bins=3, seed=1) != first
    other_batch = evaluated(network, data, num_images=10, num_bins=3, batch=3)
    assert other_batch["val_loss_by_sigma"] == pytest.approx(first["val_loss_by_sigma"], rel=1e-5)
    net = Linear()
    evaluated(net, data, num_images=10, num_bins=3)
    assert net.calls == 30
    assert json.loads(json.dumps(first)) == first


def test_labels_reach_the_network(data: ImageDataset, network: nn.Module) -> None:
    conditional = ImageDataset(data.path, cond=True)
    with_labels, without = (evaluated(network, d, num_bins=2, num_images=4) for d in (conditional, data))
    assert with_labels["val_loss"] != without["val_loss"]


def test_one_image_has_no_standard_error(data: ImageDataset) -> None:
    assert evaluated(Linear(), data, num_images=1)["val_loss_se"] is None


def test_ranks_share_the_work_and_the_numbers_are_those_of_one(
    data: ImageDataset, network: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"num_images": 10, "num_bins": 3, "batch": 4}
    alone = evaluated(network, data, **options)
    parts: list[Tensor] = []
    monkeypatch.setenv("WORLD_SIZE", "4")
    for rank in "0123":
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setattr(validation, "_summed_over_ranks", lambda t, device: parts.append(t) or t)
        evaluated(network, data, **options)
    assert torch.stack(parts).ne(0).sum(0).eq(1).all(), "every entry is the work of one rank"
    assert min(int(part.ne(0).sum()) for part in parts) >= 6
    monkeypatch.setattr(validation, "_summed_over_ranks", lambda t, device: torch.stack(parts).sum(0))
    assert evaluated(network, data, **options) == alone


def test_a_network_in_training_mode_is_refused(data: ImageDataset) -> None:
    with pytest.raises(ValueError, match="needs a network in eval mode"):
        evaluated(Linear().train(), data)
    with pytest.raises(ValueError, match="num_images=0, num_bins=8 and batch=32 must be 1 or more"):
        evaluated(Linear(), data, num_images=0)
