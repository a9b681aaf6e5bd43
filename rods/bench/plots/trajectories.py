"""How a batch of pictures comes about: x_t and D(x_t) at some steps, a row per method (figures 13 and 14)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from rods.bench.plots.comparisons import SIDE_BY_SIDE, TITLES, rms, settings
from rods.bench.plots.drawing import DPI, U8, figure, mosaic, save, show
from rods.bench.plots.pictures import CAS, EULER, Pictures, read_png
from rods.runs.trajectories import tiles_of

STEPS = (0, 8, 12, 16, 20, 24, 28, 32, 36)  # of 40
METHODS = (EULER, "heun", CAS)
BATCH = 9


def trajectories(p: Pictures, out: Path, *, name: str) -> tuple[Path, list[str]]:
    """Figures 13 and 14: the same batch under each method, from noise (left) to the image (right)."""
    assert set(METHODS) <= set(SIDE_BY_SIDE)
    strips = {
        m: [tiles_of(read_png(p.path(m) / r["trajectory"]["file"])) for r in p.records(m)[:BATCH]] for m in METHODS
    }
    rows, names = [], []
    for m in METHODS:
        for kind, what in enumerate(("x_t", "D(x_t)")):
            rows.append([batch_tile([strip[kind][k] for strip in strips[m]]) for k in range(len(STEPS) + 1)])
            names.append(f"{TITLES[m]}\n{what}")
    levels = p.records(EULER)[0]["trajectory"]["sigma"]
    columns = [*(f"step {k}\nt = {t:.3g}" for k, t in zip(STEPS, levels, strict=True)), "image"]
    sheet = mosaic(rows, tile=max(96, rows[0][0].shape[1]))
    scale = 1 if sheet.shape[1] < 1300 else 0.75
    fig, axes = figure(1, 1, width=scale * sheet.shape[1] / DPI + 1.0, height=scale * sheet.shape[0] / DPI + 0.8)
    show(axes[0, 0], sheet, row_names=names, column_names=columns)
    images = {m: p.images(m)[:BATCH] for m in METHODS}
    moved = rms(images[CAS], images[EULER])
    lines = [
        f"{p.name}, {len(moved)} images of one batch, RODS-CAS {settings(p, CAS)}; x_t drawn as x / sqrt(1 + t^2)",
        f"CAS moved the images by {np.median(moved):.1f} of 255 (median; root mean square), at most {moved.max():.1f}",
    ]
    fig.suptitle("\n".join(lines), fontsize=9)
    numbers = {**p.describe(), "steps": STEPS, "sigma": levels, "rms_cas_against_euler": moved.round(3).tolist()}
    return save(fig, out / f"{name}.png", numbers=numbers), lines


def batch_tile(tiles: list[U8]) -> U8:
    """Nine pictures [C, H, H] as one of three by three [C, 3 H, 3 H]; places that nothing fills are white."""
    C, H, _ = tiles[0].shape
    sheet = np.full((C, 3 * H, 3 * H), 255, dtype=np.uint8)
    for i, x in enumerate(tiles):
        r, c = divmod(i, 3)
        sheet[:, r * H : (r + 1) * H, c * H : (c + 1) * H] = x
    return sheet
