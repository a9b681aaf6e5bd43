"""Images: uint8 from a sampler's output, PNG files, and the one contact sheet."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageDraw
from numpy.typing import NDArray

from dnnlib.errors import UserError
from dnnlib.util import atomic_write

U8 = NDArray[np.uint8]
Colour = tuple[int, int, int]
RED: Colour = (230, 60, 40)  # of marked tiles
LINE = 14  # pixels of a line of text
CHANNELS = (1, 3)  # what a PNG of ours can hold
SEVERAL_KINDS = "has images of several sizes or modes; one of them is not its own: copy it again"


def to_uint8(images: NDArray[np.floating]) -> U8:
    """clip(x * 127.5 + 128, 0, 255), truncated, as EDM saves images: [...] in [-1, 1] -> uint8 [...].

    Raises ValueError for values that are not finite: they have no colour.
    """
    if not np.isfinite(images).all():
        raise ValueError("image: some pixels are not finite; they cannot be saved")
    return (images * 127.5 + 128).clip(0, 255).astype(np.uint8)


def to_pil(image: U8) -> PIL.Image.Image:
    """[C, H, W] with C = 1 or 3 -> a PIL image."""
    return PIL.Image.fromarray(image[0] if len(image) == 1 else np.ascontiguousarray(image.transpose(1, 2, 0)))


def read_png(path: Path) -> U8:
    """[C, H, W], C = 1 or 3. UserError: not an image, or not of 8-bit grey or RGB."""
    try:
        with PIL.Image.open(path) as image:
            mode, array = image.mode, np.asarray(image)
    except (OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError) as e:
        if isinstance(e, OSError) and e.errno is not None:  # of the system: it is not there, or cannot be read
            raise
        raise UserError(f"{path} is not a readable image; copy it again") from None
    if mode not in ("L", "RGB"):  # the numbers of a palette's image are no levels
        raise UserError(f"{path} is not an image of 8-bit grey or RGB; copy it again")
    return array[None] if array.ndim == 2 else np.ascontiguousarray(array.transpose(2, 0, 1))


def stacked(images: Sequence[U8], *, of: object) -> U8:
    """Images of one run or folder `of` as one array [N, C, H, W]. UserError: they are of several sizes or modes."""
    if len({image.shape for image in images}) > 1:
        raise UserError(f"{of} {SEVERAL_KINDS}")
    return np.stack(images)


def save_png(image: PIL.Image.Image, path: str | os.PathLike[str]) -> None:
    """Writes a PNG atomically."""
    with atomic_write(path) as temporary:
        image.save(temporary, format="PNG")


def contact_sheet(
    images: Sequence[U8 | None],
    captions: Sequence[str] = (),
    *,
    marked: Sequence[bool] = (),
    frames: Sequence[Colour | None] = (),
    heading: str = "",
    columns: int | None = None,
    min_tile: int = 96,
    gap: int = 4,
    margin: int | None = None,
) -> PIL.Image.Image:
    """Tiles of equal size in rows, each enlarged by a whole factor, with a caption below and a frame around it.

    Args:
        images: uint8 [C, H, W] with C = 1 or 3; None leaves a place blank.
        captions: text below each tile, of one or more lines; empty: no room for text.
        marked: which tiles have a red frame and a red caption.
        frames: the colour of the frame around each tile; None: no frame.
        heading: one line above all tiles.
        columns: tiles in a row (None: about as many as rows).
        min_tile: the least width of a tile in pixels.
        gap: white pixels between tiles; a frame is three pixels of it.
        margin: white pixels around all tiles (None: `gap`).

    Returns: an RGB image.
    """
    frames = frames or [RED if mark else None for mark in marked] or [None] * len(images)
    text_h = LINE * max((caption.count("\n") + 1 for caption in captions), default=0)
    captions = captions or [""] * len(images)
    colours = [RED if mark else "black" for mark in marked] or ["black"] * len(images)
    columns = columns or math.ceil(math.sqrt(len(images)))
    height, width = next(image for image in images if image is not None).shape[1:]
    scale = max(1, math.ceil(min_tile / width))
    tile_w, tile_h = width * scale, height * scale
    margin, top_h = gap if margin is None else margin, LINE if heading else 0
    step_x, step_y = tile_w + gap, tile_h + text_h + gap
    size = columns * step_x - gap + 2 * margin, math.ceil(len(images) / columns) * step_y - gap + 2 * margin + top_h
    sheet = PIL.Image.new("RGB", size, "white")
    draw = PIL.ImageDraw.Draw(sheet)
    draw.text((margin, 1), heading, fill="black")
    for i, (image, caption, frame, colour) in enumerate(zip(images, captions, frames, colours, strict=True)):
        if image is None:
            continue
        left, top = margin + (i % columns) * step_x, margin + top_h + (i // columns) * step_y
        tile = to_pil(image).convert("RGB").resize((tile_w, tile_h), PIL.Image.Resampling.NEAREST)
        sheet.paste(tile, (left, top))
        if frame is not None:
            draw.rectangle((left - 3, top - 3, left + tile_w + 2, top + tile_h + 2), outline=frame, width=3)
        draw.multiline_text((left, top + tile_h + 1), caption, fill=colour, spacing=2)
    return sheet
