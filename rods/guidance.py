"""Guidance: a denoiser led away from a worse one, D = guide + w (main - guide), inside a range of noise levels.

    guided(net, None, 2)                     the same network without its labels (classifier-free guidance)
    guided(net, weaker, 2)                   another network: an unconditional one, or an earlier snapshot
                                             (autoguidance, arXiv 2406.02507), which gets the labels if it has classes
    guided(net, Dropout(net), 2)             the same network with its dropout on (arXiv 2510.17136)
    guided(net, Noisier(net), 2)             the same network, told a higher noise level (arXiv 2412.05827, SG)

The result is a denoiser as any other: samplers, detectors and correctors act on it, and differentiate through both
networks. w is EDM2's and diffusers' convention: 1 is the main network alone, 0 the guide alone. (SG counts from 0: its
weight is w - 1. The form of SG that costs nothing is a corrector, `correctors.SgPrev`.)
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf, isfinite

import torch
from torch import Tensor

from rods.denoiser import BoundDenoiser, Combined, rounded_sigma, sigma_range
from rods.dropout import Dropout
from rods.schedules import SigmaWindow
from rods.schema import digits
from rods.types import AnyDenoiser


class OfMain(Combined):
    """What a denoiser made of others tells of itself: its main network's shape, classes and noise levels."""

    @property
    def img_channels(self) -> int:
        return self.main.img_channels  # type: ignore[attr-defined, no-any-return]

    @property
    def img_resolution(self) -> int:
        return self.main.img_resolution  # type: ignore[attr-defined, no-any-return]

    @property
    def label_dim(self) -> int:
        return int(getattr(self.main, "label_dim", 0))

    @property
    def sigma_min(self) -> float:
        return sigma_range(self.main)[0]

    @property
    def sigma_max(self) -> float:
        return sigma_range(self.main)[1]

    def round_sigma(self, sigma: Tensor) -> Tensor:
        return rounded_sigma(self.main, sigma)


@dataclass(frozen=True, repr=False)
class Guided(OfMain):
    """D(x; sigma) = D_guide + strength (D_main - D_guide) where lo <= sigma <= hi; outside, D_main: see `guided`.

    The noise levels are those that both networks know. Cost of D: the evaluations of both networks, 2 F (and 2 B); F
    (and B) outside the interval and for strength 1.
    """

    main: AnyDenoiser
    guide: AnyDenoiser
    strength: float
    interval: SigmaWindow | None = None

    def __post_init__(self) -> None:
        if not isfinite(self.strength):
            raise ValueError(f"strength: {self.strength} is not a weight; give a finite number (1: no guidance)")
        for name in ("img_channels", "img_resolution"):
            own, other = (getattr(net, name, None) for net in (self.main, self.guide))
            if own is not None and other is not None and own != other:
                raise ValueError(f"guide: its {name} is {other}, the network's {own}; give one of the same shape")
        classes = getattr(self.guide, "label_dim", 0)
        if classes not in (0, self.label_dim):
            raise ValueError(f"guide: it has {classes} classes, the network {self.label_dim}; give one of the same")
        if not self.sigma_min < self.sigma_max:
            raise ValueError("guide: it knows no noise level that the network knows; give another one")

    def __repr__(self) -> str:
        main, guide = (
            type(net).__name__ if isinstance(net, torch.nn.Module) else net for net in (self.main, self.guide)
        )
        return f"Guided({main}, {guide}, strength={digits(self.strength)}, interval={self.interval})"

    @property
    def sigma_min(self) -> float:
        return max(super().sigma_min, sigma_range(self.guide)[0])

    @property
    def sigma_max(self) -> float:
        return min(super().sigma_max, sigma_range(self.guide)[1])

    def is_guided(self, sigma: float) -> bool:
        """Whether the guide is evaluated at this noise level."""
        return self.strength != 1 and (self.interval is None or self.interval.lo <= sigma <= self.interval.hi)

    def evaluate(self, denoise: BoundDenoiser, x: Tensor, sigma: Tensor) -> Tensor:
        labels, is_led = denoise.class_labels, self.strength not in (0, 1)  # away from the guide
        if is_led and isinstance(self.guide, Unlabelled) and (labels is None or not labels.any(1).all()):
            raise ValueError(
                "class_labels: guidance leads away from an image without a class, and no class was given; give one "
                "for each image"
            )
        D = denoise.of(self.main)(x, sigma)
        if not self.is_guided(float(sigma)):
            return D
        D_guide = denoise.of(self.guide, labelled=getattr(self.guide, "label_dim", 0) > 0)(x, sigma)
        return D_guide + self.strength * (D - D_guide)


def guided(
    main: AnyDenoiser,
    guide: AnyDenoiser | None,
    strength: float,
    interval: SigmaWindow | tuple[float, float] | None = None,
) -> Guided:
    """`main` guided by another denoiser: D = guide + strength (main - guide) in an interval of noise levels.

    Args:
        main: D(x, sigma[, class_labels]); gates read its layers, and its alone (`rods/gate.py`).
        guide: a denoiser of the same images, which gets the labels if its `label_dim` is not 0; None: `main` without
            labels; every image then needs one, or D raises a ValueError (but for the strengths 0 and 1).
        strength: 1 is main alone, 0 the guide alone, bit for bit.
        interval: (lo, hi), both included; None: everywhere. Outside, the guide is not evaluated (arXiv 2404.07724).
    Returns:
        A denoiser that counts the evaluations of both. Cost of D: 2 F, outside the interval F.
    Raises:
        ValueError: a guide of other images or classes, no guide for a network without classes, or an empty interval.
    """
    if guide is None:
        if not getattr(main, "label_dim", 0):
            raise ValueError(
                "guide: without labels the network is itself, for it has no classes; give another network, or dropout "
                "or noisier"
            )
        guide = Unlabelled(main)
    if interval is not None:
        ends = (interval.lo, interval.hi) if isinstance(interval, SigmaWindow) else interval
        if not isinstance(ends, tuple | list) or len(ends) != 2 or not all(isinstance(t, int | float) for t in ends):
            raise ValueError(f"interval: {interval!r}: must be two noise levels (lo, hi)")
        lo, hi = ends
        interval = noise_interval(lo, hi)
    return Guided(main, guide, strength, interval)


