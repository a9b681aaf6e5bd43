"""Calibration: which options of a sampler repair most on a block of seeds that no report uses.

Each family of samplers is searched in two rounds: a coarse grid on the first part of the seeds, the neighbours of its
best, then the best few on all seeds. A candidate is a sampler, and its samples go to a run folder, so that an
interrupted calibration goes on. The bars are those of bars.py: at most 1 % of the valid samples newly broken by the
upper end of the 95 % interval, 97 % of the variance kept, for points also 97 % of the real data's standard deviation
within modes, and at most 1.5 times the baseline's NFE. The rule of choice (`choose`): of the candidates that repair
more than they break and clear all bars, the one with the most repaired minus broken; ties go to the lowest NFE. Where
there is none, what is missed counts against what is repaired, and the remark says what was missed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from math import inf, isfinite, nan
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dnnlib.errors import UserError
from rods.base_samplers import Euler, Sampler
from rods.bench.bars import shortfalls
from rods.bench.compare import Comparison, compare
from rods.bench.labelled import LabelledRun, read_run
from rods.bench.methods import BASELINE, Method
from rods.bench.run import Place, run_methods, source_of
from rods.bench.task import LoadedNetwork, Task
from rods.config import changed, name_of, options, to_json, to_text, values_of
from rods.correctors import Laplacian, NamedCorrector, Overshoot, SigmaOffset, Tag
from rods.detectors import Detector
from rods.eval.diversity import spread_within
from rods.samplers import Corrected
from rods.schedules import SigmaWindow, Window
from torch_utils import distributed

F64 = NDArray[np.float64]
SPREAD_SAMPLES, REAL_SEED = 20_000, 3  # real data that the spread within modes is compared with; reports use others
FINALISTS = 3  # candidates of a family that are tried on all seeds
WINDOWS = ((0.1, 0.5), (0.2, 0.6), (0.3, 0.7), (0.4, 0.8), (0.6, 0.9))  # of the steps; turned into noise levels
RADII = (1 / 32, 1 / 8, 1 / 2)  # in units of sqrt(dimension)
KAPPAS, ETAS, ALPHAS = (0.05, 0.1, 0.2, 0.4), (1.05, 1.1, 1.2), (0.003, 0.01, 0.03)
Neighbours = Callable[[Sampler], Sequence[Sampler]]


def rounded(value: float, digits: int) -> float:
    """A number of that many significant digits: what a preset says, and what was tried."""
    return float(f"{value:.{digits}g}")


# -- trials -----------------------------------------------------------------------------------------------------------

_SHORT = {"threshold": "t", "sigma_r": "r", "rounds": "k", "margin": "m", "score_at": "at", "window": "w", "rho": "rho",
          "strength": "s", "detector": ""}  # fmt: skip
_GRID = ("num_steps", "sigma_min", "sigma_max", "time_rho")


def short_name(sampler: Sampler) -> str:
    """A name by the options that are not the defaults: `restart-t2.58-r0.47-lid_0.0275_2`.

    The options of the noise grid are left out: all candidates of a search have the same ones.
    """
    name = name_of(sampler)
    known, parts = options(name), [name]
    for option, value in values_of(sampler).items():
        if option not in _GRID and value != known[option].default:
            parts.append(f"{_SHORT.get(option, f'{option}=')}{_short(value)}")
    return "-".join(parts)


def _short(value: object) -> str:
    if isinstance(value, SigmaWindow):
        return f"{value.lo:g}_{value.hi:g}"
    if isinstance(value, Detector):
        return re.sub(r"\w+=", "", to_text(value)).replace(":", "_").replace(",", "_")
    if isinstance(value, tuple):
        return "_".join(f"{part:g}" for part in value) + "_of_steps"
    return f"{value:g}" if isinstance(value, int | float) and not isinstance(value, bool) else str(value).lower()


def method_of(sampler: Sampler) -> Method:
    """A candidate as a method of the benchmark; one that only records its score leaves the baseline's images."""
    values = values_of(sampler)
    return Method(short_name(sampler), sampler, is_score=inf in (values.get("threshold"), values.get("eps")))


