"""Simple Shapes, 64x64 grey: the data of the shapes task (Aithal et al., arXiv 2406.09358, section 4).

Three columns, 21 pixels wide and 63 high, start at the top left corner; the last row and column of the image stay
black. The left column may hold one triangle, the middle one a square, the right one a pentagon, each with probability
1/2 and at a place drawn uniformly; an image without any shape is drawn again. White on black, no antialiasing. So a
image with two shapes in a column, or with a shape in another's column, cannot come from the data.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

RESOLUTION, COLUMN_WIDTH, COLUMN_HEIGHT = 64, 21, 63
NAMES = ("triangle", "square", "pentagon")  # from left to right
ROW_WIDTHS = {  # of each shape from top to bottom, centred: drawn the same by every version of every library
    "triangle": (1, 1, 3, 3, 5, 5, 7, 9, 9, 11, 11),  # base 11, 65 pixels
    "square": (8,) * 8,
    "pentagon": (1, 3, 5, 9, 11, 9, 9, 9, 7, 7),  # radius 5, 70 pixels
}


def template(name: str) -> NDArray[np.bool_]:
    """The pixels of a shape in its bounding box, bool [h, w]."""
    widths = ROW_WIDTHS[name]
    margin = (max(widths) - np.array(widths)[:, None]) // 2
    across = np.arange(max(widths))[None, :]
    inside: NDArray[np.bool_] = (across >= margin) & (across < max(widths) - margin)
    return inside  # [h, w]


def draw_shapes(indices: int | Iterable[int], *, seed: int) -> NDArray[np.uint8]:
    """Draws images, uint8 [N, 64, 64]; image i depends on (seed, i) alone.

    indices: the images to draw (an int n means 0..n-1). Raises ValueError for a negative seed or index.
    """
    index = list(range(indices)) if isinstance(indices, int) else list(indices)
    if seed < 0 or (isinstance(indices, int) and indices < 0) or any(i < 0 for i in index):
        raise ValueError(f"draw_shapes: seed {seed} and the indices must not be negative")
    images = np.zeros((len(index), RESOLUTION, RESOLUTION), dtype=np.uint8)
    for image, i in zip(images, index, strict=True):
        rng = np.random.default_rng([seed, i])
        present = np.zeros(3, dtype=bool)
        while not present.any():
            present = rng.random(3) < 0.5
        for column in present.nonzero()[0]:
            shape = template(NAMES[column])
            h, w = shape.shape
            y = int(rng.integers(COLUMN_HEIGHT - h + 1))
            x = int(rng.integers(COLUMN_WIDTH - w + 1)) + int(column) * COLUMN_WIDTH
            image[y : y + h, x : x + w][shape] = 255
    return images  # [N, H, W]
