"""Draws the data set of the hands task: 32x32 grey PNGs in EDM's data-set format."""

import sys
from pathlib import Path

import click
import PIL.Image
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that it runs without installing the project

from dnnlib.cli import Command
from rods.bench.hands import CHUNK, draw_hands
from training.datasets.writer import write_dataset


@click.command(cls=Command)
@click.option("--dest", type=click.Path(path_type=Path), default="data/hands-32.zip", show_default=True)
@click.option("--num", type=click.IntRange(min=1, max=10_000_000), default=50_000, show_default=True, help="Hands.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Hand i depends on (seed, i).")
@click.option("--resolution", type=click.IntRange(32, 1024), default=32, show_default=True, help="Pixels across.")
@click.option("--fingers", type=click.IntRange(3, 7), default=5, show_default=True, help="5, or a planted error.")
def main(dest: Path, num: int, seed: int, resolution: int, fingers: int) -> None:
    """Draw hands into a zip or folder that train.py reads. It appears when it is complete."""
    with write_dataset(dest) as writer, tqdm(total=num, unit="hand", desc=dest.name, disable=None) as bar:
        for start in range(0, num, CHUNK):
            batch = range(start, min(start + CHUNK, num))
            for image in draw_hands(batch, seed=seed, resolution=resolution, num_fingers=fingers):
                writer.add(PIL.Image.fromarray(image))
            bar.update(len(batch))
    click.echo(f"{dest}: {writer.summary()}; {fingers} fingers, seed {seed}")


if __name__ == "__main__":
    main()
