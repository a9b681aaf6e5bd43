"""Before and after as a picture: pairs of images with what changed marked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import PIL.Image
import PIL.ImageDraw
from numpy.typing import NDArray

from rods.runs.images import RISK, to_pil

TILE, GAP, TEXT = 128, 6, 30
ADDED, REMOVED = (40, 200, 90), (230, 60, 40)
VISIBLE = 24  # grey levels; smaller changes are not marked


@dataclass(frozen=True)
class Pair:
    """One seed without and with correction."""

    before: NDArray[np.uint8]  # [C, H, W]
    after: NDArray[np.uint8]  # [C, H, W]
    title: str
    detail: str
    at_risk: bool


def change_map(before: NDArray[np.uint8], after: NDArray[np.uint8]) -> PIL.Image.Image:
    """`after` in grey, with what the correction made brighter in green and what it made darker in red."""
    grey = after.mean(axis=0)  # [H, W]
    diff = grey - before.mean(axis=0)
    strength = np.clip((np.abs(diff) - VISIBLE) / (96 - VISIBLE), 0, 1)[..., None] * (np.abs(diff) > VISIBLE)[..., None]
    colour = np.where((diff > 0)[..., None], ADDED, REMOVED)
    mixed = (1 - strength) * 0.6 * grey[..., None] + strength * colour
    return PIL.Image.fromarray(mixed.astype(np.uint8))


def pair_sheet(pairs: Sequence[Pair], *, heading: str, columns: int = 3) -> PIL.Image.Image:
    """A sheet of [before | after | change] triples; those that the detector held at risk have a red frame."""
    cell_w, cell_h, top = 3 * TILE + 3 * GAP, TILE + TEXT + 2 * GAP, 34
    rows = -(-len(pairs) // columns)
    sheet = PIL.Image.new("RGB", (columns * cell_w + GAP, rows * cell_h + top), "white")
    draw = PIL.ImageDraw.Draw(sheet)
    draw.text((GAP, 8), heading, fill="black")
    for i, pair in enumerate(pairs):
        left, upper = GAP + (i % columns) * cell_w, top + (i // columns) * cell_h
        tiles = [to_pil(pair.before), to_pil(pair.after), change_map(pair.before, pair.after)]
        for k, tile in enumerate(tiles):
            x = left + k * (TILE + 2)
            sheet.paste(tile.convert("RGB").resize((TILE, TILE), PIL.Image.Resampling.NEAREST), (x, upper))
        if pair.at_risk:
            draw.rectangle((left - 3, upper - 3, left + TILE + 1, upper + TILE + 2), outline=RISK, width=3)
        draw.text((left, upper + TILE + 3), pair.title, fill="black")
        draw.text((left, upper + TILE + 16), pair.detail, fill="dimgray")
    return sheet
