"""The training losses of EDM's Table 1: E w(s) ||D(y + n; s) - y||^2, which differ in w and in how s is drawn."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Loss:
    """What the losses share: the weighted error. Each defines `sigma(n)` and `weight(sigma)`."""

    def sigma(self, n: Tensor) -> Tensor:
        """Noise levels [B] from standard normal draws [B]."""
        raise AssertionError("a loss defines its own noise levels")

    def weight(self, sigma: Tensor) -> Tensor:
        """The factor of the squared error at each noise level, in the shape of `sigma`."""
        raise AssertionError("a loss defines its own weight")

    def __call__(
        self,
        net: nn.Module,
        y: Tensor,
        labels: Tensor | None,
        *,
        n: Tensor,
        noise: Tensor,
        augment_labels: Tensor | None = None,
    ) -> Tensor:
        """Weighted squared error [B, C, H, W]; one forward pass (1 F).

        Args:
            y: images in [-1, 1], [B, C, H, W].
            labels: class labels [B, L], or None.
            n, noise: standard normal draws [B] and [B, C, H, W] (the caller owns the randomness).
            augment_labels: what `training.augment` did to each image, [B, 9], or None.
        """
        s = self.sigma(n).reshape(-1, 1, 1, 1)
        return self.weight(s) * (net(y + s * noise, s, labels, augment_labels=augment_labels) - y) ** 2


@dataclass(frozen=True)
class EDMLoss(Loss):
    """sigma = exp(P_mean + P_std n), weight (s^2 + sd^2) / (s sd)^2 (EDM, eq. 8).

    Its expectation is 1 everywhere, at every noise level, for the exact denoiser of N(0, sigma_data^2).
    """

    P_mean: float = -1.2
    P_std: float = 1.2
    sigma_data: float = 0.5

    def sigma(self, n: Tensor) -> Tensor:
        return (self.P_mean + self.P_std * n).exp()

    def weight(self, sigma: Tensor) -> Tensor:
        return (sigma**2 + self.sigma_data**2) / (sigma * self.sigma_data) ** 2


@dataclass(frozen=True)
class EDM2Loss(EDMLoss):
    """EDM's loss, each noise level by how certain the network is there: w / exp(u(s)) (D - y)^2 + u(s) (EDM2, Eq. 21).

    The u(s) that minimises it is the logarithm of the weighted error, so that all noise levels have gradients alike;
    the loss is then about 1 + u(s), and may be negative.
    """

    P_mean: float = -0.4
    P_std: float = 1.0

    def __call__(
        self,
        net: nn.Module,
        y: Tensor,
        labels: Tensor | None,
        *,
        n: Tensor,
        noise: Tensor,
        augment_labels: Tensor | None = None,
    ) -> Tensor:
        logvar: Any = net.logvar  # of EDM2Precond
        u = logvar(self.sigma(n).reshape(-1, 1, 1, 1))  # [B, 1, 1, 1]
        return super().__call__(net, y, labels, n=n, noise=noise, augment_labels=augment_labels) / u.exp() + u


@dataclass(frozen=True)
class VPLoss(Loss):
    """sigma(t) = sqrt(exp(beta_d t^2 / 2 + beta_min t) - 1) with t uniform in [epsilon_t, 1], weight 1 / s^2."""

    beta_d: float = 19.9
    beta_min: float = 0.1
    epsilon_t: float = 1e-5

    def sigma(self, n: Tensor) -> Tensor:
        t = self.epsilon_t + uniform(n) * (1 - self.epsilon_t)
        return (0.5 * self.beta_d * t**2 + self.beta_min * t).expm1().sqrt()

    def weight(self, sigma: Tensor) -> Tensor:
        return 1 / sigma**2


@dataclass(frozen=True)
class VELoss(Loss):
    """ln(sigma) uniform between ln(sigma_min) and ln(sigma_max), weight 1 / s^2."""

    sigma_min: float = 0.02
    sigma_max: float = 100.0

    def sigma(self, n: Tensor) -> Tensor:
        return self.sigma_min * (math.log(self.sigma_max / self.sigma_min) * uniform(n)).exp()

    def weight(self, sigma: Tensor) -> Tensor:
        return 1 / sigma**2


def build_loss(kind: type[Loss], init_kwargs: Mapping[str, Any], *, P_mean: float = -1.2, P_std: float = 1.2) -> Loss:
    """The loss of a network with these constructor arguments: it shares the constants of the network.

    Args:
        kind: the loss of the network's preconditioning, `net.loss`.
        init_kwargs: sigma_data of EDM, sigma_min and sigma_max of VE, beta_d, beta_min and epsilon_t of VP are read.
        P_mean, P_std: the noise levels of the EDM loss; the others have none to choose.
    """
    known = {"P_mean": P_mean, "P_std": P_std, **init_kwargs}
    return kind(**{f.name: known[f.name] for f in fields(kind) if f.name in known})


def uniform(n: Tensor) -> Tensor:
    """Uniform draws in [0, 1] from standard normal ones: one kind of draw serves every loss."""
    return torch.special.ndtr(n)


def stream_seed(seed: int, counter: int, *, use: int = 0) -> int:
    """The generator seed of the image number `counter` of a run, in 32 bits: all that torch keeps of it on the CPU.

    An odd factor is invertible modulo 2^32, so no two of a run's first 2^32 images share a stream. `use` tells apart
    what is drawn for one image: 0 noise, 1 dropout, 2 augmentation, 3 validation.
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
