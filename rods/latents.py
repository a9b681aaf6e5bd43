"""Latents: a network that draws in the coordinates of an autoencoder, and where its images become pixels.

A denoiser may carry a `codec`. Samplers, detectors, gates and correctors never ask for it: they act on latents. Whoever
shows, saves or labels images asks `decoded`, which gives images in [-1, 1] with or without a codec.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from rods.denoiser import main_of
from rods.micro_batches import MicroBatches
from rods.types import AnyDenoiser


class Codec(Protocol):
    """Latents [B, c, h, h] to images [B, C, H, H] and back. Parameters are frozen: no gradient goes through it."""

    @property
    def img_channels(self) -> int:
        """C."""

    @property
    def img_resolution(self) -> int:
        """H."""

    @property
    def identity(self) -> str:
        """A name that changes where the images would: what a run's identity says of it."""

    def decode(self, latents: Tensor) -> Tensor:
        """Images in [-1, 1]."""

    def encode(self, images: Tensor, noise: Tensor) -> Tensor:
        """Latents of images; `noise` [B, c, h, h] is unit normal, for an encoder whose latents are drawn."""


@dataclass(frozen=True, eq=False)
class Vae:
    """An AutoencoderKL of diffusers, or what has its `encode` and `decode`; latents = its own times scale, plus bias.

    `shows_unit` is for networks of EDM2, whose latents were made of images in [0, 1] and whose pixels are cut off
    instead of rounded; else the autoencoder's images are in [-1, 1], as in diffusers.
    """

    vae: Any = field(repr=False)
    scale: tuple[float, ...]  # of each channel, or of all
    bias: tuple[float, ...]
    img_channels: int
    img_resolution: int
    identity: str
    shows_unit: bool = False

    def decode(self, latents: Tensor) -> Tensor:
        own = (latents - self._all(self.bias, latents)) / self._all(self.scale, latents)
        images: Tensor = self._called(self.vae.decode, own).sample
        if self.shows_unit:  # uint8 pixels are 255 y without their fraction; `to_uint8` adds half a level to round
            images = ((255 * images.float().clamp(0, 1)).to(latents.dtype) - 128) / 127.5
        return images.to(latents.dtype).clamp(-1, 1)

    def encode(self, images: Tensor, noise: Tensor) -> Tensor:
        found = self._called(self.vae.encode, (images * 127.5 + 128) / 255 if self.shows_unit else images).latent_dist
        latents: Tensor = (found.mean + found.std * noise.to(found.mean)).to(images.dtype)
        return latents * self._all(self.scale, latents) + self._all(self.bias, latents)

    def _called(self, function: Any, x: Tensor) -> Any:
        """In the autoencoder's own precision, whatever the network's is, and without a gradient."""
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            return function(x.to(self.vae.dtype))

    @staticmethod
    def _all(values: tuple[float, ...], like: Tensor) -> Tensor:
        return like.new_tensor(values).reshape(-1, 1, 1)


def codec_of(denoiser: AnyDenoiser) -> Codec | None:
    """The codec that a denoiser, or its main network, carries; None: it draws images."""
    found: Codec | None = getattr(main_of(denoiser), "codec", None)
    return found


def image_channels(denoiser: AnyDenoiser) -> int:
    """C of the images that a denoiser's samples stand for."""
    return int((codec_of(denoiser) or denoiser).img_channels)  # type: ignore[union-attr]


def decoded(denoiser: AnyDenoiser, samples: Tensor, *, micro_batches: MicroBatches | None = None) -> Tensor:
    """The images [B, C, H, W], nominally in [-1, 1], of a denoiser's samples; without a codec, the samples themselves.

    The codec gets a few at a time (`micro_batches.MicroBatches`). Cost: no F, and a pass of the decoder.
    Raises ValueError: samples of another number of channels.
    """
    codec = codec_of(denoiser)
    if codec is None or not len(samples):
        return samples
    _check_channels("samples", samples, main_of(denoiser).img_channels)  # type: ignore[attr-defined]
    with torch.no_grad():
        parts = micro_batches or MicroBatches()
        (images,) = parts.run("decode", len(samples), lambda part: (codec.decode(samples[part]),))
    return images


def encoded(
    denoiser: AnyDenoiser, images: Tensor, noise: Tensor, *, micro_batches: MicroBatches | None = None
) -> Tensor:
    """The samples of a denoiser that stand for images in [-1, 1]: the way back of `decoded`.

    `noise` [B, c, h, w] is unit normal, in the shape of the samples.
    """
    codec = codec_of(denoiser)
    if codec is None or not len(images):
        return images
    _check_channels("images", images, codec.img_channels)
    with torch.no_grad():
        parts = micro_batches or MicroBatches()
        (latents,) = parts.run("decode", len(images), lambda part: (codec.encode(images[part], noise[part]),))
    return latents


def _check_channels(name: str, found: Tensor, channels: int) -> None:
    """ValueError: not [B, channels, H, W]."""
    if found.ndim != 4 or found.shape[1] != channels:
        raise ValueError(f"{name}: {list(found.shape)}: must be [B, {channels}, H, W]")
