"""Learning curves: what a training run logged in its stats.jsonl, thinned and drawn."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from dnnlib.errors import UserError
from dnnlib.util import atomic_write
from rods.bench.plots.drawing import figure, save
from training.logging import STATS_NAME


@dataclass(frozen=True)
class Point:
    """What was logged at one tick; losses per pixel, None where none was taken."""

    kimg: float  # thousands of images seen
    loss: float | None  # mean over the tick's steps
    val_loss: float | None = None  # on held-out images, with the averaged weights


def read_curve(path: Path) -> list[Point]:
    """The points of a run folder, its stats.jsonl, or a file of `write_curve`; a last line that was cut is left out.

    Raises UserError: there is no such file, or a line is not a record of a training run.
    """
    file = path / STATS_NAME if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"{file} does not exist; name a run folder, its {STATS_NAME} or a curve file")
    try:
        lines = file.read_text().splitlines(keepends=True)
    except UnicodeDecodeError:
        raise UserError(f"{file} is no text file; name a run folder or its {STATS_NAME}") from None
    points = [_point(line, f"{file}, line {i}") for i, line in enumerate(lines, 1) if line.endswith("\n")]
    if not points:
        raise UserError(f"{file} has no lines yet; the run writes one each tick")
    return points


def _point(line: str, where: str) -> Point:
    try:
        record = json.loads(line)
    except ValueError:
        record = None
    if not isinstance(record, dict):
        raise UserError(f"{where} is no record of a training run; name its {STATS_NAME}")
    kimg, loss, val_loss = (record.get(name) for name in ("kimg", "loss", "val_loss"))
    values = [v for v in (kimg, loss, val_loss) if v is not None]
    if kimg is None or not all(isinstance(v, int | float) and math.isfinite(v) for v in values):
        raise UserError(f"{where}: kimg, loss and val_loss are not finite numbers; name a {STATS_NAME}")
    return Point(kimg, loss, val_loss)


def thinned(points: Sequence[Point], most: int) -> list[Point]:
    """At most `most` (2 or more) of the points, the first and the last among them, evenly spread in their order.

    Raises ValueError: most < 2.
    """
    if most < 2:
        raise ValueError(f"most={most}: a curve keeps its two ends; give 2 or more")
    if len(points) <= most:
        return list(points)
    return [points[round(i * (len(points) - 1) / (most - 1))] for i in range(most)]


def write_curve(path: Path, points: Sequence[Point]) -> Path:
    """A line of JSON a point, losses with four digits."""
    lines = [
        json.dumps({k: v if k == "kimg" else float(f"{v:.4g}") for k, v in asdict(p).items() if v is not None})
        for p in points
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n")
    return path


def learning_curves(curves: Mapping[str, Sequence[Point]], path: Path) -> Path:
    """A PNG with the training loss of each curve (solid) and its held-out loss (dashed) by thousands of images."""
    fig, axes = figure(1, 1, width=6.4, height=3.6)
    ax = axes[0, 0]
    for number, (name, points) in enumerate(curves.items()):
        style = {"color": f"C{number}", "marker": ".", "markersize": 3, "linewidth": 1.2}
        trained = [(p.kimg, p.loss) for p in points if p.loss is not None]
        held_out = [(p.kimg, p.val_loss) for p in points if p.val_loss is not None]
        if trained:
            ax.plot(*zip(*trained, strict=True), label=name, **style)
        if held_out:
            ax.plot(*zip(*held_out, strict=True), "--", label=f"{name}, held out", **style)
    ax.set(xlabel="thousand images seen", ylabel="loss per pixel", yscale="log")
    ax.grid(which="both", color="0.9", linewidth=0.6)
    ax.legend(frameon=False, fontsize=8)
    return save(fig, path)
