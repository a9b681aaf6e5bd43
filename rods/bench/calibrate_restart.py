"""Calibration of what looks at images: the scores that gate restarts, where to go back to, and IQ's mask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import inf

import numpy as np
from numpy.typing import NDArray

from rods.base_samplers import Sampler
from rods.bench.calibrate import Calibrated, Search, corrected, rounded
from rods.bench.compare import judged_scores
from rods.bench.labelled import LabelledRun
from rods.bench.methods import HIGH
from rods.config import changed, to_text
from rods.correctors import Iq
from rods.detectors import Detector, Lid
from rods.eval.detection import auroc
from rods.restart import Restart
from rods.variance import Tvf

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


def recording(search: Search, detector: Detector, score_at: float = 0) -> Restart:
    """A gate of restarts that sends nothing back: its run is the baseline's, with scores."""
    return Restart(threshold=inf, sigma_r=HIGH, detector=detector, score_at=score_at, num_steps=search.task.num_steps)


def restarts(gate: Restart, thresholds: Sequence[float], levels: Sequence[float]) -> list[Restart]:
    """Restarts by the gate's score, at each threshold from each noise level that is high enough."""
    above = max(gate.score_at, gate.detector.max_sigma)  # restarts go back further: it looks at the steps from there on
    return [replace(gate, threshold=h, sigma_r=t) for h in thresholds for t in levels if t > above]


def ranked_gates(search: Search, seeds: Sequence[int]) -> list[Restart]:
    """The best LID and trajectory variance by AUROC over noise levels, and LID with fewer draws and in flight."""
    lid_levels, tvf_levels = (list(dict.fromkeys(map(search.level, part))) for part in (LID_LEVELS, TVF_LEVELS))
    lid = best_score(search, [Lid(t, DRAWS[0]) for t in lid_levels], seeds)
    # A little above the steps that the levels stand for.
    tvf = best_score(search, [Tvf(rounded(1.02 * t, 3)) for t in tvf_levels], seeds)
    assert isinstance(lid, Lid)
    lids = [recording(search, replace(lid, draws=k), t) for k in DRAWS for t in (0, search.level(FLIGHT[0]))]
    return [*lids, recording(search, tvf)]


def restart(search: Search) -> Calibrated:
    """Gated restart on a task.

    LID and trajectory variance are ranked by their AUROC on the first seeds, over noise levels. The best of both, and
    LID with fewer draws and in flight, then gate restarts; where there is a readout, it does instead, of finished
    images and in flight. Each is tried first at one threshold and from one level, then the best of them from other
    levels, at other thresholds, and with other rounds and a margin.
    """
    back = list(dict.fromkeys(map(search.level, BACK)))
    first = search.seeds[: search.first]
    readout = search.fitted.get(READOUT)
    if readout is not None:
        gates = [recording(search, readout, t) for t in (0, *map(search.level, FLIGHT))]
    else:
        gates = ranked_gates(search, first)
    thresholds = {
        gate: [rounded(float(np.quantile(known(run), q)), 4) for q in QUANTILES]
        for gate, run in zip(gates, search.run(gates, first)[1:], strict=True)
    }

    def gate_of(sampler: Sampler) -> Restart:
        assert isinstance(sampler, Restart)
        return replace(sampler, threshold=inf, sigma_r=HIGH)

    def from_others(sampler: Sampler) -> list[Restart]:
        gate = gate_of(sampler)
        return restarts(gate, thresholds[gate][:1], back[1:])

    def at_others(sampler: Sampler) -> list[Restart]:
        assert isinstance(sampler, Restart)
        gate = gate_of(sampler)
        return restarts(gate, thresholds[gate][1:], [sampler.sigma_r])

    def with_others(sampler: Sampler) -> list[Sampler]:
        return [*(changed(sampler, {"rounds": k}) for k in ROUNDS), *(changed(sampler, {"margin": m}) for m in MARGINS)]

    coarse = [s for gate in gates for s in restarts(gate, thresholds[gate][:1], back[:1])]
    chosen = search.best("restart", coarse, from_others, at_others, with_others)
    finished = [gate for gate in gates if gate.score_at == 0]
    base, *runs = search.run(finished, search.seeds)
    ranked = ", ".join(
        f"{to_text(g.detector)} {auroc(*judged_scores(base, run)):.3f}" for g, run in zip(finished, runs, strict=True)
    )
    return Calibrated(chosen.method.sampler, f"{chosen.remark()}; AUROC on all of these seeds: {ranked}")


def best_score(search: Search, detectors: Sequence[Detector], seeds: Sequence[int]) -> Detector:
    """The detector with the highest AUROC; one without an AUROC is last."""
    base, *runs = search.run([recording(search, detector) for detector in detectors], seeds)
    found = [float(np.nan_to_num(auroc(*judged_scores(base, run)), nan=-1)) for run in runs]
    return detectors[int(np.argmax(found))]


def known(run: LabelledRun) -> F64:
    """The scores [N] of a run that has them."""
    if run.scores is None:
        raise ValueError(f"{run.path}: no scores")
    return run.scores


def iq(search: Search) -> Calibrated:
    """IQ in windows and at strengths, LID read at the level in the middle of the window.

    The mask's threshold is a quantile of the LID that the uncorrected run has in this window, on all seeds.
    """
    candidates = []
    for lo, hi in IQ_WINDOWS:
        mask = Iq(strength=0, threshold=inf, lid_sigma=search.level((lo + hi) / 2))
        idle = changed(corrected(search, mask), {"window": search.window(lo, hi)})
        measured = search.run([idle], search.seeds)[1]
        threshold = rounded(float(np.quantile(known(measured), IQ_MASK)), 4)
        candidates += [changed(idle, {"threshold": threshold, "strength": s}) for s in IQ_STRENGTHS]
    best = search.best("iq", candidates)
    return Calibrated(best.method.sampler, best.remark())
