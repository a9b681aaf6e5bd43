"""Changes of direction: SAS, CAS, overshoot, TAG, a random control, and the combinators within, gate and chain.

A corrector is called as corrector(denoise, prev, cur) and returns a `Correction`: the direction for every row of `cur`
and, where a gate decided, the score and the rows. RODS is within(window, gate(h_index(rho), eps, cas(rho))).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import inf, isnan
from typing import Literal, Protocol

import torch
from torch import Tensor

from rods.detectors import Detector, check_radius
from rods.evaluation import TINY, BoundDenoiser, Point, fresh, norms, per_sample, unit
from rods.types import Probe, Step


@dataclass(frozen=True, eq=False)
class Correction:
    """The direction to take, and how it was decided."""

    d: Tensor  # [B, C, H, W]
    score: Tensor | None = None  # [B]
    flagged: Tensor | None = None  # [B] bool; None = all rows
    probe: Probe | None = None  # for the steps that are not probed themselves; see `every`
    at: Point | None = None  # what was evaluated in the state's place; None: the state itself


class Corrector(Protocol):
    def __call__(self, denoise: BoundDenoiser, prev: Step | None, cur: Point) -> Correction: ...


@dataclass(frozen=True)
class SigmaWindow:
    """The steps with lo <= sigma <= hi: the form of a window that transfers between data sets and step counts."""

    lo: float
    hi: float

    def __post_init__(self) -> None:
        if not 0 <= self.lo <= self.hi:
            raise ValueError(f"window: sigma:{self.lo},{self.hi} is not a range; give 0 <= lo <= hi in noise levels")


Window = tuple[float, float] | SigmaWindow
"""(lo, hi): steps lo*N <= i < hi*N; or a range of noise levels."""


def check_window(window: Window) -> None:
    """ValueError unless `window` is 0 <= lo <= hi <= 1 or a `SigmaWindow`."""
    if isinstance(window, SigmaWindow):
        return
    if len(window) != 2 or not 0 <= window[0] <= window[1] <= 1:
        raise ValueError(f"window: {window} is not a range of steps; give fractions 0 <= lo <= hi <= 1")


def in_window(window: Window, *, i: int, num_steps: int, sigma: float) -> bool:
    """Whether step `i` of `num_steps`, at the noise level `sigma`, lies in the window."""
    if isinstance(window, SigmaWindow):
        return window.lo <= sigma <= window.hi
    # .28 * 25 is a little above 7: the slack keeps a fraction's own step on the right side.
    lo, hi = (fraction * num_steps - 1e-9 for fraction in window)
    return lo <= i < hi


def nobody(x: Tensor) -> Tensor:
    """No row flagged: [B] bool."""
    return torch.zeros(len(x), dtype=torch.bool, device=x.device)


# -- correctors -------------------------------------------------------------------------------------------------------


def cas(rho: float, ascent_steps: int = 1) -> Corrector:
    """Curvature-Aware Sampling: the direction at x + delta, delta uphill in the score norm (paper, section 4.2).

    delta_1 = rho u(x); for more ascent steps delta_{k+1} = rho normalise(delta_k + rho u(x + delta_k)), on the sphere.
    Cost: F + B for u(x), then F at the point (the detector's probe where that has the same radius: nothing), and F + B
    for every further ascent step.
    """
    rho = check_radius(rho)
    if ascent_steps < 1:
        raise ValueError(f"ascent_steps: {ascent_steps} is too few; give a whole number >= 1")

    def correct(denoise: BoundDenoiser, prev: Step | None, cur: Point) -> Correction:
        point = cur.uphill(rho)
        for _ in range(ascent_steps - 1 if rho > 0 else 0):
            delta = rho * unit(point.x - cur.x + rho * unit(point.g))
            point = cur.moved(delta)
        return Correction(point.d)

    return correct


def sas(rho: float, sign: Literal["uphill", "downhill"] = "uphill") -> Corrector:
    """Sharpness-Aware Sampling: the direction at x + delta, delta = +-rho d / ||d|| (paper, section 4.2).

    Uphill in f_t is the paper's formula; which sign repairs depends on the data (spec method.md, section 1).
    Cost: F at x and F at the point.
    """
    rho = check_radius(rho)
    if sign not in ("uphill", "downhill"):
        raise ValueError(f"sas_sign: unknown sign {sign!r}; give uphill or downhill")
    radius = rho if sign == "uphill" else -rho

    def correct(denoise: BoundDenoiser, prev: Step | None, cur: Point) -> Correction:
        return Correction(cur.moved(radius * unit(cur.d)).d if rho > 0 else cur.d)

    return correct


def overshoot(rho: float) -> Corrector:
    """The control without a second evaluation: d times 1 + rho / ||t d|| (spec method.md, section 4). Cost: F."""
    rho = check_radius(rho)

    def correct(denoise: BoundDenoiser, prev: Step | None, cur: Point) -> Correction:
        length = norms(cur.sigma * cur.d)
        return Correction(cur.d * per_sample(1 + torch.where(length >= TINY, rho / length, 0.0), cur.d))

    return correct


def tag(eta: float) -> Corrector:
    """Tangential amplifying guidance: P d + eta (d - P d), P the projection on x / ||x|| (arXiv 2510.04533).

    The part of the direction that changes the state's length stays as it is, the part along the sphere is scaled
    (spec method.md, section 2; eta is 1 to 1.2 there, and 1 changes nothing). Cost: F.
    """
    if not 0 <= eta < inf:
        raise ValueError(f"eta: {eta} is not a scale; give a finite number >= 0, such as 1.1")

    def correct(denoise: BoundDenoiser, prev: Step | None, cur: Point) -> Correction:
        normal = unit(cur.x)
        along = per_sample((cur.d * normal).flatten(1).sum(dim=1), cur.d) * normal  # P d
        return Correction(cur.d + (eta - 1) * (cur.d - along))

    return correct


def random_shift(rho: float, randn_like: Callable[[Tensor], Tensor]) -> Corrector:
    """The control of all corrections: the direction of a denoised image that is off by rho, d + rho u / t, u random.

    What `overshoot` does towards the denoised image, this does anywhere (spec method.md, section 2). `randn_like` is
    called at every step, for the whole batch: so not behind a gate, where the numbers of a sample would depend on its
    mates. Cost: F.
    """
    rho = check_radius(rho)

    def correct(denoise: BoundDenoiser, prev: Step | None, cur: Point) -> Correction:
        return Correction(cur.d + rho * unit(fresh(denoise, cur.x, randn_like)) / cur.sigma)

    return correct


# -- combinators ------------------------------------------------------------------------------------------------------


def within(window: Window, correct: Corrector) -> Corrector:
    """`correct` in the window, the denoiser's own direction outside it."""
    check_window(window)

    def windowed(denoise: BoundDenoiser, prev: Step | None, cur: Point) -> Correction:
        if in_window(window, i=cur.i, num_steps=cur.num_steps, sigma=float(cur.sigma)):
            return correct(denoise, prev, cur)
        return Correction(cur.d, flagged=nobody(cur.x))

    return windowed


def gate(detect: Detector, eps: float, correct: Corrector) -> Corrector:
    """`correct` for the samples whose score is >= eps, each by itself; the others keep their direction bit for bit.

    eps = 0 flags every sample of a score >= 0, eps = inf none. Only flagged rows are evaluated again: they are
    gathered, together with what the detector has evaluated at them.
    """
    if isnan(eps) or eps < 0:
        raise ValueError(f"eps: {eps} is not a threshold; give a number >= 0 (inf: detect only)")

    def gated(denoise: BoundDenoiser, prev: Step | None, cur: Point) -> Correction:
        score = detect(denoise, prev, cur)  # [B]
        flagged = score >= eps if eps < inf else nobody(cur.x)
        return replace(only(flagged, correct, denoise, prev, cur), score=score)

    return gated


def only(flagged: Tensor, correct: Corrector, denoise: BoundDenoiser, prev: Step | None, cur: Point) -> Correction:
    """`correct` for the rows `flagged` [B] bool, gathered; the others keep their direction bit for bit."""
    index = flagged.nonzero().flatten()  # [b]
    d = cur.d  # for the whole batch, before rows are gathered: a smaller batch may round differently
    if len(index) == 0:
        return Correction(d, flagged=flagged)
    if len(index) == len(flagged):
        part = correct(denoise, prev, cur)
    else:
        part = correct(denoise.rows(index), prev and prev.rows(index), cur.rows(index))
    if part.flagged is not None:  # a gate within this one has the last word on its rows
        flagged = flagged.index_copy(0, index, part.flagged)
    return Correction(d.index_copy(0, index, part.d), flagged=flagged)


def every(k: int, probed: Corrector, correct: Corrector, *, rho: float | None = None) -> Corrector:
    """`probed` at every k-th step of a window, and `correct` on the rows that it flagged at the k - 1 steps after it.

    There `correct` finds for `cur.u` the one of the probed step. A `rho` says that it is cas(rho) of one ascent step:
    the k - 1 steps then cost F in all, for the network is evaluated once, at x + rho u in flagged rows and at x in the
    others, and the step's `denoised` and `d` are of these points. The first step counted is the first one that is
    asked: `within` and `chain` go around this, a gate does not (it keeps no probe). What is kept between steps is in
    `Step.probe`. k = 1 is `probed`.
    Cost: that of `probed` at one step of k. Raises ValueError for k < 1.
    """
    if k < 1:
        raise ValueError(f"probe_every: {k} is too few; give a whole number >= 1")

    def held(denoise: BoundDenoiser, prev: Step | None, cur: Point) -> Correction:
        probe = prev.probe if prev is not None else None
        if probe is not None and cur.i - probe.i < k:
            if rho is not None and probe.u is not None:
                worst = cur.moved(torch.where(per_sample(probe.flagged, cur.x), rho * probe.u, 0.0))
                return Correction(worst.d, flagged=probe.flagged, probe=probe, at=worst)
            return replace(only(probe.flagged, correct, denoise, prev, cur.towards(probe.u)), probe=probe)
        done = probed(denoise, prev, cur)
        flagged = ~nobody(cur.x) if done.flagged is None else done.flagged
        return replace(done, probe=Probe(cur.i, cur.known_u, flagged))

    return held if k > 1 else probed


def chain(*correctors: Corrector) -> Corrector:
    """One after the other, each on the direction that the one before it gives; the last score and probe are kept."""

    def chained(denoise: BoundDenoiser, prev: Step | None, cur: Point) -> Correction:
        score, flagged, probe = None, nobody(cur.x), None
        for correct in correctors:
            done = correct(denoise, prev, cur)
            score = score if done.score is None else done.score
            probe = probe if done.probe is None else done.probe
            flagged = flagged | (~nobody(cur.x) if done.flagged is None else done.flagged)
            cur = cur.using(done.d)
        return Correction(cur.d, score, flagged, probe)

    return chained
