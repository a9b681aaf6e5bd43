"""Train a diffusion model: options -> frozen config -> training.loop.train."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import torch

from dnnlib.cli import Command, NumberList
from dnnlib.errors import UserError
from dnnlib.util import atomic_write
from training.dataset import ImageDataset
from training.loop import RunSettings, TrainConfig, train

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


def _apply_preset(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """A preset replaces the defaults; options given on the command line replace the preset."""
    if value is not None:
        ctx.default_map = {**(ctx.default_map or {}), **PRESETS[value]}
        click.echo(f"Preset {value}: " + " ".join(f"--{k.replace('_', '-')}={v}" for k, v in PRESETS[value].items()))
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
    type=click.FloatRange(min=0, min_open=True),
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
@click.option("--lr", type=click.FloatRange(min=0, min_open=True), default=1e-3, help="Learning rate after the ramp.")
@click.option(
    "--lr-rampup",
    metavar="MIMG",
    type=click.FloatRange(min=0),
    default=10.0,
    help="Length of the linear learning-rate ramp.",
)
@click.option(
    "--ema", metavar="MIMG", type=click.FloatRange(min=0), default=0.5, help="Half-life of the weight average."
)
@click.option("--dropout", type=click.FloatRange(0, 1, max_open=True), default=0.13, help="Dropout probability.")
@click.option("--p-mean", type=float, default=-1.2, help="Mean of ln(sigma) in training.")
@click.option(
    "--p-std", type=click.FloatRange(min=0, min_open=True), default=1.2, help="Standard deviation of ln(sigma)."
)
@click.option("--xflip", type=bool, default=False, help="Mirror half of the images.")
@click.option(
    "--precision",
    type=click.Choice(["fp32", "bf16"]),
    default="fp32",
    help="bf16: autocast; fast where the hardware has it.",
)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda", "mps"]), default="auto", help="Where to train.")
@click.option("--threads", type=click.IntRange(min=1), default=None, help="CPU threads [default: torch's choice].")
@click.option("--seed", type=click.IntRange(min=0), default=0, help="Seed of weights, data order and noise.")
@click.option("--transfer", metavar="FILE|URL", default=None, help="Start from the weights of this snapshot.")
@click.option("--desc", default=None, help="Text for the name of the run folder.")
@click.option("--nosubdir", is_flag=True, help="Use --outdir itself as the run folder.")
@click.option(
    "--tick",
    metavar="KIMG",
    type=click.FloatRange(min=0, min_open=True),
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
    if opts["threads"]:
        torch.set_num_threads(opts["threads"])
    torch.set_flush_denormal(True)
    dataset = ImageDataset(opts["data"], cond=opts["cond"])
    config = TrainConfig(
        data=opts["data"],
        network={"class_name": "EDMPrecond", "init_kwargs": network_kwargs(opts, dataset)},
        total_images=round(opts["duration"] * 1e6),
        lr_rampup=round(opts["lr_rampup"] * 1e6),
        ema_halflife=round(opts["ema"] * 1e6),
        P_mean=opts["p_mean"],
        P_std=opts["p_std"],
        **{k: opts[k] for k in ("cond", "batch", "lr", "xflip", "seed", "precision", "transfer")},
    )
    click.echo(json.dumps(asdict(config), indent=2))
    click.echo(f"Data: {len(dataset):,} images, {dataset.resolution}x{dataset.resolution}x{dataset.num_channels}")
    if opts["dry_run"]:
        return
    run_dir = choose_run_dir(Path(opts["outdir"]), config, desc=opts["desc"] or dataset.name, nosubdir=opts["nosubdir"])
    device = torch.device(_pick_device(opts["device"]))
    train(config, RunSettings(run_dir, device, round(opts["tick"] * 1000), opts["snap"]))


def network_kwargs(opts: dict[str, Any], dataset: ImageDataset) -> dict[str, Any]:
    """EDMPrecond's constructor arguments: the architecture, with what the options replace."""
    kwargs = {
        "img_resolution": dataset.resolution,
        "img_channels": dataset.num_channels,
        "label_dim": dataset.label_dim,
        **ARCHITECTURES[opts["arch"]],
        "dropout": opts["dropout"],
    }
    options = {"model_channels": "cbase", "channel_mult": "cres", "num_blocks": "blocks", "attn_resolutions": "attn"}
    for name, option in options.items():
        if opts[option] is not None:
            kwargs[name] = list(opts[option]) if isinstance(opts[option], tuple) else opts[option]
    return kwargs


def choose_run_dir(outdir: Path, config: TrainConfig, *, desc: str, nosubdir: bool) -> Path:
    """`outdir` itself, else its newest run folder with an equal config, else the next number."""
    content = json.dumps(asdict(config), indent=2)
    numbered = {}
    for path in outdir.glob("[0-9]*-*") if outdir.is_dir() else ():
        if found := re.match(r"(\d+)-", path.name):
            numbered[int(found[1])] = path
    equal = [n for n, path in numbered.items() if _text(path / "training-options.json") == content]
    if nosubdir:
        run_dir = outdir
        if _text(run_dir / "training-options.json") not in (None, content):
            raise UserError(f"--outdir={outdir} holds a run with other options; choose another folder")
    elif equal:
        return numbered[max(equal)]
    else:
        run_dir = outdir / f"{max(numbered, default=-1) + 1:05d}-{desc}"
    run_dir.mkdir(parents=True, exist_ok=True)
    with atomic_write(run_dir / "training-options.json") as temporary:
        temporary.write_text(content)
    return run_dir


def _text(path: Path) -> str | None:
    return path.read_text() if path.is_file() else None


def _pick_device(name: str) -> str:
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device=cuda: torch sees no CUDA device here; use --device=cpu")
    return name


if __name__ == "__main__":
    main()
