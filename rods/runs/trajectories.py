"""Strips of trajectories: the state x_t above the denoised D(x_t) at chosen steps, the finished image last."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from rods.latents import codec_of, decoded
from rods.micro_batches import MicroBatches
from rods.runs.images import U8, contact_sheet, to_uint8
from rods.types import AnyDenoiser, Step

GAP = 2  # white pixels between tiles


@dataclass(eq=False)
class Strips:
    """Sees the steps of a run of a whole batch and keeps, at the chosen ones, what a strip shows. Cost: nothing.

    Steps of the whole batch are counted from 0: of a sampler that restarts some rows, the first run is shown.
    Of a `denoiser` that draws latents, latents are kept until `decode`.
    """

    steps: Sequence[int]
    denoiser: AnyDenoiser | None = None
    sigma: list[float] = field(default_factory=list)  # noise level of each shown step
    states: list[U8] = field(default_factory=list)  # [B, C, H, W] each
    denoised: list[U8] = field(default_factory=list)
    latents: list[tuple[Tensor, Tensor]] = field(default_factory=list)  # of a denoiser that draws them: both, undecoded
    seen: int = 0

    def add(self, step: Step) -> None:
        """Take a finished step; its x is scaled by 1 / sqrt(1 + t^2), so that noise of any level can be seen."""
        if step.rows is not None:
            return
        if self.seen in self.steps:
            self.sigma.append(float(step.sigma))
            scaled = step.x / (1 + step.sigma**2) ** 0.5
            if self.denoiser is not None and codec_of(self.denoiser):
                self.latents.append((scaled.detach().float(), step.denoised.detach().float()))
            else:
                self.states.append(visible(scaled))
                self.denoised.append(visible(step.denoised))
        self.seen += 1

    def decode(self, rows: Sequence[int], micro_batches: MicroBatches | None = None) -> None:
        """Make pixels of the latents of some rows, those whose strips are wanted; of others there is nothing."""
        for pair in self.latents:
            for kind, z in zip((self.states, self.denoised), pair, strict=True):
                assert self.denoiser is not None, "whose latents they are"
                shown = visible(decoded(self.denoiser, z[list(rows)], micro_batches=micro_batches))
                kind.append(np.zeros((len(z), *shown.shape[1:]), np.uint8))
                kind[-1][list(rows)] = shown
        self.latents = []

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
