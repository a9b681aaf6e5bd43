"""Labels images of Simple Shapes: at most one shape in a column, the column's own, whole, and somewhere at least one.

How an image is read:

1. Tone: background and shapes are mapped to 0 and 1 (`rods.bench.tasks.tone_control`), so an affine change of tone
   changes nothing.
2. The image is cut into its three columns, and what lies outside of them (the last row and column) is kept apart.
3. Pieces: connected components above a threshold. A column may hold none or one, of about the area of its shape.
4. Shape: the cosine between the column and each template, at its best place. The column's own shape must match, with
   its full brightness, and better than the other two. A shape that lies across columns leaves a piece in each, and
   neither matches.

All this is read at three strictnesses. An image that passes none of them is hallucinated, one that passes all is valid,
and every other one is uncertain: a shape that is half faded away is uncertain, not valid.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage

from rods.bench.tasks.shapes.data import COLUMN_HEIGHT, COLUMN_WIDTH, NAMES, RESOLUTION, template
from rods.bench.tasks.tone_control import MIN_CONTRAST, as_unit, normalise
from rods.eval.labels import combine_readings

F32 = NDArray[np.float32]
Bool = NDArray[np.bool_]

CHUNK = 256  # images read at a time, which bounds the memory
AREAS = (0.7, 1.4)  # of the template's area; a shape between two pixels has .77 to 1.2
BRIGHTNESS = 0.7  # the least one of a shape, of the image's contrast
SPECK = 3  # pixels; pieces up to this size are noise and no shape
BLANK, SEVERAL, WRONG, MALFORMED = (
    "blank",
    "several shapes in a column",
    "another column's shape",
    "malformed or across",
)


@dataclass(frozen=True)
class Reading:
    """How strictly an image is read."""

    threshold: float  # of the pieces, between background 0 and shape 1
    match: float  # the least cosine with the own template; between two pixels it is .92, for another shape .81 to .91
    margin: float  # by which the own template must match better than the others


READINGS = (Reading(0.3, 0.86, -0.02), Reading(0.5, 0.89, 0.0), Reading(0.7, 0.91, 0.02))


@dataclass(frozen=True)
class _Columns:
    """What is seen in the columns of N images, whatever the reading."""

    shape: F32  # [N, 3, 63, 21] background 0, shapes 1
    outside: F32  # [N, 127] the last row and column
    seen: Bool  # [N] whether there is any contrast
    match: F32  # [N, 3, 3] cosine of each column with each template
    brightness: F32  # [N, 3] of the own template at its best place


def label_shapes(images: NDArray[Any]) -> NDArray[np.int8]:
    """Labels int8 [N] (codes of `rods.eval.labels.Label`) of images [N, 64, 64] or [N, 1, 64, 64].

    images: uint8, or floats as a sampler returns them (in -1..1), white on black.
    Raises ValueError for other shapes or types, and values that are not finite.
    """
    none = np.empty((0, len(READINGS)), dtype=bool)
    return combine_readings(np.concatenate([none, *(_passes(c).all(axis=2) for c in _chunks(images))]))


def present_shapes(images: NDArray[Any]) -> NDArray[np.int64]:
    """Which shapes each image [N] holds, at the middle reading: 0..6 for the seven sets that are not empty, else -1.

    Number b - 1, where b has bit 0 for a triangle, bit 1 for a square, bit 2 for a pentagon; -1 where the image is
    not valid at this reading. In the data each has probability 1/7. Arguments and errors as `label_shapes`.
    """
    sets = [np.empty(0, dtype=np.int64)]
    for c in _chunks(images):
        present = _pieces(c.shape, READINGS[1].threshold)[0] > 0  # [n, 3]
        sets.append(np.where(_passes(c)[:, 1].all(axis=1), present @ np.array([1, 2, 4]) - 1, -1))
    return np.concatenate(sets)


def faults(images: NDArray[Any]) -> Sequence[str]:
    """What is wrong with each image at the middle reading, the first of: blank, several shapes in a column, another
    column's shape, malformed or across columns; "" for nothing. Arguments and errors as `label_shapes`."""
    found: list[str] = []
    for c in _chunks(images):
        valid = _passes(c)[:, 1].all(axis=1)
        number = _pieces(c.shape, READINGS[1].threshold)[0]
        own = np.eye(3, dtype=bool)
        foreign = np.where(own, 0, c.match).max(axis=2)
        wrong = (number == 1) & (foreign > c.match[:, own]) & (foreign >= READINGS[1].match)
        names = np.select(
            [valid, (number == 0).all(axis=1) | ~c.seen, (number > 1).any(axis=1), wrong.any(axis=1)],
            ["", BLANK, SEVERAL, WRONG],
            MALFORMED,
        )
        found += [str(name) for name in names]
    return found


