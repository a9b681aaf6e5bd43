"""What `label.py report` prints: agreement, rates of runs, verdicts on pairs, a detector's confusion matrix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dnnlib.errors import UserError, counted
from rods.eval.correction import proportion_interval
from rods.eval.detection import Confusion, confusion
from rods.eval.labels import Label
from rods.labels.agreement import (
    agreements,
    codes,
    floor,
    hallucination_rate,
    outcomes,
    people_in,
    rate,
    sign_test,
    verdicts,
)
from rods.labels.folders import Folder
from rods.labels.growing_file import Line
from rods.labels.labels import ImageLabel, settle
from rods.labels.old_answers import RUNS, run_key
from rods.labels.session import SHUFFLED
from rods.runs.scores import CURVATURE, image_scores


@dataclass(frozen=True)
class Runs:
    """The labels of a file by the run that their images are in."""

    images: Mapping[str, Mapping[str, str]]  # "A", "B" or "" (all images): checksums by name
    settled: Mapping[str, ImageLabel]  # by checksum

    @classmethod
    def of(cls, lines: Sequence[Line], folders: Mapping[str, Folder]) -> Runs:
        """Those of the folders; without any, of an old file its own runs, and else all images as one."""
        settled = settle(people_in(lines))
        if folders:
            return cls({run: folder.sums for run, folder in folders.items()}, settled)
        keys = {line["name"] for line in lines}
        old = {run: {name: run_key(run, name) for name in keys} for run in RUNS}
        held = {key for line in lines for key in line.get("pair", [line.get("sha256")])}
        if any(key in held for own in old.values() for key in own.values()):
            return cls(old, settled)
        return cls({"": {key: key for key in settled}}, settled)

    def labels(self, run: str) -> dict[str, Label]:
        return codes(self.settled, self.images.get(run, {}))


def agreement_lines(lines: Sequence[Line]) -> list[str]:
    """Every two raters' agreement and table, and the floor of what can be seen."""
    said = []
    for mode in ("image", "pair"):
        for (a, b), agreement in agreements(lines, mode).items():
            if not agreement.n:
                continue
            said.append(
                f"{a} and {b}, {mode}s: n = {agreement.n}, same answer {agreement.observed:.1%}, "
                f"Cohen's kappa {agreement.kappa:.3f}"
            )
            width = max(map(len, agreement.categories))
            for category, row in zip(agreement.categories, agreement.table, strict=True):
                said.append(f"  {category:{width}} " + " ".join(f"{count:4d}" for count in row))
    return said + floor(people_in(lines)).lines()


def rate_lines(lines: Sequence[Line], runs: Runs) -> list[str]:
    """Hallucination rates, and what the second run did to the first one's images."""
    found = {run: runs.labels(run) for run in runs.images}
    found = {run: labels for run, labels in found.items() if labels}
    if not found:
        return ["None of the images has a label"]
    said = [""]
    for run, labels in found.items():
        uncertain = list(labels.values()).count(Label.UNCERTAIN)
        where = f"run {run}" if run else "all labelled images"
        said.append(f"hallucinated, {where}: {rate(hallucination_rate(labels))}, uncertain {uncertain}")
    chosen = sum(label.order not in (None, SHUFFLED) for label in people_in(lines))
    lacking = sum(len(own) - len(found.get(run, ())) for run, own in runs.images.items())
    if chosen and (lacking or "" in runs.images):
        said.append(f"  {counted(chosen, 'label')} of images that a score chose (--order, --next): unless all images "
                    "of a run are labelled, its rate is not this one")  # fmt: skip
    if {"A", "B"} <= found.keys():
        paired = outcomes(found["A"], found["B"])
        same = sum(runs.images["A"][name] == runs.images["B"][name] for name in found["A"] if name in found["B"])
        said += [
            f"{counted(paired.n, 'image')} labelled in both runs, {same} of them the same file",
            f"  corrected (hallucinated in A, valid in B): {rate(paired.repaired)}",
            f"  newly hallucinated (valid in A, hallucinated in B): {rate(paired.broken)}",
            f"  McNemar, exact: p = {paired.mcnemar_p:.3g}",
        ]
    return said


def pair_lines(lines: Sequence[Line], runs: Runs) -> list[str]:
    """How often the second run's image was better."""
    if not {"A", "B"} <= runs.images.keys() or not any("pair" in line for line in lines):
        return []
    counts, disputed = verdicts(lines, runs.images["A"], runs.images["B"])
    said = ", ".join(f"{k} {v}" for k, v in counts.items())
    return ["", f"Pairs: run B against run A: {said}; {disputed} disputed; sign test p = {sign_test(counts):.3g}"]


def flagged(labels: Mapping[str, Label], scores: Mapping[str, float], eps: float) -> Confusion:
    """The detector "score >= eps" against labels, uncertain ones and images without a score left out."""
    names = [name for name, label in labels.items() if name in scores and label is not Label.UNCERTAIN]
    bad = np.array([labels[name] is Label.HALLUCINATED for name in names], dtype=np.bool_)
    return confusion(np.array([scores[name] for name in names], dtype=np.float64), bad, eps)


def detector_lines(runs: Runs, run: Path, eps: float) -> list[str]:
    """The confusion matrix of the largest H of a run's images. UserError: its records have none."""
    scores, labels = image_scores(run).get(CURVATURE, {}), runs.labels("A")
    if not scores.keys() & labels.keys():
        raise UserError(f"--eps: the records of {run} have no H of a labelled image; sample by --sampler=rods-cas")
    found = flagged(labels, scores, eps)
    missing = len(labels.keys() - scores.keys())
    tpr, fpr = proportion_interval(found.tp, found.tp + found.fn), proportion_interval(found.fp, found.fp + found.tn)
    return [
        "",
        f"Detector, largest H >= {eps:g}: tp {found.tp}, fp {found.fp}, fn {found.fn}, tn {found.tn}"
        + (f"; {counted(missing, 'labelled image')} without H left out" if missing else ""),
        f"  found of the hallucinated: {rate(tpr)}",
        f"  false alarms: {rate(fpr)}",
    ]
