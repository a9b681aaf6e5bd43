"""Audits the finger counter: false flags on real hands, planted errors found (`spec/benchmark.md`, Labels)."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from rods.bench.fingers import label_hands
from rods.bench.hands import draw_hands
from rods.eval.correction import Proportion, proportion_interval
from rods.eval.labels import Label

MAX_FALSE_FLAGS, MIN_FOUND = 0.005, 0.97  # the bar of the benchmark
AUDIT_SEED = 1_000_001  # not a training seed
PLANTED = (3, 4, 6, 7)


@dataclass(frozen=True)
class HandsAudit:
    """How the counter labels hands whose fingers are known."""

    seed: int
    false_flags: Proportion  # real hands that are surely bad
    ambiguous: Proportion  # real hands that are ambiguous
    found: Mapping[int, Proportion]  # hands with this number of fingers that are surely bad
    missed: Mapping[int, Proportion]  # hands with this number of fingers that are surely well

    @property
    def passes(self) -> bool:
        """Whether the rates meet the benchmark's bar."""
        return self.false_flags.rate <= MAX_FALSE_FLAGS and all(p.rate >= MIN_FOUND for p in self.found.values())


def audit(*, num: int = 10_000, num_planted: int = 2_000, seed: int = AUDIT_SEED) -> HandsAudit:
    """Labels `num` fresh real hands and `num_planted` of each planted number of fingers; about 2 ms per hand.

    Raises ValueError unless both numbers are positive.
    """
    if num < 1 or num_planted < 1:
        raise ValueError(f"audit: num={num} and num_planted={num_planted} must be positive")
    real = label_hands(draw_hands(num, seed=seed))
    planted = {f: label_hands(draw_hands(num_planted, seed=seed, num_fingers=f)) for f in PLANTED}

    def share(labels: np.ndarray[tuple[int, ...], np.dtype[np.int8]], code: Label) -> Proportion:
        return proportion_interval(int((labels == code).sum()), len(labels))

    return HandsAudit(
        seed=seed,
        false_flags=share(real, Label.BAD),
        ambiguous=share(real, Label.AMBIGUOUS),
        found={f: share(labels, Label.BAD) for f, labels in planted.items()},
        missed={f: share(labels, Label.WELL) for f, labels in planted.items()},
    )
