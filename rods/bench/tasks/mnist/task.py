"""Task mnist: real digits and the ensemble that recognises them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np

from rods.bench.task import AuditLine, Task, audit_line, embedded_network
from rods.bench.tasks.image_audit import tone_lines
from rods.bench.tasks.mnist import data, labeller
from rods.bench.tasks.mnist.data import PLANTED, U8, Int, plant_errors
from rods.bench.tasks.mnist.labeller import label_digits
from rods.eval.labels import Label

MADE_BY = "python train.py --preset={} --data=data/mnist-32.zip --outdir=training-runs"
NETWORKS = ("mnist-32", "mnist-32-cond")
AUDIT_SEED = 1_000_001
OF_EACH_ERROR = 200  # whose tone is changed


def some_digits(n: int) -> tuple[U8, Int]:
    """n digits of the audit's half, evenly spread over it, for it is sorted by class; all where it has fewer."""
    images, classes = data.audit_digits()
    rows = np.arange(min(n, len(images))) * len(images) // max(min(n, len(images)), 1)
    return images[rows], classes[rows]


def planted(n: int) -> Mapping[str, U8]:
    """Each error planted in n held-out digits (at least two) of the audit; fewer where it leaves some digits digits."""
    images, classes = some_digits(n)
    return {kind: plant_errors(kind, images, classes, seed=AUDIT_SEED) for kind in PLANTED}


def audit(*, num: int = 1_000, num_planted: int = 1_000) -> list[AuditLine]:
    """Labels of the audit half of the held-out digits, of errors planted in them, and the control of tone."""
    images, classes = some_digits(num)
    real, wrong = label_digits(images), planted(num_planted)
    other = np.where((labeller.classes(images) != classes) & (real == Label.VALID), Label.VALID, Label.UNCERTAIN)
    mixed = np.concatenate([images, *(errors[:OF_EACH_ERROR] for errors in wrong.values())])
    return [
        audit_line("real data, held out", real, Label.HALLUCINATED, most=0.005),
        audit_line("real data, held out", real, Label.UNCERTAIN),
        audit_line("real data, held out, taken for another digit", other, Label.VALID),
        *(
            audit_line(f"planted: {kind}", label_digits(errors), Label.HALLUCINATED, least=PLANTED[kind][1])
            for kind, errors in wrong.items()
        ),
        *tone_lines(mixed, label_digits),
    ]


def mnist() -> Task:
    """The task on the network mnist-32, and a class-conditional one."""
    return Task(
        name="mnist",
        title="Real digits (MNIST), 32x32: any digit?",
        networks={name: partial(embedded_network, name, made_by=MADE_BY.format(name)) for name in NETWORKS},
        label=label_digits,
        kinds=labeller.classes,
        num_kinds=data.CLASSES,
        kinds_are_classes=True,
        real=data.real_digits,
        audit=audit,
        faults=labeller.faults,
        planted=planted,
        labeller=labeller.training,
    )
