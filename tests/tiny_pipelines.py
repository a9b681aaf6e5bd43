"""Pipelines of diffusers, tiny and with random weights. Imported after pytest.importorskip("diffusers")."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import nn


def seeded(build: Callable[[], Any], seed: int = 0) -> Any:
    """What `build` makes from a seed, in eval mode and frozen; a part that starts at zero gets weights, too."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = build()
        for p in net.parameters():
            if not p.any():
                nn.init.normal_(p, std=0.1)
    return net.eval().requires_grad_(False)


def unet(*, classes: int | None = None, channels: int = 3, learned: bool = False) -> Any:
    down, up = ("DownBlock2D", "AttnDownBlock2D"), ("AttnUpBlock2D", "UpBlock2D")
    return seeded(
        lambda: diffusers.UNet2DModel(
            block_out_channels=(4, 8), layers_per_block=1, norm_num_groups=4, sample_size=8, num_class_embeds=classes,
            in_channels=channels, out_channels=channels * (1 + learned), attention_head_dim=4, down_block_types=down,
            up_block_types=up,
        )
    )  # fmt: skip


def vae(*, scaling_factor: float = 0.3, shift_factor: float | None = None, **config: Any) -> Any:
    """4 latent channels, 2 times as fine images."""
    return seeded(
        lambda: diffusers.AutoencoderKL(
            block_out_channels=(4, 8), norm_num_groups=4, latent_channels=4, scaling_factor=scaling_factor,
            shift_factor=shift_factor, down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2, **config,
        ),
        seed=1,
    )  # fmt: skip


def dit_pipeline(**scheduler: Any) -> Any:
    """Class-conditional latents with learned sigma, 1000 classes and the null class behind them."""
    net = seeded(
        lambda: diffusers.DiTTransformer2DModel(
            sample_size=16, num_layers=2, patch_size=4, attention_head_dim=8, num_attention_heads=2, in_channels=4,
            out_channels=8, num_embeds_ada_norm=1000, norm_type="ada_norm_zero",
        )
    )  # fmt: skip
    return diffusers.DiTPipeline(net, vae(), diffusers.DDIMScheduler(**scheduler))


def tokenizer(folder: Path) -> Any:
    """Of single letters."""
    from transformers import CLIPTokenizer

    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{c}</w>" for c in letters)]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=16)


def text_encoder(*, width: int = 16, projection: bool = True, seed: int = 2) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=54, hidden_size=width, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=16, projection_dim=width, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    kind = CLIPTextModelWithProjection if projection else CLIPTextModel
    return seeded(lambda: kind(config), seed)


def sd3_pipeline(folder: Path, *, shift: float = 3.0) -> Any:
    """A flow with two text encoders; the third, T5, is left out, so that its embeddings are zeros."""
    net = seeded(
        lambda: diffusers.SD3Transformer2DModel(
            sample_size=8, patch_size=1, in_channels=4, num_layers=1, attention_head_dim=8, num_attention_heads=4,
            caption_projection_dim=32, joint_attention_dim=32, pooled_projection_dim=64, out_channels=4,
        )
    )  # fmt: skip
    return diffusers.StableDiffusion3Pipeline(
        transformer=net, scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=shift),
        vae=vae(scaling_factor=1.5, shift_factor=0.06), text_encoder=text_encoder(), tokenizer=tokenizer(folder),
        text_encoder_2=text_encoder(width=48, seed=3), tokenizer_2=tokenizer(folder), text_encoder_3=None,
        tokenizer_3=None,
    )  # fmt: skip


def sd_pipeline(folder: Path) -> Any:
    """As Stable Diffusion 1: one text encoder, and no pooled embeddings."""
    net = seeded(
        lambda: diffusers.UNet2DConditionModel(
            sample_size=8, in_channels=4, out_channels=4, block_out_channels=(4, 8), layers_per_block=1,
            norm_num_groups=4, attention_head_dim=2, cross_attention_dim=16,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        )
    )  # fmt: skip
    return diffusers.StableDiffusionPipeline(
        vae=vae(), text_encoder=text_encoder(projection=False), tokenizer=tokenizer(folder), unet=net,
        scheduler=diffusers.DDIMScheduler(clip_sample=False, steps_offset=1), safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def sdxl_pipeline(folder: Path, **scheduler: Any) -> Any:
    net = seeded(
        lambda: diffusers.UNet2DConditionModel(
            sample_size=8, in_channels=4, out_channels=4, block_out_channels=(4, 8), layers_per_block=1,
            norm_num_groups=4, attention_head_dim=2, cross_attention_dim=32, addition_embed_type="text_time",
            addition_time_embed_dim=4, projection_class_embeddings_input_dim=6 * 4 + 16, use_linear_projection=True,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        )
    )  # fmt: skip
    return diffusers.StableDiffusionXLPipeline(
        vae=vae(latents_mean=[0.1, -0.2, 0.3, 0.0], latents_std=[1.0, 2.0, 0.5, 1.5]),
        text_encoder=text_encoder(projection=False), tokenizer=tokenizer(folder), tokenizer_2=tokenizer(folder),
        text_encoder_2=text_encoder(seed=3), unet=net, add_watermarker=False,
        scheduler=diffusers.DDIMScheduler(clip_sample=False, **scheduler),
    )  # fmt: skip


def pixart_pipeline(folder: Path, *, told_size: bool) -> Any:
    """Text by a T5, whose padding is masked, and learned sigma; with `told_size`, the network is told the size."""
    from transformers import T5Config, T5EncoderModel

    config = T5Config(vocab_size=54, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    net = seeded(
        lambda: diffusers.PixArtTransformer2DModel(
            sample_size=128 if told_size else 8, num_layers=2, patch_size=2, attention_head_dim=8,
            num_attention_heads=3, in_channels=4, out_channels=8, cross_attention_dim=24, caption_channels=16,
        )
    )  # fmt: skip
    return diffusers.PixArtAlphaPipeline(
        transformer=net, vae=vae(), scheduler=diffusers.DDIMScheduler(clip_sample=False),
        tokenizer=tokenizer(folder), text_encoder=seeded(lambda: T5EncoderModel(config), 4),
    )  # fmt: skip


@cache
def shared_dit() -> Any:
    """One for all tests that only read it."""
    return dit_pipeline()
