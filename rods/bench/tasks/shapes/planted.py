"""Planted errors of Simple Shapes: images that cannot come from the data, each with one known fault."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from rods.bench.tasks.shapes.data import COLUMN_HEIGHT, COLUMN_WIDTH, NAMES, RESOLUTION, draw_shapes, template

U8 = NDArray[np.uint8]
OVERHANG = 3  # the least width of a shape on either side of a column's border
MELT = 3.0  # pixels of blur


def plant_errors(kind: str, indices: int | Sequence[int], *, seed: int) -> U8:
    """Images [N, 64, 64] with the fault `kind`, a key of PLANTED; image i depends on (kind, seed, i) alone.

    indices: the images to draw (an int n means 0..n-1). The other columns hold what the data's generator drew. Raises
    ValueError for an unknown kind, and for a negative seed or index.
    """
    if kind not in PLANTED:
        raise ValueError(f"plant_errors: {kind!r} is unknown, use one of {', '.join(PLANTED)}")
    images = draw_shapes(indices, seed=seed)
    number = list(PLANTED).index(kind)
    for image, i in zip(images, range(indices) if isinstance(indices, int) else indices, strict=True):
        PLANTED[kind](image, np.random.default_rng([seed, i, number]))
    return images


def _column(image: U8, c: int) -> U8:
    """A view [63, 21] of a column, wiped."""
    column = image[:COLUMN_HEIGHT, c * COLUMN_WIDTH : (c + 1) * COLUMN_WIDTH]
    column[:] = 0
    return column


def _put(canvas: U8, shape: NDArray[np.bool_], y: int, x: int) -> None:
    canvas[y : y + shape.shape[0], x : x + shape.shape[1]][shape] = 255


def _place(canvas: U8, shape: NDArray[np.bool_], rng: np.random.Generator) -> None:
    h, w = shape.shape
    _put(canvas, shape, int(rng.integers(canvas.shape[0] - h + 1)), int(rng.integers(canvas.shape[1] - w + 1)))


def _two(image: U8, name: str, rng: np.random.Generator) -> None:
    """Two of a column's own shape in it, one above the other with at least a pixel between them."""
    column, shape = _column(image, NAMES.index(name)), template(name)
    cut = int(rng.integers(shape.shape[0], COLUMN_HEIGHT - shape.shape[0] - 1))
    _place(column[:cut], shape, rng)
    _place(column[cut + 1 :], shape, rng)


def _wrong(image: U8, name: str, rng: np.random.Generator) -> None:
    """The shape `name` in another column."""
    others = [c for c in range(3) if NAMES[c] != name]
    _place(_column(image, int(rng.choice(others))), template(name), rng)


def _across(image: U8, rng: np.random.Generator) -> None:
    """A shape across the border of two columns, of either of them, at least OVERHANG pixels on both sides."""
    border = int(rng.integers(1, 3))
    shape = template(NAMES[border - int(rng.integers(2))])
    _column(image, border - 1)
    _column(image, border)
    x = border * COLUMN_WIDTH - int(rng.integers(OVERHANG, shape.shape[1] - OVERHANG + 1))
    _put(image, shape, int(rng.integers(COLUMN_HEIGHT - shape.shape[0] + 1)), x)


def _blank(image: U8, rng: np.random.Generator) -> None:
    """No shape at all: a level of black or grey, and a little noise."""
    image[:] = rng.integers(0, 100) + rng.integers(0, 6, (RESOLUTION, RESOLUTION))


def _half(image: U8, rng: np.random.Generator) -> None:
    """At most one half of a column's own shape by area: its upper, lower, left or right part."""
    c = int(rng.integers(3))
    shape = np.rot90(template(NAMES[c]), k := int(rng.integers(4)))
    rows = int((shape.sum(axis=1).cumsum() <= shape.sum() / 2).sum())
    _place(_column(image, c), np.rot90(shape[:rows], -k), rng)


def _melted(image: U8, rng: np.random.Generator) -> None:
    """A column's own shape, blurred until it is a blob."""
    c = int(rng.integers(3))
    column = _column(image, c)
    _place(column[6:-6, 4:-4], template(NAMES[c]), rng)
    blob = ndimage.gaussian_filter(column.astype(np.float64), MELT)
    column[:] = np.rint(blob * (255 / blob.max()))


PLANTED: dict[str, Callable[[U8, np.random.Generator], None]] = {
    "two triangles in a column": lambda image, rng: _two(image, "triangle", rng),
    "two squares in a column": lambda image, rng: _two(image, "square", rng),
    "two pentagons in a column": lambda image, rng: _two(image, "pentagon", rng),
    "a triangle in another column": lambda image, rng: _wrong(image, "triangle", rng),
    "a square in another column": lambda image, rng: _wrong(image, "square", rng),
    "a pentagon in another column": lambda image, rng: _wrong(image, "pentagon", rng),
    "a shape across columns": _across,
    "blank": _blank,
    "half a shape": _half,
    "a melted shape": _melted,
}
