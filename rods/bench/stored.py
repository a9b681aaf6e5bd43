"""The benchmark's run folders as the values that the report is made of."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dnnlib.errors import UserError
from rods.bench.compare import Reference, reference
from rods.bench.labelled import LabelledRun, read_run
from rods.bench.methods import BASELINE, METHODS
from rods.bench.run import Place
from rods.bench.task import Task
from rods.labels.labels import LABELS_NAME
from rods.runs.images import U8

REAL_IMAGES, REAL_POINTS = 4096, 50_000  # held-out real samples that distances are taken to
AUDIT_NAME = "audit.json"


@dataclass(frozen=True, eq=False)
class Section:
    """Everything that the report says of one task and network comes from this."""

    task: Task
    network: str
    runs: Mapping[str, LabelledRun]  # by method, in the order of the report; the baseline among them
    images: Mapping[str, Mapping[int, U8]]  # by method and seed [C, H, W]; of the methods whose images are there
    real: Reference
    audit: Sequence[Mapping[str, str]]  # lines of the labeller's audit; empty where it was not run
    calibration: Sequence[Mapping[str, Any]]  # lines of the network's calibration; empty where there is none

    @property
    def name(self) -> str:
        return self.task.name if self.task.name == self.network else f"{self.task.name}-{self.network}"


def read_sections(tasks: Mapping[str, Task], out: Path, presets: Path) -> list[Section]:
    """All tasks and networks with results below `out`. Raises UserError: there are none."""
    found = [
        (task, Place(out, task.name, folder.name))
        for task in tasks.values()
        for folder in sorted((out / task.name).glob("*"))
        if (folder / BASELINE / LABELS_NAME).is_file()
    ]
    if not found:
        raise UserError(f"--out={out} holds no results of {', '.join(tasks)}; make some with scripts/bench.py run")
    names = {task.name for task, _ in found}
    real = {n: reference(tasks[n], REAL_IMAGES if tasks[n].is_picture else REAL_POINTS) for n in sorted(names)}
    return [read_section(task, place, real[task.name], presets) for task, place in found]


def read_section(task: Task, place: Place, real: Reference, presets: Path) -> Section:
    """One task and network; `real` is the task's reference."""
    runs = read_runs(place)
    images = {method: own for method, run in runs.items() if (own := load_images(run)) is not None}
    audit, calibration = place.out / place.task / AUDIT_NAME, presets / f"{place.network}.calibration.jsonl"
    return Section(
        task=task,
        network=place.network,
        runs=runs,
        images=images,
        real=real,
        audit=json.loads(audit.read_text())["lines"] if audit.is_file() else [],
        calibration=[json.loads(t) for t in calibration.read_text().splitlines()] if calibration.is_file() else [],
    )


def read_runs(place: Place) -> dict[str, LabelledRun]:
    """The labelled runs of a task and network by method, in the order of the table of methods."""
    found = [read_run(path.parent) for path in sorted(place.folder.glob(f"*/{LABELS_NAME}"))]
    order = {name: i for i, name in enumerate(METHODS)}

    def rank(run: LabelledRun) -> tuple[int, str]:
        """By the longest name of the table that the run's begins with."""
        names = [name for name in METHODS if run.name == name or run.name.startswith(f"{name}-")]
        return order[max(names, key=len)] if names else len(order), run.name

    return {run.name: run for run in sorted(found, key=rank)}


def load_images(run: LabelledRun) -> dict[int, U8] | None:
    """The images [C, H, W] of a run by seed; None where not all of them are there."""
    if not all((run.path / line["name"]).is_file() for line in run.samples):
        return None
    return {int(seed): image for i, seed in enumerate(run.seeds) if (image := run.image(i)) is not None}
