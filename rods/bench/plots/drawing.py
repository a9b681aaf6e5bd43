"""What all figures share: matplotlib, imported late; sheets of labelled images; equal files for equal figures."""

from __future__ import annotations

import io
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
import PIL.Image

from dnnlib.errors import UserError, install
from dnnlib.util import atomic_write
from rods.eval.labels import Label
from rods.runs.images import U8, Colour, contact_sheet

if TYPE_CHECKING:
    from matplotlib.figure import Figure

T = TypeVar("T")

DPI = 110
GAP = 10  # pixels between the tiles of a sheet; frames are in them
REMEDY = install("plots")
COLOURS: dict[Label | None, Colour] = {
    Label.VALID: (40, 160, 80),
    Label.HALLUCINATED: (230, 60, 40),
    Label.UNCERTAIN: (240, 170, 30),
    None: (200, 200, 200),
}
LEGEND = "Frames: green valid, red hallucinated, orange uncertain, grey without a label"


def has_matplotlib() -> bool:
    return find_spec("matplotlib") is not None


def require_matplotlib() -> None:
    """Raises UserError where it is not installed: to be asked before hours of sampling, not after."""
    if not has_matplotlib():
        raise UserError(f"figures need matplotlib, which is not installed: {REMEDY}")


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


def png(fig: Figure) -> bytes:
    """The figure as a PNG of at most 64 colours, without date and version, so that equal figures are equal files."""
    drawn, data = io.BytesIO(), io.BytesIO()
    fig.savefig(drawn, format="png", dpi=DPI, metadata={"Software": None})
    with PIL.Image.open(drawn) as image:
        image.convert("RGB").quantize(64, dither=PIL.Image.Dither.NONE).save(data, "png", optimize=True)
    return data.getvalue()


def save(fig: Figure, path: Path) -> Path:
    """Writes the figure's PNG, its folder too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        temporary.write_bytes(png(fig))
    return path


def sheet(
    rows: Sequence[Sequence[U8 | None]], labels: Sequence[Sequence[Label | None]] | None = None, *, min_tile: int = 96
) -> U8:
    """Tiles [C, H, W] in rows, framed in the colours of their labels, as pixels [H', W', 3]. Short rows end blank."""
    columns = max(map(len, rows))
    frames = [] if labels is None else [COLOURS[label] for row in _padded(labels, columns) for label in row]
    tiles = [tile for row in _padded(rows, columns) for tile in row]
    made = contact_sheet(tiles, frames=frames, columns=columns, min_tile=min_tile, gap=GAP, margin=GAP // 2)
    return np.asarray(made)


def _padded(rows: Sequence[Sequence[T | None]], columns: int) -> list[list[T | None]]:
    return [[*row, *[None] * (columns - len(row))] for row in rows]


def show(ax: Any, pixels: U8, *, row_names: Sequence[str] = (), column_names: Sequence[str] = ()) -> None:
    """Shows a sheet, its rows and columns named along the left and the upper edge."""
    ax.imshow(pixels, interpolation="nearest")
    for axis, length, names in ((ax.xaxis, pixels.shape[1], column_names), (ax.yaxis, pixels.shape[0], row_names)):
        axis.set_ticks([(k + 0.5) * length / len(names) for k in range(len(names))], names, fontsize=8)
    ax.tick_params(length=0, labeltop=True, labelbottom=False)
    ax.spines[:].set_visible(False)


def write_lines(ax: Any, lines: Sequence[str]) -> None:
    """Text alone, from the upper left corner."""
    ax.axis("off")
    ax.text(0, 1, "\n".join(lines), va="top", ha="left", family="monospace", fontsize=8, transform=ax.transAxes)
