"""What the paper's figures have in common: sheets of images by sampler, tables of outcomes, names and differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rods.bench.paper import Experiment
from rods.bench.paper_tables import correction_row
from rods.bench.plots.drawing import DPI, LEGEND, figure, sheet, show, write_lines
from rods.bench.tables import Table
from rods.eval.labels import Label
from rods.runs.images import U8, contact_sheet

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = 9  # images in a row, and in a batch of the paper
NO_LABELS = "There are no labels: label the images by hand (scripts/label.py), then give --answers."
Labels = Sequence[Label | None]


@dataclass(frozen=True)
class Drawn:
    """A figure, what it says in words, and its numbers as JSON holds them."""

    figure: Figure
    lines: Sequence[str]
    numbers: Mapping[str, Any]


def sheet_and_text(
    e: Experiment,
    methods: Sequence[str],
    shown: Sequence[int],
    text: Sequence[str],
    *,
    image_names: Sequence[str],
    title: Sequence[str],
) -> Figure:
    """Chosen images, a row per method, framed by label; a table beside them, sentences above."""
    images, labels = {m: e.images(m) for m in methods}, {m: e.labels(m) for m in methods}
    pixels = sheet([[images[m][i] for i in shown] for m in methods], [[labels[m][i] for i in shown] for m in methods])
    wide, beside = pixels.shape[1] / DPI + 1.3, 6.2 if text else 0.1
    height = max(pixels.shape[0] / DPI + 0.9, 3.0)
    fig, axes = figure(1, 2, width=wide + beside, height=height + 0.25 * (len(title) + 1), widths=(wide, beside))
    show(axes[0, 0], pixels, row_names=[fill(m, 14) for m in methods], column_names=image_names)
    write_lines(axes[0, 1], text)
    fig.suptitle("\n".join([*title, LEGEND]), fontsize=9)
    return fig


def telling(before: Labels, after: Labels, H: NDArray[np.float64]) -> list[int]:
    """Which images to show: repaired, newly broken, still hallucinated, others, by the largest H within each."""
    by_change: dict[str, list[int]] = {"repaired": [], "newly broken": [], "hallucinated": [], "other": []}
    for i in np.argsort(-H, kind="stable").tolist():
        what = change(before[i], after[i])
        by_change[what if what in by_change else "other"].append(i)
    repaired, broken, still, others = by_change.values()
    shown = repaired[:3] + broken[:2] + still[:3]
    return [*shown, *others[: COLUMNS - len(shown)]]


def change(before: Label | None, after: Label | None) -> str:
    """What a correction did to an image."""
    if before is None or after is None:
        return ""
    names = {(Label.HALLUCINATED, Label.VALID): "repaired", (Label.VALID, Label.HALLUCINATED): "newly broken",
             (Label.HALLUCINATED, Label.HALLUCINATED): "hallucinated", (Label.VALID, Label.VALID): "valid"}  # fmt: skip
    return names.get((before, after), "uncertain")


def outcome_lines(e: Experiment, methods: Sequence[str]) -> list[str]:
    """A table of the methods' rates, with the paper's where it printed any."""
    if not e.label_source():
        return [NO_LABELS]
    rows = [correction_row(e, m, e.labels(m), None) for m in methods]
    cells = tuple((r.method, *(r.cells()[k] for k in (1, 3, 4, 6))) for r in rows)
    lines = Table(("sampler", "hallucinated", "repaired", "newly broken", "F+B"), cells).markdown().splitlines()
    if e.study.correction:
        printed = tuple((m, *(f"{v:g}" if v is not None else "" for v in (c.hallucinated, c.corrected, c.broken)))
                        for m, c in e.study.correction.items())  # fmt: skip
        table = Table((f"paper, {e.study.title}", "hallucinated %", "repaired %", "newly broken %"), printed)
        lines += ["", *table.markdown().splitlines()]
    return lines


def outcome_numbers(e: Experiment, methods: Sequence[str]) -> dict[str, Any]:
    return {m: asdict(correction_row(e, m, e.labels(m), None)) for m in methods}


def seed_of(e: Experiment, i: int) -> str:
    """The seed of an image, and its row where a seed draws a batch."""
    seed, _, row = e.names()[i].removesuffix(".png").partition("_")
    return f"{int(seed)}" + (f".{int(row)}" if row else "")


def rms(a: U8, b: U8) -> NDArray[np.float64]:
    """Root mean square difference of the pixels of each pair of images [N]."""
    return np.asarray(np.sqrt(((a.astype(np.float64) - b) ** 2).mean(axis=(1, 2, 3))))


def rounded(x: NDArray[np.float64]) -> list[float]:
    found: list[float] = x.round(3).tolist()
    return found


def batch_tile(tiles: Sequence[U8]) -> U8:
    """Up to nine images [C, H, H] as one of three by three [3, 3 H, 3 H]."""
    padded: list[U8 | None] = [*tiles, *[None] * (COLUMNS - len(tiles))]
    made = np.asarray(contact_sheet(padded, columns=3, min_tile=1, gap=0, margin=0))
    return np.moveaxis(made, 2, 0)
