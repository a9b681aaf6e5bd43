"""Trains the learned labeller of a benchmark task, or the denoisers of task grid25: minutes on one core.

python scripts/train_labellers.py mnist
python scripts/train_labellers.py hands-64r
python scripts/train_labellers.py grid25 --seeds=0-2
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import click
import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a plain checkout, installed or not

from dnnlib.cli import Command, Destination, Group, SeedList
from dnnlib.errors import UserError
from dnnlib.util import alone, atomic_write
from rods.bench.task import Task
from rods.bench.tasks import TASKS
from rods.bench.tasks.ensemble import save_ensemble
from rods.bench.tasks.grid25.training import PointTraining, save_points, train_points
from rods.bench.tasks.labeller_training import train_ensemble

OPTIONS = "options.json"


@click.group(cls=Group)
def main() -> None:
    """Train what labels a task's images. A command for each task that has a learned labeller."""


def labeller_command(task: Task) -> Command:
    """The command that trains the labeller of one task."""
    read = task.labeller
    assert read is not None

    @click.command(cls=Command, name=task.name, help=f"Train the labeller of {task.name}: {task.title}")
    @click.option("--dest", type=Destination(dir_okay=False), help="File.  [default: the embedded one]")
    @click.option("--outdir", type=Destination(file_okay=False), default="training-runs/labellers",
                  show_default=True, help="Finished members are kept here: the same command resumes.")  # fmt: skip
    @click.option("--steps", type=click.IntRange(1, 1_000_000), help="Of each member.  [default: the task's]")
    @click.option("--seed", type=click.IntRange(0, 1000), default=0, show_default=True, help="Of the first member.")
    def command(dest: Path | None, outdir: Path, steps: int | None, seed: int) -> None:
        torch.set_num_threads(1)  # the layers are too small for two
        training = read()
        training = replace(training, recipe=replace(training.recipe, steps=steps or training.recipe.steps))
        folder, dest = outdir / task.name, dest or training.path
        folder.mkdir(parents=True, exist_ok=True)
        with alone(folder, busy=f"another process trains in {folder}; wait for it or choose another --outdir"):
            claim(folder, {"steps": training.recipe.steps})
            total = training.spec.members * training.recipe.steps
            with tqdm(total=total, unit="step", desc=dest.name, disable=not sys.stderr.isatty()) as bar:
                ensemble = train_ensemble(training, seed=seed, folder=folder, report=lambda *_: bar.update())
        dest.parent.mkdir(parents=True, exist_ok=True)
        save_ensemble(dest, ensemble)
        click.echo(json.dumps(dict(ensemble.facts), indent=1))
        thresholds = ", ".join(f"{t:.4g}" for t in ensemble.thresholds)
        click.echo(f"{dest}: {len(ensemble.members)} networks, thresholds {thresholds}")

    return command


def claim(folder: Path, options: dict[str, object]) -> None:
    """Notes the options in the folder. Raises UserError if it holds members trained with others."""
    path, text = folder / OPTIONS, json.dumps(options, sort_keys=True)
    if path.exists() and path.read_text() != text:
        raise UserError(f"--outdir: {folder} holds members trained with other options; choose another folder")
    with atomic_write(path) as temporary:
        temporary.write_text(text)


for make in TASKS.values():
    if (task := make()).labeller:
        main.add_command(labeller_command(task))


@main.command(cls=Command)
@click.option("--outdir", type=Destination(file_okay=False), default="models", show_default=True)
@click.option("--seeds", type=SeedList(), default="0-2", show_default=True, help="Training seeds, one network each.")
@click.option("--steps", type=click.IntRange(1), default=PointTraining.steps, show_default=True)
@click.option("--batch", type=click.IntRange(1), default=PointTraining.batch, show_default=True, help="Points a step.")
@click.option("--overwrite", is_flag=True, help="Train the seeds again whose file is there.")
def grid25(outdir: Path, seeds: list[int], steps: int, batch: int, overwrite: bool) -> None:
    """Train OUTDIR/grid25-SEED.safetensors, denoisers. Seeds that have a file are passed over."""
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
            trained = train_points(config, report=lambda step, loss: bar.update())
        save_points(path, trained, config)
        curve = ", ".join(f"{seen / 1e6:.1f}: {loss:.3f}" for seen, loss in trained[2])
        click.echo(f"{path}: {steps * batch / 1e6:.1f} million points; loss by million points {curve}")


if __name__ == "__main__":
    main()
