"""Measures what each sampler costs beside plain Euler, in one run: time ratios, network passes, peak memory."""

from __future__ import annotations

import json
import platform
import sys
from pathlib import Path

import click
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a plain checkout, installed or not

from dnnlib.cli import Command
from dnnlib.errors import UserError
from dnnlib.util import atomic_write
from rods.bench.embedded import MODELS
from rods.bench.speed import measure, table, variants
from training.checkpoint import load_snapshot

EMBEDDED = MODELS / "hands-32.safetensors"


@click.command(cls=Command, context_settings={"show_default": True})
@click.option("--network", metavar="PATH|URL", default=str(EMBEDDED), help="An EDM pickle or a snapshot.")
@click.option("--batch", type=click.IntRange(min=1), default=8, help="Images per run.")
@click.option("--steps", type=click.IntRange(min=1), default=40, help="Sampling steps.")
@click.option("--rho", type=click.FloatRange(min=0), default=1.0, help="Radius of RODS and overshoot.")
@click.option("--repeats", type=click.IntRange(min=1), default=3, help="Timed rounds over all samplers.")
@click.option("--threads", type=click.IntRange(min=1), help="Torch's threads; by default as many as torch chooses.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), default="bench.json", help="The JSON to write.")
def main(network: str, batch: int, steps: int, rho: float, repeats: int, threads: int | None, out: Path) -> None:
    """Compare the cost of Euler, Heun, overshoot and RODS on one network, on the CPU and in float32."""
    if not out.resolve().parent.is_dir():
        raise UserError(f"--out={out}: there is no folder {out.parent}; make it first")
    if threads:
        torch.set_num_threads(threads)
    snapshot = load_snapshot(network)
    k = snapshot.header.init_kwargs
    shape = (batch, k["img_channels"], k["img_resolution"], k["img_resolution"])
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    about = {
        "network": snapshot.describe(),
        "batch": batch,
        "steps": steps,
        "rho": rho,
        "repeats": repeats,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.platform(),
    }
    click.echo("\n".join(f"{name}: {value}" for name, value in about.items()))
    rows = measure(snapshot.net, latents, variants(num_steps=steps, rho=rho), repeats=repeats)
    click.echo(table(rows, batch=batch))
    with atomic_write(out) as temporary:
        temporary.write_text(json.dumps({**about, "samplers": [row.describe() for row in rows]}, indent=2) + "\n")
    click.echo(f"wrote {out}")


if __name__ == "__main__":
    main()
