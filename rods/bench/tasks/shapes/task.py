"""Task shapes: Simple Shapes, its labels and planted errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from rods.bench.task import AuditLine, DrawnData, Task, embedded_network
from rods.bench.tasks.image_audit import image_audit
from rods.bench.tasks.real_data import as_samples, real_seed
from rods.bench.tasks.shapes.data import RESOLUTION, draw_shapes
from rods.bench.tasks.shapes.labeller import faults, label_shapes, present_shapes
from rods.bench.tasks.shapes.planted import PLANTED, plant_errors

F64 = NDArray[np.float64]
U8 = NDArray[np.uint8]

AUDIT_SEED = 1_000_001  # the networks are trained on seed 0
MADE_BY = "python train.py --preset=shapes-64 --data=data/shapes-64.zip --outdir=training-runs"
NUM_SETS = 7  # of shapes that an image may hold


def real_shapes(n: int, seed: int) -> F64:
    """n real images [n, 1, 64, 64] in -1..1 that no network was trained on.

    Raises ValueError for a negative n or seed.
    """
    return as_samples(draw_shapes(n, seed=real_seed(n, seed)))


def planted(n: int) -> Mapping[str, U8]:
    """n images with each planted error, of the audit's seed."""
    return {kind: plant_errors(kind, n, seed=AUDIT_SEED) for kind in PLANTED}


def audit(*, num: int = 10_000, num_planted: int = 1_000) -> Sequence[AuditLine]:
    """Labels of fresh real images, of planted errors, and the control of tone; about a minute."""
    real = draw_shapes(num, seed=AUDIT_SEED)
    return image_audit(real, planted(num_planted), label_shapes, most=0.0, most_uncertain=0.0, least=0.99)


def _draw(indices: Sequence[int], seed: int, resolution: int) -> U8:
    return draw_shapes(indices, seed=seed)


def shapes() -> Task:
    """The task on the network shapes-64."""
    return Task(
        name="shapes",
        title="Simple Shapes, 64x64: at most one shape in a column, its own?",
        networks={"shapes-64": partial(embedded_network, "shapes-64", made_by=MADE_BY)},
        label=label_shapes,
        kinds=present_shapes,
        num_kinds=NUM_SETS,
        real=real_shapes,
        audit=audit,
        faults=faults,
        planted=planted,
        drawn=DrawnData(_draw, num=5_000, resolutions=(RESOLUTION, RESOLUTION)),
    )
