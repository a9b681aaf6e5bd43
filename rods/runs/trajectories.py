"""Strips of trajectories: the state x_t above the denoised D(x_t) at chosen steps, the finished image last."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import PIL.Image
import torch
from numpy.typing import NDArray
from torch import Tensor

from rods.runs.images import to_pil, to_uint8
from rods.types import Step

U8 = NDArray[np.uint8]
GAP = 2  # white pixels between tiles


@dataclass(eq=False)
class Strips:
    """Sees the steps of a run of a whole batch and keeps, at the chosen ones, what a strip shows. Cost: nothing.

    Steps of the whole batch are counted from 0: of a sampler that restarts some rows, the first run is shown.
    """

    steps: Sequence[int]
    sigma: list[float] = field(default_factory=list)  # noise level of each shown step
    states: list[U8] = field(default_factory=list)  # [B, C, H, W] each
    denoised: list[U8] = field(default_factory=list)
    seen: int = 0

    def add(self, step: Step) -> None:
        """Take a finished step; its x is scaled by 1 / sqrt(1 + t^2), so that noise of any level can be seen."""
        if step.rows is not None:
            return
        if self.seen in self.steps:
            self.sigma.append(float(step.sigma))
            self.states.append(visible(step.x / (1 + step.sigma**2) ** 0.5))
            self.denoised.append(visible(step.denoised))
        self.seen += 1

    def strip(self, row: int, image: Tensor) -> PIL.Image.Image:
        """The strip of one sample: x_t above D(x_t), a column per shown step, then the image [C, H, W] in both rows."""
        end = visible(image)
        rows = [[*(tiles[row] for tiles in kind), end] for kind in (self.states, self.denoised)]
        return to_pil(joined(rows))


def visible(x: Tensor) -> U8:
    """Pixels [..., H, W] of states; what is no number is black."""
    return to_uint8(torch.nan_to_num(x.detach(), nan=-1.0).clamp(-1, 1).cpu().numpy())


def joined(rows: Sequence[Sequence[U8]]) -> U8:
    """Tiles [C, H, W] in rows and columns, GAP white pixels between them."""
    C, H, W = rows[0][0].shape
    sheet = np.full((C, len(rows) * (H + GAP) - GAP, len(rows[0]) * (W + GAP) - GAP), 255, dtype=np.uint8)
    for r, row in enumerate(rows):
        for c, tile in enumerate(row):
            sheet[:, r * (H + GAP) : r * (H + GAP) + H, c * (W + GAP) : c * (W + GAP) + W] = tile
    return sheet


def tiles_of(strip: U8) -> list[list[U8]]:
    """The tiles [C, H, H] of a strip [C, 2 H + GAP, ...]: the inverse of `Strips.strip`, [x_t, D(x_t)][column]."""
    H = (strip.shape[1] - GAP) // 2
    starts = range(0, strip.shape[2], H + GAP)
    return [[strip[:, top : top + H, left : left + H] for left in starts] for top in (0, H + GAP)]
