"""The two U-Nets of EDM: SongUNet (DDPM++, NCSN++ and skip variants) and DhariwalUNet (ADM).

Module names are the parameter names of EDM's files; initialisation, order and scaling are those of
EDM's. Both map (x [B, C, H, W], noise_labels [B or 1], class_labels [B or 1, L] or None,
augment_labels [B, A] or None) to [B, C_out, H, W]; one call is one forward pass (1 F).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from training.networks.architecture import Arguments, Variants, choice, integer, list_of, number
from training.networks.blocks import BlockSettings, UNet, UNetBlock, drop_labels, level_resolutions
from training.networks.layers import Conv2d, FourierEmbedding, GroupNorm, Init, Linear, PositionalEmbedding

EMBEDDINGS = ("positional", "fourier")
ENCODERS, DECODERS = ("standard", "skip", "residual"), ("standard", "skip")


class SongUNet(UNet):
    """DDPM++ (positional, standard, standard), NCSN++ (fourier, residual, standard) and skip variants."""

    arguments: ClassVar[Arguments] = {
        **UNet.arguments,
        "embedding_type": choice(EMBEDDINGS),
        "channel_mult_noise": integer(1, 64),
        "encoder_type": choice(ENCODERS),
        "decoder_type": choice(DECODERS),
        "resample_filter": list_of(number(-1e6, 1e6), 1, 16),
    }
    variants: ClassVar[Variants] = {
        "ddpmpp": {
            "embedding_type": "positional",
            "encoder_type": "standard",
            "decoder_type": "standard",
            "channel_mult_noise": 1,
            "resample_filter": [1, 1],
            "model_channels": 128,
            "channel_mult": [2, 2, 2],
        },
        "ncsnpp": {
            "embedding_type": "fourier",
            "encoder_type": "residual",
            "decoder_type": "standard",
            "channel_mult_noise": 2,
            "resample_filter": [1, 3, 3, 1],
            "model_channels": 128,
            "channel_mult": [2, 2, 2],
        },
    }

    def __init__(
        self,
        img_resolution: int,
        in_channels: int,
        out_channels: int,
        label_dim: int = 0,
        augment_dim: int = 0,
        model_channels: int = 128,
        channel_mult: Sequence[int] = (1, 2, 2, 2),
        channel_mult_emb: int = 4,
        num_blocks: int = 4,
        attn_resolutions: Sequence[int] = (16,),
        dropout: float = 0.10,
        label_dropout: float = 0,
        embedding_type: str = "positional",
        channel_mult_noise: int = 1,
        encoder_type: str = "standard",
        decoder_type: str = "standard",
        resample_filter: Sequence[int] = (1, 1),
    ) -> None:
        for name, value, known in (
            ("embedding_type", embedding_type, EMBEDDINGS),
            ("encoder_type", encoder_type, ENCODERS),
            ("decoder_type", decoder_type, DECODERS),
        ):
            if value not in known:
                raise ValueError(f"{name}={value!r} is unknown; use one of {', '.join(known)}")
        super().__init__()
        self.label_dropout, self.label_dim = label_dropout, label_dim
        self.encoder_type, self.decoder_type, self.num_blocks = encoder_type, decoder_type, num_blocks
        self.resolutions, self.attn_resolutions = level_resolutions(img_resolution, channel_mult), attn_resolutions
        emb_channels, noise_channels = model_channels * channel_mult_emb, model_channels * channel_mult_noise
        init = Init("xavier_uniform")
        init_zero, init_attn = Init("xavier_uniform", weight=1e-5), Init("xavier_uniform", weight=math.sqrt(0.2))
        taps = tuple(resample_filter)
        block = BlockSettings(
            emb_channels, 1, 0, dropout, math.sqrt(0.5), 1e-6, taps, True, False, init, init_zero, init_attn
        )

        self.map_noise = (
            PositionalEmbedding(noise_channels, endpoint=True)
            if embedding_type == "positional"
            else FourierEmbedding(noise_channels)
        )
        self.map_label = Linear(label_dim, noise_channels, init=init) if label_dim else None
        self.map_augment = Linear(augment_dim, noise_channels, bias=False, init=init) if augment_dim else None
        self.map_layer0 = Linear(noise_channels, emb_channels, init=init)
        self.map_layer1 = Linear(emb_channels, emb_channels, init=init)

        self.enc, self.dec = nn.ModuleDict(), nn.ModuleDict()
        channels, aux_channels, skip_channels = in_channels, in_channels, []
        for level, (r, mult) in enumerate(zip(self.resolutions, channel_mult, strict=True)):
            if level == 0:
                self.enc[f"{r}x{r}_conv"] = Conv2d(channels, model_channels, 3, init=init)
                channels = model_channels
            else:
                self.enc[f"{r}x{r}_down"] = UNetBlock(channels, channels, block, down=True)
                down: dict[str, Any] = {"down": True, "resample_filter": taps, "init": init}
                if encoder_type == "skip":
                    self.enc[f"{r}x{r}_aux_down"] = Conv2d(aux_channels, aux_channels, 0, **down)
                    self.enc[f"{r}x{r}_aux_skip"] = Conv2d(aux_channels, channels, 1, init=init)
                if encoder_type == "residual":
                    aux = Conv2d(aux_channels, channels, 3, fused_resample=True, **down)
                    self.enc[f"{r}x{r}_aux_residual"] = aux
                    aux_channels = channels
            skip_channels.append(channels)
            for i in range(num_blocks):
                attention = r in attn_resolutions
                self.enc[f"{r}x{r}_block{i}"] = UNetBlock(channels, model_channels * mult, block, attention=attention)
                channels = model_channels * mult
                skip_channels.append(channels)

        for level, (r, mult) in reversed(list(enumerate(zip(self.resolutions, channel_mult, strict=True)))):
            coarsest = level == len(channel_mult) - 1
            if coarsest:
                self.dec[f"{r}x{r}_in0"] = UNetBlock(channels, channels, block, attention=True)
                self.dec[f"{r}x{r}_in1"] = UNetBlock(channels, channels, block)
            else:
                self.dec[f"{r}x{r}_up"] = UNetBlock(channels, channels, block, up=True)
            for i in range(num_blocks + 1):
                attention = i == num_blocks and r in attn_resolutions
                wide = channels + skip_channels.pop()
                self.dec[f"{r}x{r}_block{i}"] = UNetBlock(wide, model_channels * mult, block, attention=attention)
                channels = model_channels * mult
            if decoder_type == "skip" or level == 0:
                if decoder_type == "skip" and not coarsest:
                    up = Conv2d(out_channels, out_channels, 0, up=True, resample_filter=taps)
                    self.dec[f"{r}x{r}_aux_up"] = up
                self.dec[f"{r}x{r}_aux_norm"] = GroupNorm(channels, eps=1e-6)
                self.dec[f"{r}x{r}_aux_conv"] = Conv2d(channels, out_channels, 3, init=init_zero)

    def embed(self, noise_labels: Tensor, class_labels: Tensor | None, augment_labels: Tensor | None) -> Tensor:
        """The vector [B or 1, E] that modulates every block."""
        e = self.map_noise(noise_labels)
        e = e.reshape(e.shape[0], 2, -1).flip(1).reshape(e.shape)  # this family stores [sin, cos]
        if self.map_label is not None:
            assert class_labels is not None
            labels = drop_labels(class_labels, self.label_dropout, self.training)
            e = e + self.map_label(labels * math.sqrt(self.label_dim))
        if self.map_augment is not None and augment_labels is not None:
            e = e + self.map_augment(augment_labels)
        return silu(self.map_layer1(silu(self.map_layer0(e))))

    def forward(
        self,
        x: Tensor,
        noise_labels: Tensor,
        class_labels: Tensor | None = None,
        augment_labels: Tensor | None = None,
    ) -> Tensor:
        emb = self.embed(noise_labels, class_labels, augment_labels)
        aux, skips = x, []
        for level, r in enumerate(self.resolutions):
            if level == 0:
                x = self.enc[f"{r}x{r}_conv"](x)
            else:
                x = self.enc[f"{r}x{r}_down"](x, emb)
                if self.encoder_type == "skip":
                    aux = self.enc[f"{r}x{r}_aux_down"](aux)
                    x = x + self.enc[f"{r}x{r}_aux_skip"](aux)
                if self.encoder_type == "residual":
                    x = aux = (x + self.enc[f"{r}x{r}_aux_residual"](aux)) / math.sqrt(2)
            skips.append(x)
            for i in range(self.num_blocks):
                x = self.enc[f"{r}x{r}_block{i}"](x, emb)
                skips.append(x)

        out = None
        for level, r in reversed(list(enumerate(self.resolutions))):
            if level == len(self.resolutions) - 1:
                x = self.dec[f"{r}x{r}_in1"](self.dec[f"{r}x{r}_in0"](x, emb), emb)
            else:
                x = self.dec[f"{r}x{r}_up"](x, emb)
            for i in range(self.num_blocks + 1):
                x = self.dec[f"{r}x{r}_block{i}"](torch.cat([x, skips.pop()], dim=1), emb)
            if self.decoder_type == "skip" or level == 0:
                y = self.dec[f"{r}x{r}_aux_conv"](silu(self.dec[f"{r}x{r}_aux_norm"](x)))
                out = y if out is None else self.dec[f"{r}x{r}_aux_up"](out) + y
        assert out is not None
        return out


class DhariwalUNet(UNet):
    """ADM: adaptive group norm, 64-channel heads, attention at every listed resolution."""

    variants: ClassVar[Variants] = {"adm": {"model_channels": 192, "channel_mult": [1, 2, 3, 4]}}

    def __init__(
        self,
        img_resolution: int,
        in_channels: int,
        out_channels: int,
        label_dim: int = 0,
        augment_dim: int = 0,
        model_channels: int = 192,
        channel_mult: Sequence[int] = (1, 2, 3, 4),
        channel_mult_emb: int = 4,
        num_blocks: int = 3,
        attn_resolutions: Sequence[int] = (32, 16, 8),
        dropout: float = 0.10,
        label_dropout: float = 0,
    ) -> None:
        super().__init__()
        self.label_dropout, self.num_blocks = label_dropout, num_blocks
        self.resolutions, self.attn_resolutions = level_resolutions(img_resolution, channel_mult), attn_resolutions
        emb_channels = model_channels * channel_mult_emb
        init = Init("kaiming_uniform", weight=math.sqrt(1 / 3), bias=math.sqrt(1 / 3))
        init_zero = Init("kaiming_uniform", weight=0, bias=0)
        block = BlockSettings(emb_channels, None, 64, dropout, 1.0, 1e-5, (1, 1), False, True, init, init_zero, init)

        self.map_noise = PositionalEmbedding(model_channels)
        self.map_augment = Linear(augment_dim, model_channels, bias=False, init=init_zero) if augment_dim else None
        self.map_layer0 = Linear(model_channels, emb_channels, init=init)
        self.map_layer1 = Linear(emb_channels, emb_channels, init=init)
        init_label = Init("kaiming_normal", weight=math.sqrt(label_dim))
        self.map_label = Linear(label_dim, emb_channels, bias=False, init=init_label) if label_dim else None

        self.enc, self.dec = nn.ModuleDict(), nn.ModuleDict()
        channels, skip_channels = in_channels, []
        for level, (r, mult) in enumerate(zip(self.resolutions, channel_mult, strict=True)):
            if level == 0:
                self.enc[f"{r}x{r}_conv"] = Conv2d(channels, model_channels * mult, 3, init=init)
                channels = model_channels * mult
            else:
                self.enc[f"{r}x{r}_down"] = UNetBlock(channels, channels, block, down=True)
            skip_channels.append(channels)
            for i in range(num_blocks):
                attention = r in attn_resolutions
                self.enc[f"{r}x{r}_block{i}"] = UNetBlock(channels, model_channels * mult, block, attention=attention)
                channels = model_channels * mult
                skip_channels.append(channels)

        for level, (r, mult) in reversed(list(enumerate(zip(self.resolutions, channel_mult, strict=True)))):
            if level == len(channel_mult) - 1:
                self.dec[f"{r}x{r}_in0"] = UNetBlock(channels, channels, block, attention=True)
                self.dec[f"{r}x{r}_in1"] = UNetBlock(channels, channels, block)
            else:
                self.dec[f"{r}x{r}_up"] = UNetBlock(channels, channels, block, up=True)
            for i in range(num_blocks + 1):
                wide, attention = channels + skip_channels.pop(), r in attn_resolutions
                self.dec[f"{r}x{r}_block{i}"] = UNetBlock(wide, model_channels * mult, block, attention=attention)
                channels = model_channels * mult
        self.out_norm = GroupNorm(channels)
        self.out_conv = Conv2d(channels, out_channels, 3, init=init_zero)

    def embed(self, noise_labels: Tensor, class_labels: Tensor | None, augment_labels: Tensor | None) -> Tensor:
        """The vector [B or 1, E] that modulates every block."""
        e = self.map_noise(noise_labels)
        if self.map_augment is not None and augment_labels is not None:
            e = e + self.map_augment(augment_labels)
        e = self.map_layer1(silu(self.map_layer0(e)))
        if self.map_label is not None:
            assert class_labels is not None
            e = e + self.map_label(drop_labels(class_labels, self.label_dropout, self.training))
        return silu(e)

    def forward(
        self,
        x: Tensor,
        noise_labels: Tensor,
        class_labels: Tensor | None = None,
        augment_labels: Tensor | None = None,
    ) -> Tensor:
        emb = self.embed(noise_labels, class_labels, augment_labels)
        x = self.traverse(x, emb, lambda x, skip: torch.cat([x, skip], dim=1))
        return self.out_conv(silu(self.out_norm(x)))
