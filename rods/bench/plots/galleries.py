"""Examples of pictures by label (figures 11 and 12)."""

from __future__ import annotations

from pathlib import Path
from textwrap import fill

from rods.bench.looks import as_samples
from rods.bench.plots.comparisons import label_of
from rods.bench.plots.drawing import DPI, U8, figure, mosaic, save, says, show
from rods.bench.plots.pictures import EULER, Pictures
from rods.bench.rating_report import settle
from rods.runs.rating import CATEGORIES, read_answers

COLUMNS = 8
MOST_ROWS = 8


def by_label(p: Pictures, out: Path, *, name: str) -> tuple[Path, list[str]]:
    """Figures 11 and 12: Euler's pictures by what is wrong with them, as people or the task's labeller say."""
    images, kinds = p.images(EULER), kinds_of(p)
    found: dict[str, list[int]] = {}
    for i, kind in enumerate(kinds):
        if kind is not None:
            found.setdefault(kind, []).append(i)
    order = sorted(found, key=lambda kind: (rank(p, kind), -len(found[kind]), kind))[:MOST_ROWS]
    lines = [f"{p.name}, Euler-40, {p.protocol.num} images by label ({p.label_source() or 'no labels'})"]
    lines += [f"  {kind}: {len(found[kind])}" for kind in order]
    numbers = {**p.describe(), "images_by_label": {k: [p.names()[i] for i in found[k]] for k in order}}
    if not order:
        fig, axes = figure(1, 1, width=5, height=1.5)
        says(axes[0, 0], ["No labels: label the pictures by hand", "(scripts/label.py), then give --answers"])
        return save(fig, out / f"{name}.png", numbers=numbers), lines
    tiles: list[list[U8 | None]] = []
    for kind in order:
        row: list[U8 | None] = [images[i] for i in found[kind][:COLUMNS]]
        tiles.append(row + [None] * (COLUMNS - len(row)))
    sheet = mosaic(tiles, tile=80)
    fig, axes = figure(1, 1, width=sheet.shape[1] / DPI + 2.6, height=sheet.shape[0] / DPI + 0.7)
    show(axes[0, 0], sheet, row_names=[fill(f"{kind} ({len(found[kind])})", width=18) for kind in order])
    fig.suptitle(lines[0], fontsize=10)
    seeds = {kind: ", ".join(label_of(p, i) for i in found[kind][:COLUMNS]) for kind in order}
    return save(fig, out / f"{name}.png", numbers={**numbers, "shown": seeds}), lines


def kinds_of(p: Pictures) -> list[str | None]:
    """What is said of each of Euler's pictures; None where nothing is."""
    if p.answers:
        said: dict[str, str] = {}
        for path in p.answers.values():
            answers = settle(read_answers(path), "image").answers
            said |= {name: str(line["answer"]) for (run, name), line in answers.items() if run == "A"}
        return [said.get(name) for name in p.names()]
    if p.task is None or p.task.faults is None:
        return [None] * p.protocol.num
    return [fault or CATEGORIES[p.study.kind][0] for fault in p.task.faults(as_samples(p.images(EULER)))]


def rank(p: Pictures, kind: str) -> int:
    """The paper's order of its categories; whatever else is said comes behind."""
    categories = CATEGORIES[p.study.kind]
    return categories.index(kind) if kind in categories else len(categories)
