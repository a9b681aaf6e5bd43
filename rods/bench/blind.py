"""A sheet of changed images that hides which run is which, and the key to it."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Sequence
from pathlib import Path

import PIL.Image

from dnnlib.util import atomic_write
from rods.bench.labelled import LabelledRun
from rods.bench.qualitative import Pair, pair_sheet
from rods.bench.unlabelled import changed_pictures, images_of
from rods.runs.images import save_png

MOST_PAIRS = 48  # of a sheet
KEY_COLUMNS = ("number", "image", "left", "right")


def blind_sheet(base: LabelledRun, run: LabelledRun) -> tuple[PIL.Image.Image, str] | None:
    """Changed images side by side under numbers, and a CSV that says which side is of which run; None: none changed.

    Which pairs are shown, in which order and on which sides is decided by a hash of both images' checksums: the same
    two runs give the same sheet. Raises UserError where the PNGs are not there.
    """
    base, run, changed = changed_pictures(base, run, option="--blind")
    if not changed:
        return None
    drawn = {i: _hash(base.keys[i], run.keys[i]) for i in changed}
    shown = sorted(changed, key=lambda i: drawn[i])[:MOST_PAIRS]
    pairs, rows = [], []
    for number, i in enumerate(shown, 1):
        one, two = images_of(base, run, i)
        sides = [(one, "A"), (two, "B")][:: 1 if drawn[i] % 2 else -1]
        pairs.append(Pair(sides[0][0], sides[1][0], str(number)))
        rows.append((str(number), base.samples[i]["name"], sides[0][1], sides[1][1]))
    return pair_sheet(pairs), _csv(rows)


def key_path(sheet: Path) -> Path:
    """Where the key to a sheet is written."""
    return sheet.with_suffix(".key.csv")


def write_blind(path: Path, sheet: PIL.Image.Image, key: str) -> None:
    """The sheet, and its key beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_png(sheet, path)
    with atomic_write(key_path(path)) as temporary:
        temporary.write_text(key)


def _hash(*keys: tuple[str, str]) -> int:
    return int(hashlib.sha256(repr(keys).encode()).hexdigest()[:16], 16)


def _csv(rows: Sequence[tuple[str, ...]]) -> str:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows([KEY_COLUMNS, *rows])
    return text.getvalue()
