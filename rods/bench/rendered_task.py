"""Task hands-64r: rendered hands and their learned counter as one value for the benchmark's runner.

The network was trained on seed 0 of the renderer, the counter on seeds 910000 to 910002; the audit and the real data of
the report have seeds of their own. The latter are a file, so that a report needs no renderer.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from rods.bench.counter import CLASSES, FIVE, RESOLUTION, count_rendered, label_rendered
from rods.bench.counter_training import spoilt
from rods.bench.real_data import REAL_SEED, data_folder, picked, read_pictures
from rods.bench.rendered import as_grey, render_hands
from rods.bench.task import AuditLine, Task, audit_line, embedded_network
from rods.bench.tone_audit import picture_audit
from rods.eval.labels import Label

F64 = NDArray[np.float64]
U8 = NDArray[np.uint8]

AUDIT_SEED = 1_000_003
MAX_FALSE_FLAGS, MIN_FOUND, MAX_PASSED = 0.005, 0.9, 0.01  # bars: real ones bad; wrong numbers of fingers bad, and well
PLANTED = (4, 6)  # fingers
HELD_OUT = "hands-64r-heldout.zip"
HELD_OUT_BY = f"python scripts/render_hands.py --dest=data/{HELD_OUT} --num=4000 --seed={REAL_SEED} --resolution=64"
MADE_BY = "python train.py --preset=hands-64r --data=data/hands-64r.zip --outdir=training-runs"


def held_out_hands() -> U8:
    """Rendered hands [N, 64, 64] that nothing was trained on. UserError where they are missing."""
    return read_pictures(data_folder() / HELD_OUT, resolution=RESOLUTION, num_classes=0, made_by=HELD_OUT_BY)[0]


def real_hands(n: int, seed: int) -> F64:
    """Block `seed` of n held-out hands [n, 1, 64, 64] in -1..1; 2,000 at most.

    Raises ValueError for a negative n or seed; UserError where the file is missing.
    """
    return picked(held_out_hands(), n, seed)


def faults(images: F64) -> Sequence[str]:
    """What is wrong with each picture by the members' mean: "" (five fingers), "4 fingers", "6 fingers", "no hand"."""
    return ["" if c == FIVE else CLASSES[c] for c in count_rendered(images)]


def audit(*, num: int = 2_000, num_planted: int = 500) -> list[AuditLine]:
    """Labels of fresh hands, of planted errors, and the control of tone; needs anny, takes some minutes.

    Raises ValueError unless both numbers are positive, and UserError where anny is missing.
    """
    hands = {5: _fresh(num, 5), **{f: _fresh(num_planted, f) for f in PLANTED}}
    planted = {f"{f} fingers": hands[f] for f in PLANTED}
    ruined = label_rendered(spoilt(hands, seed=AUDIT_SEED, num=num_planted))
    return [
        *picture_audit(hands[5], planted, label_rendered, most=MAX_FALSE_FLAGS, least=MIN_FOUND),
        *(audit_line(f"planted: {f} fingers", label_rendered(hands[f]), Label.WELL, most=MAX_PASSED) for f in PLANTED),
        *(audit_line("planted: a spoilt hand", ruined, code) for code in (Label.BAD, Label.WELL)),
    ]


def _fresh(num: int, fingers: int) -> U8:
    return as_grey(render_hands(num, seed=AUDIT_SEED, resolution=RESOLUTION, num_fingers=fingers))


def hands_64r() -> Task:
    """The task on the network hands-64r."""
    return Task(
        name="hands-64r",
        title="Rendered hands, 64x64: five fingers?",
        networks={"hands-64r": partial(embedded_network, "hands-64r", made_by=MADE_BY)},
        label=label_rendered,
        kinds=None,
        num_kinds=0,
        real=real_hands,
        audit=audit,
        faults=faults,
    )
