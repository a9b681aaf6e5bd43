"""What the U-Nets are made of: the residual block of EDM's, the levels, labels dropped in training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, silu
from torch.utils.checkpoint import checkpoint

from training.networks.architecture import Architecture, Arguments, integer, list_of, number
from training.networks.layers import Conv2d, GroupNorm, Init, Linear, self_attention


@dataclass(frozen=True)
class BlockSettings:
    """What all residual blocks of one network share."""

    emb_channels: int
    num_heads: int | None  # None: one head per `channels_per_head` channels
    channels_per_head: int
    dropout: float
    skip_scale: float
    eps: float
    resample_filter: tuple[int, ...]
    resample_proj: bool
    adaptive_scale: bool
    init: Init
    init_zero: Init
    init_attn: Init


class CheckpointedBlock(nn.Module):
    """A residual block: (x [B, C, H, W], emb [B or 1, E]) -> [B, C_out, H', W'], by its `activate`.

    `checkpointed`: a backward pass computes the block again instead of keeping its activations (bits as without).
    """

    checkpointed = False

    def activate(self, x: Tensor, emb: Tensor) -> Tensor:
        raise AssertionError("a block defines what it computes")

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        if self.checkpointed and torch.is_grad_enabled() and x.requires_grad:
            y: Tensor = checkpoint(self.activate, x, emb, use_reentrant=False, preserve_rng_state=self.training)
            return y
        return self.activate(x, emb)


class UNetBlock(CheckpointedBlock):
    """Residual block with optional resampling and self-attention, modulated by the noise embedding [B or 1, E]."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        s: BlockSettings,
        *,
        up: bool = False,
        down: bool = False,
        attention: bool = False,
    ) -> None:
        super().__init__()
        self.dropout, self.skip_scale, self.adaptive_scale = s.dropout, s.skip_scale, s.adaptive_scale
        self.num_heads = 0 if not attention else s.num_heads or max(out_channels // s.channels_per_head, 1)
        if attention and out_channels % self.num_heads:
            raise ValueError(f"{out_channels} channels do not divide into {self.num_heads} attention heads")
        resample: dict[str, Any] = {"up": up, "down": down, "resample_filter": s.resample_filter}
        self.norm0 = GroupNorm(in_channels, eps=s.eps)
        self.conv0 = Conv2d(in_channels, out_channels, 3, init=s.init, **resample)
        self.affine = Linear(s.emb_channels, out_channels * (2 if s.adaptive_scale else 1), init=s.init)
        self.norm1 = GroupNorm(out_channels, eps=s.eps)
        self.conv1 = Conv2d(out_channels, out_channels, 3, init=s.init_zero)
        self.skip = None
        if in_channels != out_channels or up or down:
            kernel = 1 if s.resample_proj or in_channels != out_channels else 0
            self.skip = Conv2d(in_channels, out_channels, kernel, init=s.init, **resample)
        if attention:
            self.norm2 = GroupNorm(out_channels, eps=s.eps)
            self.qkv = Conv2d(out_channels, out_channels * 3, 1, init=s.init_attn)
            self.proj = Conv2d(out_channels, out_channels, 1, init=s.init_zero)

    def activate(self, x: Tensor, emb: Tensor) -> Tensor:
        # What a layer has just made, and no backward pass needs, is overwritten: the same bits, fewer new tensors.
        spare = not torch.is_grad_enabled()
        h = self.conv0(silu(self.norm0(x), inplace=spare))
        p = self.affine(emb)[:, :, None, None].to(h.dtype)  # [B or 1, C or 2C, 1, 1]
        if self.adaptive_scale:
            scale, shift = p.chunk(2, dim=1)
            h = silu(torch.addcmul(shift, self.norm1(h), scale + 1), inplace=spare)
        else:
            h = silu(self.norm1(h.add_(p)), inplace=spare)
        h = self.conv1(dropout(h, self.dropout, self.training))
        h = _add(h, x if self.skip is None else self.skip(x)).mul_(self.skip_scale)
        if self.num_heads:
            a = self_attention(self.qkv(self.norm2(h)), self.num_heads)
            h = _add(self.proj(a), h).mul_(self.skip_scale)
        return h


def _add(h: Tensor, x: Tensor) -> Tensor:
    """h + x, into `h` where the sum has its type (under autocast it may not)."""
    return h.add_(x) if h.dtype == x.dtype else h + x


class UNet(Architecture):
    """What the U-Nets tell of themselves: `enc` and `dec` hold their layers by name, in order of evaluation."""

    arguments: ClassVar[Arguments] = {
        "augment_dim": integer(0, 1024),
        "model_channels": integer(4, 4096),
        "channel_mult": list_of(integer(1, 64), 1, 10),
        "channel_mult_emb": integer(1, 64),
        "num_blocks": integer(1, 16),
        "attn_resolutions": list_of(integer(1, 4096), 0, 16),
        "dropout": number(0, 1),
        "label_dropout": number(0, 1),
    }
    resolutions: Sequence[int]
    attn_resolutions: Sequence[int]
    num_blocks: int  # of a level of the encoder; the decoder has one more
    enc: nn.ModuleDict
    dec: nn.ModuleDict

    def traverse(self, x: Tensor, emb: Tensor, join: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """Down the encoder and up the decoder, where `join` brings in what the encoder had at the same place."""
        skips = []
        for level, r in enumerate(self.resolutions):
            x = self.enc[f"{r}x{r}_conv"](x) if level == 0 else self.enc[f"{r}x{r}_down"](x, emb)
            skips.append(x)
            for i in range(self.num_blocks):
                x = self.enc[f"{r}x{r}_block{i}"](x, emb)
                skips.append(x)
        for level, r in reversed(list(enumerate(self.resolutions))):
            if level == len(self.resolutions) - 1:
                x = self.dec[f"{r}x{r}_in1"](self.dec[f"{r}x{r}_in0"](x, emb), emb)
            else:
                x = self.dec[f"{r}x{r}_up"](x, emb)
            for i in range(self.num_blocks + 1):
                x = self.dec[f"{r}x{r}_block{i}"](join(x, skips.pop()), emb)
        return x

    @classmethod
    def least_size(cls, kwargs: Mapping[str, Any]) -> tuple[int, int]:
        """The parameters of the embedding and of three of the four 3x3 convolutions of each block and of its mirror
        image in the decoder, the fourth having fewer inputs; whole networks have up to 5 times as many.
        """
        channels, mults = kwargs.get("model_channels", 4), kwargs.get("channel_mult", [1])
        emb, noise = channels * kwargs.get("channel_mult_emb", 4), channels * kwargs.get("channel_mult_noise", 1)
        blocks = kwargs.get("num_blocks", 1)
        labels = kwargs.get("label_dim", 0) + kwargs.get("augment_dim", 0)
        convolutions = sum(blocks * channels * m * (27 * channels * m + 2 * emb) for m in mults)
        return emb * (emb + noise) + labels * channels + convolutions, blocks * len(mults)

    def attention_resolutions(self) -> list[int]:
        """Those of `attn_resolutions` that are levels, and the coarsest level, whose first block always attends."""
        return [r for r in self.resolutions if r in self.attn_resolutions or r == self.resolutions[-1]]

    def blocks(self) -> list[CheckpointedBlock]:
        return [m for part in (self.enc, self.dec) for m in part.values() if isinstance(m, CheckpointedBlock)]

    def decoder_blocks(self) -> dict[str, nn.Module]:
        """The blocks of the decoder that keep the resolution, from coarse to fine."""
        names = [f"{r}x{r}_block{i}" for r in reversed(self.resolutions) for i in range(self.num_blocks + 1)]
        return {f"dec.{name}": self.dec[name] for name in names}


def level_resolutions(img_resolution: int, channel_mult: Sequence[int]) -> list[int]:
    """The resolution of each level, [finest, ..., coarsest]."""
    levels = len(channel_mult)
    if levels < 1 or img_resolution % (1 << (levels - 1)):
        raise ValueError(f"images of {img_resolution} pixels cannot be halved {levels - 1} times; give fewer levels")
    return [img_resolution >> level for level in range(levels)]


def drop_labels(class_labels: Tensor, p: float, training: bool) -> Tensor:
    if not (training and p):
        return class_labels
    return class_labels * (torch.rand([class_labels.shape[0], 1], device=class_labels.device) >= p).to(
        class_labels.dtype
    )
