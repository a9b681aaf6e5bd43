"""What a method did, to be looked at: pairs of images that changed their label, and the control of tone."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import PIL.Image

from rods.bench.compare import common
from rods.bench.labelled import LabelledRun
from rods.bench.task import Task
from rods.bench.tasks.real_data import as_samples
from rods.bench.tasks.tone_control import tone_control
from rods.eval.correction import PairedOutcomes
from rods.eval.labels import Label
from rods.runs.images import RED, U8, Colour, contact_sheet

MOST_PAIRS, SHOWN_SHARE = 24, 4  # of a sheet; every fourth changed pair is shown
PALETTE = 64  # colours of a sheet in the report, which keeps its file small
TILE = 128
GREEN: Colour = (40, 150, 70)  # around what was repaired; red: newly broken


@dataclass(frozen=True)
class Pair:
    """One seed without and with correction."""

    before: U8  # [C, H, W]
    after: U8  # [C, H, W]
    caption: str  # lines below it
    frame: Colour | None = None  # around the image after


def pair_sheet(pairs: Sequence[Pair], *, heading: str = "", columns: int = 4) -> PIL.Image.Image:
    """A contact sheet of images before and after, side by side."""
    tiles = [tile for pair in pairs for tile in (pair.before, pair.after)]
    captions = [text for pair in pairs for text in (pair.caption, "")]
    frames = [frame for pair in pairs for frame in (None, pair.frame)]
    return contact_sheet(tiles, captions, frames=frames, heading=heading, columns=2 * columns, min_tile=TILE, gap=6)


def frame_of(before: int, after: int) -> Colour | None:
    """Green around what the labels call repaired, red around what they call newly broken."""
    if (before, after) == (Label.HALLUCINATED, Label.VALID):
        return GREEN
    return RED if (before, after) == (Label.VALID, Label.HALLUCINATED) else None


def png(sheet: PIL.Image.Image) -> bytes:
    """A sheet as a small PNG, of PALETTE colours."""
    data = io.BytesIO()
    sheet.quantize(PALETTE).save(data, format="PNG", optimize=True)
    return data.getvalue()


def stacked(images: Mapping[int, U8], seeds: Sequence[int]) -> U8:
    """The images of these seeds [N, C, H, W]."""
    return np.stack([images[seed] for seed in seeds])


def changed_seeds(base: LabelledRun, run: LabelledRun) -> list[tuple[int, str]]:
    """The seeds whose images were repaired or newly broken, in the order of the baseline."""
    mine, theirs = common(base, run)
    names = {(Label.HALLUCINATED, Label.VALID): "repaired", (Label.VALID, Label.HALLUCINATED): "NEWLY BROKEN"}
    pairs = zip(base.seeds[mine].tolist(), base.labels[mine].tolist(), run.labels[theirs].tolist(), strict=True)
    return [(seed, names[was, is_now]) for seed, was, is_now in pairs if (was, is_now) in names]


def changed_pair(task: Task, seed: int, change: str, before: U8, after: U8) -> Pair:
    """A pair with what its task says of both images."""
    caption = f"seed {seed}: {change}"
    if task.faults is not None:
        was, became = (fault or "valid" for fault in task.faults(as_samples(np.stack([before, after]))))
        caption += f"\n{was} -> {became}"
    return Pair(before, after, caption, GREEN if change == "repaired" else RED)


def control(task: Task, before: U8, after: U8) -> PairedOutcomes | None:
    """The control of tone on images [N, C, H, W]; None for images in colour, for which there is none."""
    if before.shape[1] != 1:
        return None
    return tone_control(before, like=after, label=lambda x: task.label(as_samples(x)))


def tone_line(method: str, outcomes: PairedOutcomes | None) -> str:
    """What the control of tone says of a method."""
    if outcomes is None:
        return f"Tone control of {method}: there is none for images in colour."
    return (
        f"Tone control (Euler's images with {method}'s mean background, contrast and sharpness): "
        f"{outcomes.repaired.k} repaired, {outcomes.broken.k} broken; that is the labeller's doing, not the sampler's."
    )


def sheet_of_changes(
    task: Task, method: str, changed: Sequence[tuple[int, str]], before: Mapping[int, U8], after: Mapping[int, U8]
) -> tuple[str, PIL.Image.Image]:
    """(heading, pair sheet) of a part of the seeds that a method repaired or broke."""
    shown = changed[::SHOWN_SHARE][:MOST_PAIRS]
    heading = f"{method}: {len(shown)} of the {len(changed)} that changed (Euler, then {method})"
    pairs = [changed_pair(task, seed, change, before[seed], after[seed]) for seed, change in shown]
    return heading, pair_sheet(pairs, heading=heading)
