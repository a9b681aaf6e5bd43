"""What the figures share: matplotlib, imported late, tiles of pictures, and files that appear once complete."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from dnnlib.errors import UserError
from dnnlib.util import atomic_write
from rods.bench.tasks.examples import COLOURS
from rods.eval.labels import Label

if TYPE_CHECKING:
    from matplotlib.figure import Figure

U8 = NDArray[np.uint8]
DPI = 110
FRAME, SPACE = 3, 5  # pixels around a tile: in the colour of its label, and white
NO_LABEL = (200, 200, 200)
MEANING = "Frames: green surely well, red surely bad, orange unsure"


def require_matplotlib() -> None:
    """Raises UserError where it is not installed: asked before hours of sampling, not after."""
    if find_spec("matplotlib") is None:
        raise UserError("figures need matplotlib, which is not installed: pip install 'matplotlib>=3.8'")


def figure(
    rows: int,
    columns: int,
    *,
    width: float,
    height: float,
    sharey: bool | Literal["row"] = False,
    widths: Sequence[float] | None = None,
) -> tuple[Figure, Any]:
    """A figure with rows x columns axes [rows, columns], in inches; no window, no global state.

    `widths` are the columns' shares. Raises UserError: matplotlib is not installed.
    """
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    fig = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(fig)
    return fig, fig.subplots(rows, columns, squeeze=False, sharey=sharey, width_ratios=widths)


def save(fig: Figure, path: Path, *, numbers: Mapping[str, Any] | None = None) -> Path:
    """Writes a PNG without the date and the version, so that equal figures are equal files; `numbers` beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        fig.savefig(temporary, format="png", dpi=DPI, metadata={"Software": None})
    if numbers is not None:
        with atomic_write(path.with_suffix(".json")) as temporary:
            temporary.write_text(json.dumps(numbers, indent=2) + "\n")
    return path


def colour(label: Label | None) -> tuple[int, int, int]:
    """The colour of a label; grey where there is none."""
    return NO_LABEL if label is None else COLOURS[label]


def mosaic(
    rows: Sequence[Sequence[U8 | None]],
    labels: Sequence[Sequence[Label | None]] | None = None,
    *,
    tile: int = 96,
) -> U8:
    """Tiles [C, H, W] in rows and columns as one picture in colour [H', W', 3]; None is a blank place.

    Tiles are enlarged by a whole factor to about `tile` pixels, and framed in the colours of their labels.
    """
    first = next(x for row in rows for x in row if x is not None)
    scale = max(1, round(tile / first.shape[1]))
    frame = FRAME if labels is not None else 0
    side, pitch = first.shape[1] * scale, first.shape[1] * scale + 2 * frame + SPACE
    sheet = np.full((len(rows) * pitch - SPACE, max(map(len, rows)) * pitch - SPACE, 3), 255, dtype=np.uint8)
    for r, row in enumerate(rows):
        for c, x in enumerate(row):
            if x is None:
                continue
            top, left = r * pitch, c * pitch
            if labels is not None:
                sheet[top : top + side + 2 * frame, left : left + side + 2 * frame] = colour(labels[r][c])
            pixels = (
                np.broadcast_to(x.transpose(1, 2, 0), (*x.shape[1:], 3)).repeat(scale, axis=0).repeat(scale, axis=1)
            )
            sheet[top + frame : top + frame + side, left + frame : left + frame + side] = pixels
    return sheet


def show(ax: Any, sheet: U8, *, row_names: Sequence[str] = (), column_names: Sequence[str] = ()) -> None:
    """Shows a mosaic, its rows and columns named along the left and the upper edge."""
    ax.imshow(sheet, interpolation="nearest")
    ax.set(xticks=_centres(sheet.shape[1], len(column_names)), yticks=_centres(sheet.shape[0], len(row_names)))
    ax.set_xticklabels(column_names, fontsize=8)
    ax.set_yticklabels(row_names, fontsize=9)
    ax.tick_params(length=0, labeltop=True, labelbottom=False)
    for spine in ax.spines.values():
        spine.set_visible(False)


def _centres(length: int, n: int) -> list[float]:
    """The middles of n tiles with SPACE between them."""
    pitch = (length + SPACE) / max(n, 1)
    return [k * pitch + (pitch - SPACE) / 2 for k in range(n)]


def inches(pixels: float) -> float:
    """The width on which a picture of so many pixels is drawn about one to one."""
    return pixels / DPI


def says(ax: Any, lines: Sequence[str]) -> None:
    """Text alone, from the upper left corner."""
    ax.axis("off")
    ax.text(0, 1, "\n".join(lines), va="top", ha="left", family="monospace", fontsize=8, transform=ax.transAxes)
