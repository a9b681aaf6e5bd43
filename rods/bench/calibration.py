"""Calibration: which setting of a sampler repairs most on a block of seeds that no report uses.

Each family of settings is searched in two rounds: a coarse grid on the first part of the seeds, the neighbours of its
best, then the best few on all seeds. A setting is a method of the benchmark, and its samples go to a result file, so
that an interrupted calibration goes on. The bars: at most 1 % of the healthy samples broken by the upper end of the
95 % interval, 97 % of the variance kept, for points also 97 % of the real data's spread inside kinds, and at most 1.5
times the baseline's passes. The rule of choice (`choose`): of the settings that repair more than they break and clear
all bars, the one with the most repaired minus broken; ties go to the fewest passes. Where there is none, what is missed
counts against what is repaired, and the remark says what was missed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rods.bench.bars import MAX_BROKEN, MAX_NFE_RATIO, MIN_STD_RATIO, MIN_VARIANCE
from rods.bench.compare import Comparison, common, compare, step_aurocs
from rods.bench.methods import BASELINE, Setting, resolve
from rods.bench.results import Results, read_results
from rods.bench.run import Place, run_methods
from rods.bench.task import LoadedNetwork, Task
from rods.eval.diversity import spread_within
from rods.eval.labels import Label
from rods.presets import Preset
from rods.readout import shortened
from rods.schedules import edm_grid

F64 = NDArray[np.float64]
SPREAD_SAMPLES, REAL_SEED = 20_000, 3  # real data that the spread inside kinds is compared with; reports use others
FINALISTS = 3  # settings of a family that are tried on all seeds
WINDOWS = ((0.1, 0.5), (0.2, 0.6), (0.3, 0.7), (0.4, 0.8), (0.6, 0.9))  # of the steps; turned into noise levels
RADII = (1 / 32, 1 / 8, 1 / 2)  # in units of sqrt(dimension)
RISK_FALSE_ALARMS = 0.5  # where every sample is corrected, this share of the healthy ones counts as at risk
GATES = (0.5, 0.2, 0.05)  # false alarms of a gated correction


@dataclass(frozen=True)
class Trial:
    """A setting that was tried, and what it did."""

    family: str
    setting: Setting
    row: Comparison
    passes: float  # F + B as a ratio to the baseline's
    spread: float = float("nan")  # inside kinds, as a ratio to real data's; nan for pictures and without kinds

    @property
    def missed(self) -> dict[str, float]:
        """The bars that it does not clear, in words, and by what part of the bar it misses each."""
        row, kept = self.row, self.row.variance_kept.value
        kept = kept if kept > 0.01 else 0.01  # not a number, too
        bars = {
            f"broken above {MAX_BROKEN:.0%}": row.outcomes.broken.high / MAX_BROKEN - 1,
            f"variance below {MIN_VARIANCE}": MIN_VARIANCE / kept - 1,
            f"spread below {MIN_STD_RATIO}": MIN_STD_RATIO / self.spread - 1,
            f"passes above {MAX_NFE_RATIO:g}x": self.passes / MAX_NFE_RATIO - 1,
        }
        return {bar: part for bar, part in bars.items() if part > 0}

    @property
    def rank(self) -> tuple[float, ...]:
        """Lower is better: bars cleared by a setting that does some good; what it repairs less what it misses."""
        o = self.row.outcomes
        net, missed = o.repaired.k - o.broken.k, self.missed
        merit = net / max(o.repaired.n, 1) - sum(missed.values())
        return float(bool(missed) or net <= 0), -merit, self.passes

    def remark(self) -> str:
        """The bars in words, with the bound that goes with them."""
        o, kept = self.row.outcomes, self.row.variance_kept.value
        text = f"repaired {o.repaired.k}/{o.repaired.n}, broken {o.broken.k}/{o.broken.n} (at most {o.broken.high:.1%})"
        text += f", variance {kept:.3f}" + (f", spread {self.spread:.2f}" if isfinite(self.spread) else "")
        return f"{text}, passes {self.passes:.2f}x" + (f"; misses: {', '.join(self.missed)}" if self.missed else "")

    def record(self) -> dict[str, Any]:
        """The trial as a line of the calibration file."""
        row = self.row
        return {
            "family": self.family,
            "method": self.setting.name,
            "config": {k: shortened(v) if isinstance(v, str) else v for k, v in self.setting.config.describe().items()},
            "n": row.n,
            "bad_before": asdict(row.outcomes.bad_before),
            "bad_after": asdict(row.outcomes.bad_after),
            "repaired": asdict(row.outcomes.repaired),
            "broken": asdict(row.outcomes.broken),
            "variance_kept": row.variance_kept.value,
            "spread": self.spread if isfinite(self.spread) else None,
            "F": row.forward,
            "B": row.backward,
        }


def choose(trials: Sequence[Trial]) -> Trial:
    """The best of the trials on the most seeds; see the module."""
    most = max(trial.row.n for trial in trials)
    return min((trial for trial in trials if trial.row.n == most), key=lambda trial: trial.rank)


@dataclass
class Search:
    """Runs settings on calibration seeds and remembers what they did."""

    task: Task
    network: LoadedNetwork
    out: Path
    seeds: Sequence[int]
    first: int  # seeds of the coarse round
    batch: int
    scores: Preset | None = None  # whose fitted scores methods may name
    trials: dict[tuple[str, int], Trial] = field(default_factory=dict)  # by method and number of seeds

    @property
    def has_readout(self) -> bool:
        return self.scores is not None and "readout" in self.scores.fitted

    def run(self, names: Sequence[str], seeds: Sequence[int]) -> list[Results]:
        """Results of methods on seeds, the baseline's first."""
        settings = [resolve(name, self.task, self.scores, self.network.denoiser) for name in (BASELINE, *names)]
        run_methods(self.task, self.network, settings, seeds, out=self.out, batch=self.batch)
        place = Place(self.out, self.task.name, self.network.name)
        wanted = set(seeds)
        return [read_results(place.results(s)).only(wanted) for s in settings]

    def try_all(self, family: str, names: Sequence[str], *, finals: bool = False) -> list[Trial]:
        """The trials of methods, on the first seeds or, for finals, on all."""
        seeds = self.seeds if finals else self.seeds[: self.first]
        base, *runs = self.run(names, seeds)
        found = []
        for name, run in zip(names, runs, strict=True):
            ratio = float(run.passes.sum(axis=1).mean() / base.passes.sum(axis=1).mean())
            trial = Trial(family, resolve(name, self.task, self.scores), compare(base, run), ratio, self.spread(run))
            self.trials[name, trial.row.n] = trial
            found.append(trial)
        return found

    def spread(self, run: Results) -> float:
        """The spread inside kinds as a ratio to real data's; nan for pictures and without kinds."""
        if self.task.is_picture or self.task.kinds is None or run.kinds is None:
            return float("nan")
        return spread_within(run.features, run.kinds) / self.real_spread

    @cached_property
    def real_spread(self) -> float:
        assert self.task.kinds is not None
        real = self.task.real(SPREAD_SAMPLES, REAL_SEED)
        return spread_within(real.reshape(len(real), -1), self.task.kinds(real))

    def best(self, family: str, names: Sequence[str], *near: Callable[[str], Sequence[str]]) -> Trial:
        """Coarse round, the neighbours of its best, by each of `near` in turn, and the final round of a family."""
        trials = self.try_all(family, names)
        for neighbours in near:
            trials += self.try_all(family, [n for n in neighbours(choose(trials).setting.name) if n not in names])
        finalists = sorted(trials, key=lambda trial: trial.rank)[:FINALISTS]
        if self.first >= len(self.seeds):
            return choose(finalists)
        return choose(self.try_all(family, [t.setting.name for t in finalists], finals=True))

    # -- what the grids are made of -----------------------------------------------------------------------------------

    def level(self, fraction: float) -> float:
        """The noise level at a fraction of the steps, to three digits."""
        d = self.network.denoiser
        low, high = max(0.002, d.sigma_min), min(80.0, d.sigma_max)
        levels = edm_grid(self.task.num_steps, sigma_min=low, sigma_max=high)
        return float(f"{float(levels[min(int(fraction * len(levels)), len(levels) - 1)]):.3g}")

    def window(self, lo: float, hi: float) -> str:
        """Fractions of the steps as noise levels, a little wider than the steps that they stand for."""
        return f"sigma:{0.98 * self.level(hi - 1 / self.task.num_steps):.3g},{1.02 * self.level(lo):.3g}"

    def windows(self) -> list[str]:
        return [self.window(lo, hi) for lo, hi in WINDOWS]

    def radii(self) -> list[float]:
        d = self.network.denoiser
        return [float(f"{r * np.sqrt(d.img_channels * d.img_resolution**2):.3g}") for r in RADII]


