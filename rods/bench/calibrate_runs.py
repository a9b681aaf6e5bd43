"""Calibration from runs that are there and labelled, of any network: which of their settings repairs most.

The first run is the baseline, by Euler's method; each other one is a candidate, by the settings in its options.json. An
image that is the baseline's, bit for bit, has the baseline's label. A restart's run is also judged at thresholds above
its own: its records tell which of the images made a higher threshold would have kept, and that is the baseline's or
the run's own, which have labels, or one in between, which is then uncertain. The rule of choice is calibrate.py's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import inf, isfinite
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dnnlib.errors import UserError
from dnnlib.run_folder import OPTIONS_NAME
from rods.base_samplers import Sampler
from rods.bench.calibrate import Trial, rounded
from rods.bench.calibrate_restart import QUANTILES
from rods.bench.compare import Comparison, common, compare, relative_reduction
from rods.bench.labelled import F64, LabelledRun, numbers, read_run
from rods.bench.methods import BASELINE, Method
from rods.bench.pooled import values_of
from rods.bench.restart_trial import replayed
from rods.bench.tables import Table, share
from rods.config import FITTED, from_json, name_of, options
from rods.detectors import Detector
from rods.eval.bootstrap import Estimate, bootstrap
from rods.eval.correction import paired_outcomes
from rods.eval.labels import Label
from rods.gate import ActivationDetector
from rods.labels.labels import LABELS_NAME, VERDICTS, read_labels
from rods.presets import Preset
from rods.restart import Restart
from rods.runs.images import stacked

ENOUGH = 0.8  # of the labelled seeds of the candidate that has most


def labelled_runs(paths: Sequence[Path], source: str | None) -> tuple[LabelledRun, list[LabelledRun], list[str]]:
    """The baseline's labelled images, the candidates' of the same seeds, and what to say of labels that are missing.

    `source` is whose labels, or a file of them. A candidate's image that is the baseline's has the baseline's label;
    one that is not and has no label is uncertain. Raises UserError: no baseline by Euler's method, a run of another
    network, or without labels.
    """
    base = read_run(paths[0], source=source)
    if base.options.get("sampler") != BASELINE:
        raise UserError(
            f"{paths[0]} is by {base.options.get('sampler')}; the first run must be by --sampler={BASELINE}"
        )
    found, said = [], []
    for path in paths[1:]:
        run = read_run(path, labelled=False)
        for key, what in (("network_sha256", "network"), ("num_steps", "number of steps")):
            if run.options.get(key) != base.options.get(key):
                raise UserError(f"{path} and {paths[0]} have another {what}; give runs of one")
        if run.is_points != base.is_points:
            raise UserError(f"{path} and {paths[0]}: points and images cannot be compared; give runs of one kind")
        if not run.position().keys() & base.position().keys():
            raise UserError(f"{path} has no seed in common with the labelled ones of {paths[0]}; sample the same seeds")
        run, changed, missing = with_own_labels(run.at(common(base, run)[1]), source, base)
        if missing and missing == changed:
            raise UserError(f"{path}: none of its {changed} changed images has a label; label them")
        if missing:
            said.append(f"{path}: {missing} of its {changed} changed images have no label and count as uncertain")
        found.append(run)
    return base, found, said


def with_own_labels(run: LabelledRun, source: str | None, base: LabelledRun) -> tuple[LabelledRun, int, int]:
    """A run with its labels; how many of its images are not the baseline's, and how many of these have no label."""
    known = {}
    if source is not None or (run.path / LABELS_NAME).is_file():
        known = {name: VERDICTS.index(label.label) for name, label in read_labels(run.path, source=source).items()}
    same = {key: int(code) for key, code in zip(base.keys, base.labels, strict=True) if key[0]}
    codes = [known.get(line["name"], same.get(key)) for line, key in zip(run.samples, run.keys, strict=True)]
    changed = sum(key not in same for key in run.keys)
    return replace(run, labels=np.array([code or 0 for code in codes], dtype=np.int8)), changed, codes.count(None)


def network_name(path: Path) -> str:
    """The name of the network that sampled a run."""
    about = json.loads((path / OPTIONS_NAME).read_text())
    return str(about.get("network", path.name)).partition(":")[0]


# -- trials -----------------------------------------------------------------------------------------------------------


def sampler_of(run: LabelledRun, fitted: Mapping[str, Detector]) -> Sampler:
    """The sampler that made a run. UserError: a gate that the preset lacks, or another than the preset's."""
    try:
        known = options(str(run.options.get("sampler")))
        found = from_json({k: v for k, v in run.options.items() if k in known or k == "sampler"}, fitted=fitted)
    except ValueError as e:
        remedy = "; give the preset with its gate by --base" if str(run.options.get("detector")) in FITTED else ""
        raise UserError(f"{run.path}: {e}{remedy}") from None
    gate, digest = getattr(found, "detector", None), run.options.get("detector_sha256")
    if isinstance(gate, ActivationDetector) and digest not in (None, gate.digest):
        raise UserError(f"{run.path} was restarted by another gate than that of --base; give the preset that it had")
    return found


