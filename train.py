"""Train a diffusion model: options -> frozen config -> training.loop.train."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import click
import torch

from dnnlib.cli import Command, NumberList
from dnnlib.errors import UserError
from torch_utils import distributed
from training.dataset import ImageDataset
from training.folder import find_run_dir
from training.loop import Run, RunSettings, TrainConfig, train

MAX_SEED = 2**32 - 1
NETWORK_OPTIONS = {  # constructor argument: option
    "model_channels": "cbase",
    "channel_mult": "cres",
    "num_blocks": "blocks",
    "attn_resolutions": "attn",
}

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "ddpmpp": {
        "model_type": "SongUNet",
        "embedding_type": "positional",
        "encoder_type": "standard",
        "decoder_type": "standard",
        "channel_mult_noise": 1,
        "resample_filter": [1, 1],
        "model_channels": 128,
        "channel_mult": [2, 2, 2],
    },
    "ncsnpp": {
        "model_type": "SongUNet",
        "embedding_type": "fourier",
        "encoder_type": "residual",
        "decoder_type": "standard",
        "channel_mult_noise": 2,
        "resample_filter": [1, 3, 3, 1],
        "model_channels": 128,
        "channel_mult": [2, 2, 2],
    },
    "adm": {"model_type": "DhariwalUNet", "model_channels": 192, "channel_mult": [1, 2, 3, 4]},
}

PRESETS: dict[str, dict[str, Any]] = {
    # Small enough for two CPU cores: 1.2 M parameters, .18 GFLOP an image.
    "hands-32": {
        "arch": "ddpmpp",
        "cbase": 16,
        "cres": (1, 2, 4, 4),
        "blocks": 1,
        "attn": (8,),
        "batch": 64,
        "lr": 2e-3,
        "lr_rampup": 0.01,
        "ema": 0.02,
        "dropout": 0.0,
        "p_mean": -0.6,
        "p_std": 1.3,
        "duration": 0.3,
        "tick": 2.0,
        "snap": 10,
    },
}


class Number(click.FloatRange):
    """A finite number in a range: click lets nan and inf through."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number", param, ctx)
        return number


