"""Strips of trajectories: the state x_t above the denoised D(x_t) at chosen steps, the finished image last."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import PIL.Image
import torch
from torch import Tensor

from rods.runs.images import U8, contact_sheet, to_uint8
from rods.types import Step

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
        tiles = [tile for kind in (self.states, self.denoised) for tile in (*(shown[row] for shown in kind), end)]
        sheet = contact_sheet(tiles, columns=len(tiles) // 2, min_tile=1, gap=GAP, margin=0)
        return sheet.convert("L") if len(end) == 1 else sheet


def visible(x: Tensor) -> U8:
    """Pixels [..., H, W] of states; what is not a number is black."""
    return to_uint8(torch.nan_to_num(x.detach(), nan=-1.0).clamp(-1, 1).cpu().numpy())


def tiles_of(strip: U8) -> list[list[U8]]:
    """The tiles [C, H, H] of a strip [C, 2 H + GAP, ...]: the inverse of `Strips.strip`, [x_t, D(x_t)][column]."""
    H = (strip.shape[1] - GAP) // 2
    starts = range(0, strip.shape[2], H + GAP)
    return [[strip[:, top : top + H, left : left + H] for left in starts] for top in (0, H + GAP)]