def trials_of(base: LabelledRun, run: LabelledRun, fitted: Mapping[str, Detector]) -> list[Trial]:
    """A run as a candidate, and a restart's at higher thresholds; none for a run that only records scores."""
    sampler = sampler_of(run, fitted)
    if inf in (getattr(sampler, "threshold", None), getattr(sampler, "eps", None)):
        return []
    mine, theirs = common(base, run)
    base, run = base.at(mine), run.at(theirs)
    usual = float(base.nfe.sum(axis=1).mean())
    row = compare(base, run)
    found = [Trial(name_of(sampler), Method(run.path.name, sampler), row, row.nfe / usual)]
    if isinstance(sampler, Restart) and not sampler.margin and run.has_restarts:
        scores = [numbers(line["restart"]["scores"]) for line in run.samples]
        first = np.array([s[0] for s in scores])
        levels = [rounded(float(np.quantile(first, q)), 4) for q in sorted(QUANTILES)]
        for threshold in [t for t in dict.fromkeys(levels) if t > sampler.threshold and isfinite(t)]:
            higher = replay(base, run, row, scores, threshold, sampler.detector.num_draws)
            method = Method(f"{run.path.name} at {threshold:g}", replace(sampler, threshold=threshold))
            found.append(Trial(name_of(sampler), method, higher, higher.nfe / usual))
    return found


def replay(
    base: LabelledRun, run: LabelledRun, row: Comparison, scores: Sequence[F64], threshold: float, draws: int
) -> Comparison:
    """What a higher threshold would have done: a row of the same seeds [n], from the scores of all images made.

    `draws` is what a score costs, in F.
    """
    made = [replayed(s.tolist(), threshold) for s in scores]
    own = [line["restart"]["kept"] for line in run.samples]
    first = np.array([kept == 0 for kept, _ in made])
    last = np.array([kept == k for (kept, _), k in zip(made, own, strict=True)])
    after = np.where(first, base.labels, np.where(last, run.labels, Label.UNCERTAIN)).astype(np.int8)
    rounds = np.array([len(s) - 1 for s in scores])
    spent = run.nfe[:, 0]
    alone = float(base.nfe[:, 0].mean()) + draws
    each = float((spent - alone).sum() / rounds.sum()) if rounds.any() else 0.0
    bad = base.labels == Label.HALLUCINATED
    return replace(
        row,
        outcomes=paired_outcomes(base.labels, after),
        relative_reduction=bootstrap(lambda i: relative_reduction(bad[i], after[i] == Label.HALLUCINATED), len(after)),
        variance_kept=mixed_variance(base, run, first),
        changed=float((~first).mean()),
        forward=alone + each * float(np.mean([n for _, n in made])),
    )


def mixed_variance(base: LabelledRun, run: LabelledRun, first: NDArray[np.bool_]) -> Estimate:
    """Total variance of the baseline's images where `first` [n], else the run's, as a ratio to the baseline's.

    Of the 8x8 means where PNGs are missing. Without an interval.
    """
    before, after = values(base), values(run)
    if before is None or after is None:
        before, after = base.features, run.features
    mixed = np.where(first[:, None], before, after)
    ratio = float(mixed.var(axis=0).sum() / before.var(axis=0).sum())
    return Estimate(ratio, float("nan"), float("nan"), 0.95)


def values(run: LabelledRun) -> F64 | None:
    """The values of a run's samples [n, d]; None where a PNG is missing."""
    if run.is_points:
        return run.features
    images = [run.image(i) for i in range(len(run))]
    if any(image is None for image in images):
        return None
    return values_of(stacked([image for image in images if image is not None], of=run.path)).reshape(len(images), -1)


# -- what comes of it -------------------------------------------------------------------------------------------------


def table_of(trials: Sequence[Trial]) -> Table:
    """A line for each candidate, the best first."""
    rows = []
    for trial in sorted(trials, key=lambda trial: trial.rank):
        o = trial.row.outcomes
        rows.append((trial.method.name, str(trial.row.n), share(o.hallucinated_after), share(o.uncertain_after),
                     share(o.repaired, counts=True), share(o.broken, counts=True),
                     f"{trial.row.variance_kept.value:.3f}", f"{trial.nfe_ratio:.2f}x"))  # fmt: skip
    headings = ("candidate", "seeds", "hallucination rate ↓ (95 %)", "uncertain", "repaired ↑, of the hallucinated",
                "newly broken ↓, of the valid", "total variance (1: Euler's)", "NFE ratio ↓")  # fmt: skip
    return Table(headings, tuple(rows))


def best_of(trials: Sequence[Trial]) -> dict[str, Trial]:
    """The best trial of each sampler, of those with nearly as many labelled seeds as the one that has most."""
    most = max(trial.row.n for trial in trials)
    enough = [trial for trial in trials if trial.row.n >= ENOUGH * most]
    families = dict.fromkeys(trial.family for trial in enough)
    return {name: min((t for t in enough if t.family == name), key=lambda trial: trial.rank) for name in families}


def preset_of_runs(
    paths: Sequence[Path], chosen: Mapping[str, Trial], base: Preset | None, run: LabelledRun, name: str
) -> Preset:
    """The preset with what was chosen, over what `base` has; `run` is the baseline."""
    network = network_name(paths[0])
    remarks = "; ".join(f"{family}: {trial.method.name}: {trial.remark()}" for family, trial in chosen.items())
    sha256 = str(run.options.get("network_sha256", ""))[:12]
    source = f"scripts/calibrate.py {' '.join(path.name for path in paths)}, network {sha256}. {remarks}"
    samplers = {BASELINE: sampler_of(run, {}), **{family: trial.method.sampler for family, trial in chosen.items()}}
    if base is None:
        return Preset(name, network, source, samplers)
    kept = ", ".join(known for known in base.samplers if known not in samplers)
    return replace(
        base,
        name=name,
        source=source + (f". {kept}: {base.source}" if kept or base.fitted else ""),
        samplers={**base.samplers, **samplers},
    )