@dataclass(frozen=True)
class Trial:
    """A candidate that was tried, and what it did."""

    family: str
    method: Method
    row: Comparison
    nfe_ratio: float  # F + B as a ratio to the baseline's
    std_ratio: float = nan  # within modes, to real data's; nan for images and without modes

    @property
    def missed(self) -> Mapping[str, float]:
        """The bars that it does not clear, in words, and by what part of the bar it misses each."""
        return shortfalls(self.row, nfe_ratio=self.nfe_ratio, std_ratio=self.std_ratio)

    @property
    def rank(self) -> tuple[float, ...]:
        """Lower is better: bars cleared by a candidate that does some good; what it repairs less what it misses."""
        o = self.row.outcomes
        net, missed = o.repaired.k - o.broken.k, self.missed
        merit = net / max(o.repaired.n, 1) - sum(missed.values())
        return float(bool(missed) or net <= 0), -merit, self.nfe_ratio

    def remark(self) -> str:
        """The bars in words, with the bound that goes with them."""
        o, kept = self.row.outcomes, self.row.variance_kept.value
        text = f"repaired {o.repaired.k}/{o.repaired.n}, broken {o.broken.k}/{o.broken.n} (at most {o.broken.high:.1%})"
        text += f", variance {kept:.3f}" + (f", spread {self.std_ratio:.2f}" if isfinite(self.std_ratio) else "")
        return f"{text}, NFE {self.nfe_ratio:.2f}x" + (f"; misses: {', '.join(self.missed)}" if self.missed else "")

    def record(self) -> dict[str, Any]:
        """The trial as a line of the calibration file."""
        row = self.row
        return {
            "family": self.family,
            "method": self.method.name,
            "config": to_json(self.method.sampler),
            "n": row.n,
            "bad_before": asdict(row.outcomes.hallucinated_before),
            "bad_after": asdict(row.outcomes.hallucinated_after),
            "repaired": asdict(row.outcomes.repaired),
            "broken": asdict(row.outcomes.broken),
            "variance_kept": row.variance_kept.value,
            "spread": self.std_ratio if isfinite(self.std_ratio) else None,
            "F": row.forward,
            "B": row.backward,
        }


def choose(trials: Sequence[Trial]) -> Trial:
    """The best of the trials on the most seeds; see the module."""
    most = max(trial.row.n for trial in trials)
    return min((trial for trial in trials if trial.row.n == most), key=lambda trial: trial.rank)


@dataclass(frozen=True)
class Calibrated:
    """What the calibration of a sampler adds to a preset."""

    sampler: Sampler
    remark: str
    risk: float | None = None  # the H from which a sample is held at risk, where it measures H


# -- the search -------------------------------------------------------------------------------------------------------


