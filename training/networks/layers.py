"""The layers of EDM-type U-Nets; attribute names are the parameter names of EDM's files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Init:
    """How a layer's weights and biases start: `mode` fixes the distribution, the two scales multiply it."""

    mode: str = "kaiming_normal"
    weight: float = 1.0
    bias: float = 0.0

    def draw(self, shape: Sequence[int], fan_in: int, fan_out: int) -> Tensor:
        match self.mode:
            case "xavier_uniform":
                return math.sqrt(6 / (fan_in + fan_out)) * (torch.rand(*shape) * 2 - 1)
            case "kaiming_uniform":
                return math.sqrt(3 / fan_in) * (torch.rand(*shape) * 2 - 1)
            case "kaiming_normal":
                return math.sqrt(1 / fan_in) * torch.randn(*shape)
        raise AssertionError(f"unknown initialisation {self.mode!r}")


class Linear(nn.Module):
    """y = x W^T + b, with weight [out, in]."""

    def __init__(self, in_features: int, out_features: int, *, bias: bool = True, init: Init | None = None) -> None:
        super().__init__()
        init = init or Init()
        fans = {"fan_in": in_features, "fan_out": out_features}
        self.weight = nn.Parameter(init.draw([out_features, in_features], **fans) * init.weight)
        self.bias = nn.Parameter(init.draw([out_features], **fans) * init.bias) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))


class Conv2d(nn.Module):
    """Convolution with optional x2 resampling by a separable filter; `kernel=0` resamples only.

    *up* and *down* filter first and convolve after; the *fused* variant shares the padding between the two.
    """

    resample_filter: Tensor | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        *,
        bias: bool = True,
        up: bool = False,
        down: bool = False,
        resample_filter: Sequence[int] = (1, 1),
        fused_resample: bool = False,
        init: Init | None = None,
    ) -> None:
        assert not (up and down)
        super().__init__()
        init = init or Init()
        self.in_channels, self.out_channels = in_channels, out_channels
        self.up, self.down, self.fused_resample = up, down, fused_resample
        fans = {"fan_in": in_channels * kernel * kernel, "fan_out": out_channels * kernel * kernel}
        shape = [out_channels, in_channels, kernel, kernel]
        self.weight = nn.Parameter(init.draw(shape, **fans) * init.weight) if kernel else None
        self.bias = nn.Parameter(init.draw([out_channels], **fans) * init.bias) if kernel and bias else None
        taps = torch.as_tensor(resample_filter, dtype=torch.float32)
        kernel2d = torch.outer(taps, taps)[None, None] / taps.sum().square()  # [1, 1, f, f]
        self.register_buffer("resample_filter", kernel2d if up or down else None)

    def forward(self, x: Tensor) -> Tensor:
        w = None if self.weight is None else self.weight.to(x.dtype)
        b = None if self.bias is None else self.bias.to(x.dtype)
        w_pad = 0 if w is None else w.shape[-1] // 2
        if self.resample_filter is None:
            return x if w is None else F.conv2d(x, w, b, padding=w_pad)
        f = self.resample_filter.to(x.dtype)
        f_pad = (f.shape[-1] - 1) // 2
        if not self.fused_resample or w is None:
            x = upsample(x, f, f_pad) if self.up else downsample(x, f, f_pad)
            return x if w is None else F.conv2d(x, w, b, padding=w_pad)
        if self.up:
            return F.conv2d(upsample(x, f, max(f_pad - w_pad, 0)), w, b, padding=max(w_pad - f_pad, 0))
        return downsample(F.conv2d(x, w, b, padding=w_pad + f_pad), f, 0)


def upsample(x: Tensor, f: Tensor, padding: int) -> Tensor:
    """[B, C, H, W] to twice the size by the filter f [1, 1, k, k]."""
    C = x.shape[1]
    return F.conv_transpose2d(x, (f * 4).expand(C, 1, -1, -1), stride=2, padding=padding, groups=C)


def downsample(x: Tensor, f: Tensor, padding: int) -> Tensor:
    """[B, C, H, W] to half the size by the filter f [1, 1, k, k]."""
    C = x.shape[1]
    return F.conv2d(x, f.expand(C, 1, -1, -1), stride=2, padding=padding, groups=C)


class GroupNorm(nn.Module):
    """Group normalisation with min(32, C // 4) groups, so at least four channels a group."""

    def __init__(self, num_channels: int, *, eps: float = 1e-5) -> None:
        super().__init__()
        if num_channels < 4:
            raise ValueError(f"a normalised layer needs at least 4 channels, not {num_channels}; give more channels")
        self.num_groups = min(32, num_channels // 4)
        if num_channels % self.num_groups:
            raise ValueError(
                f"{num_channels} channels do not split into {self.num_groups} groups; use multiples of 4 (32 above 128)"
            )
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(num_channels))
        self.bias = nn.Parameter(torch.zeros(num_channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.group_norm(x, self.num_groups, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)


class PositionalEmbedding(nn.Module):
    """[cos, sin] of c * (1/10000)^(i / (n/2 - endpoint)), i < n/2."""

    def __init__(self, num_channels: int, *, endpoint: bool = False) -> None:
        super().__init__()
        self.num_channels, self.endpoint = num_channels, endpoint

    def forward(self, c: Tensor) -> Tensor:
        half = self.num_channels // 2
        i = torch.arange(half, dtype=torch.float32, device=c.device) / (half - int(self.endpoint))
        phase = torch.outer(c, ((1 / 10000) ** i).to(c.dtype))  # [B, n/2]
        return torch.cat([phase.cos(), phase.sin()], dim=1)


class FourierEmbedding(nn.Module):
    """[cos, sin] of 2 pi f c with fixed random frequencies f ~ 16 N(0, 1)."""

    freqs: Tensor

    def __init__(self, num_channels: int, *, scale: float = 16) -> None:
        super().__init__()
        self.register_buffer("freqs", torch.randn(num_channels // 2) * scale)

    def forward(self, c: Tensor) -> Tensor:
        phase = torch.outer(c, (2 * torch.pi * self.freqs).to(c.dtype))  # [B, n/2]
        return torch.cat([phase.cos(), phase.sin()], dim=1)


def self_attention(qkv: Tensor, num_heads: int) -> Tensor:
    """Attention over all positions; weights in float32, written in plain operations so that forward mode works.

    Args:
        qkv: [B, 3C, H, W], per head in the order (channel, q|k|v).
    Returns:
        [B, C, H, W]
    """
    B, C3, H, W = qkv.shape
    head_channels = C3 // 3 // num_heads
    q, k, v = qkv.reshape(B * num_heads, head_channels, 3, H * W).unbind(2)  # [B*h, c, HW]
    logits = torch.einsum("ncq,nck->nqk", q.float(), k.float() / math.sqrt(head_channels))
    a = torch.einsum("nqk,nck->ncq", logits.softmax(dim=2).to(v.dtype), v)
    return a.reshape(B, C3 // 3, H, W)
