"""Averages of the weights over a training: by half-life (EDM), or by a power function of the images seen (EDM2).

An average by power function of width `std` after t images weighs the weights of image s by p(s) = (gamma + 1)
s^gamma / t^(gamma + 1), whose standard deviation is `std` t. Averages of several widths, stored several times, span
a space of profiles in which those of other widths lie closely: `reconstruction` (arXiv 2312.02696, Section 3).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
MAX_STD = 0.28  # of a profile that rises: at gamma = 0, the plain mean, it is 1/sqrt(12)


@dataclass(frozen=True)
class HalfLife:
    """The exponential average by half-life in images, held to a share of what was seen (EDM, Appendix F)."""

    images: int
    rampup_ratio: float

    @property
    def label(self) -> str:
        return f"ema{self.images / 1e6:g}"

    @property
    def header(self) -> dict[str, float]:
        """What a snapshot's header says of it."""
        return {"ema_halflife": self.images}

    def beta(self, images_seen: int, batch: int) -> float:
        """What the average keeps of itself at the step after which `images_seen` images were seen."""
        held = min(self.images, images_seen * self.rampup_ratio)
        return float(0.5 ** (batch / max(held, 1e-8)))


@dataclass(frozen=True)
class PowerFunction:
    """The average by power function, of a standard deviation relative to the images seen."""

    std: float

    def __post_init__(self) -> None:
        if not 0 < self.std <= MAX_STD:
            raise ValueError(f"std: {self.std} is not the width of a power function; it must be in (0, {MAX_STD}]")

    @property
    def label(self) -> str:
        return f"std{self.std:g}"

    @property
    def header(self) -> dict[str, float]:
        """What a snapshot's header says of it."""
        return {"ema_std": self.std}

    @property
    def gamma(self) -> float:
        """The root of gamma^3 + 7 gamma^2 + (16 - std^-2) gamma + (12 - std^-2) = 0 at which the profile rises."""
        v = self.std**-2
        return float(np.roots([1, 7, 16 - v, 12 - v]).real.max())

    def beta(self, images_seen: int, batch: int) -> float:
        """What the average keeps of itself at the step after which `images_seen` images were seen."""
        return float((1 - min(batch / images_seen, 1)) ** (self.gamma + 1))


Average = HalfLife | PowerFunction


@dataclass(frozen=True)
class Profile:
    """Which images' weights an average holds: that of a power function after so many images."""

    std: float
    images: float

    @property
    def gamma(self) -> float:
        return PowerFunction(self.std).gamma


def overlap(a: Profile, b: Profile) -> float:
    """The integral of p_a p_b over the images seen, per image."""
    first, last = sorted((a, b), key=lambda p: p.images)
    factor = (a.gamma + 1) * (b.gamma + 1) / (a.gamma + b.gamma + 1)
    return float(factor * (first.images / last.images) ** last.gamma / last.images)


def reconstruction(stored: Sequence[Profile], wanted: Profile) -> tuple[F64, float]:
    """(x, error): the stored averages, summed with weights x, come closest to the wanted one by least squares.

    Both are about the profiles; `error` is the distance of the sum from the wanted profile relative to its norm.

    Raises ValueError: nothing is stored, or only what is later than wanted.
    """
    usable = np.array([p.images <= wanted.images for p in stored], bool)
    if not usable.any():
        raise ValueError(f"no average is stored up to {wanted.images:g} images")
    used = [p for p, fits in zip(stored, usable, strict=True) if fits]
    A = np.array([[overlap(p, q) for q in used] for p in used])  # [n, n]
    b = np.array([overlap(p, wanted) for p in used])  # [n]
    norm2 = overlap(wanted, wanted)
    norms = np.sqrt(A.diagonal())  # profiles of norm 1 make A as well conditioned as it gets
    x = np.linalg.lstsq(A / np.outer(norms, norms), b / norms, rcond=1e-13)[0] / norms
    error = math.sqrt(max(norm2 - 2 * x @ b + x @ A @ x, 0) / norm2)
    weights = np.zeros(len(stored))
    weights[usable] = x
    return weights, error
