"""Makes a data set in EDM's format out of a folder in the form of 11k-hands: JPEGs and HandInfo.csv."""

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import click
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that it runs without installing the project

from dnnlib.cli import Command, Destination
from dnnlib.errors import UserError
from dnnlib.util import alone
from training.datasets import hands11k
from training.datasets.hands11k import Hand, Shape
from training.datasets.writer import check_dests

FITS = {"crop": "the largest centred square of each photograph", "white": "all of each photograph, on a white square"}
KEEP_OR_DROP = click.Choice(["keep", "drop"])


@click.command(cls=Command)
@click.option("--source", type=click.Path(path_type=Path), required=True,
              help="The folder of the photographs (or the one above Hands/) with HandInfo.csv.")  # fmt: skip
@click.option("--dest", type=Destination(), default="data/hands-128.zip", show_default=True,
              help="The data set: NAME.zip, or a new folder.")  # fmt: skip
@click.option("--resolution", type=click.IntRange(8, 1200), default=128, show_default=True, help="Pixels across.")
@click.option("--fit", type=click.Choice(list(FITS)), default="crop", show_default=True,
              help="crop: the largest centred square; white: the whole photograph, with white bars.")  # fmt: skip
@click.option("--label", metavar="COLUMN", help="Classes from a column of HandInfo.csv, such as aspectOfHand.")
@click.option("--accessories", type=KEEP_OR_DROP, default="keep", show_default=True, help="Hands with rings etc.")
@click.option("--irregularities", type=KEEP_OR_DROP, default="keep", show_default=True, help="Hands marked irregular.")
@click.option("--held-out", type=Destination(), help="A second data set, of persons held out.")
@click.option("--every", type=click.IntRange(min=2), help="The last of each so many persons is.  [default: 5]")
@click.option("--damaged", type=click.Choice(["stop", "drop"]), default="stop", show_default=True,
              help="What to do about photographs that cannot be used.")  # fmt: skip
@click.option("--workers", type=click.IntRange(1, 256), help="Threads.  [default: one per core]")
@click.option("--force", is_flag=True, help="Replace zips that exist.")
def main(
    source: Path, dest: Path, resolution: int, fit: str, label: str | None, accessories: str, irregularities: str,
    held_out: Path | None, every: int | None, damaged: str, workers: int | None, force: bool,
) -> None:  # fmt: skip
    """Make a data set of 11k-hands, or of rendered hands, that train.py reads. It appears when it is complete.

    An interrupted run leaves its finished images in a hidden folder beside --dest; the same command goes on from there.
    """
    if every and held_out is None:
        raise click.UsageError(f"--every={every} needs --held-out=NAME.zip, where those persons go")
    check_dests(dest, held_out, force=force)
    folder = hands11k.read_folder(source)
    for line in hands11k.mismatches(folder):
        click.echo(f"Warning: {line}", err=True)
    hands = _selected(folder.hands, accessories=accessories, irregularities=irregularities)
    labels, names = hands11k.classes(hands, label) if label else (None, [])
    held = hands11k.of_held_out_persons(hands, every or 5) if held_out else [False] * len(hands)
    work = dest.with_name(f".{dest.name}.work")
    work.mkdir(parents=True, exist_ok=True)
    with alone(work, busy=f"another process is preparing {dest}; wait for it or choose another --dest"):
        shape = Shape(resolution, fit)
        files = [folder.file(hand) for hand in hands]
        pngs = [hands11k.done_file(work, file, shape) for file in files]
        finished = hands11k.finish_all(files, pngs, shape, workers=workers or os.cpu_count() or 1)
        errors = list(tqdm(finished, total=len(files), unit="img", desc=dest.name, disable=None))
        _report_damaged([e for e in errors if e], resolution, damaged)
        good = [i for i, error in enumerate(errors) if error is None]
        lines = hands11k.pack(
            [pngs[i] for i in good],
            [labels[i] for i in good] if labels else None,
            [held[i] for i in good],
            dest=dest, held_out=held_out, label_names=names,
        )  # fmt: skip
        shutil.rmtree(work)
    for line in lines:
        click.echo(line)
    click.echo(f"--fit={fit}: {FITS[fit]}" + (f"; classes {', '.join(names)}" if names else ""))


def _selected(hands: Sequence[Hand], *, accessories: str, irregularities: str) -> Sequence[Hand]:
    for column, choice in (("accessories", accessories), ("irregularities", irregularities)):
        if choice == "drop":
            num = len(hands)
            hands = hands11k.without(hands, column)
            click.echo(f"--{column}=drop: {num - len(hands):,} hands are left out")
    return hands


def _report_damaged(errors: list[str], resolution: int, damaged: str) -> None:
    if not errors:
        return
    what = f"photographs that cannot be made {resolution} pixels across, {len(errors):,}: {', '.join(errors)}"
    if damaged == "stop":
        raise UserError(f"{what}; replace them and run the command again, or say --damaged=drop")
    click.echo(f"Warning: {what}; they are left out", err=True)


if __name__ == "__main__":
    main()
