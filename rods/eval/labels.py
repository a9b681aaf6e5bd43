"""Verdicts of a labeller on generated images: valid, hallucinated, or uncertain.

A labeller reads every image at several thresholds. Only a verdict that all readings share counts as valid or
hallucinated; every other image is uncertain, and uncertain images are reported, never dropped.
"""

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray


class Label(IntEnum):
    """Codes of a label array (int8)."""

    UNCERTAIN = 0
    VALID = 1
    HALLUCINATED = 2

    @property
    def verdict(self) -> str:
        """The word for it: valid, hallucinated or uncertain."""
        return self.name.lower()


def combine_readings(valid: NDArray[np.bool_]) -> NDArray[np.int8]:
    """Labels int8 [N] from one verdict per image and threshold, `valid` bool [N, T] with T >= 1.

    All readings valid: VALID. None valid: HALLUCINATED. Otherwise UNCERTAIN.
    Raises ValueError if `valid` is not two-dimensional or has no readings.
    """
    if valid.ndim != 2 or valid.shape[1] == 0:
        raise ValueError(f"combine_readings: valid has shape {list(valid.shape)}, pass [images, thresholds >= 1]")
    labels = np.full(len(valid), Label.UNCERTAIN, dtype=np.int8)
    labels[valid.all(axis=1)] = Label.VALID
    labels[~valid.any(axis=1)] = Label.HALLUCINATED
    return labels  # [N]
