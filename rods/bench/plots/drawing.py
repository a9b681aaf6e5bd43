"""What the figures share: matplotlib, imported late, and files that appear when they are complete."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dnnlib.errors import UserError
from dnnlib.util import atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 110


def figure(
    rows: int, columns: int, *, width: float, height: float, sharey: bool | Literal["row"] = False
) -> tuple[Figure, Any]:
    """A figure with rows x columns axes [rows, columns], in inches; no window, no global state.

    Raises UserError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("figures need matplotlib, which is not installed: pip install 'matplotlib>=3.8'") from None
    fig = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(fig)
    return fig, fig.subplots(rows, columns, squeeze=False, sharey=sharey)


def save(fig: Figure, path: Path) -> Path:
    """Writes a PNG without the date and the version, so that equal figures are equal files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        fig.savefig(temporary, format="png", dpi=DPI, metadata={"Software": None})
    return path
