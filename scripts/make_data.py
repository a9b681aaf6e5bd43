"""Draws the data set of a benchmark task: grey PNGs in EDM's data-set format."""

import sys
from pathlib import Path

import click
import PIL.Image
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that it runs without installing the project

from dnnlib.cli import Command, Destination
from dnnlib.errors import UserError
from rods.bench.tasks import TASKS
from training.datasets.writer import write_dataset

CHUNK = 256  # images drawn at a time
DRAWN = {name: task for name, make in TASKS.items() if (task := make()).drawn}


@click.command(cls=Command)
@click.argument("task_name", metavar="TASK", type=click.Choice(list(DRAWN)))
@click.option("--dest", type=Destination(), help="Folder or NAME.zip.  [default: data/NETWORK.zip]")
@click.option("--num", type=click.IntRange(1, 10_000_000), help="Images.  [default: those of the embedded network]")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Image i depends on (seed, i).")
@click.option("--resolution", type=click.IntRange(min=1), help="Pixels across.  [default: the task's]")
def main(task_name: str, dest: Path | None, num: int | None, seed: int, resolution: int | None) -> None:
    """Draw the data of a task into a zip or folder that train.py reads. It appears when it is complete."""
    task = DRAWN[task_name]
    data = task.drawn
    assert data is not None
    least, most = data.resolutions
    if resolution is not None and not least <= resolution <= most:
        allowed = f"{least}" if least == most else f"{least} to {most}"
        raise UserError(f"--resolution={resolution}: {task_name} is drawn at {allowed} pixels")
    num = num or data.num
    dest = dest or Path("data") / f"{next(iter(task.networks))}.zip"
    with write_dataset(dest) as writer, tqdm(total=num, unit="img", desc=dest.name, disable=None) as bar:
        for start in range(0, num, CHUNK):
            indices = range(start, min(start + CHUNK, num))
            for image in data.draw(indices, seed, resolution or least):
                writer.add(PIL.Image.fromarray(image))
            bar.update(len(indices))
    click.echo(f"{dest}: {writer.summary()}; seed {seed}")


if __name__ == "__main__":
    main()
