"""Task hands-32: drawn hands and their finger counter as one value for the benchmark's runner."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from rods.bench.fingers import FINGERS, NO_HAND, THRESHOLDS, count_fingers, label_hands
from rods.bench.hands import draw_hands
from rods.bench.real_data import as_samples, real_seed
from rods.bench.task import AuditLine, Task, embedded_network
from rods.bench.tone_audit import picture_audit

F64 = NDArray[np.float64]

AUDIT_SEED = 1_000_001  # the network was trained on seed 0
MAX_FALSE_FLAGS, MIN_FOUND = 0.005, 0.97  # the bars of the benchmark
PLANTED = (3, 4, 6, 7)  # fingers
NETWORKS = ("hands-32", "hands-32-1")  # of training seeds 0 and 1
MADE_BY = "python train.py --preset=hands-32 --data=data/hands-32.zip"


def real_hands(n: int, seed: int) -> F64:
    """n real hands [n, 1, 32, 32] in -1..1 that no network was trained on.

    Raises ValueError for a negative n or seed.
    """
    return as_samples(draw_hands(n, seed=real_seed(n, seed)))


def faults(images: F64) -> Sequence[str]:
    """What is wrong with each picture: "" (five fingers at the middle threshold), "4 fingers", ..., "no hand"."""
    counts = count_fingers(images, thresholds=(THRESHOLDS[1],))[:, 0]
    return ["" if c == FINGERS else "no hand" if c == NO_HAND else f"{c} fingers" for c in counts]


def audit(*, num: int = 10_000, num_planted: int = 2_000) -> list[AuditLine]:
    """Labels of fresh real hands, of hands with a wrong number of fingers, and the control of tone; about a minute."""
    real = draw_hands(num, seed=AUDIT_SEED)
    planted = {f"{f} fingers": draw_hands(num_planted, seed=AUDIT_SEED, num_fingers=f) for f in PLANTED}
    return picture_audit(real, planted, label_hands, most=MAX_FALSE_FLAGS, least=MIN_FOUND)


def hands_32() -> Task:
    """The task on the embedded networks."""
    return Task(
        name="hands-32",
        title="Drawn hands, 32x32: five fingers?",
        networks={name: partial(embedded_network, name, made_by=MADE_BY) for name in NETWORKS},
        label=label_hands,
        kinds=None,
        num_kinds=0,
        real=real_hands,
        audit=audit,
        faults=faults,
    )
