"""Trains the networks of task grid25, one for each training seed: a few minutes each on one core."""

import sys
from pathlib import Path

import click
import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a plain checkout, installed or not

from dnnlib.cli import Command, SeedList
from dnnlib.errors import UserError
from rods.bench.grid25_training import PointTraining, save_points, train_points


@click.command(cls=Command)
@click.option("--outdir", type=click.Path(file_okay=False, path_type=Path), default="models", show_default=True)
@click.option("--seeds", type=SeedList(), default="0-2", show_default=True, help="Training seeds, one network each.")
@click.option("--steps", type=click.IntRange(1), default=PointTraining.steps, show_default=True)
@click.option("--batch", type=click.IntRange(1), default=PointTraining.batch, show_default=True, help="Points a step.")
@click.option("--overwrite", is_flag=True, help="Train the seeds again whose file is there.")
def main(outdir: Path, seeds: list[int], steps: int, batch: int, overwrite: bool) -> None:
    """Train OUTDIR/grid25-SEED.safetensors. A file appears when it is complete; seeds that have one are passed over."""
    torch.set_num_threads(1)  # the layers are too small for two
    if outdir.exists() and not outdir.is_dir():
        raise UserError(f"--outdir={outdir} is a file; name a folder")
    outdir.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        path = outdir / f"grid25-{seed}.safetensors"
        if path.exists() and not overwrite:
            click.echo(f"{path}: is there already; --overwrite trains it again")
            continue
        config = PointTraining(seed=seed, steps=steps, batch=batch)
        with tqdm(total=steps, unit="step", desc=path.name, disable=not sys.stderr.isatty()) as bar:
            trained = train_points(config, report=lambda step, loss: _show(bar, step, loss))
        save_points(path, trained, config)
        curve = ", ".join(f"{seen / 1e6:.1f}: {loss:.3f}" for seen, loss in trained[2])
        click.echo(f"{path}: {steps * batch / 1e6:.1f} million points; loss by million points {curve}")


def _show(bar: "tqdm[None]", step: int, loss: float) -> None:
    bar.update()
    if step % 100 == 0:
        bar.set_postfix(loss=f"{loss:.3f}")


if __name__ == "__main__":
    main()
