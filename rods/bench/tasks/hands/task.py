"""Task hands-32: drawn hands and their finger counter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from rods.bench.task import AuditLine, DrawnData, Task, embedded_network
from rods.bench.tasks.hands.data import MAX_RESOLUTION, MIN_RESOLUTION, draw_hands
from rods.bench.tasks.hands.hand_counter import FINGERS, NO_HAND, THRESHOLDS, count_fingers, label_hands
from rods.bench.tasks.image_audit import image_audit
from rods.bench.tasks.real_data import as_samples, real_seed

F64 = NDArray[np.float64]
U8 = NDArray[np.uint8]

AUDIT_SEED = 1_000_001  # the network was trained on seed 0
MAX_FALSE_FLAGS, MIN_FOUND = 0.005, 0.97  # the bars of the benchmark
PLANTED = (3, 4, 6, 7)  # fingers
MADE_BY = "python train.py --preset={} --data=data/hands-32.zip --outdir=training-runs"
NETWORKS = {"hands-32": "hands-32", "hands-32-1": "hands-32 --seed=1", "hands-32-edm2": "hands-32-edm2"}  # by recipe


def real_hands(n: int, seed: int) -> F64:
    """n real hands [n, 1, 32, 32] in -1..1 that no network was trained on.

    Raises ValueError for a negative n or seed.
    """
    return as_samples(draw_hands(n, seed=real_seed(n, seed)))


def planted(n: int) -> Mapping[str, U8]:
    """n hands with each wrong number of fingers, of the audit's seed."""
    return {f"{f} fingers": draw_hands(n, seed=AUDIT_SEED, num_fingers=f) for f in PLANTED}


def faults(images: F64) -> Sequence[str]:
    """What is wrong with each image: "" (five fingers at the middle threshold), "4 fingers", ..., "no hand"."""
    counts = count_fingers(images, thresholds=(THRESHOLDS[1],))[:, 0]
    return ["" if c == FINGERS else "no hand" if c == NO_HAND else f"{c} fingers" for c in counts]


def audit(*, num: int = 10_000, num_planted: int = 2_000) -> list[AuditLine]:
    """Labels of fresh real hands, of hands with a wrong number of fingers, and the control of tone; about a minute."""
    real = draw_hands(num, seed=AUDIT_SEED)
    return image_audit(real, planted(num_planted), label_hands, most=MAX_FALSE_FLAGS, least=MIN_FOUND)


def _draw(indices: Sequence[int], seed: int, resolution: int) -> U8:
    return draw_hands(indices, seed=seed, resolution=resolution)


def hands_32() -> Task:
    """The task on the embedded networks, and one of EDM2's kind."""
    return Task(
        name="hands-32",
        title="Drawn hands, 32x32: five fingers?",
        networks={
            name: partial(embedded_network, name, made_by=MADE_BY.format(recipe)) for name, recipe in NETWORKS.items()
        },
        label=label_hands,
        kinds=None,
        num_kinds=0,
        real=real_hands,
        audit=audit,
        faults=faults,
        planted=planted,
        drawn=DrawnData(_draw, num=50_000, resolutions=(MIN_RESOLUTION, MAX_RESOLUTION)),
    )
