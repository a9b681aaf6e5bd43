"""What human labels say: agreement of the raters, rates with intervals, the floor of what can be seen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

from rods.eval.correction import PairedOutcomes, Proportion, mcnemar_p, paired_outcomes, proportion_interval
from rods.eval.labels import Label
from rods.labels.growing_file import Line
from rods.labels.labels import CONSENSUS, PERSON, VERDICTS, ImageLabel, labels_in, read_answers
from rods.labels.session import SIDES, answer_of, latest_answers

BETTER = ("better", "worse", "same", "unclear")  # what the answer to a pair means for the second run against the first
AGAIN = ", again"  # after a rater's name: the answers to images that were asked a second time


@dataclass(frozen=True)
class Agreement:
    """Two raters' answers to the same n items, or one rater's at two times."""

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


def agreements(lines: Iterable[Line], mode: str) -> dict[tuple[str, str], Agreement]:
    """Cohen's kappa of every two raters, and of each rater's two answers, over the items that both answered."""
    said: dict[str, dict[tuple[str, ...], str]] = {}
    for (source, where), line in latest_answers(lines).items():
        answer = answer_of(line, sorted(line["pair"]) if mode == "pair" and "pair" in line else None)
        if ("pair" in line) != (mode == "pair") or answer is None or source == PERSON + CONSENSUS:
            continue
        rater = source.removeprefix(PERSON) + (AGAIN if where[-1] != "1" else "")
        said.setdefault(rater, {})[where[:-1]] = answer
    words = list(dict.fromkeys(answer for own in said.values() for answer in own.values()))
    categories = sorted(words, key=lambda w: SIDES.index(w) if w in SIDES else -1) if mode == "pair" else words
    found = {}
    for a, b in combinations(sorted(said), 2):
        common = [item for item in said[a] if item in said[b]]
        found[a, b] = cohen_kappa(*([said[r][item] for item in common] for r in (a, b)), categories=categories)
    return found


@dataclass(frozen=True)
class Floor:
    """Images with two answers, by two raters or by one at two times: what a comparison shows of unchanged images."""

    differ: Proportion  # images whose second answer means another verdict, of all with two
    broken: Proportion  # of those first called valid, those then called hallucinated
    repaired: Proportion  # of those first called hallucinated, those then called valid

    def lines(self) -> list[str]:
        """Sentences for people."""
        if not self.differ.n:
            return ["No image has two answers, so that the raters' own disagreement is not known; have some images "
                    "labelled twice (label.py serve --repeat=50, or a second rater)"]  # fmt: skip
        return [
            f"The raters' own disagreement: {rate(self.differ)} of the images with two answers have two verdicts",
            f"  a changed image that is as valid as before looks newly broken: {rate(self.broken)}; one that is as "
            f"hallucinated as before looks repaired: {rate(self.repaired)}; less cannot be seen by single answers",
        ]


def floor(labels: Iterable[ImageLabel]) -> Floor:
    """The first two answers to each image, in the order of the file, the consensus aside."""
    found: dict[str, list[str]] = {}
    for label in labels:
        if label.is_of_person and label.source != PERSON + CONSENSUS:
            found.setdefault(label.key, []).append(label.label)
    twice = [(said[0], said[1]) for said in found.values() if len(said) > 1]
    _, valid, hallucinated = VERDICTS
    firsts = [first for first, _ in twice]
    return Floor(
        proportion_interval(sum(a != b for a, b in twice), len(twice)),
        proportion_interval(twice.count((valid, hallucinated)), firsts.count(valid)),
        proportion_interval(twice.count((hallucinated, valid)), firsts.count(hallucinated)),
    )


def rate(p: Proportion) -> str:
    """`3 of 12 = 25.0% (5.5% to 57.2%)`."""
    return f"{p.k} of {p.n} = {p.rate:.1%} ({p.low:.1%} to {p.high:.1%})" if p.n else "none"


def codes(settled: Mapping[str, ImageLabel], images: Mapping[str, str]) -> dict[str, Label]:
    """The labels of images, by name, whose keys are given by name."""
    return {name: Label[settled[key].label.upper()] for name, key in images.items() if key in settled}


def hallucination_rate(labels: Mapping[str, Label]) -> Proportion:
    """Hallucinated images of all that have a label, uncertain ones too."""
    return proportion_interval(list(labels.values()).count(Label.HALLUCINATED), len(labels))


def outcomes(before: Mapping[str, Label], after: Mapping[str, Label]) -> PairedOutcomes:
    """Two runs' labels by name, over the names labelled in both."""
    names = [name for name in before if name in after]
    return paired_outcomes(*(np.array([own[name] for name in names], dtype=np.int8) for own in (before, after)))


def verdicts(lines: Iterable[Line], before: Mapping[str, str], after: Mapping[str, str]) -> tuple[dict[str, int], int]:
    """How often the second run was better, worse, the same, unclear; and the pairs on which raters disagree.

    `before` and `after` are the checksums of the runs' images by name; the consensus' answer counts where there is one.
    """
    said: dict[tuple[str, str], dict[str, str]] = {}  # of each pair, by source
    for (source, _), line in latest_answers(lines).items():
        if "pair" in line and answer_of(line) is not None:
            key = before.get(line["name"], ""), after.get(line["name"], "")
            if sorted(key) == sorted(line["pair"]):
                said.setdefault(key, {})[source] = _against(line, key)
    counts, disputed = dict.fromkeys(BETTER, 0), 0
    for own in said.values():
        final = {own[PERSON + CONSENSUS]} if PERSON + CONSENSUS in own else set(own.values())
        if len(final) == 1:
            counts[final.pop()] += 1
        else:
            disputed += 1
    return counts, disputed


def _against(line: Line, key: tuple[str, str]) -> str:
    """What the answer to a pair says of the second of `key` against the first."""
    side = answer_of(line, key)
    return {SIDES[0]: "worse", SIDES[1]: "better"}.get(str(side), str(side))


def sign_test(counts: Mapping[str, int]) -> float:
    """The exact sign test of better against worse."""
    return mcnemar_p(counts["better"], counts["worse"])


def raters_lines(runs: Iterable[Path], source: str | None) -> list[str]:
    """What the raters behind the labels of runs (`read_labels`) tell of their own disagreement; nothing of programs."""
    answers = {label.id or (run, label.source, label.round, label.key): label
               for run in runs for label in read_answers(run, source=source) if label.is_of_person}  # fmt: skip
    return ["", *floor(answers.values()).lines()] if answers else []


def people_in(lines: Iterable[Line]) -> list[ImageLabel]:
    """The raters' labels that count."""
    return [label for label in labels_in(lines) if label.is_of_person]
