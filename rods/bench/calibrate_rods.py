"""Calibration of RODS: the radius and window without a gate, then the threshold; and where along the run H is large."""

from __future__ import annotations

from math import inf
from typing import Any

import numpy as np

from rods.base_samplers import Sampler
from rods.bench.calibrate import Calibrated, Search, Trial, choose, rounded, with_radius
from rods.bench.compare import common, step_aurocs
from rods.bench.labelled import LabelledRun
from rods.config import changed, to_json
from rods.eval.labels import Label
from rods.samplers import Rods, RodsCas, RodsSas

RISK_FALSE_ALARMS = 0.5  # where every sample is corrected, this share of the valid ones counts as at risk
GATES = (0.5, 0.2, 0.05)  # false alarms of a gated correction


def rods_cas(search: Search) -> Calibrated:
    own = RodsCas(eps=0, rho=1, detect=False, num_steps=search.task.num_steps)
    return rods(search, "rods-cas", own)[1]


def rods_sas(search: Search) -> Calibrated:
    """Both signs, of which the better one is chosen."""
    own = RodsSas(eps=0, rho=1, detect=False, num_steps=search.task.num_steps)
    up = rods(search, "rods-sas uphill", own)
    down = rods(search, "rods-sas downhill", changed(own, {"sas_sign": "downhill"}))
    return min((up, down), key=lambda found: found[0].rank)[1]


def rods(search: Search, family: str, sampler: Sampler) -> tuple[Trial, Calibrated]:
    """A RODS method: first correcting every sample, then behind a gate."""
    free = with_radius(search, family, sampler).method.sampler
    base, measured = search.run([changed(free, {"eps": inf, "detect": True})], search.seeds)
    thresholds = [rounded(level_of(base, measured, share), 3) for share in GATES]
    gated = [changed(free, {"eps": eps, "detect": True}) for eps in (*thresholds, 0)]
    chosen = choose(search.try_all(family, gated, finals=True))
    judged = search.run([chosen.method.sampler], search.seeds)[1]
    risk = rounded(level_of(base, judged, RISK_FALSE_ALARMS), 3)
    settled = chosen.method.sampler
    if isinstance(settled, Rods) and settled.eps == 0:  # the same images without measuring H
        settled = changed(settled, {"detect": False})
    return chosen, Calibrated(settled, chosen.remark(), risk)


def level_of(base: LabelledRun, run: LabelledRun, false_alarms: float) -> float:
    """The score that this share of the baseline's samples that are not hallucinated reach in `run`."""
    mine, theirs = common(base, run)
    assert run.scores is not None
    return float(np.quantile(run.scores[theirs][base.labels[mine] != Label.HALLUCINATED], 1 - false_alarms))


# -- where H is large -------------------------------------------------------------------------------------------------


def critical_steps(search: Search, chosen: Rods, *, eps: float) -> dict[str, Any]:
    """Where along the run H is large, where it tells bad from good, and which steps decide (RODS paper, Figure 7).

    H of the baseline's run at the chosen radius in all steps, on the first seeds. Per step: the noise level, the
    medians of H and of H t^3 / rho, the AUROC of H there, the share of samples whose H is largest there, and, in the
    chosen window at the threshold `eps`, the share that is flagged there. Cost: (2F + 2B) for each step and sample.
    """
    watching = [RodsCas(eps=inf, rho=chosen.rho, window=w, num_steps=chosen.num_steps) for w in ((0, 1), chosen.window)]
    (base, run), (_, inside) = (search.run([sampler], search.seeds[: search.first]) for sampler in watching)
    assert run.step_scores is not None
    levels, H = run.step_scores  # [S], [M, S]
    probed = set(inside.step_scores[0].tolist()) if inside.step_scores else set()
    aurocs = dict(step_aurocs(run, base))
    largest = np.bincount(H.argmax(axis=1), minlength=len(levels)) / len(H)
    steps = [
        {
            "sigma": float(t),
            "H": float(np.median(H[:, k])),
            "H_scaled": float(np.median(H[:, k]) * t**3 / chosen.rho),
            "auroc": None if np.isnan(aurocs[float(t)]) else aurocs[float(t)],
            "largest": float(largest[k]),
            "flagged": float((H[:, k] >= eps).mean()) if float(t) in probed else None,
        }
        for k, t in enumerate(levels)
    ]
    return {"rho": chosen.rho, "window": to_json(chosen)["window"], "eps": eps, "n": len(H), "steps": steps}
