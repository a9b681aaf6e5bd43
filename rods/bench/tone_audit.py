"""The audit of a labeller against tone: contrast, background and sharpness must not move a label."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from rods.bench.task import AuditLine
from rods.bench.tone import tone_control
from rods.eval.correction import proportion_interval
from rods.eval.labels import Label

Labeller = Callable[[NDArray[Any]], NDArray[np.int8]]
Change = Callable[[NDArray[Any]], NDArray[Any]]

BLUR = 0.5  # pixels


def _blurred(unit: NDArray[Any]) -> NDArray[Any]:
    return np.asarray(ndimage.gaussian_filter(unit, (0, BLUR, BLUR)))


CHANGES: dict[str, Change] = {  # of pictures [N, H, H] in -1..1
    "half the contrast": lambda x: 0.5 * x,
    "a quarter of the contrast on a grey background": lambda x: 0.25 * x + 0.5,
    "darker, and less contrast": lambda x: 0.6 * x - 0.35,
    f"blur of {BLUR} pixels": _blurred,
}
IMPOSED = "mean tone of blurred, duller pictures imposed"


def tone_lines(images: NDArray[Any], label: Labeller) -> list[AuditLine]:
    """Which share of pictures [N, H, H] (uint8) goes from surely bad to surely well, or back, when only tone changes.

    The pictures should be real and planted ones together, for an error that tone hides counts as much as one that it
    makes. The last line imposes a mean tone as the report's control does. The bar is 0. Costs six labellings.
    """
    x = images.astype(np.float32) / 127.5 - 1
    before = label(x)
    lines = [_line(f"tone: {what}", _moved(before, label(change(x))), len(x)) for what, change in CHANGES.items()]
    outcome = tone_control(x, like=_blurred(0.8 * x - 0.1), label=label)
    return [*lines, _line(f"tone: {IMPOSED}", outcome.repaired.k + outcome.broken.k, len(x))]


def _moved(before: NDArray[np.int8], after: NDArray[np.int8]) -> int:
    sure = (before != Label.AMBIGUOUS) & (after != Label.AMBIGUOUS)
    return int((sure & (before != after)).sum())


def _line(what: str, moved: int, n: int) -> AuditLine:
    return AuditLine(what, "repaired or broken", proportion_interval(moved, n), bar=0.0)
