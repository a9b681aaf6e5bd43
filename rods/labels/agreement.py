"""What human labels say: agreement of the raters, rates with intervals, the detector's confusion matrix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from dnnlib.errors import UserError
from rods.eval.agreement import Agreement, cohen_kappa
from rods.eval.correction import PairedOutcomes, Proportion, mcnemar_p, paired_outcomes, proportion_interval
from rods.eval.labels import Label
from rods.labels.session import CATEGORIES, CONSENSUS, NORMAL, SIDES, VERDICTS, latest_answers, raters, verdict

Line = Mapping[str, Any]


@dataclass(frozen=True)
class Settled:
    """The images or pairs on which the raters agree, by (run or "pair", name), and how many they do not."""

    answers: Mapping[tuple[str, str], Line]
    disputed: int


def settle(lines: Sequence[Line], mode: str) -> Settled:
    """The consensus' answer where there is one, else the one that all raters of the item gave."""
    found: dict[str, list[Line]] = {}
    for line in latest_answers(lines).values():
        if line["mode"] == mode and line["answer"] is not None:
            found.setdefault(line["item"], []).append(line)
    answers, disputed = {}, 0
    for given in found.values():
        final = [line for line in given if line["rater"] == CONSENSUS] or given
        if len({line["answer"] for line in final}) > 1:
            disputed += 1
            continue
        where = final[0]["runs"][0] if mode == "image" else "pair"
        answers[where, final[0]["name"]] = final[0]
    return Settled(answers, disputed)


def agreements(lines: Sequence[Line], mode: str, kind: str) -> dict[tuple[str, str], Agreement]:
    """Cohen's kappa of every two raters over the items that both answered."""
    latest = {
        key: line for key, line in latest_answers(lines).items() if line["mode"] == mode and line["answer"] is not None
    }
    found = {}
    for a, b in combinations(raters(lines), 2):
        common = [item for rater, item in latest if rater == a and (b, item) in latest]
        said = [[latest[rater, item]["answer"] for item in common] for rater in (a, b)]
        found[a, b] = cohen_kappa(said[0], said[1], categories=CATEGORIES[kind] if mode == "image" else SIDES)
    return found


def hallucination_rate(settled: Settled, run: str) -> Proportion:
    """Images of a run whose label is not "normal", of those that have one."""
    labels = [line["answer"] for (where, _), line in settled.answers.items() if where == run]
    return proportion_interval(sum(label != NORMAL for label in labels), len(labels))


def outcomes(settled: Settled) -> PairedOutcomes:
    """Run A before, run B after, over the names labelled in both: corrected, newly hallucinated."""
    names = [name for run, name in settled.answers if run == "A" and ("B", name) in settled.answers]
    codes = [
        np.array([_code(settled.answers[run, name]["answer"]) for name in names], dtype=np.int8) for run in ("A", "B")
    ]
    return paired_outcomes(codes[0], codes[1])


def verdicts(settled: Settled) -> tuple[dict[str, int], float]:
    """How often run B was better, worse, the same, unclear; and the exact sign test of better against worse."""
    counts = dict.fromkeys(VERDICTS, 0)
    for line in settled.answers.values():
        counts[verdict(line)] += 1
    return counts, mcnemar_p(counts["better"], counts["worse"])


def confusion(settled: Settled, largest_H: Mapping[str, float], *, run: str, eps: float) -> dict[str, int]:
    """The detector "largest H >= eps" against the labels of a run: counts tp, fp, fn, tn.

    `largest_H` by file name. Raises UserError where a labelled image has no H.
    """
    counts = dict.fromkeys(("tp", "fp", "fn", "tn"), 0)
    for (where, name), line in settled.answers.items():
        if where != run:
            continue
        if name not in largest_H:
            raise UserError(f"{name} is labelled, and the samples file has no H for it; give the samples of that run")
        flagged, bad = largest_H[name] >= eps, line["answer"] != NORMAL
        counts[("t" if flagged == bad else "f") + ("p" if flagged else "n")] += 1
    return counts


def _code(answer: str) -> Label:
    return Label.WELL if answer == NORMAL else Label.BAD
