"""Audits the counter of rendered hands on pictures it never saw: real ones, planted errors, and changes of tone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rods.bench.counter import RESOLUTION, label_rendered
from rods.bench.counter_training import spoilt
from rods.bench.rendered import as_grey, render_hands
from rods.bench.task import AuditLine, audit_line
from rods.bench.tone_audit import imposed_tone_line
from rods.eval.labels import Label

F64 = NDArray[np.float64]

MAX_FALSE_FLAGS = 0.005
AUDIT_SEED, REAL_SEED = 1_000_003, 3_000_000  # the generator was trained on seed 0, the counter on 910000 to 910002


def real_hands(n: int, seed: int) -> F64:
    """n fresh real hands [n, 1, 64, 64] in -1..1, of a seed that nothing was trained on; needs anny, 15 ms a hand.

    Raises ValueError for a negative n or seed; UserError where anny is missing.
    """
    if n < 0 or seed < 0:
        raise ValueError(f"real_hands: n={n} and seed={seed} must not be negative")
    return as_grey(render_hands(n, seed=REAL_SEED + seed, resolution=RESOLUTION))[:, None] / 127.5 - 1


def audit(*, num: int = 2_000, num_planted: int = 500) -> Sequence[AuditLine]:
    """Labels of fresh real hands and of planted errors, and labels that tone alone moved; needs anny, takes minutes.

    Raises ValueError unless both numbers are positive.
    """
    if num < 1 or num_planted < 1:
        raise ValueError(f"audit: num={num} and num_planted={num_planted} must be positive")
    hands = {5: as_grey(render_hands(num, seed=AUDIT_SEED, resolution=RESOLUTION))}
    for fingers in (4, 6):
        hands[fingers] = as_grey(render_hands(num_planted, seed=AUDIT_SEED, resolution=RESOLUTION, num_fingers=fingers))
    real = label_rendered(hands[5])
    planted = {f"planted: {f} fingers": hands[f] for f in (4, 6)}
    planted["planted: spoilt hands"] = spoilt(hands, seed=AUDIT_SEED, num=num_planted)
    lines = [
        audit_line("real data, fresh", real, Label.BAD, most=MAX_FALSE_FLAGS),
        audit_line("real data, fresh", real, Label.AMBIGUOUS),
    ]
    for what, images in planted.items():
        labels = label_rendered(images)
        lines += [audit_line(what, labels, code) for code in (Label.BAD, Label.WELL)]
    return [*lines, tone_line(np.concatenate([hands[5][:num_planted], hands[4], hands[6]]))]


def tone_line(images: NDArray[Any]) -> AuditLine:
    """How many pictures [N, 64, 64] (uint8) go from well to bad or back when they take on the tone of a dull set."""
    return imposed_tone_line(images, label_rendered)
