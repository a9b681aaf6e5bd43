"""Draws the data set of the hands task: an uncompressed zip of 32x32 grey PNGs in EDM's data-set format."""

import io
import sys
import zipfile
from pathlib import Path

import click
from PIL import Image
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that it runs without installing the project

from dnnlib.cli import Command
from dnnlib.util import atomic_write
from rods.bench.hands import CHUNK, draw_hands

DATE = (1980, 1, 1, 0, 0, 0)  # the same images give the same file


@click.command(cls=Command)
@click.option("--dest", type=click.Path(dir_okay=False, path_type=Path), default="data/hands-32.zip", show_default=True)
@click.option("--num", type=click.IntRange(min=1, max=10_000_000), default=50_000, show_default=True, help="Hands.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Hand i depends on (seed, i).")
@click.option("--resolution", type=click.IntRange(32, 1024), default=32, show_default=True, help="Pixels across.")
@click.option("--fingers", type=click.IntRange(3, 7), default=5, show_default=True, help="5, or a planted error.")
def main(dest: Path, num: int, seed: int, resolution: int, fingers: int) -> None:
    """Draw hands into a zip that train.py reads. The file appears when it is complete."""
    if dest.suffix != ".zip":
        raise click.UsageError(f"--dest={dest} does not end in .zip; give the name of the zip to write")
    dest.parent.mkdir(parents=True, exist_ok=True)
    with (
        atomic_write(dest) as temporary,
        zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive,
        tqdm(total=num, unit="hand", desc=dest.name) as bar,
    ):
        for start in range(0, num, CHUNK):
            batch = range(start, min(start + CHUNK, num))
            for i, image in zip(
                batch, draw_hands(batch, seed=seed, resolution=resolution, num_fingers=fingers), strict=True
            ):
                png = io.BytesIO()
                Image.fromarray(image).save(png, format="png", compress_level=6)
                name = f"{i // 1000:05d}/img{i:08d}.png"
                archive.writestr(zipfile.ZipInfo(name, DATE), png.getvalue())
            bar.update(len(batch))
    click.echo(f"{dest}: {num} hands of {resolution}x{resolution}, {fingers} fingers, seed {seed}")


if __name__ == "__main__":
    main()
