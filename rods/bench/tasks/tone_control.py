"""Tone of images, apart from what they show: measuring it, normalising it away, and imposing it as a control.

A correction that only changes contrast, background or sharpness must not move a label. The control of every image
labeller imposes the corrected run's tone on the baseline's images and labels them again: repairs and breaks must both
be zero.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from rods.eval.correction import PairedOutcomes, paired_outcomes

F32 = NDArray[np.float32]

MIN_CONTRAST = 16 / 255  # of the full range; a flatter image shows nothing
BLUR_RANGE = (-0.25, 4.0)  # variances in pixels^2 that impose_tone may add; negative ones sharpen


@dataclass(frozen=True)
class Tone:
    """Means over a set of images. Levels as fractions of the full range."""

    background: float
    contrast: float  # object minus background
    sharpness: float  # slope of the edges, in contrasts per pixel


def as_unit(images: NDArray[Any]) -> F32:
    """Images [N, H, H] or [N, 1, H, H] as float32 [N, H, H] in 0..1.

    uint8 is divided by 255; floats are taken to be in -1..1, as a sampler returns them, and clipped.
    Raises ValueError for other shapes or types, and for values that are not finite.
    """
    if images.ndim == 4 and images.shape[1] == 1:
        images = images[:, 0]
    if images.ndim != 3 or images.shape[1] != images.shape[2]:
        raise ValueError(f"images have shape {list(images.shape)}, pass grey images [N, H, H] or [N, 1, H, H]")
    if images.dtype == np.uint8:
        return np.asarray(images / np.float32(255), dtype=np.float32)
    if not np.issubdtype(images.dtype, np.floating):
        raise ValueError(f"images have type {images.dtype}, pass uint8 (0..255) or floats (-1..1)")
    if not np.isfinite(images).all():
        raise ValueError("images hold values that are not finite, look at the sampler's settings first")
    return np.asarray(np.clip((images.astype(np.float32) + 1) / 2, 0, 1))  # [N, H, H]


def levels(unit: F32) -> F32:
    """Background and object level [N, 2] of images [N, H, W]: medians of the two sides of the mid-grey.

    The mid-grey starts half way between the extremes and moves to the middle of the two medians, so that a stray
    bright pixel does not decide.
    """
    ordered = np.sort(unit.reshape(len(unit), unit.shape[1] * unit.shape[2]), axis=1)  # [N, H*W]
    rows, P = np.arange(len(unit)), ordered.shape[1]
    low, high = ordered[:, 0], ordered[:, -1]
    for _ in range(3):
        below = np.clip((ordered <= ((low + high) / 2)[:, None]).sum(axis=1), 1, P - 1)
        low, high = ordered[rows, below // 2], ordered[rows, (below + P) // 2]
    return np.stack([low, high], axis=1)


def normalise(unit: F32) -> tuple[F32, F32]:
    """Images [N, H, W] with background 0 and object 1, and their contrast [N] before. Flat ones stay flat."""
    level = levels(unit)
    contrast = level[:, 1] - level[:, 0]
    return (unit - level[:, :1, None]) / np.maximum(contrast, MIN_CONTRAST)[:, None, None], contrast


def measure_tone(images: NDArray[Any]) -> Tone:
    """Mean tone of images [N, H, H] with N >= 1 (types and errors of `as_unit`)."""
    unit = as_unit(images)
    if not len(unit):
        raise ValueError("measure_tone: no images, pass at least one")
    level = levels(unit)
    return Tone(float(level[:, 0].mean()), float((level[:, 1] - level[:, 0]).mean()), _sharpness(unit))


def impose_tone(images: NDArray[Any], tone: Tone) -> F32:
    """Images [N, H, H] with the mean background, contrast and sharpness of `tone`: float32 in -1..1.

    The same change is made to every image: a blur (or sharpening) by one variance, found by bisection, then one
    factor and one offset of the tone. Their differences among each other and what they show stay. Sharpening stops at
    the end of BLUR_RANGE, and values outside the full range are clipped. Types and errors of `as_unit`.
    """
    unit = as_unit(images)
    low, high = BLUR_RANGE
    for _ in range(16):
        middle = (low + high) / 2
        low, high = (middle, high) if _sharpness(_blur(unit, middle)) > tone.sharpness else (low, middle)
    unit = _blur(unit, (low + high) / 2)
    level = levels(unit)
    factor = tone.contrast / max(float((level[:, 1] - level[:, 0]).mean()), MIN_CONTRAST)
    offset = tone.background - float(level[:, 0].mean())
    background = level[:, :1, None]
    return np.asarray(np.clip(2 * (background + offset + factor * (unit - background)) - 1, -1, 1), dtype=np.float32)


def tone_control(
    images: NDArray[Any], *, like: NDArray[Any], label: Callable[[NDArray[Any]], NDArray[np.int8]]
) -> PairedOutcomes:
    """The counterfactual control: labels of `images` before and after the mean tone of `like` is imposed on them.

    `repaired` and `broken` of the result must be zero; otherwise `label` can be fooled by tone.
    """
    return paired_outcomes(label(images), label(impose_tone(images, measure_tone(like))))


def _blur(unit: F32, variance: float) -> F32:
    """Gaussian blur of images [N, H, W] by a variance in pixels^2, reflecting edges; the inverse where negative."""
    _, H, W = unit.shape
    ky, kx = np.pi * np.arange(H, dtype=np.float32) / H, np.pi * np.arange(W, dtype=np.float32) / W
    gain = np.exp(-variance / 2 * (ky[:, None] ** 2 + kx**2))
    blurred: F32 = fft.idctn(fft.dctn(unit, axes=(1, 2)) * gain, axes=(1, 2))
    return blurred


def _sharpness(unit: F32) -> float:
    """Mean slope of the edges: squared differences of neighbours over absolute ones, so their length cancels."""
    normal, _ = normalise(unit)
    dx, dy = np.diff(normal, axis=2), np.diff(normal, axis=1)
    squared = (dx**2).sum(axis=(1, 2)) + (dy**2).sum(axis=(1, 2))
    absolute = np.abs(dx).sum(axis=(1, 2)) + np.abs(dy).sum(axis=(1, 2))
    return float((squared / np.maximum(absolute, 1e-6)).mean())
