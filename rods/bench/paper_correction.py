"""Table 2 of the paper on one network: hallucinated, corrected and newly hallucinated images, and what the index found.

Labels come from the labeller of the network's task, or from the labelling page: then one file of answers per method,
each of the baseline's images (run A) against the method's (run B).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from dnnlib.errors import UserError
from rods.bench.paper import Correction, Study
from rods.bench.paper_runs import Runs
from rods.bench.rating_report import Settled, settle, verdicts
from rods.bench.task import Task
from rods.eval.correction import PairedOutcomes, Proportion, paired_outcomes, proportion_interval
from rods.eval.labels import Label
from rods.runs.rating import NORMAL, Answers, open_session, read_answers
from rods.runs.sampling import largest_score

BASELINE, CAS = "euler", "rods-cas"
Labels = Mapping[str, Label]  # by image name


@dataclass(frozen=True)
class CorrectionRow:
    """A method's line of Table 2; `outcomes` are against the baseline, None for the baseline itself."""

    method: str
    bad: Proportion
    unsure: Proportion
    outcomes: PairedOutcomes | None
    verdicts: Mapping[str, int] | None  # of pairs judged side by side
    seconds: float | None  # a batch
    passes: tuple[float, float]  # forward and backward per image
    paper: Correction | None


@dataclass(frozen=True)
class DetectionRow:
    """The detector "largest H >= eps" against the baseline's labels; images without a sure label are left out."""

    eps: float
    found: Proportion  # of the hallucinated
    false_alarms: Proportion  # of the others


def task_labels(task: Task, runs: Runs, method: str) -> Labels:
    """The task's labels of a method's images, from its PNGs."""
    names = [record["name"] for record in runs.records(method)]
    x = np.stack([_read(runs.path(method) / name) for name in names]) / 127.5 - 1  # [N, C, H, W]
    return dict(zip(names, map(Label, task.label(x).tolist()), strict=True))


def answered_labels(runs: Runs, answers: Mapping[str, Path], *, kind: str) -> tuple[dict[str, Labels], dict[str, Any]]:
    """(labels by method, verdicts on pairs by method) of answers files, {method: file}.

    An image of the baseline has a label where all files that label it agree. One of a method that nobody labelled has
    that of the baseline's image where both are the same file.
    Raises UserError: a file that is missing, or holds answers to other images.
    """
    sessions = {method: _lines(runs, method, path, kind=kind) for method, path in answers.items()}
    settled = {method: settle(lines, "image") for method, lines in sessions.items()}
    baseline = _agreed(list(settled.values()))
    labels: dict[str, Labels] = {BASELINE: baseline}
    for method, found in settled.items():
        same = {a["name"] for a, b in _pairs(runs, method) if a["sha256"] == b["sha256"]}
        labels[method] = {name: label for name, label in baseline.items() if name in same} | _of_run(found, "B")
    return labels, {method: verdicts(settle(lines, "pair"))[0] for method, lines in sessions.items()}


def correction_rows(
    runs: Runs,
    labels: Mapping[str, Labels],
    study: Study,
    *,
    seconds: Mapping[str, float],
    judged: Mapping[str, Mapping[str, int]],
) -> list[CorrectionRow]:
    """A row per method with labels, the baseline first; a method is compared on the names that both sides have."""
    rows = []
    for method, own in labels.items():
        codes = list(own.values())
        names = [name for name in labels[BASELINE] if name in own]
        before, after = (np.array([side[n] for n in names], dtype=np.int8) for side in (labels[BASELINE], own))
        records = runs.records(method)
        rows.append(
            CorrectionRow(
                method,
                proportion_interval(codes.count(Label.BAD), len(codes)),
                proportion_interval(codes.count(Label.AMBIGUOUS), len(codes)),
                None if method == BASELINE else paired_outcomes(before, after),
                judged.get(method),
                seconds.get(method),
                (_mean(records, "forward"), _mean(records, "backward")),
                study.correction.get(method),
            )
        )
    return rows


def detection_row(runs: Runs, labels: Labels) -> DetectionRow | None:
    """What the curvature index of the CAS run says of the baseline's images; None where no eps is known.

    Up to its first flag an image's run is the baseline's, so that H flags the same images as on the baseline. Where
    all images are corrected (eps 0), H is measured on the corrected run.
    """
    eps = runs.job(CAS).risk_threshold()
    if eps == inf:
        return None
    flagged = {record["name"]: largest_score(record) >= eps for record in runs.records(CAS)}
    bad = [flagged[name] for name, label in labels.items() if label is Label.BAD]
    well = [flagged[name] for name, label in labels.items() if label is Label.WELL]
    return DetectionRow(eps, proportion_interval(sum(bad), len(bad)), proportion_interval(sum(well), len(well)))


def write_machine_answers(runs: Runs, method: str, path: Path, *, kind: str, task: Task, raters: Sequence[str]) -> int:
    """Answers of the task's labeller in the labelling page's own form, for rehearsals; how many were written.

    An unsure label becomes an answer on which the raters disagree, and no pair is judged. Answers that are there stay.
    """
    session = open_session(runs.path(BASELINE), runs.path(method), kind=kind, seed=0)
    path.parent.mkdir(parents=True, exist_ok=True)
    store = Answers(path, session)
    labels = {"A": task_labels(task, runs, BASELINE), "B": task_labels(task, runs, method)}
    bad = session.answers_to("image")[1]
    written, given = 0, {(line["item"], line["rater"]) for line in store.lines}
    for number, item in enumerate(session.of_mode("image")):
        label = labels[item.runs[0]].get(item.name)
        for k, rater in enumerate(raters):
            if label is None or (item.key, rater) in given:
                continue
            is_bad = label is Label.BAD or (label is Label.AMBIGUOUS and k == 0)
            answer = {"item": item.key, "answer": bad if is_bad else NORMAL, "note": "by machine", "seen": 0}
            store.record(rater, {**answer, "id": f"{number:08x}-{k:08x}"})
            written += 1
    return written


def _lines(runs: Runs, method: str, path: Path, *, kind: str) -> list[dict[str, Any]]:
    if not path.is_file():
        raise UserError(f"{path} is missing; label the images first, or leave its method out")
    try:
        with open(path) as f:
            seed = json.loads(f.readline())["session"]["seed"]
    except (ValueError, LookupError, TypeError):
        raise UserError(f"{path} is not an answers file; give that of scripts/label.py serve") from None
    session = open_session(runs.path(BASELINE), runs.path(method), kind=kind, seed=seed)
    return read_answers(path, session.identity)


def _of_run(settled: Settled, run: str) -> dict[str, Label]:
    return {
        name: Label.WELL if line["answer"] == NORMAL else Label.BAD
        for (where, name), line in settled.answers.items()
        if where == run
    }


def _agreed(settled: Sequence[Settled]) -> dict[str, Label]:
    found: dict[str, set[Label]] = {}
    for one in settled:
        for name, label in _of_run(one, "A").items():
            found.setdefault(name, set()).add(label)
    return {name: labels.pop() for name, labels in sorted(found.items()) if len(labels) == 1}


def _pairs(runs: Runs, method: str) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    return list(zip(runs.records(BASELINE), runs.records(method), strict=True))


def _read(path: Path) -> NDArray[np.uint8]:
    with PIL.Image.open(path) as image:
        x = np.asarray(image)
    return x[None] if x.ndim == 2 else x.transpose(2, 0, 1)


def _mean(records: Sequence[Mapping[str, Any]], key: str) -> float:
    return float(sum(record[key] for record in records)) / len(records)