# -- families ---------------------------------------------------------------------------------------------------------


def with_radius(search: Search, family: str, text: str) -> Trial:
    """A family with a radius and a window: the grid, then half and twice the best radius in its window."""
    names = [f"{text} window={w} rho={r:g}" for w in search.windows() for r in search.radii()]

    def near(name: str) -> list[str]:
        head, rho = name.rsplit(" rho=", 1)
        return [f"{head} rho={float(rho) * factor:.3g}" for factor in (0.5, 2)]

    return search.best(family, names, near)


def rods(search: Search, family: str, text: str) -> tuple[dict[str, Any], float, str]:
    """A RODS method: first correcting every sample, then behind a gate. Options, the H of risk, and a remark."""
    free = with_radius(search, family, f"{text} eps=0 detect=false")
    head = free.setting.name.replace(" eps=0 detect=false", "")
    base, measured = search.run([f"{head} eps=inf"], search.seeds)
    gates = [f"{head} eps={level_of(base, measured, share):.3g}" for share in GATES]
    trials = search.try_all(family, [*gates, f"{head} eps=0"], finals=True)
    chosen = choose(trials)
    corrected = search.run([chosen.setting.name], search.seeds)[1]
    risk = float(f"{level_of(base, corrected, RISK_FALSE_ALARMS):.3g}")
    return options_of(chosen), risk, chosen.remark()


