"""Calibration of scores and of gated restart: where a score should look, what is at risk, where to go back to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rods.bench.calibration import Search, options_of
from rods.bench.compare import common
from rods.bench.methods import BASELINE, resolve
from rods.bench.results import Results
from rods.eval.detection import auroc
from rods.eval.labels import Label
from rods.eval.logistic import fit_logistic
from rods.retention import retention
from rods.score_text import parse_score

F64 = NDArray[np.float64]
LID_LEVELS = (0.5, 0.55, 0.6, 0.65, 0.75, 0.85)  # of the steps: where LID looks
TVF_LEVELS = (0.5, 0.6, 0.75)  # where trajectory variance begins to
BACK = (0.45, 0.35, 0.4, 0.5, 0.55, 0.65, 0.75, 0.85)  # where restarts go back to; every score is tried with the first
FLIGHT = (0.65, 0.75)  # where samples are scored in flight, the second by a readout only
READOUT = "readout"
QUANTILES = (0.7, 0.5, 0.85, 0.9, 0.93)  # of the baseline's scores: what is above goes round again; in the order tried
ROUNDS, MARGINS = (1, 2), (0.1,)
DRAWS = (4, 2)  # of LID, the first where noise levels are ranked
IQ_WINDOWS = ((0.4, 0.5), (0.5, 0.6), (0.6, 0.7))  # of the steps: narrow, as in its paper
IQ_STRENGTHS, IQ_MASK = (0.05, 0.1, 0.2), 0.4  # lambda, and the quantile of the scores above which it acts


@dataclass(frozen=True)
class Candidate:
    """A score that a restart can be gated by."""

    text: str  # as `parse_score` reads it
    options: str  # as options of the restart sampler
    above: float  # restarts go back further than this noise level: it looks at the steps from there on
    in_flight: bool = False

    def names(self, thresholds: Sequence[float], levels: Sequence[float]) -> list[str]:
        """Restarts by this score, at each threshold from each noise level that is high enough."""
        return [f"{self.head}{h:.4g} sigma_r={t:g}" for h in thresholds for t in levels if t > self.above]

    @property
    def head(self) -> str:
        """What the names begin with."""
        return f"restart {self.options} threshold="


@dataclass(frozen=True)
class Found:
    """What the calibration of restart adds to a preset."""

    options: dict[str, Any]
    remark: str
    learned: dict[str, Any]
    tables: list[dict[str, Any]]  # of retention


def by_lid(level: float, draws: int, at: float = 0) -> Candidate:
    flight = f" score_at={at:g}" if at else ""
    text = f"lid:sigma={level:g},draws={draws}"
    return Candidate(text, f"detector=lid lid_sigma={level:g} draws={draws}{flight}", at, in_flight=at > 0)


def by_readout(at: float = 0) -> Candidate:
    flight = f" score_at={at:g}" if at else ""
    return Candidate(READOUT, f"detector={READOUT}{flight}", at, in_flight=at > 0)


def by_tvf(level: float) -> Candidate:
    return Candidate(f"tvf:sigma={level:g}", f"detector=tvf tvf_sigma={level:g}", level)


@dataclass(frozen=True)
class Gates:
    """What restarts are gated by."""

    candidates: list[Candidate]
    options: dict[str, Any]  # of restart, for a preset: the best of each score, which those that do not gate keep
    learned: dict[str, Any]  # a learned combination as presets hold it; empty where there is none
    note: str


def ranked_gates(search: Search, first: Sequence[int]) -> Gates:
    """The best LID and trajectory variance by AUROC over noise levels, LID with fewer draws and in flight, and both."""
    lid_levels, tvf_levels = (list(dict.fromkeys(map(search.level, part))) for part in (LID_LEVELS, TVF_LEVELS))
    lid = best_score(search, [by_lid(t, DRAWS[0]) for t in lid_levels], first)
    # A little above the steps that the levels stand for.
    tvf = best_score(search, [by_tvf(float(f"{1.02 * t:.3g}")) for t in tvf_levels], first)
    level, draws = parse_lid(lid)
    learned, weights = learn(search, [lid, tvf], first)
    candidates = [by_lid(level, k, t) for k in DRAWS for t in (0, search.level(FLIGHT[0]))] + [tvf, learned]
    options = {"lid_sigma": level, "draws": draws, "tvf_sigma": tvf.above}
    return Gates(candidates, options, weights, f" (learned: fitted on the first {len(first)})")


def restart(search: Search) -> Found:
    """Gated restart on a task.

    LID and trajectory variance are ranked by their AUROC on the first seeds, over noise levels. The best of both, LID
    with fewer draws and in flight, and a logistic combination fitted to the first seeds then gate restarts; where the
    base preset has a readout, it does instead, of finished images and in flight. Each is tried first at one threshold
    and from one level, then the best of them from other levels, at other thresholds, and with other rounds and a
    margin.
    """
    back = list(dict.fromkeys(map(search.level, BACK)))
    first = search.seeds[: search.first]
    if search.has_readout:
        read = [by_readout(t) for t in (0, *map(search.level, FLIGHT))]
        found = Gates(read, {}, {}, " (fitted on others)")
    else:
        found = ranked_gates(search, first)
    gates = found.candidates
    runs = scored(search, gates, first)[1:]
    thresholds = {
        gate.head: [float(np.quantile(known(run), q)) for q in QUANTILES] for gate, run in zip(gates, runs, strict=True)
    }

    def gate_of(name: str) -> Candidate:
        return next(gate for gate in gates if name.startswith(gate.head))

    def from_others(name: str) -> list[str]:
        return gate_of(name).names(thresholds[gate_of(name).head][:1], back[1:])

    def at_others(name: str) -> list[str]:
        return gate_of(name).names(thresholds[gate_of(name).head][1:], [float(name.rsplit("sigma_r=", 1)[1])])

    def with_others(name: str) -> list[str]:
        return [f"{name} rounds={k}" for k in ROUNDS] + [f"{name} margin={m:g}" for m in MARGINS]

    coarse = [name for gate in gates for name in gate.names(thresholds[gate.head][:1], back[:1])]
    chosen = search.best("restart", coarse, from_others, at_others, with_others)
    options = options_of(chosen)
    if options["detector"].startswith(READOUT):
        options["detector"] = READOUT  # the preset's
    mine = ("lid_sigma", "draws") if options["detector"] == "lid" else ()
    options |= {name: value for name, value in found.options.items() if name not in mine}
    finished = [gate for gate in gates if not gate.in_flight]
    base, *runs = scored(search, finished, search.seeds)
    ranked = ", ".join(f"{g.text} {auroc_of(base, run):.3f}" for g, run in zip(finished, runs, strict=True))
    remark = f"{chosen.remark()}; AUROC on all of these seeds{found.note}: {ranked}"
    tables = [table(search, g, run) for g, run in zip(finished, runs, strict=True)]
    return Found(options, remark, found.learned, tables)


def parse_lid(candidate: Candidate) -> tuple[float, int]:
    """Noise level and draws of a LID candidate."""
    level, draws = (part.split("=")[1] for part in candidate.text.removeprefix("lid:").split(","))
    return float(level), int(draws)


def scored(search: Search, candidates: Sequence[Candidate], seeds: Sequence[int]) -> list[Results]:
    """The baseline's run and, for each candidate, the same run with its scores."""
    return search.run([f"score {c.options}" for c in candidates], seeds)


