"""Task shapes: Simple Shapes, its labels and planted errors as one value for the benchmark's runner."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from rods.bench.real_data import as_samples, real_seed
from rods.bench.shapes import draw_shapes
from rods.bench.shapes_labels import faults, label_shapes, present_shapes
from rods.bench.shapes_planted import PLANTED, plant_errors
from rods.bench.task import AuditLine, Task, embedded_network
from rods.bench.tone_audit import picture_audit

F64 = NDArray[np.float64]

AUDIT_SEED = 1_000_001  # the networks are trained on seed 0
MADE_BY = "python train.py --preset=shapes-64 --data=data/shapes-64.zip --outdir=training-runs"
NUM_SETS = 7  # of shapes that a picture may hold


def real_shapes(n: int, seed: int) -> F64:
    """n real pictures [n, 1, 64, 64] in -1..1 that no network was trained on.

    Raises ValueError for a negative n or seed.
    """
    return as_samples(draw_shapes(n, seed=real_seed(n, seed)))


def audit(*, num: int = 10_000, num_planted: int = 1_000) -> Sequence[AuditLine]:
    """Labels of fresh real pictures, of planted errors, and the control of tone; about a minute."""
    real = draw_shapes(num, seed=AUDIT_SEED)
    planted = {kind: plant_errors(kind, num_planted, seed=AUDIT_SEED) for kind in PLANTED}
    return picture_audit(real, planted, label_shapes, most=0.0, most_ambiguous=0.0, least=0.99)


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
    )