@dataclass
class Search:
    """Runs candidates on calibration seeds and remembers what they did. Labels are read from run folders alone."""

    task: Task
    network: LoadedNetwork
    out: Path
    seeds: Sequence[int]
    first: int  # seeds of the coarse round
    batch: int
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    fitted: Mapping[str, Detector] = field(default_factory=dict)  # of a preset, by name
    trials: dict[tuple[Sampler, int], Trial] = field(default_factory=dict)  # by sampler and number of seeds

    def run(self, samplers: Sequence[Sampler], seeds: Sequence[int]) -> list[LabelledRun]:
        """Labelled runs of samplers on seeds, the baseline's first."""
        methods = [Method(BASELINE, Euler(num_steps=self.task.num_steps)), *map(method_of, samplers)]
        for method in methods:
            try:
                method.sampler.check(self.network.denoiser)
            except ValueError as e:
                raise UserError(f"--samplers: {method.name} on {self.task.name}: {e}") from None
        run_methods(self.task, self.network, methods, seeds, out=self.out, batch=self.batch, device=self.device)
        place, wanted = Place(self.out, self.task.name, self.network.name), set(seeds)
        found = [read_run(place.run(m), source=source_of(self.task)).only(wanted) for m in methods]
        distributed.barrier()  # no rank goes on to write into a folder that another one still reads
        return found

    def try_all(self, family: str, samplers: Sequence[Sampler], *, finals: bool = False) -> list[Trial]:
        """The trials of samplers, each once, on the first seeds or, for finals, on all."""
        samplers = list(dict.fromkeys(samplers))  # with few steps, windows coincide
        seeds = self.seeds if finals else self.seeds[: self.first]
        base, *runs = self.run(samplers, seeds)
        found = []
        for sampler, run in zip(samplers, runs, strict=True):
            ratio = float(run.nfe.sum(axis=1).mean() / base.nfe.sum(axis=1).mean())
            trial = Trial(family, method_of(sampler), compare(base, run), ratio, self.std_ratio(run))
            self.trials[sampler, trial.row.n] = trial
            found.append(trial)
        return found

    def std_ratio(self, run: LabelledRun) -> float:
        """The standard deviation within modes as a ratio to real data's; nan for images and without modes."""
        if self.task.is_picture or self.task.kinds is None or run.modes is None:
            return nan
        return spread_within(run.features, run.modes) / self.real_spread

    @cached_property
    def real_spread(self) -> float:
        assert self.task.kinds is not None
        real = self.task.real(SPREAD_SAMPLES, REAL_SEED)
        return spread_within(real.reshape(len(real), -1), self.task.kinds(real))

    def best(self, family: str, samplers: Sequence[Sampler], *near: Neighbours) -> Trial:
        """Coarse round, the neighbours of its best, by each of `near` in turn, and the final round of a family."""
        trials = self.try_all(family, samplers)
        for neighbours in near:
            others = neighbours(choose(trials).method.sampler)
            trials += self.try_all(family, [s for s in others if s not in samplers])
        finalists = sorted(trials, key=lambda trial: trial.rank)[:FINALISTS]
        if self.first >= len(self.seeds):
            return choose(finalists)
        return choose(self.try_all(family, [t.method.sampler for t in finalists], finals=True))

    # -- what the grids are made of -----------------------------------------------------------------------------------

    @cached_property
    def levels(self) -> list[float]:
        return Euler(num_steps=self.task.num_steps).levels(self.network.denoiser)

    def level(self, fraction: float) -> float:
        """The noise level at a fraction of the steps, to three digits."""
        return rounded(self.levels[min(int(fraction * len(self.levels)), len(self.levels) - 1)], 3)

    def window(self, lo: float, hi: float) -> SigmaWindow:
        """Fractions of the steps as noise levels, a little wider than the steps that they stand for."""
        below = self.level(max(lo, hi - 1 / self.task.num_steps))
        return SigmaWindow(rounded(0.98 * below, 3), rounded(1.02 * self.level(lo), 3))

    def windows(self) -> list[Window]:
        return [self.window(lo, hi) for lo, hi in WINDOWS]

    def radii(self) -> list[float]:
        d = self.network.denoiser
        return [rounded(r * np.sqrt(d.img_channels * d.img_resolution**2), 3) for r in RADII]


# -- families ---------------------------------------------------------------------------------------------------------


def with_radius(search: Search, family: str, sampler: Sampler) -> Trial:
    """A sampler at every window and radius, then at half and twice the best radius in its window."""
    grid = [changed(sampler, {"window": w, "rho": r}) for w in search.windows() for r in search.radii()]

    def near(best: Sampler) -> list[Sampler]:
        return [changed(best, {"rho": rounded(values_of(best)["rho"] * factor, 3)}) for factor in (0.5, 2)]

    return search.best(family, grid, near)


def corrected(search: Search, corrector: NamedCorrector) -> Corrected:
    return Corrected(correct=corrector, window=(0, 1), num_steps=search.task.num_steps)


def overshoot(search: Search) -> Calibrated:
    best = with_radius(search, "overshoot", corrected(search, Overshoot(1.0)))
    return Calibrated(best.method.sampler, best.remark())


def on_grid(search: Search, correctors: Sequence[NamedCorrector], *others: Window) -> Calibrated:
    """Correctors in every window, and in `others`."""
    samplers = [changed(corrected(search, c), {"window": w}) for w in (*others, *search.windows()) for c in correctors]
    best = search.best(name_of(samplers[0]), samplers)
    return Calibrated(best.method.sampler, best.remark())


def sigma_offset(search: Search) -> Calibrated:
    return on_grid(search, [SigmaOffset(kappa) for kappa in KAPPAS])


def tag(search: Search) -> Calibrated:
    return on_grid(search, [Tag(eta) for eta in ETAS], (0, 1))


def laplacian(search: Search) -> Calibrated:
    return on_grid(search, [Laplacian(alpha) for alpha in ALPHAS])