def _chunks(images: NDArray[Any]) -> Sequence[_Columns]:
    unit = as_unit(images)
    if unit.shape[1] != RESOLUTION:
        raise ValueError(f"images have shape {list(images.shape)}, Simple Shapes are {RESOLUTION}x{RESOLUTION}")
    return [_columns(unit[i : i + CHUNK]) for i in range(0, len(unit), CHUNK)]


def _columns(unit: F32) -> _Columns:
    """The columns of images [n, 64, 64] in 0..1."""
    image, contrast = normalise(unit)
    image = np.clip(image, 0, 1.2)
    inside = image[:, :COLUMN_HEIGHT, : 3 * COLUMN_WIDTH].reshape(-1, COLUMN_HEIGHT, 3, COLUMN_WIDTH)
    shape = np.ascontiguousarray(inside.transpose(0, 2, 1, 3))  # [n, 3, 63, 21]
    outside = np.concatenate([image[:, COLUMN_HEIGHT:].reshape(len(image), -1), image[:, :-1, -1]], axis=1)
    product = np.stack([_best_place(shape, template(name)) for name in NAMES], axis=2)  # [n, 3, 3]
    area = np.array([template(name).sum() for name in NAMES], dtype=np.float32)
    length = np.sqrt((shape**2).sum(axis=(2, 3)))[:, :, None] * np.sqrt(area)
    match = product / np.maximum(length, 1e-6)
    return _Columns(shape, outside, contrast >= MIN_CONTRAST, match, product[:, np.eye(3, dtype=bool)] / area)


def _best_place(shape: F32, mask: Bool) -> F32:
    """The largest inner product [n, 3] of columns [n, 3, 63, 21] with a template that lies anywhere inside of them."""
    H, W = shape.shape[2:]
    h, w = mask.shape
    size = (fft.next_fast_len(H + h, real=True), fft.next_fast_len(W + w, real=True))
    spectrum = fft.rfft2(shape, size) * np.conj(fft.rfft2(mask.astype(np.float32), size))
    products: F32 = fft.irfft2(spectrum, size)[:, :, : H - h + 1, : W - w + 1]
    return np.asarray(products.max(axis=(2, 3)))


def _pieces(shape: F32, threshold: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """How many pieces each column [n, 3] has above the threshold, specks left out, and the area of the largest."""
    n = len(shape)
    flat = np.zeros((3, 3, 3), dtype=bool)
    flat[1] = True  # diagonals connect; columns and images do not
    pieces, count = ndimage.label(shape.reshape(3 * n, *shape.shape[2:]) > threshold, structure=flat)
    areas = np.bincount(pieces.ravel(), minlength=count + 1)[1:]
    where = np.zeros(count, dtype=np.int64)
    column, y, x = pieces.nonzero()
    where[pieces[column, y, x] - 1] = column
    large = areas > SPECK
    number = np.bincount(where[large], minlength=3 * n).reshape(n, 3)
    largest = np.zeros(3 * n, dtype=np.int64)
    np.maximum.at(largest, where, areas)
    return number, largest.reshape(n, 3)


def _passes(c: _Columns) -> Bool:
    """Whether each part of each image is right at each reading: bool [n, readings, 4], three columns and the rest."""
    own = np.eye(3, dtype=bool)
    area = np.array([template(name).sum() for name in NAMES])
    foreign = np.where(own, 0, c.match).max(axis=2)  # [n, 3]
    passes = np.empty((len(c.shape), len(READINGS), 4), dtype=bool)
    for j, reading in enumerate(READINGS):
        number, largest = _pieces(c.shape, reading.threshold)
        sized = (largest >= AREAS[0] * area) & (largest <= AREAS[1] * area)
        matching = (c.match[:, own] >= reading.match) & (c.match[:, own] >= foreign + reading.margin)
        whole = sized & matching & (c.brightness >= BRIGHTNESS)
        passes[:, j, :3] = (number == 0) | ((number == 1) & whole)
        something = (number > 0).any(axis=1) & c.seen
        passes[:, j, 3] = something & ((c.outside > reading.threshold).sum(axis=1) <= SPECK)
    return passes
