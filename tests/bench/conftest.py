"""Fixtures of the benchmark's tests: answers of the labelling page, given by a labeller."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from rods.eval.labels import Label
from rods.labels.session import NORMAL, Answers, open_session

Labels = Mapping[str, Label]  # by image name


@pytest.fixture
def write_answers() -> Callable[..., None]:
    """Writes what raters who see what a labeller sees would answer on Euler's run and another; nobody judges pairs.

    Raters disagree on uncertain images: the first calls them hallucinated.
    """

    def write(path: Path, runs: tuple[Path, Path], labels: tuple[Labels, Labels], *, raters: Sequence[str]) -> None:
        session = open_session(*runs, kind="hands", seed=0)
        store = Answers(path, session)
        bad = session.answers_to("image")[1]
        for number, item in enumerate(session.of_mode("image")):
            label = labels["AB".index(item.runs[0])][item.name]
            for k, rater in enumerate(raters):
                is_bad = label is Label.HALLUCINATED or (label is Label.UNCERTAIN and k == 0)
                answer = {"item": item.key, "answer": bad if is_bad else NORMAL, "note": "", "seen": 0}
                store.record(rater, {**answer, "id": f"{number:08x}-{k:08x}"})

    return write
