"""What human labels say: agreement of the raters, rates with intervals, the detector's confusion matrix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from dnnlib.errors import UserError
from rods.eval.correction import PairedOutcomes, Proportion, mcnemar_p, paired_outcomes, proportion_interval
from rods.eval.detection import Confusion, confusion
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


@dataclass(frozen=True)
class Agreement:
    """Two raters' answers to the same n items."""

    categories: tuple[str, ...]
    table: tuple[tuple[int, ...], ...]  # [first rater][second rater], in the order of `categories`
    kappa: float  # Cohen's kappa; nan where chance alone would always agree, or n = 0

    @property
    def n(self) -> int:
        return sum(map(sum, self.table))

    @property
    def observed(self) -> float:
        """The share of items with the same answer; nan for n = 0."""
        same = sum(self.table[i][i] for i in range(len(self.categories)))
        return same / self.n if self.n else float("nan")


def cohen_kappa(first: Sequence[str], second: Sequence[str], *, categories: Sequence[str]) -> Agreement:
    """Cohen's kappa (1960): (p_o - p_e) / (1 - p_e), p_e the agreement of independent raters with the same habits.

    Raises ValueError for unequal lengths or an answer outside `categories`.
    """
    if len(first) != len(second):
        raise ValueError(f"cohen_kappa: {len(first)} and {len(second)} answers; give two to each item")
    place = {category: i for i, category in enumerate(categories)}
    if unknown := {*first, *second} - place.keys():
        raise ValueError(f"cohen_kappa: {sorted(unknown)[0]!r} is none of the categories")
    table = [[0] * len(place) for _ in place]
    for a, b in zip(first, second, strict=True):
        table[place[a]][place[b]] += 1
    n = len(first)
    rows, columns = [sum(row) for row in table], [sum(column) for column in zip(*table, strict=True)]
    expected = sum(r * c for r, c in zip(rows, columns, strict=True)) / n**2 if n else 1.0
    observed = sum(table[i][i] for i in range(len(table))) / n if n else 1.0
    kappa = (observed - expected) / (1 - expected) if expected < 1 else float("nan")
    return Agreement(tuple(categories), tuple(map(tuple, table)), kappa)


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


def labels_of(settled: Settled, run: str) -> dict[str, Label]:
    """The raters' labels of a run by image name: every answer but "normal" is a hallucination."""
    return {
        name: Label.VALID if line["answer"] == NORMAL else Label.HALLUCINATED
        for (where, name), line in settled.answers.items()
        if where == run
    }


def hallucination_rate(settled: Settled, run: str) -> Proportion:
    """Hallucinated images of a run, of those that have a label."""
    labels = list(labels_of(settled, run).values())
    return proportion_interval(labels.count(Label.HALLUCINATED), len(labels))


def outcomes(settled: Settled) -> PairedOutcomes:
    """Run A before, run B after, over the names labelled in both: corrected, newly hallucinated."""
    before, after = labels_of(settled, "A"), labels_of(settled, "B")
    names = [name for name in before if name in after]
    return paired_outcomes(*(np.array([own[name] for name in names], dtype=np.int8) for own in (before, after)))


def verdicts(settled: Settled) -> tuple[dict[str, int], float]:
    """How often run B was better, worse, the same, unclear; and the exact sign test of better against worse."""
    counts = dict.fromkeys(VERDICTS, 0)
    for line in settled.answers.values():
        counts[verdict(line)] += 1
    return counts, mcnemar_p(counts["better"], counts["worse"])


def flagged(settled: Settled, largest_H: Mapping[str, float], *, run: str, eps: float) -> Confusion:
    """The detector "largest H >= eps" against the labels of a run; `largest_H` by file name.

    Raises UserError where a labelled image has no H.
    """
    labels = labels_of(settled, run)
    if missing := [name for name in labels if name not in largest_H]:
        raise UserError(f"{missing[0]} is labelled, and the samples file has no H for it; give the samples of that run")
    H, bad = [largest_H[name] for name in labels], [label is Label.HALLUCINATED for label in labels.values()]
    return confusion(np.array(H, dtype=np.float64), np.array(bad, dtype=np.bool_), eps)
