"""Task hands-64r: rendered hands and their learned labeller. All images are files, so nothing here needs a renderer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from rods.bench.task import AuditLine, Task, audit_line, embedded_network
from rods.bench.tasks.image_audit import image_audit
from rods.bench.tasks.real_data import picked
from rods.bench.tasks.rendered import data, labeller
from rods.bench.tasks.rendered.labeller import CLASSES, FIVE, count_rendered, label_rendered
from rods.eval.labels import Label

F64 = NDArray[np.float64]
U8 = NDArray[np.uint8]

MAX_FALSE_FLAGS, MIN_FOUND, MAX_PASSED = 0.005, 0.9, 0.01  # bars: real hands flagged; wrong numbers found, and passed
PLANTED = (4, 6)  # fingers
MADE_BY = "python train.py --preset=hands-64r --data=data/hands-64r.zip --outdir=training-runs"


def real_hands(n: int, seed: int) -> F64:
    """Block `seed` of n held-out hands [n, 1, 64, 64] in -1..1; 2,000 at most.

    Raises ValueError for a negative n or seed; UserError where the file is missing.
    """
    return picked(data.held_out_hands(), n, seed)


def planted(n: int) -> Mapping[str, U8]:
    """n hands (at most the audit's) with each wrong number of fingers. UserError where they are missing."""
    return {f"{f} fingers": data.AUDIT.read(f)[:n] for f in PLANTED}


def faults(images: F64) -> Sequence[str]:
    """What is wrong with each image by the members' mean: "" (five fingers), "4 fingers", "6 fingers", "no hand"."""
    return ["" if c == FIVE else CLASSES[c] for c in count_rendered(images)]


def audit(*, num: int = 2_000, num_planted: int = 500) -> list[AuditLine]:
    """Labels of fresh hands, of planted errors, and the control of tone; about a minute.

    Raises ValueError unless both numbers are positive, and UserError where the rendered hands are missing.
    """
    wrong = planted(num_planted)
    hands = {5: data.AUDIT.read(5)[:num], **{f: wrong[f"{f} fingers"] for f in PLANTED}}
    lines = image_audit(hands[5], wrong, label_rendered, most=MAX_FALSE_FLAGS, least=MIN_FOUND)
    corrupted = label_rendered(labeller.corrupted_hands(hands, seed=data.AUDIT.seed, num=num_planted))
    passed = {what: label_rendered(images) for what, images in wrong.items()}
    return [
        *lines,
        *(audit_line(f"planted: {what}", labels, Label.VALID, most=MAX_PASSED) for what, labels in passed.items()),
        *(audit_line("planted: a corrupted hand", corrupted, code) for code in (Label.HALLUCINATED, Label.VALID)),
    ]


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
        planted=planted,
        labeller=labeller.training,
    )
