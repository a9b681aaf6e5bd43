"""Densities whose denoiser is known in closed form: Gaussian, mixture of Gaussians, finite data set.

They satisfy the `Denoiser` protocol, have no bounds on the noise level, and are evaluated in float64, so that a sampler
on them can be checked to rounding. Smoothed by noise of level sigma, each is the mixture
p_sigma = sum_k w_k N(mu_k, (s0^2 + sigma^2) I); a finite data set is the case s0 = 0 (paper, section 3).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf, log, pi

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Mixture:
    """sum_k w_k N(mu_k, s0^2 I) on images: mu [K, C, H, W], weights [K] > 0 (normalised here), s0 >= 0."""

    mu: Tensor
    weights: Tensor
    s0: float
    label_dim: int = 0
    sigma_min: float = 0.0
    sigma_max: float = inf
    img_channels: int = field(init=False)
    img_resolution: int = field(init=False)

    def __post_init__(self) -> None:
        if self.mu.ndim != 4 or self.weights.shape != self.mu.shape[:1]:
            raise ValueError(
                f"mu, weights: shapes {list(self.mu.shape)} and {list(self.weights.shape)}; give [K, C, H, W] and [K]"
            )
        if not (self.weights > 0).all() or not 0 <= self.s0 < inf:
            raise ValueError(f"weights, s0: weights must be > 0 and s0 a finite number >= 0, not {self.s0}")
        object.__setattr__(self, "mu", self.mu.double())
        object.__setattr__(self, "weights", self.weights.double() / self.weights.double().sum())
        object.__setattr__(self, "img_channels", self.mu.shape[1])
        object.__setattr__(self, "img_resolution", self.mu.shape[-1])

    def round_sigma(self, sigma: Tensor) -> Tensor:
        """Every noise level is allowed."""
        return sigma

    def __call__(self, x: Tensor, sigma: Tensor | float, class_labels: Tensor | None = None) -> Tensor:
        """D(x; sigma) = sum_k r_k (mu_k + s0^2 / (s0^2 + sigma^2) (x - mu_k)), r the posterior weights."""
        x = x.double()
        var = self.s0**2 + sigma**2
        r = self._log_joint(x, var).softmax(dim=1)  # [B, K]
        centre = torch.einsum("bk,kchw->bchw", r, self.mu)
        return centre + self.s0**2 / var * (x - centre)

    def log_density(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """log p_sigma(x)  [B], normalised."""
        x = x.double()
        var = self.s0**2 + torch.as_tensor(sigma, dtype=torch.float64, device=x.device) ** 2
        dim = self.mu[0].numel()
        square = x.flatten(1).square().sum(dim=1)  # [B]
        return self._log_joint(x, var).logsumexp(dim=1) - square / (2 * var) - dim / 2 * (log(2 * pi) + var.log())

    def _log_joint(self, x: Tensor, var: Tensor | float) -> Tensor:
        """log w_k + log N(x; mu_k, var) without the terms that all k share  [B, K]."""
        mu = self.mu.flatten(1)  # [K, CHW]
        return self.weights.log() + (x.flatten(1) @ mu.T - mu.square().sum(dim=1) / 2) / var


def gaussian(mean: Tensor, std: float) -> Mixture:
    """N(mean, std^2 I), mean [C, H, W]: D = mean + std^2 / (std^2 + sigma^2) (x - mean); its ODE is solved exactly."""
    return Mixture(mean[None], mean.new_ones(1), std)


def finite_dataset(images: Tensor) -> Mixture:
    """The empirical distribution of images [K, C, H, W]: D is their posterior mean."""
    return Mixture(images, images.new_ones(len(images)), 0.0)
