"""The audit of an image labeller: real and planted images, and tone: contrast, background and sharpness."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from rods.bench.task import AuditLine, audit_line
from rods.bench.tasks.tone_control import tone_control
from rods.eval.correction import proportion_interval
from rods.eval.labels import Label

Labeller = Callable[[NDArray[Any]], NDArray[np.int8]]
Change = Callable[[NDArray[Any]], NDArray[Any]]

BLUR = 0.5  # pixels


def _blurred(unit: NDArray[Any]) -> NDArray[Any]:
    return np.asarray(ndimage.gaussian_filter(unit, (0, BLUR, BLUR)))


CHANGES: dict[str, Change] = {  # of images [N, H, H] in -1..1
    "half the contrast": lambda x: 0.5 * x,
    "a quarter of the contrast on a grey background": lambda x: 0.25 * x + 0.5,
    "darker, and less contrast": lambda x: 0.6 * x - 0.35,
    f"blur of {BLUR} pixels": _blurred,
}
IMPOSED = "mean tone of blurred, duller images imposed"


def image_audit(
    real: NDArray[Any],
    planted: Mapping[str, NDArray[Any]],
    label: Labeller,
    *,
    most: float,
    most_uncertain: float | None = None,
    least: float,
) -> list[AuditLine]:
    """The audit of a labeller of images [N, H, H] (uint8): fresh real ones, equally many of each planted error, tone.

    `most` and `most_uncertain` are the bars of real images that are called hallucinated and uncertain, `least` that of
    planted errors found. The tone is changed on a quarter of each planted error and on four times as many real images.
    Raises ValueError where there are no real images, or none of a planted error.
    """
    if not len(real) or not all(map(len, planted.values())):
        raise ValueError("image_audit: no images, pass at least one real one and one of each planted error")
    few = max(1, min(map(len, planted.values())) // 4)
    mixed = np.concatenate([real[: 4 * few], *(errors[:few] for errors in planted.values())])
    labels = label(real)
    return [
        audit_line("real data, fresh", labels, Label.HALLUCINATED, most=most),
        audit_line("real data, fresh", labels, Label.UNCERTAIN, most=most_uncertain),
        *(
            audit_line(f"planted: {what}", label(errors), Label.HALLUCINATED, least=least)
            for what, errors in planted.items()
        ),
        *tone_lines(mixed, label),
    ]


def tone_lines(images: NDArray[Any], label: Labeller) -> list[AuditLine]:
    """Which share of images [N, H, H] (uint8) goes from hallucinated to valid, or back, when only tone changes.

    The images should be real and planted ones together, for an error that tone hides counts as much as one that it
    makes. The last line imposes a mean tone as the report's control does. The bar is 0. Costs six labellings.
    """
    x = images.astype(np.float32) / 127.5 - 1
    before = label(x)
    lines = [_line(f"tone: {what}", _moved(before, label(change(x))), len(x)) for what, change in CHANGES.items()]
    return [*lines, imposed_tone_line(images, label)]


def imposed_tone_line(images: NDArray[Any], label: Labeller) -> AuditLine:
    """The same share when images [N, H, H] (uint8) take on the mean tone of a blurred, duller set. Two labellings."""
    x = images.astype(np.float32) / 127.5 - 1
    outcome = tone_control(x, like=_blurred(0.8 * x - 0.1), label=label)
    return _line(f"tone: {IMPOSED}", outcome.repaired.k + outcome.broken.k, len(x))


def _moved(before: NDArray[np.int8], after: NDArray[np.int8]) -> int:
    sure = (before != Label.UNCERTAIN) & (after != Label.UNCERTAIN)
    return int((sure & (before != after)).sum())


def _line(what: str, moved: int, n: int) -> AuditLine:
    return AuditLine(what, "repaired or broken", proportion_interval(moved, n), bar=0.0)
