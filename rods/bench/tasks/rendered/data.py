"""Rendered hands: the files that hold them. `tools/rendered-hands` makes them; nothing here renders.

The network was trained on seed 0 of the renderer, its labeller on seeds 910000 to 910002; the audit and the real data
of the report have seeds of their own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rods.bench.tasks.real_data import REAL_SEED, data_folder, read_images

U8 = NDArray[np.uint8]

RESOLUTION = 64
FINGERS = (4, 5, 6)
RENDERER = "python tools/rendered-hands/render_hands.py"


@dataclass(frozen=True)
class HandsFiles:
    """A set of rendered hands: one file for each number of fingers."""

    name: str  # of the files in the data folder: NAME-5.zip
    seed: int
    numbers: tuple[tuple[int, int], ...]  # (fingers, images)

    def read(self, fingers: int) -> U8:
        """Grey hands [N, 64, 64] with this number of fingers. UserError where the file is missing."""
        file, number = f"{self.name}-{fingers}.zip", dict(self.numbers)[fingers]
        made_by = f"{RENDERER} --dest=data/{file} --num={number} --seed={self.seed} --resolution={RESOLUTION}"
        made_by += f" --fingers={fingers}" if fingers != 5 else ""
        return read_images(data_folder() / file, resolution=RESOLUTION, num_classes=0, made_by=made_by)[0]

    def by_fingers(self) -> dict[int, U8]:
        """All of them, by number of fingers."""
        return {fingers: self.read(fingers) for fingers, _ in self.numbers}


AUDIT = HandsFiles("hands-64r-audit", 1_000_003, ((4, 500), (5, 2_000), (6, 500)))
LABELLER_TRAINING = HandsFiles("hands-64r-labeller-train", 910_000, ((4, 1_500), (5, 1_500), (6, 1_500)))
LABELLER_THRESHOLDS = HandsFiles("hands-64r-labeller-thresholds", 910_001, ((4, 200), (5, 800), (6, 200)))
LABELLER_FRESH = HandsFiles("hands-64r-labeller-fresh", 910_002, ((4, 250), (5, 1_000), (6, 250)))

HELD_OUT = "hands-64r-heldout.zip"
HELD_OUT_BY = f"{RENDERER} --dest=data/{HELD_OUT} --num=4000 --seed={REAL_SEED} --resolution={RESOLUTION}"


def held_out_hands() -> U8:
    """Rendered hands [N, 64, 64] that nothing was trained on. UserError where they are missing."""
    return read_images(data_folder() / HELD_OUT, resolution=RESOLUTION, num_classes=0, made_by=HELD_OUT_BY)[0]
