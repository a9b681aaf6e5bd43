"""Held-out loss by noise level: the same images, noise levels and noise in every evaluation, so that curves compare."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from torch_utils.distributed import all_sum, shard
from training.dataset import ImageDataset
from training.loss import Loss, stream_seed


def bin_draws(index: int, num_bins: int, k: int, shape: tuple[int, ...], *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """(n [], noise [*shape]) of the image `index` in bin k: a function of these numbers and the seed alone.

    The bins share the noise levels of training into `num_bins` equally likely parts; n is drawn within its part, so
    the mean over bins estimates the training loss without bias.
    """
    g = torch.Generator().manual_seed(stream_seed(seed, index * num_bins + k, use=3))
    u = (k + torch.rand([], generator=g, dtype=torch.float64)) / num_bins
    return torch.special.ndtri(u).float().clip(-6, 6), torch.randn(shape, generator=g)


NUM_IMAGES = 256


def images_used(dataset: ImageDataset, num_images: int = NUM_IMAGES) -> list[int]:
    """The images whose loss is measured: all, or `num_images` evenly spaced ones."""
    N = min(num_images, len(dataset))
    return [i * len(dataset) // N for i in range(N)]


@torch.no_grad()
def held_out_loss(
    net: nn.Module,
    loss: Loss,
    dataset: ImageDataset,
    *,
    device: torch.device,
    num_images: int = NUM_IMAGES,
    num_bins: int = 8,
    batch: int = 32,
    seed: int = 0,
) -> dict[str, Any]:
    """The mean weighted error per pixel of `net` on held-out images, over all noise levels and by bin.

    `num_bins` forward passes (F) per image, shared by the ranks in whole chunks of `batch`: any number of ranks gives
    the same bits. Call it on every rank, under the autocast of the training, with the averaged network in eval mode.

    Args:
        dataset: the held-out images; if there are more than `num_images`, evenly spaced ones are used.
        seed: of noise levels and noise; leave it alone to compare runs, whatever their own seeds.
    Returns:
        For a line of `stats.jsonl`: `val_loss`, its standard error over images `val_loss_se`, `val_images`, and a list
        each, finest noise first, of the bins' median noise level `val_sigma` and loss `val_loss_by_sigma`.
    Raises:
        ValueError: a network in training mode, whose dropout would make the numbers random, or no work to do.
    """
    if net.training:
        raise ValueError("held_out_loss needs a network in eval mode; call net.eval() first")
    if min(num_images, num_bins, batch) < 1:
        raise ValueError(f"num_images={num_images}, num_bins={num_bins} and batch={batch} must be 1 or more")
    indices = images_used(dataset, num_images)
    N = len(indices)
    losses = torch.zeros(N, num_bins, dtype=torch.float64)
    chunks = [(k, start) for start in range(0, N, batch) for k in range(num_bins)]
    for k, start in shard(chunks):
        rows = slice(start, start + batch)
        losses[rows, k] = _image_losses(net, loss, dataset, indices[rows], num_bins, k, seed=seed, device=device).cpu()
    losses = _summed_over_ranks(losses, device)
    middle = torch.special.ndtri((torch.arange(num_bins, dtype=torch.float64) + 0.5) / num_bins)
    of_images = losses.mean(1)
    return {
        "val_loss": float(of_images.mean()),
        "val_loss_se": float(of_images.std() / N**0.5) if N > 1 else None,
        "val_images": N,
        "val_sigma": [float(f"{s:.4g}") for s in loss.sigma(middle.float())],
        "val_loss_by_sigma": losses.mean(0).tolist(),
    }


def _image_losses(
    net: nn.Module,
    loss: Loss,
    dataset: ImageDataset,
    indices: list[int],
    num_bins: int,
    k: int,
    *,
    seed: int,
    device: torch.device,
) -> Tensor:
    """[B], the mean weighted error per pixel of each image in bin k; 1 F."""
    images, labels = dataset.batch(indices)
    y = images.to(device, torch.float32) / 127.5 - 1  # [B, C, H, W]
    draws = [bin_draws(i, num_bins, k, tuple(y.shape[1:]), seed=seed) for i in indices]
    n, noise = (torch.stack(parts).to(device) for parts in zip(*draws, strict=True))
    classes = labels.to(device) if dataset.label_dim else None
    return loss(net, y, classes, n=n, noise=noise).mean(dim=(1, 2, 3))


def _summed_over_ranks(losses: Tensor, device: torch.device) -> Tensor:
    """Each entry is that of the one rank which computed it, and 0 elsewhere, so the order of the sum is no matter."""
    shared = losses.to(device) if device.type == "cuda" else losses
    all_sum(shared)
    return shared.cpu()
