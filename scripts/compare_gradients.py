"""Shows, per step, whether a network's score is symmetric enough for --gradient=difference."""

from __future__ import annotations

import sys
from pathlib import Path

import click
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a plain checkout, installed or not

from dnnlib.cli import Command
from rods.bench.embedded import MODELS
from rods.bench.gradients import compare_gradients, table
from torch_utils.rng import SeedStreams
from training.checkpoint import load_snapshot

EMBEDDED = MODELS / "hands-32.safetensors"


@click.command(cls=Command, context_settings={"show_default": True})
@click.option("--network", metavar="PATH|URL", default=str(EMBEDDED), help="An unconditional EDM pickle or snapshot.")
@click.option("--batch", type=click.IntRange(min=1), default=16, help="Samples: seeds 0 to this.")
@click.option("--steps", type=click.IntRange(min=1), default=40, help="Sampling steps.")
@click.option("--rho", type=click.FloatRange(min=0), default=4.0, help="Radius of the curvature index.")
def main(network: str, batch: int, steps: int, rho: float) -> None:
    """Compare the gradient of the score norm by a backward pass and by a finite difference, on Euler's states."""
    snapshot = load_snapshot(network)
    k = snapshot.header.init_kwargs
    shape = (k["img_channels"], k["img_resolution"], k["img_resolution"])
    latents = SeedStreams(range(batch), torch.device("cpu")).randn(shape)
    click.echo(f"{snapshot.describe()}\n{batch} samples, rho {rho}")
    click.echo(table(compare_gradients(snapshot.net, latents, num_steps=steps, rho=rho)))


if __name__ == "__main__":
    main()
