"""Magnitude-preserving layers (EDM2): what they are given at unit magnitude, they return at unit magnitude.

Equation numbers are those of Karras et al., "Analyzing and Improving the Training Dynamics of Diffusion Models"
(arXiv 2312.02696).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPS = 1e-4  # of a norm that may be zero


def normalize(x: Tensor, dim: int | None = None) -> Tensor:
    """x at root mean square 1 over the axis `dim`, or over all but the first (Eqs. 45-47); the norm is in float32."""
    axes = list(range(1, x.ndim)) if dim is None else [dim]
    norm = torch.linalg.vector_norm(x, dim=axes, keepdim=True, dtype=torch.float32)
    rms = norm * math.sqrt(norm.numel() / x.numel())
    return x / (EPS + rms).to(x.dtype)


def mp_silu(x: Tensor) -> Tensor:
    """SiLU over its root mean square on unit normal numbers (Eq. 81)."""
    return F.silu(x) / 0.596


def mp_sum(a: Tensor, b: Tensor, t: float) -> Tensor:
    """A weighted sum, a at t = 0 and b at t = 1, of unit magnitude where both are and do not correlate (Eq. 88)."""
    return a.lerp(b.to(a.dtype), t) / math.sqrt((1 - t) ** 2 + t**2)


def mp_cat(a: Tensor, b: Tensor, t: float) -> Tensor:
    """[B, Na + Nb, H, W]: `a` and `b` behind each other, with shares 1 - t and t of the whole (Eq. 103)."""
    Na, Nb = a.shape[1], b.shape[1]
    C = math.sqrt((Na + Nb) / ((1 - t) ** 2 + t**2))
    return torch.cat([a * (C * (1 - t) / math.sqrt(Na)), b * (C * t / math.sqrt(Nb))], dim=1)


class MPConv(nn.Module):
    """Convolution (kernel 1 or 3) or linear layer (no kernel) without bias, by weights that are normalised in use.

    Only the direction of a weight vector matters; how it is scaled does not (`normalize_weights` holds it at 1).
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int | None = None) -> None:
        super().__init__()
        shape = [out_channels, in_channels] + ([] if kernel is None else [kernel, kernel])
        self.weight = nn.Parameter(torch.randn(shape))

    def forward(self, x: Tensor, gain: Tensor | float = 1.0) -> Tensor:
        w = normalize(self.weight.to(torch.float32))
        w = (w * (gain / math.sqrt(w[0].numel()))).to(x.dtype)
        return F.linear(x, w) if w.ndim == 2 else F.conv2d(x, w, padding=w.shape[-1] // 2)


@torch.no_grad()
def normalize_weights(net: nn.Module) -> None:
    """Forced weight normalisation (Eq. 66), before a training step: no weight grows, so Adam's steps keep their size.

    Only magnitude-preserving layers have such weights; what the network computes stays.
    """
    for module in net.modules():
        if isinstance(module, MPConv):
            module.weight.copy_(normalize(module.weight))


class MPFourier(nn.Module):
    """sqrt(2) cos(c f + phase) with fixed random frequencies f ~ 2 pi N(0, 1) and phases: [B] -> [B, n]."""

    freqs: Tensor
    phases: Tensor

    def __init__(self, num_channels: int, *, bandwidth: float = 1.0) -> None:
        super().__init__()
        self.register_buffer("freqs", 2 * math.pi * bandwidth * torch.randn(num_channels))
        self.register_buffer("phases", 2 * math.pi * torch.rand(num_channels))

    def forward(self, c: Tensor) -> Tensor:
        angle = torch.outer(c.to(torch.float32), self.freqs.to(torch.float32)) + self.phases.to(torch.float32)
        return (angle.cos() * math.sqrt(2)).to(c.dtype)
