"""Renders hands into a folder with exactly the layout of 11k-hands, with ground truth, or into a zip for train.py."""

import csv
import json
import multiprocessing
import re
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import click
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # so that it runs without installing the project
sys.path.insert(0, str(Path(__file__).resolve().parent))

from rendered_hands.mesh import load_rig
from rendered_hands.scene import MIN_RESOLUTION, Hand, as_grey, draw_hand, render_hands

from dnnlib.cli import Command, Destination
from dnnlib.errors import UserError
from dnnlib.util import alone, atomic_write
from training.datasets.writer import write_dataset

COLUMNS = ["id", "age", "gender", "skinColor", "accessories", "nailPolish"]
COLUMNS += ["aspectOfHand", "imageName", "irregularities"]
TRUTH = ["numFingers", "changed", "seed", "index", "tone", "rotation"]  # beside those of 11k-hands
SKIN = ("very fair", "fair", "medium", "dark")
CHUNK = 16
Result = TypeVar("Result")
OPTIONS = ".render-hands.json"


class Resolution(click.ParamType):  # type: ignore[type-arg]
    """`160x120` or `64` -> (width, height)."""

    name = "WxH"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value
        found = re.fullmatch(r"(\d{1,5})(?:x(\d{1,5}))?", value)
        size = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
        if not MIN_RESOLUTION <= min(size) <= max(size) <= 4096:
            self.fail(f"{value!r} is not width x height of {MIN_RESOLUTION} to 4096; write 64 or 160x120", param, ctx)
        return size


@dataclass(frozen=True)
class Options:
    """What the pictures of a folder depend on, beside their index."""

    seed: int
    width: int
    height: int
    fingers: int
    quality: int


@click.command(cls=Command)
@click.option("--dest", type=Destination(), required=True, help="Folder, or NAME.zip (grey PNG).")
@click.option("--num", type=click.IntRange(1, 1_000_000), required=True, help="Hands.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Hand i depends on (seed, i).")
@click.option("--resolution", type=Resolution(), default="160x120", show_default=True, help="Of the pictures.")
@click.option("--fingers", type=click.IntRange(4, 6), default=5, show_default=True, help="5, or a planted error.")
@click.option("--quality", type=click.IntRange(50, 100), default=95, show_default=True, help="Of the JPEG files.")
@click.option("--workers", type=click.IntRange(1, 256), default=1, show_default=True, help="Processes.")
def main(
    dest: Path, num: int, seed: int, resolution: tuple[int, int], fingers: int, quality: int, workers: int
) -> None:
    """Render hands in the layout of 11k-hands; HandInfo.csv comes last. The same command resumes where it stopped."""
    options = Options(seed, *resolution, fingers, quality)
    load_rig()  # before anything is written: it may be missing
    if dest.suffix == ".zip":
        _write_zip(dest, num, options, workers)
    else:
        _fill(dest, num, options, workers)
    click.echo(f"{dest}: {num} hands of {options.width}x{options.height}, {fingers} fingers, seed {seed}")


def _write_zip(dest: Path, num: int, options: Options, workers: int) -> None:
    """Grey PNG files in EDM's data-set format, uncompressed zip; it appears when it is complete."""
    chunks = [list(range(s, min(s + CHUNK, num))) for s in range(0, num, CHUNK)]
    with write_dataset(dest) as writer, tqdm(total=num, unit="hand", desc=dest.name) as bar:
        for images in _run(partial(_grey, options=options), chunks, workers):
            for image in images:
                writer.add(Image.fromarray(image))
            bar.update(len(images))


def _grey(indices: list[int], *, options: Options) -> NDArray[np.uint8]:
    size = (options.width, options.height)
    return as_grey(render_hands(indices, seed=options.seed, resolution=size, num_fingers=options.fingers))


def _fill(dest: Path, num: int, options: Options, workers: int) -> None:
    """The folder: pictures that are missing, then the table."""
    hands = dest / "Hands"
    hands.mkdir(parents=True, exist_ok=True)
    with alone(hands, busy=f"another process is rendering into {dest}; wait for it or choose another --dest"):
        _claim(dest, options)
        for leftover in hands.glob(".tmp-*"):
            leftover.unlink()
        missing = [i for i in range(num) if not (hands / _image_name(i)).exists()]
        chunks = [missing[k : k + CHUNK] for k in range(0, len(missing), CHUNK)]
        with tqdm(total=num, initial=num - len(missing), unit="hand", desc=dest.name) as bar:
            for done in _run(partial(_render, hands=hands, options=options), chunks, workers):
                bar.update(done)
        _write_table(dest / "HandInfo.csv", num, options)


def _claim(dest: Path, options: Options) -> None:
    """Notes the options in the folder. Raises UserError if it holds pictures with other ones, or somebody's own."""
    path = dest / OPTIONS
    if path.exists():
        try:
            found = json.loads(path.read_text())
        except ValueError:
            found = None
        if found != asdict(options):
            raise UserError(f"--dest={dest} holds hands with other options ({found}); give them, or another folder")
        return
    if (dest / "HandInfo.csv").exists() or any((dest / "Hands").iterdir()):
        raise UserError(f"--dest={dest} holds hands that this command did not render; choose another folder")
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(asdict(options)) + "\n")


def _run(work: Callable[[list[int]], Result], chunks: list[list[int]], workers: int) -> Iterator[Result]:
    """Results of `work` over the chunks, in this process or in several."""
    with ExitStack() as stack:
        if workers == 1:
            yield from map(work, chunks)
            return
        context = multiprocessing.get_context("spawn")  # a fork would copy torch's threads half
        pool = stack.enter_context(ProcessPoolExecutor(workers, mp_context=context))
        try:
            yield from pool.map(work, chunks)
        finally:
            pool.shutdown(cancel_futures=True)


def _render(indices: list[int], *, hands: Path, options: Options) -> int:
    """Renders hands into files; how many."""
    size = (options.width, options.height)
    for i in indices:
        image = render_hands([i], seed=options.seed, resolution=size, num_fingers=options.fingers)[0]
        with atomic_write(hands / _image_name(i)) as temporary:
            Image.fromarray(image).save(temporary, quality=options.quality, subsampling=0)
    return len(indices)


def _image_name(index: int) -> str:
    return f"Hand_{index:07d}.jpg"


def _write_table(path: Path, num: int, options: Options) -> None:
    with atomic_write(path) as temporary, open(temporary, "w", newline="") as f:
        writer = csv.DictWriter(f, COLUMNS + TRUTH, lineterminator="\n")
        writer.writeheader()
        for i in range(num):
            writer.writerow(_row(i, draw_hand(options.seed, i, num_fingers=options.fingers), options))


def _row(index: int, hand: Hand, options: Options) -> dict[str, Any]:
    """One line of HandInfo.csv. Every hand is a person of its own; age and gender are those of the hand's shape."""
    shape = dict(hand.shape)
    tone = hand.skin.tone
    return {
        "id": index,
        "age": round(20 + 55 * shape["old"]),
        "gender": "male" if "male" in shape else "female",
        "skinColor": SKIN[min(int(tone * len(SKIN)), len(SKIN) - 1)],
        "accessories": 0,
        "nailPolish": 0,
        "aspectOfHand": f"{hand.aspect} {hand.side}",
        "imageName": _image_name(index),
        "irregularities": int(options.fingers != 5),
        "numFingers": options.fingers,
        "changed": hand.changed,
        "seed": options.seed,
        "index": index,
        "tone": round(tone, 4),
        "rotation": round(float(np.degrees(hand.rotation)), 2),
    }


if __name__ == "__main__":
    main()