def _apply_preset(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """A preset replaces the defaults; options given on the command line replace the preset."""
    if value is not None:
        ctx.default_map = {**(ctx.default_map or {}), **PRESETS[value]}
        settings = {k: ",".join(map(str, v)) if isinstance(v, tuple) else v for k, v in PRESETS[value].items()}
        click.echo(f"Preset {value}: " + " ".join(f"--{k.replace('_', '-')}={v}" for k, v in settings.items()))
    return value


@click.command(cls=Command, context_settings={"show_default": True, "max_content_width": 120})
@click.option(
    "--preset",
    type=click.Choice(sorted(PRESETS)),
    is_eager=True,
    expose_value=False,
    callback=_apply_preset,
    help="Start from a named configuration; it prints what it sets.",
)
@click.option("--outdir", metavar="DIR", required=True, help="Where to put the run folder.")
@click.option("--data", metavar="ZIP|DIR", required=True, help="Training images, a zip or a folder.")
@click.option("--cond", type=bool, default=False, help="Train class-conditionally on dataset.json's labels.")
@click.option("--arch", type=click.Choice(sorted(ARCHITECTURES)), default="ddpmpp", help="Network architecture.")
@click.option(
    "--duration",
    metavar="MIMG",
    type=Number(min=0, min_open=True),
    default=200.0,
    help="Millions of images to train on.",
)
@click.option("--batch", type=click.IntRange(min=1), default=512, help="Images per optimiser step.")
@click.option(
    "--cbase", type=click.IntRange(min=4), default=None, help="Channels of the finest level [default: by architecture]."
)
@click.option(
    "--cres", type=NumberList(int), default=None, help="Channel multiplier of each level [default: by architecture]."
)
@click.option(
    "--blocks", type=click.IntRange(min=1), default=None, help="Residual blocks per level [default: by architecture]."
)
@click.option(
    "--attn", type=NumberList(int), default=None, help="Resolutions with self-attention [default: by architecture]."
)
@click.option("--lr", type=Number(min=0, min_open=True), default=1e-3, help="Learning rate after the ramp.")
@click.option(
    "--lr-rampup",
    metavar="MIMG",
    type=Number(min=0),
    default=10.0,
    help="Length of the linear learning-rate ramp.",
)
@click.option("--ema", metavar="MIMG", type=Number(min=0), default=0.5, help="Half-life of the weight average.")
@click.option("--dropout", type=Number(0, 1, max_open=True), default=0.13, help="Dropout probability.")
@click.option("--p-mean", type=Number(), default=-1.2, help="Mean of ln(sigma) in training.")
@click.option("--p-std", type=Number(min=0, min_open=True), default=1.2, help="Standard deviation of ln(sigma).")
@click.option("--xflip", type=bool, default=False, help="Mirror half of the images.")
@click.option(
    "--precision",
    type=click.Choice(["fp32", "bf16"]),
    default="fp32",
    help="bf16: autocast; fast where the hardware has it.",
)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda", "mps"]), default="auto", help="Where to train.")
@click.option("--threads", type=click.IntRange(min=1), default=None, help="CPU threads [default: torch's choice].")
@click.option("--cache", type=bool, default=True, help="Keep decoded images in memory.")
@click.option("--seed", type=click.IntRange(0, MAX_SEED), default=0, help="Seed of weights, data order and noise.")
@click.option("--transfer", metavar="FILE|URL", default=None, help="Start from the weights of this snapshot.")
@click.option("--desc", default=None, help="Text for the name of the run folder.")
@click.option("--nosubdir", is_flag=True, help="Use --outdir itself as the run folder.")
@click.option(
    "--tick",
    metavar="KIMG",
    type=Number(min=0, min_open=True),
    default=50.0,
    help="Save the state and log this often.",
)
@click.option(
    "--snap",
    metavar="TICKS",
    type=click.IntRange(min=0),
    default=50,
    help="Write a snapshot this often; 0: at the end only.",
)
@click.option("-n", "--dry-run", is_flag=True, help="Print the configuration and stop.")
def main(**opts: Any) -> None:
    """Train a denoiser on a folder or zip of images.

    The same command goes on where it was stopped: the newest run folder in --outdir with equal options is resumed.

    \b
    Example, on two CPU cores:
      python scripts/draw_hands.py --dest=data/hands-32.zip
      python train.py --preset=hands-32 --data=data/hands-32.zip --outdir=training-runs
    """
    if (ranks := distributed.world_size()) > 1:
        raise UserError(f"train.py runs as one process, and torchrun started {ranks}: use python train.py instead")
    device = distributed.pick_device(opts["device"])
    if opts["threads"]:
        torch.set_num_threads(opts["threads"])
    torch.set_flush_denormal(True)
    dataset = ImageDataset(opts["data"], cond=opts["cond"], cache=opts["cache"])
    config = train_config(opts, dataset)
    run = build_run(config, device)
    click.echo(json.dumps(config.options(), indent=2))
    size = f"{dataset.resolution}x{dataset.resolution}x{dataset.num_channels}"
    classes = f", labels of {dataset.label_dim} numbers" if opts["cond"] else ""
    click.echo(f"Data: {len(dataset):,} images, {size}{classes}")
    attention = ", ".join(map(str, resolutions(run.net, of="qkv")))
    millions = sum(p.numel() for p in run.net.parameters()) / 1e6
    click.echo(f"Network: {millions:.2f} M parameters, attention at {attention} pixels, on {device}")
    desc, nosubdir = opts["desc"] or dataset.name, opts["nosubdir"]
    if not re.fullmatch(r"[\w.,=+-]+", desc):
        raise UserError(f"--desc={desc} does not fit in a folder's name; use letters, digits and . , = + - _")
    run_dir = find_run_dir(Path(opts["outdir"]), config.options(), desc=desc, nosubdir=nosubdir)
    if opts["dry_run"]:
        click.echo(f"Would train in {run_dir}")
        return
    total, tick = max(round(opts["duration"] * 1e6), 1), max(round(opts["tick"] * 1e3), 1)
    train(run, RunSettings(run_dir, total, tick, opts["snap"]), dataset)


def train_config(opts: dict[str, Any], dataset: ImageDataset) -> TrainConfig:
    """What decides the weights, of the options."""
    return TrainConfig(
        data=opts["data"],
        num_images=len(dataset),
        network={"class_name": "EDMPrecond", "init_kwargs": network_kwargs(opts, dataset)},
        cond=opts["cond"],
        batch=opts["batch"],
        lr=opts["lr"],
        lr_rampup=round(opts["lr_rampup"] * 1e6),
        ema_halflife=round(opts["ema"] * 1e6),
        P_mean=opts["p_mean"],
        P_std=opts["p_std"],
        xflip=opts["xflip"],
        seed=opts["seed"],
        precision=opts["precision"],
        transfer=opts["transfer"],
    )


def build_run(config: TrainConfig, device: torch.device) -> Run:
    """The run, its errors in the words of the command line."""
    try:
        run = Run(config, device)
    except ValueError as e:
        text = str(e)
        for argument, option in NETWORK_OPTIONS.items():
            text = text.replace(argument, f"--{option}")
        raise UserError(f"this network cannot be built: {text}") from None
    levels, wanted = resolutions(run.net), config.network["init_kwargs"].get("attn_resolutions", ())
    if unused := [r for r in wanted if r not in levels]:
        raise UserError(
            f"--attn={','.join(map(str, wanted))}: the network has no layers at {unused[0]} pixels, "
            f"only at {', '.join(map(str, levels))}; give some of these"
        )
    return run


def resolutions(net: torch.nn.Module, *, of: str = "") -> list[int]:
    """The resolutions at which the U-Net has layers, or blocks with a layer `of` this name; finest first."""
    found = [re.search(rf"\.(\d+)x\d+_.*{of}", name) for name, _ in net.named_modules()]
    return sorted({int(m[1]) for m in found if m}, reverse=True)


def network_kwargs(opts: dict[str, Any], dataset: ImageDataset) -> dict[str, Any]:
    """EDMPrecond's constructor arguments: the architecture, with what the options replace."""
    kwargs = {
        "img_resolution": dataset.resolution,
        "img_channels": dataset.num_channels,
        "label_dim": dataset.label_dim,
        **ARCHITECTURES[opts["arch"]],
        "dropout": opts["dropout"],
    }
    for name, option in NETWORK_OPTIONS.items():
        if opts[option] is not None:
            kwargs[name] = list(opts[option]) if isinstance(opts[option], tuple) else opts[option]
    return kwargs


if __name__ == "__main__":
    main()
