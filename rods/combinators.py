"""What correctors are combined by: Within a window, behind a Gate, Every k-th step, in a Chain.

RODS with CAS is Within(window, Gate(CurvatureIndex(rho), eps, Cas(rho))).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf, isnan

from rods.denoiser import no_rows
from rods.detectors import Detector, StepDetector
from rods.schedules import Window, check_window, in_window
from rods.state import State
from rods.trajectory import Correction, Corrector, only
from rods.types import Probe, Step


@dataclass(frozen=True)
class Within(Corrector):
    """`correct` in the window, the denoiser's own direction outside it."""

    window: Window
    correct: Corrector

    def __post_init__(self) -> None:
        check_window(self.window)

    def _holds(self, cur: State) -> bool:
        return in_window(self.window, i=cur.i, num_steps=cur.num_steps, sigma=float(cur.sigma))

    def __call__(self, cur: State, prev: Step | None) -> Correction:
        return self.correct(cur, prev) if self._holds(cur) else Correction(cur.d, flagged=no_rows(cur.x))

    def needs_gradient(self, cur: State, prev: Step | None) -> bool:
        return self._holds(cur) and self.correct.needs_gradient(cur, prev)

    def probed_radii(self, cur: State, prev: Step | None) -> tuple[float, ...]:
        return self.correct.probed_radii(cur, prev) if self._holds(cur) else ()


@dataclass(frozen=True)
class Gate(Corrector):
    """`correct` for the samples whose score is >= eps, each by itself; the others keep their direction bit for bit.

    eps = 0 flags every sample of a score >= 0, eps = inf none. Only flagged rows are evaluated again: they are
    gathered, together with what the detector has evaluated at them.
    """

    detector: Detector
    eps: float
    correct: Corrector

    def __post_init__(self) -> None:
        if not isinstance(self.detector, StepDetector):
            raise ValueError(f"detector: {type(self.detector).__name__} does not score a step; use a detector of steps")
        if isnan(self.eps) or self.eps < 0:
            raise ValueError(f"eps: {self.eps} is not a threshold; give a number >= 0 (inf: detect only)")

    def __call__(self, cur: State, prev: Step | None) -> Correction:
        assert isinstance(self.detector, StepDetector)
        score = self.detector.measure(cur)  # [B]
        flagged = score >= self.eps if self.eps < inf else no_rows(cur.x)
        return replace(only(flagged, self.correct, cur, prev), score=score)

    def needs_gradient(self, cur: State, prev: Step | None) -> bool:
        return isinstance(self.detector, StepDetector) and self.detector.reads_gradient

    def probed_radii(self, cur: State, prev: Step | None) -> tuple[float, ...]:
        return self.detector.probed_radii if isinstance(self.detector, StepDetector) else ()

    def held(self, cur: State, prev: Step | None, probe: Probe) -> Correction:
        return self.correct.held(cur, prev, probe)


@dataclass(frozen=True)
class Every(Corrector):
    """`correct` at every k-th step, and at the k - 1 steps after it on the rows that it flagged, by its direction u.

    What is kept between steps is in `Step.probe`; how a corrector acts between probes is its `held`. The first step
    counted is the first one that is asked: Within and Chain go around this, a Gate does not (it keeps no probe).
    k = 1 is `correct`. Cost: that of `correct` at one step of k. Raises ValueError for k < 1.
    """

    k: int
    correct: Corrector

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ValueError(f"probe_every: {self.k} is too few; give a whole number >= 1")

    def _probe(self, cur: State, prev: Step | None) -> Probe | None:
        """The probe that this step goes by; None where it makes one of its own."""
        probe = None if prev is None else prev.probe
        return probe if probe is not None and cur.i - probe.i < self.k else None

    def __call__(self, cur: State, prev: Step | None) -> Correction:
        if self.k == 1:
            return self.correct(cur, prev)
        if (probe := self._probe(cur, prev)) is not None:
            return replace(self.correct.held(cur, prev, probe), probe=probe)
        done = self.correct(cur, prev)
        flagged = ~no_rows(cur.x) if done.flagged is None else done.flagged
        return replace(done, probe=Probe(cur.i, cur.known_u, flagged))

    def needs_gradient(self, cur: State, prev: Step | None) -> bool:
        return self._probe(cur, prev) is None and self.correct.needs_gradient(cur, prev)

    def probed_radii(self, cur: State, prev: Step | None) -> tuple[float, ...]:
        return self.correct.probed_radii(cur, prev) if self._probe(cur, prev) is None else ()


@dataclass(frozen=True, init=False)
class Chain(Corrector):
    """One after the other, each on the direction that the one before it gives; the last score and probe are kept.

    Cost: the same in any order, for gradients that any of them reads are evaluated first and bring D with them.
    """

    correctors: tuple[Corrector, ...]

    def __init__(self, *correctors: Corrector) -> None:
        object.__setattr__(self, "correctors", correctors)

    def __call__(self, cur: State, prev: Step | None) -> Correction:
        for rho in self.probed_radii(cur, prev):
            _ = cur.uphill(rho).g
        score, flagged, probe = None, no_rows(cur.x), None
        for correct in self.correctors:
            done = correct(cur, prev)
            score = score if done.score is None else done.score
            probe = probe if done.probe is None else done.probe
            flagged = flagged | (~no_rows(cur.x) if done.flagged is None else done.flagged)
            cur = cur.with_d(done.d)
        return Correction(cur.d, score, flagged, probe)

    def needs_gradient(self, cur: State, prev: Step | None) -> bool:
        return any(correct.needs_gradient(cur, prev) for correct in self.correctors)

    def probed_radii(self, cur: State, prev: Step | None) -> tuple[float, ...]:
        return tuple({rho: None for correct in self.correctors for rho in correct.probed_radii(cur, prev)})