def noise_interval(lo: float, hi: float, *, name: str = "interval") -> SigmaWindow:
    """The noise levels lo to hi. Raises ValueError, which calls them `name`: an empty interval."""
    if not 0 <= lo < hi:
        raise ValueError(f"{name}: {digits(lo)},{digits(hi)} is empty; give 0 <= lo < hi in noise levels")
    return SigmaWindow(lo, hi)


# -- guides that need no second network -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Unlabelled(OfMain):
    """A network without its labels: for EDM's, zeros in their place. Good where some were left out in training."""

    main: AnyDenoiser = field(repr=False)

    label_dim = 0  # type: ignore[assignment]

    def evaluate(self, denoise: BoundDenoiser, x: Tensor, sigma: Tensor) -> Tensor:
        return denoise.of(self.main, labelled=False)(x, sigma)


@dataclass(frozen=True)
class Noisier(OfMain):
    """D(x; ratio sigma): what a network says of x where it is told a higher noise level, within those it knows.

    SG (arXiv 2412.05827), whose offset is here a factor of the noise level.
    """

    main: AnyDenoiser = field(repr=False)
    ratio: float = 1.2

    def __post_init__(self) -> None:
        if not 1 < self.ratio < inf:
            raise ValueError(f"ratio: {self.ratio} is no higher noise level; give a finite number > 1, such as 1.2")

    def evaluate(self, denoise: BoundDenoiser, x: Tensor, sigma: Tensor) -> Tensor:
        net = denoise.of(self.main)
        return net(x, net.round_sigma((self.ratio * sigma).clamp(max=self.sigma_max)))


# -- as options and presets say it ------------------------------------------------------------------------------------

SELF_GUIDES: dict[str, type[Unlabelled] | type[Noisier] | type[Dropout]] = {
    "none": Unlabelled,
    "dropout": Dropout,
    "noisier": Noisier,
}
"""The guides that are the network itself, by name: its options follow, as in noisier:ratio=1.3."""


@dataclass(frozen=True)
class Guidance:
    """The options of guidance: `guide` is a name of `SELF_GUIDES`, with options, or a network's file or address."""

    strength: float
    guide: str
    interval: SigmaWindow | None = None
    sha256: str | None = None  # what the checksum of the guide's file must be; None: not checked

    def __post_init__(self) -> None:
        if not isfinite(self.strength):
            raise ValueError(f"guidance: {self.strength} is not a weight; give a finite number (1: no guidance)")
        if not self.guide:
            raise ValueError("guide: its name is empty; give none, dropout, noisier, or a network's file or address")
        if self.is_self and self.sha256 is not None:
            raise ValueError(f"guide: {self.guide} is no file, so that there is no checksum of it; leave sha256 out")

    @property
    def is_self(self) -> bool:
        """Whether the network is its own guide."""
        return self.guide.partition(":")[0] in SELF_GUIDES

    def self_guide(self, net: AnyDenoiser) -> Unlabelled | Noisier | Dropout:
        """The guide that `net` itself is. Raises ValueError: an option that it does not have, or out of range."""
        name, has_options, rest = self.guide.partition(":")
        kind = SELF_GUIDES[name]
        known = [f for f in kind.__dataclass_fields__ if f != "main"]
        given: dict[str, float] = {}
        for part in rest.split(",") if has_options else []:
            key, _, value = (p.strip() for p in part.partition("="))
            if key not in known:
                raise ValueError(f"guide: {name} has no option {key!r}; it has {', '.join(known) or 'none'}")
            try:
                given[key] = float(value)
            except ValueError:
                raise ValueError(f"guide: {name}: {key}: {value!r}: must be a number") from None
        try:
            return kind(net, **given)
        except ValueError as e:
            raise ValueError(f"guide: {name}: {e}") from None

    def applied(self, net: AnyDenoiser, guide: AnyDenoiser) -> Guided:
        """`net` guided by `guide`. Raises ValueError as `guided` does."""
        return guided(net, None if isinstance(guide, Unlabelled) else guide, self.strength, self.interval)


def guide_to_text(guide: Noisier | Dropout | Unlabelled) -> str:
    """The name of a guide that is the network itself, with the options that it has."""
    name = next(name for name, kind in SELF_GUIDES.items() if type(guide) is kind)
    options = {key: getattr(guide, key) for key in guide.__dataclass_fields__ if key != "main"}
    written = [f"{key}={digits(value)}" for key, value in options.items() if value is not None]
    return ":".join([name, ",".join(written)] if written else [name])


def interval_from_text(text: str) -> SigmaWindow:
    """`LO,HI` in noise levels. Raises ValueError: not two numbers, or an empty interval."""
    try:
        lo, hi = (float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"guidance_interval: {text!r} is not LO,HI; give two noise levels, such as .2,5") from None
    return noise_interval(lo, hi, name="guidance_interval")


def interval_to_text(interval: SigmaWindow) -> str:
    """The inverse of `interval_from_text`."""
    return f"{digits(interval.lo)},{digits(interval.hi)}"
