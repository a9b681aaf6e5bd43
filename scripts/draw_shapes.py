"""Draws the data set of the shapes task, Simple Shapes: 64x64 grey PNGs in EDM's data-set format."""

import sys
from pathlib import Path

import click
import PIL.Image
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that it runs without installing the project

from dnnlib.cli import Command
from rods.bench.shapes import draw_shapes
from training.datasets.writer import write_dataset


@click.command(cls=Command)
@click.option("--dest", type=click.Path(path_type=Path), default="data/shapes-64.zip", show_default=True)
@click.option("--num", type=click.IntRange(min=1, max=10_000_000), default=5_000, show_default=True, help="Pictures.")
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Picture i depends on (seed, i)."
)
def main(dest: Path, num: int, seed: int) -> None:
    """Draw Simple Shapes into a zip or folder that train.py reads. It appears when it is complete."""
    with write_dataset(dest) as writer:
        for i in tqdm(range(num), unit="img", desc=dest.name, disable=None):
            writer.add(PIL.Image.fromarray(draw_shapes([i], seed=seed)[0]))
    click.echo(f"{dest}: {writer.summary()}; seed {seed}")


if __name__ == "__main__":
    main()
