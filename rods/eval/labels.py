"""Three-valued labels of generated pictures: surely well, surely bad, or ambiguous (`spec/benchmark.md`, Labels).

A labeller reads every picture at several thresholds. Only a verdict that all readings share is sure; every other
picture is ambiguous, and ambiguous pictures are reported, never dropped.
"""

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray


class Label(IntEnum):
    """Codes of a label array (int8): `AMBIGUOUS` 0, `WELL` 1 (surely well), `BAD` 2 (surely bad, a hallucination)."""

    AMBIGUOUS = 0
    WELL = 1
    BAD = 2


def combine_readings(well: NDArray[np.bool_]) -> NDArray[np.int8]:
    """Labels int8 [N] from one verdict per picture and threshold, `well` bool [N, T] with T >= 1.

    All readings well: WELL. None well: BAD. Otherwise AMBIGUOUS. Source: `spec/benchmark.md`, Labels.
    Raises ValueError if `well` is not two-dimensional or has no readings.
    """
    if well.ndim != 2 or well.shape[1] == 0:
        raise ValueError(f"combine_readings: well has shape {list(well.shape)}, pass [pictures, thresholds >= 1]")
    labels = np.full(len(well), Label.AMBIGUOUS, dtype=np.int8)
    labels[well.all(axis=1)] = Label.WELL
    labels[~well.any(axis=1)] = Label.BAD
    return labels  # [N]
