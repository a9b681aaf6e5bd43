"""Pictures: uint8 from a sampler's output, PNG files, labelled contact sheets."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

import numpy as np
import PIL.Image
import PIL.ImageDraw
from numpy.typing import NDArray

from dnnlib.util import atomic_write

RISK = (230, 60, 40)  # the colour of a flagged tile


def to_uint8(images: NDArray[np.floating]) -> NDArray[np.uint8]:
    """clip(x * 127.5 + 128, 0, 255), truncated, as EDM saves images: [...] in [-1, 1] -> uint8 [...].

    Raises ValueError for values that are not finite: they have no colour.
    """
    if not np.isfinite(images).all():
        raise ValueError("image: some pixels are not finite; they cannot be saved")
    return (images * 127.5 + 128).clip(0, 255).astype(np.uint8)


def to_pil(image: NDArray[np.uint8]) -> PIL.Image.Image:
    """[C, H, W] with C = 1 or 3 -> a PIL image."""
    return PIL.Image.fromarray(image[0] if len(image) == 1 else np.ascontiguousarray(image.transpose(1, 2, 0)))


def save_png(image: PIL.Image.Image, path: str | os.PathLike[str]) -> None:
    """Writes a PNG atomically."""
    with atomic_write(path) as temporary:
        image.save(temporary, format="PNG")


def contact_sheet(
    images: Sequence[NDArray[np.uint8]],
    captions: Sequence[str],
    *,
    marked: Sequence[bool] | None = None,
    columns: int | None = None,
    min_tile: int = 96,
) -> PIL.Image.Image:
    """Tiles with a caption under each, enlarged by a whole factor to at least `min_tile` pixels; marked ones framed.

    Args:
        images: uint8 [C, H, W] each, equal sizes.
        columns: tiles in a row (None: about as many as rows).
    """
    assert len(images) == len(captions)
    columns = columns or math.ceil(math.sqrt(len(images)))
    height, width = images[0].shape[1:]
    scale = max(1, math.ceil(min_tile / width))
    tile_w, tile_h, text_h, gap = width * scale, height * scale, 14, 4
    rows = math.ceil(len(images) / columns)
    sheet = PIL.Image.new("RGB", (columns * (tile_w + gap) + gap, rows * (tile_h + text_h + gap) + gap), "white")
    draw = PIL.ImageDraw.Draw(sheet)
    for i, (image, caption) in enumerate(zip(images, captions, strict=True)):
        left, top = gap + (i % columns) * (tile_w + gap), gap + (i // columns) * (tile_h + text_h + gap)
        tile = to_pil(image).convert("RGB").resize((tile_w, tile_h), PIL.Image.Resampling.NEAREST)
        sheet.paste(tile, (left, top))
        risky = marked is not None and marked[i]
        if risky:
            draw.rectangle((left - 3, top - 3, left + tile_w + 2, top + tile_h + 2), outline=RISK, width=3)
        draw.text((left, top + tile_h + 1), caption, fill=RISK if risky else "black")
    return sheet
