"""The EDM training loss (EDM, eq. 8 and Table 1): E ||D(y + n; s) - y||^2 weighted by (s^2 + sd^2) / (s sd)^2."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class EDMLoss:
    """sigma = exp(P_mean + P_std n), n ~ N(0, 1)."""

    P_mean: float = -1.2
    P_std: float = 1.2
    sigma_data: float = 0.5

    def sigma(self, n: Tensor) -> Tensor:
        """Noise levels [B] from standard normal draws [B]."""
        return (self.P_mean + self.P_std * n).exp()

    def __call__(self, net: nn.Module, y: Tensor, labels: Tensor | None, *, n: Tensor, noise: Tensor) -> Tensor:
        """Weighted squared error [B, C, H, W]; one forward pass (1 F).

        Its expectation is 1 everywhere, at every noise level, for the exact denoiser of N(0, sigma_data^2).

        Args:
            y: images in [-1, 1], [B, C, H, W].
            n, noise: standard normal draws [B] and [B, C, H, W] (the caller owns the randomness).
        """
        s = self.sigma(n).reshape(-1, 1, 1, 1)
        weight = (s**2 + self.sigma_data**2) / (s * self.sigma_data) ** 2
        return weight * (net(y + s * noise, s, labels) - y) ** 2


def stream_seed(seed: int, counter: int, *, use: int = 0) -> int:
    """The generator seed of the image number `counter` of a run, in 32 bits: all that torch keeps of it on the CPU.

    An odd factor is invertible modulo 2^32, so no two of a run's first 2^32 images share a stream. `use` tells apart
    what is drawn for one image: 0 noise, 1 dropout.
    """
    return (seed * 0x7F4A7C15 + counter * 0xD192ED03 + use * 0x85EBCA6B) % (1 << 32)


def image_draws(seed: int, counters: range, shape: tuple[int, ...], *, flip: bool) -> tuple[Tensor, Tensor, Tensor]:
    """All randomness of the images numbered `counters`: (n [B], noise [B, *shape], flipped bool [B]).

    A function of (seed, image counter) alone: the same image gets the same noise on any rank and after any resume.
    """
    n, noise, flips = torch.empty(len(counters)), torch.empty(len(counters), *shape), torch.empty(len(counters))
    g = torch.Generator()
    for row, counter in enumerate(counters):
        g.manual_seed(stream_seed(seed, counter))
        n[row] = torch.randn([], generator=g)
        torch.randn(shape, generator=g, out=noise[row])
        flips[row] = torch.rand([], generator=g)
    return n, noise, (flips < 0.5) & flip
