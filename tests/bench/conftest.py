"""Fixtures of the benchmark's tests: answers of the labelling page, given by a labeller."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from rods.bench.task import Task
from rods.eval.labels import Label
from rods.labels.folders import read_folder
from rods.labels.label_set import PAPER, label_set
from rods.labels.session import Answers, open_session

Labels = Mapping[str, Label]  # by image name


@pytest.fixture
def offer_tasks(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any, dict[str, Task]], None]:
    """Makes a script of the benchmark offer these tasks in place of the registered ones."""

    def offer(script: Any, tasks: dict[str, Task]) -> None:
        monkeypatch.setattr(script, "TASKS", {name: lambda task=task: task for name, task in tasks.items()})
        for command in getattr(script.main, "commands", {"": script.main}).values():
            for option in command.params:
                if option.name == "task_name":
                    monkeypatch.setattr(option, "type", type(option.type)(list(tasks)))

    return offer


@pytest.fixture
def write_answers() -> Callable[..., None]:
    """Writes what raters who see what a labeller sees would answer on Euler's run and another; nobody judges pairs.

    Raters disagree on uncertain images: the first calls them hallucinated.
    """

    def write(path: Path, runs: tuple[Path, Path], labels: tuple[Labels, Labels], *, raters: Sequence[str]) -> None:
        folders = [read_folder(run, option="--images") for run in runs]
        session = open_session(folders, labels=label_set("hands"))
        store = Answers(path, session)
        normal, bad = PAPER["hands"][:2]
        known = [{folder.sums[name]: label for name, label in own.items()}
                 for folder, own in zip(folders, labels, strict=True)]  # fmt: skip
        for number, item in enumerate(session.of_mode("image")):
            label = (known[1] | known[0])[item.sums[0]]
            for k, rater in enumerate(raters):
                is_bad = label is Label.HALLUCINATED or (label is Label.UNCERTAIN and k == 0)
                answer = {"item": item.key, "answer": bad if is_bad else normal, "note": "", "seen": 0}
                store.record(rater, {**answer, "id": f"{number:08x}-{k:08x}"})

    return write
