"""Images of files as a network's samples: pixels as values, or as the latents that stand for them."""

from __future__ import annotations

import torch
from torch import Tensor

from rods.bench.pooled import values_of
from rods.latents import codec_of, encoded
from rods.runs.images import U8
from rods.types import Denoiser, state_dtype
from torch_utils.rng import SeedStreams


def image_shape(denoiser: Denoiser) -> tuple[int, int, int]:
    """(C, H, W) of the images that a network's samples stand for."""
    shown = codec_of(denoiser) or denoiser
    return shown.img_channels, shown.img_resolution, shown.img_resolution


def samples_of(denoiser: Denoiser, pixels: U8, streams: SeedStreams) -> Tensor:
    """Samples [B, c, h, w] of images [B, C, H, W]; an encoder's latents are drawn from the streams' second."""
    x = torch.from_numpy(values_of(pixels)).to(streams.device, state_dtype(streams.device))
    if codec_of(denoiser) is None:
        return x
    h = denoiser.img_resolution
    return encoded(denoiser, x, streams.second().randn((denoiser.img_channels, h, h), dtype=x.dtype))
