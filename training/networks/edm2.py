"""The U-Net of EDM2: magnitude-preserving, without normalisation groups or biases.

Module names are the parameter names of EDM2's files. It maps (x [B, C, H, W], c_noise [B or 1], class_labels
[B or 1, L] or None, augment_labels, which it has no use for) to [B, C_out, H, W]; one call is one forward pass (1 F).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout

from training.networks.architecture import Arguments, Check, Defaults, Variants, integer, list_of, number
from training.networks.blocks import CheckpointedBlock, UNet, level_resolutions
from training.networks.layers import downsample, upsample
from training.networks.mp_layers import MPConv, MPFourier, mp_cat, mp_silu, mp_sum, normalize


def or_none(check: Check) -> Check:
    return lambda value: None if value is None else check(value)


@dataclass(frozen=True)
class MPBlockSettings:
    """What all blocks of one network share."""

    emb_channels: int
    resample_filter: tuple[float, ...]
    channels_per_head: int
    dropout: float
    res_balance: float
    attn_balance: float
    clip_act: float


class MPBlock(CheckpointedBlock):
    """Residual block with optional resampling and self-attention, scaled channel by channel by the embedding [B, E].

    An encoder's block normalises its input; a decoder's has more input channels. `resample` is keep, up or down.
    """

    resample_filter: Tensor | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        s: MPBlockSettings,
        *,
        decoder: bool = False,
        resample: str = "keep",
        attention: bool = False,
    ) -> None:
        super().__init__()
        self.s, self.decoder, self.resample = s, decoder, resample
        self.num_heads = out_channels // s.channels_per_head if attention else 0
        if self.num_heads and out_channels % self.num_heads:
            raise ValueError(f"{out_channels} channels do not divide into {self.num_heads} attention heads")
        self.emb_gain = nn.Parameter(torch.zeros([]))
        self.conv_res0 = MPConv(in_channels if decoder else out_channels, out_channels, 3)
        self.emb_linear = MPConv(s.emb_channels, out_channels)
        self.conv_res1 = MPConv(out_channels, out_channels, 3)
        self.conv_skip = MPConv(in_channels, out_channels, 1) if in_channels != out_channels else None
        if self.num_heads:
            self.attn_qkv = MPConv(out_channels, out_channels * 3, 1)
            self.attn_proj = MPConv(out_channels, out_channels, 1)
        taps = torch.as_tensor(s.resample_filter, dtype=torch.float32)
        kernel2d = torch.outer(taps, taps)[None, None] / taps.sum().square()  # [1, 1, f, f]
        self.register_buffer("resample_filter", kernel2d if resample != "keep" else None, persistent=False)

    def activate(self, x: Tensor, emb: Tensor) -> Tensor:
        x = self._resampled(x)
        if not self.decoder:
            x = normalize(x if self.conv_skip is None else self.conv_skip(x), dim=1)
        y = self.conv_res0(mp_silu(x))
        c = self.emb_linear(emb, gain=self.emb_gain) + 1  # [B or 1, C]
        y = mp_silu(y * c[:, :, None, None].to(y.dtype))
        y = self.conv_res1(dropout(y, self.s.dropout, self.training))
        if self.decoder and self.conv_skip is not None:
            x = self.conv_skip(x)
        x = mp_sum(x, y, self.s.res_balance)
        if self.num_heads:
            x = mp_sum(x, self.attn_proj(cosine_attention(self.attn_qkv(x), self.num_heads)), self.s.attn_balance)
        return x.clip(-self.s.clip_act, self.s.clip_act)

    def _resampled(self, x: Tensor) -> Tensor:
        if self.resample_filter is None:
            return x
        f = self.resample_filter.to(x.dtype)
        padding = (f.shape[-1] - 1) // 2
        return upsample(x, f, padding) if self.resample == "up" else downsample(x, f, padding)


def cosine_attention(qkv: Tensor, num_heads: int) -> Tensor:
    """Attention over all positions by normalised queries, keys and values, in the type of `qkv`.

    Args:
        qkv: [B, 3C, H, W], per head in the order (channel, q|k|v).
    Returns:
        [B, C, H, W]
    """
    B, C3, H, W = qkv.shape
    q, k, v = normalize(qkv.reshape(B, num_heads, -1, 3, H * W), dim=2).unbind(3)  # [B, h, c, HW]
    a = torch.einsum("nhcq,nhck->nhqk", q, k / math.sqrt(q.shape[2])).softmax(dim=3)
    return torch.einsum("nhqk,nhck->nhcq", a, v).reshape(B, C3 // 3, H, W)


class EDM2UNet(UNet):
    """U-Net of EDM2 (its config G)."""

    arguments: ClassVar[Arguments] = {
        "model_channels": integer(4, 4096),
        "channel_mult": list_of(integer(1, 64), 1, 10),
        "channel_mult_noise": or_none(integer(1, 64)),
        "channel_mult_emb": or_none(integer(1, 64)),
        "num_blocks": integer(1, 16),
        "attn_resolutions": list_of(integer(1, 4096), 0, 16),
        "label_balance": number(0, 1),
        "concat_balance": number(0, 1),
        "resample_filter": list_of(number(-1e6, 1e6), 2, 16),
        "channels_per_head": integer(1, 4096),
        "dropout": number(0, 1),
        "res_balance": number(0, 1),
        "attn_balance": number(0, 1),
        "clip_act": number(1e-6, math.inf),
    }
    variants: ClassVar[Variants] = {"edm2": {"model_channels": 192, "channel_mult": [1, 2, 3, 4]}}
    training_defaults: ClassVar[Defaults] = {  # as EDM2's networks for ImageNet-512 were trained
        "precond": "edm2",
        "lr": 0.01,
        "lr_decay": 143.36,  # 70,000 steps of 2,048 images
        "adam_beta2": 0.99,
        "ema_std": "0.05,0.1",
        "p_mean": -0.4,
        "p_std": 1.0,
        "dropout": 0.0,
        "augment": 0.0,
    }

    def __init__(
        self,
        img_resolution: int,
        in_channels: int,
        out_channels: int,
        label_dim: int = 0,
        model_channels: int = 192,
        channel_mult: Sequence[int] = (1, 2, 3, 4),
        channel_mult_noise: int | None = None,
        channel_mult_emb: int | None = None,
        num_blocks: int = 3,
        attn_resolutions: Sequence[int] = (16, 8),
        label_balance: float = 0.5,
        concat_balance: float = 0.5,
        resample_filter: Sequence[float] = (1, 1),
        channels_per_head: int = 64,
        dropout: float = 0,
        res_balance: float = 0.3,
        attn_balance: float = 0.3,
        clip_act: float = 256,
    ) -> None:
        if len(resample_filter) % 2 or not sum(resample_filter):
            raise ValueError(f"resample_filter={list(resample_filter)} must have an even length and a sum other than 0")
        super().__init__()
        self.label_dim, self.num_blocks = label_dim, num_blocks
        self.label_balance, self.concat_balance = label_balance, concat_balance
        self.resolutions = level_resolutions(img_resolution, channel_mult)
        widths = [model_channels * mult for mult in channel_mult]
        noise_channels = model_channels * channel_mult_noise if channel_mult_noise else widths[0]
        emb_channels = model_channels * channel_mult_emb if channel_mult_emb else max(widths)
        block = MPBlockSettings(
            emb_channels, tuple(resample_filter), channels_per_head, dropout, res_balance, attn_balance, clip_act
        )
        self.emb_fourier = MPFourier(noise_channels)
        self.emb_noise = MPConv(noise_channels, emb_channels)
        self.emb_label = MPConv(label_dim, emb_channels) if label_dim else None
        self.out_gain = nn.Parameter(torch.zeros([]))

        self.enc, self.dec = nn.ModuleDict(), nn.ModuleDict()
        channels, skip_channels = in_channels + 1, []
        for level, (r, width) in enumerate(zip(self.resolutions, widths, strict=True)):
            if level == 0:
                self.enc[f"{r}x{r}_conv"] = MPConv(channels, width, 3)
                channels = width
            else:
                self.enc[f"{r}x{r}_down"] = MPBlock(channels, channels, block, resample="down")
            skip_channels.append(channels)
            for i in range(num_blocks):
                self.enc[f"{r}x{r}_block{i}"] = MPBlock(channels, width, block, attention=r in attn_resolutions)
                channels = width
                skip_channels.append(channels)

        for level, (r, width) in reversed(list(enumerate(zip(self.resolutions, widths, strict=True)))):
            if level == len(widths) - 1:
                self.dec[f"{r}x{r}_in0"] = MPBlock(channels, channels, block, decoder=True, attention=True)
                self.dec[f"{r}x{r}_in1"] = MPBlock(channels, channels, block, decoder=True)
            else:
                self.dec[f"{r}x{r}_up"] = MPBlock(channels, channels, block, decoder=True, resample="up")
            for i in range(num_blocks + 1):
                wide, attention = channels + skip_channels.pop(), r in attn_resolutions
                self.dec[f"{r}x{r}_block{i}"] = MPBlock(wide, width, block, decoder=True, attention=attention)
                channels = width
        self.out_conv = MPConv(channels, out_channels, 3)

    @classmethod
    def least_size(cls, kwargs: Mapping[str, Any]) -> tuple[int, int]:
        """The parameters of the embedding, and of the 3x3 convolutions of each block and of its mirror image, the
        latter's wider input counted once.
        """
        channels, mults = kwargs.get("model_channels", 4), kwargs.get("channel_mult", [1])
        emb = channels * (kwargs.get("channel_mult_emb") or max(mults))
        noise = channels * (kwargs.get("channel_mult_noise") or mults[0])
        blocks = kwargs.get("num_blocks", 1)
        convolutions = sum(blocks * channels * m * (36 * channels * m + 2 * emb) for m in mults)
        return emb * (noise + kwargs.get("label_dim", 0)) + convolutions, blocks * len(mults)

    def attention_resolutions(self) -> list[int]:
        """Those where a block has attention heads: narrow ones of the list have none, the coarsest may have."""
        attending = {name.split("x")[0] for part in (self.enc, self.dec) for name, block in part.items()
                     if isinstance(block, MPBlock) and block.num_heads}  # fmt: skip
        return [r for r in self.resolutions if str(r) in attending]

    def embed(self, c_noise: Tensor, class_labels: Tensor | None) -> Tensor:
        """The vector [B or 1, E] that modulates every block, in float32."""
        emb = self.emb_noise(self.emb_fourier(c_noise))
        if self.emb_label is not None:
            assert class_labels is not None
            of_label = self.emb_label(class_labels * math.sqrt(self.label_dim))
            emb = mp_sum(emb, of_label, self.label_balance)
        return mp_silu(emb)

    def forward(
        self,
        x: Tensor,
        c_noise: Tensor,
        class_labels: Tensor | None = None,
        augment_labels: Tensor | None = None,
    ) -> Tensor:
        emb = self.embed(c_noise, class_labels)
        x = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)  # the ones stand for the biases that no layer has
        x = self.traverse(x, emb, lambda x, skip: mp_cat(x, skip, self.concat_balance))
        return self.out_conv(x, gain=self.out_gain)
