"""The bars that a correction must clear: what the report calls acceptable and the calibration searches for."""

from __future__ import annotations

import math
from collections.abc import Mapping

from rods.bench.compare import Comparison

MAX_BROKEN = 0.01  # newly broken of the valid images, by the upper end of the 95 % interval
MIN_VARIANCE = 0.97  # of the baseline's total variance
MIN_STD_RATIO = 0.97  # standard deviation within the modes, of real data's; asked of points by the calibration
MAX_NFE_RATIO = 1.5  # F + B as a ratio to the baseline's
MAX_MODE_DISTANCE_GAIN = 0.03  # by how much the shares of the modes may be farther from real data than the baseline's
MIN_VALID = 400  # valid baseline images, below which 0 newly broken ones do not show a rate under MAX_BROKEN


def clears_bars(row: Comparison, base: Comparison) -> bool:
    """Whether a method clears all bars of the report, and its relative reduction is above 0 by its interval."""
    return (
        row.outcomes.broken.high < MAX_BROKEN
        and row.variance_kept.value >= MIN_VARIANCE
        and row.nfe <= MAX_NFE_RATIO * base.nfe
        and row.relative_reduction.low > 0
        and mode_distance_gain(row, base) <= MAX_MODE_DISTANCE_GAIN
    )


def shortfalls(row: Comparison, *, nfe_ratio: float, std_ratio: float) -> Mapping[str, float]:
    """The bars that a candidate of the calibration does not clear, in words, and by what part it misses each.

    `nfe_ratio` is F + B over the baseline's, `std_ratio` nan where the standard deviation within modes does not count.
    """
    kept = row.variance_kept.value
    kept = kept if kept > 0.01 else 0.01  # not a number, too
    parts = {
        f"broken above {MAX_BROKEN:.0%}": row.outcomes.broken.high / MAX_BROKEN - 1,
        f"variance below {MIN_VARIANCE}": MIN_VARIANCE / kept - 1,
        f"spread below {MIN_STD_RATIO}": MIN_STD_RATIO / std_ratio - 1,
        f"NFE above {MAX_NFE_RATIO:g}x": nfe_ratio / MAX_NFE_RATIO - 1,
    }
    return {bar: part for bar, part in parts.items() if part > 0}


def mode_distance_gain(row: Comparison, base: Comparison) -> float:
    """By how much the shares of the modes are farther from real data than the baseline's; 0 for tasks without modes."""
    if row.distances is None or base.distances is None or math.isnan(base.distances.mode_distance):
        return 0.0
    return row.distances.mode_distance - base.distances.mode_distance