def level_of(base: Results, run: Results, false_alarms: float) -> float:
    """The score that this share of the baseline's samples that are not surely bad reach in `run`."""
    mine, theirs = common(base, run)
    assert run.scores is not None
    return float(np.quantile(run.scores[theirs][base.labels[mine] != Label.BAD], 1 - false_alarms))


def options_of(trial: Trial) -> dict[str, Any]:
    """What a preset says of a setting: its description, without what is every sampler's default."""
    described: Mapping[str, Any] = trial.setting.config.describe()
    defaults = {"sampler", "sigma_min", "sigma_max", "time_rho"}
    return {k: v for k, v in described.items() if k not in defaults}


# -- where H is large -------------------------------------------------------------------------------------------------


def critical_steps(search: Search, *, rho: float, window: str, eps: float) -> dict[str, Any]:
    """Where along the run H is large, where it tells bad from good, and which steps decide (RODS paper, Figure 7).

    H of the baseline's run at radius `rho` in all steps, on the first seeds. Per step: the noise level, the medians of
    H and of H t^3 / rho, the AUROC of H there, the share of samples whose H is largest there, and, in `window` at the
    threshold `eps`, the share that is flagged there. Cost: (2F + 2B) for each step and sample.
    """
    base, run = search.run([f"h-index window=0,1 rho={rho:g}"], search.seeds[: search.first])
    inside = search.run([f"h-index window={window} rho={rho:g}"], search.seeds[: search.first])[1]
    assert run.step_scores is not None
    levels, H = run.step_scores  # [S], [M, S]
    probed = set(inside.step_scores[0].tolist()) if inside.step_scores else set()
    aurocs = dict(step_aurocs(run, base))
    largest = np.bincount(H.argmax(axis=1), minlength=len(levels)) / len(H)
    steps = [
        {
            "sigma": float(t),
            "H": float(np.median(H[:, k])),
            "H_scaled": float(np.median(H[:, k]) * t**3 / rho),
            "auroc": None if np.isnan(aurocs[float(t)]) else aurocs[float(t)],
            "largest": float(largest[k]),
            "flagged": float((H[:, k] >= eps).mean()) if float(t) in probed else None,
        }
        for k, t in enumerate(levels)
    ]
    return {"rho": rho, "window": window, "eps": eps, "n": len(H), "steps": steps}