def best_score(search: Search, candidates: Sequence[Candidate], seeds: Sequence[int]) -> Candidate:
    """The candidate with the highest AUROC; one without an AUROC is last."""
    base, *runs = scored(search, candidates, seeds)
    return max(zip(candidates, runs, strict=True), key=lambda pair: np.nan_to_num(auroc_of(base, pair[1]), nan=-1))[0]


def known(run: Results) -> F64:
    """The scores [N] of a run that has them."""
    if run.scores is None:
        raise ValueError(f"{run.path}: no scores")
    return run.scores


def auroc_of(base: Results, run: Results) -> float:
    """AUROC of a run's score against the baseline's sure labels."""
    scores, bad = sure(base, run)
    return auroc(scores, bad)


def sure(base: Results, run: Results) -> tuple[F64, NDArray[np.bool_]]:
    """Scores and whether they are of surely bad samples [n], ambiguous ones left out."""
    mine, theirs = common(base, run)
    labels = base.labels[mine]
    index = labels != Label.AMBIGUOUS
    return known(run)[theirs][index], labels[index] == Label.BAD


def learn(search: Search, candidates: Sequence[Candidate], seeds: Sequence[int]) -> tuple[Candidate, dict[str, Any]]:
    """A logistic combination of the logarithms of scores, fitted on `seeds`: as a candidate, and as presets hold it.

    Raises ValueError where these seeds hold no surely bad sample, or nothing else.
    """
    base, *runs = scored(search, candidates, seeds)
    bad = sure(base, runs[0])[1]
    features = np.log(np.stack([np.maximum(sure(base, run)[0], 1e-12) for run in runs], axis=1))  # [n, K]
    bias, weights = fit_logistic(features, bad)
    terms = [
        {"score": c.text, "log": True, "weight": float(f"{w:.5g}")} for c, w in zip(candidates, weights, strict=True)
    ]
    body = ";".join([f"{bias:.5g}", *(f"{t['weight']:.5g}*log({t['score']})" for t in terms)])
    text = f"learned({body})"
    candidate = Candidate(text, f"detector={text}", max(c.above for c in candidates))
    return candidate, {"bias": float(f"{bias:.5g}"), "terms": terms}


def table(search: Search, candidate: Candidate, run: Results) -> dict[str, Any]:
    """Thresholds of a score at shares kept, on the baseline's samples, for `generate.py --filter --keep`."""
    seeds = f"{len(search.seeds)} seeds from {search.seeds[0]}"
    config = resolve(BASELINE, search.task, None).config
    named = search.scores.fitted if search.scores else None
    score = parse_score(candidate.text, named=named)
    described = retention(known(run).tolist(), score=score, config=config, seeds=seeds).describe()
    return {**described, "score": READOUT} if candidate.text == READOUT else described


def iq_names(search: Search) -> list[str]:
    """Settings of iq: windows and strengths, LID read at the level in the middle of the window.

    The mask's threshold is a quantile of the LID that the uncorrected run has in this window, on all seeds.
    """
    names = []
    for lo, hi in IQ_WINDOWS:
        head = f"iq window={search.window(lo, hi)} lid_sigma={search.level((lo + hi) / 2):g}"
        measured = search.run([f"{head} strength=0 threshold=inf"], search.seeds)[1]
        threshold = float(np.quantile(known(measured), IQ_MASK))
        names += [f"{head} threshold={threshold:.4g} strength={s:g}" for s in IQ_STRENGTHS]
    return names
