"""Measures samplers beside plain Euler, and how time and memory grow, in one run: one table with ratios, one JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a plain checkout, installed or not

from dnnlib.cli import Command
from dnnlib.errors import UserError
from dnnlib.util import atomic_write
from rods.bench import growth
from rods.bench.embedded import MODELS
from rods.bench.profiling import breakdown
from rods.bench.speed import BASELINE, measure, table, variants
from torch_utils.machine import facts, keep_freed_memory
from training.checkpoint import load_snapshot

EMBEDDED = MODELS / "hands-32.safetensors"


@click.command(cls=Command, context_settings={"show_default": True})
@click.option("--network", metavar="PATH|URL", default=str(EMBEDDED), help="An EDM pickle or a snapshot.")
@click.option("--batch", type=click.IntRange(min=1), default=8, help="Images per run.")
@click.option("--steps", type=click.IntRange(min=1), default=40, help="Sampling steps.")
@click.option("--rho", type=click.FloatRange(min=0), default=1.0, help="Radius of RODS and overshoot.")
@click.option("--repeats", type=click.IntRange(min=1), default=3, help="Timed rounds over all samplers.")
@click.option("--threads", type=click.IntRange(min=1), help="Torch's threads; by default as many as torch chooses.")
@click.option(
    "--growth/--no-growth", "with_growth", default=True, help="Also vary batch, steps, resolution, seeds, ..."
)
@click.option(
    "--ranks/--no-ranks", "with_ranks", default=True, help="With --growth: also generate.py on two processes."
)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), default="bench.json", help="The JSON to write.")
def main(
    network: str,
    batch: int,
    steps: int,
    rho: float,
    repeats: int,
    threads: int | None,
    with_growth: bool,
    with_ranks: bool,
    out: Path,
) -> None:
    """Compare the cost of Euler, Heun, overshoot and RODS on one network, on the CPU in float32; then how it grows."""
    if not out.resolve().parent.is_dir():
        raise UserError(f"--out={out}: there is no folder {out.parent}; make it first")
    keep_freed_memory()
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
        **facts(),
    }
    click.echo("\n".join(f"{name}: {value}" for name, value in about.items()))
    rows = measure(snapshot.net, latents, variants(num_steps=steps, rho=rho), repeats=repeats)
    click.echo(table(rows, batch=batch))
    written: dict[str, Any] = {**about, "samplers": [row.describe() for row in rows]}
    if with_growth:
        found = grown(snapshot.net, network, batch, steps, rho, repeats, with_ranks=with_ranks)
        click.echo(growth.table(found))
        config = variants(num_steps=steps, rho=rho)[BASELINE]
        run = breakdown(snapshot.net, config, batch=batch, device=torch.device("cpu"), dtype="float32", repeats=repeats)
        click.echo(f"PNG and JSON lines: {run['files_share']:.1%} of the time of a run with Euler")
        written |= {"growth": [s.describe() for s in found], "files_share": run["files_share"]}
    with atomic_write(out) as temporary:
        temporary.write_text(json.dumps(written, indent=2) + "\n")
    click.echo(f"wrote {out}")


def grown(
    net: Any, network: str, batch: int, steps: int, rho: float, repeats: int, *, with_ranks: bool
) -> list[growth.Series]:
    """All series; half the steps and half the batch will do for them."""
    fewer, half = max(steps // 4, 2), max(batch // 2, 1)
    found = [
        growth.by_batch(net, steps=fewer, repeats=repeats),
        growth.by_steps(net, batch=half, repeats=repeats),
        growth.by_resolution(net, batch=half, steps=max(fewer // 2, 1), repeats=repeats),
        growth.by_flagged(net, batch=half, steps=fewer, rho=rho, repeats=repeats),
        growth.by_seeds(),
    ]
    return [*found, growth.by_ranks(network, steps=steps, batch=half)] if with_ranks else found


if __name__ == "__main__":
    main()
