"""A labelled run in numbers: a folder that generate.py or the benchmark made, with labels.jsonl beside its images.

What comparisons read of the images is kept in features.jsonl (`pooled.py`), so that a run can be compared where its
PNGs are not. Samples that are points have their coordinates in samples.jsonl. timing.jsonl holds the seconds of
chunks that the benchmark sampled beside the baseline's, and the machines that sampled them.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dnnlib.errors import UserError
from dnnlib.run_folder import OPTIONS_NAME, SAMPLES_NAME
from rods.bench.pooled import feature_lines, grouped
from rods.labels.labels import ANOTHER_CLASS, VERDICTS, ImageLabel, read_labels
from rods.runs.folder import image_key, is_identity, read_lines
from rods.runs.images import U8, read_png

F64 = NDArray[np.float64]
TIMING_NAME = "timing.jsonl"


@dataclass(frozen=True, eq=False)
class LabelledRun:
    """A run of N labelled samples, in the order of their names."""

    path: Path
    name: str  # of the method, in tables
    is_score: bool  # its images are the baseline's; what counts is how its scores rank them
    options: Mapping[str, Any]  # the folder's identity: sampler, options, network, batch
    samples: Sequence[Mapping[str, Any]]  # lines of samples.jsonl [N]
    labels: NDArray[np.int8]  # codes of rods.eval.labels.Label [N]
    modes: NDArray[np.int64] | None  # [N], -1 for none
    another_class: NDArray[np.bool_]  # [N], of the hallucinated: those of a class that was not asked for
    timing: Sequence[Mapping[str, Any]]  # of chunks
    machines: Sequence[Mapping[str, Any]]

    def __len__(self) -> int:
        return len(self.samples)

    @cached_property
    def seeds(self) -> NDArray[np.int64]:
        return np.array([line["seed"] for line in self.samples], dtype=np.int64)  # [N]

    @property
    def keys(self) -> list[tuple[str, str]]:
        """What tells whether two images are the same, bit for bit: its kind, and the checksum or the values [N]."""
        return [_key(line) for line in self.samples]

    @cached_property
    def nfe(self) -> F64:
        """F and B of each sample [N, 2]."""
        return np.array([[line["forward"], line["backward"]] for line in self.samples], dtype=np.float64)

    @property
    def has_classes(self) -> bool:
        """Whether its samples were asked to be of a class."""
        return self.samples[0].get("class") is not None

    @property
    def has_restarts(self) -> bool:
        return "restart" in self.samples[0]

    @property
    def has_tries(self) -> bool:
        """Whether images were drawn again until they passed a limit."""
        return "tries" in self.samples[0]

    @cached_property
    def redrawn(self) -> NDArray[np.bool_]:
        """Which images are draws of another seed than their own [N]."""
        return np.array([self.has_tries and line["tries"]["kept"] > 0 for line in self.samples], dtype=np.bool_)

    @cached_property
    def scores(self) -> F64 | None:
        """Of the baseline's image of each seed: the first of a restart, else the largest of the steps [N].

        A score that JSON could not hold is inf. None where the run measures none, or has images of other seeds.
        """
        if self.redrawn.any():
            return None
        if self.has_restarts:
            return numbers([line["restart"]["scores"][0] for line in self.samples])
        if "largest" in self.samples[0]:
            return numbers([line["largest"] for line in self.samples])
        steps = [_steps(line) for line in self.samples]
        return np.array([numbers(row).max() for row in steps]) if steps and steps[0] else None

    @cached_property
    def own_scores(self) -> F64 | None:
        """Of the run's own images [N]: a restart's of the image it kept, else `scores`."""
        if not self.has_restarts:
            return self.scores
        return numbers([line["restart"]["scores"][line["restart"]["kept"]] for line in self.samples])

    @cached_property
    def step_scores(self) -> tuple[F64, F64] | None:
        """Noise levels [S] and scores [M, S] of the first M samples at the probed steps; None where there are none."""
        rows = [_steps(line) for line in self.samples]
        kept = [row for row in rows if row]
        if not kept:
            return None
        return np.array(self.samples[0]["sigma"], dtype=np.float64), np.stack([numbers(row) for row in kept])

    @property
    def not_finite(self) -> int:
        """Samples with values that are not finite, which have no image."""
        return sum(not is_finite(line) for line in self.samples)

    @property
    def is_points(self) -> bool:
        return "x" in self.samples[0]

    @cached_property
    def features(self) -> F64:
        """Coordinates of points, or the pooled levels of images in 0..1 [N, d]."""
        if self.is_points:
            return np.array([line["x"] for line in self.samples], dtype=np.float64)
        texts = {name: x for group in self._groups for name, x in zip(group["names"], group["x"], strict=True)}
        known = {name: np.frombuffer(base64.b64decode(text), dtype=np.uint8) for name, text in texts.items()}
        grey = np.full_like(next(iter(known.values())), 128)  # stands for a sample without an image
        return np.asarray(np.stack([known.get(line["name"], grey) for line in self.samples]) / 255.0, dtype=np.float64)

    def groups(self) -> tuple[F64, F64, F64]:
        """Size [K], sum of values [K, D] and sum of squares [K] of groups of samples: what total variances need.

        A point is a group of its own; images come in the groups of features.jsonl, and where only a part of a group is
        of this run, from their PNGs, if these are there.
        """
        if self.is_points:
            return np.ones(len(self)), self.features, (self.features**2).sum(axis=1)
        mine = {line["name"]: self.file(i) for i, line in enumerate(self.samples) if is_finite(line)}
        groups = [group for group in self._groups if mine.keys() >= set(group["names"])]
        rest = mine.keys() - {name for group in groups for name in group["names"]}
        groups += grouped(self.path, {name: mine[name] for name in rest if (self.path / mine[name]).is_file()})
        if not groups:
            return np.zeros(0), np.zeros((0, 0)), np.zeros(0)
        sizes = np.array([len(group["names"]) for group in groups], dtype=np.float64)
        means = np.stack([np.frombuffer(base64.b64decode(g["mean"]), dtype="<f2") for g in groups])
        squares = np.array([np.array(group["sq"], dtype=np.float64).sum() for group in groups])
        return sizes, sizes[:, None] * means, squares

    @cached_property
    def _groups(self) -> list[Mapping[str, Any]]:
        files = {line["name"]: self.file(i) for i, line in enumerate(self.samples) if is_finite(line)}
        return feature_lines(self.path, files)

    def only(self, seeds: set[int]) -> LabelledRun:
        """The samples of these seeds."""
        index = [i for i, seed in enumerate(self.seeds.tolist()) if seed in seeds]
        if len(index) == len(self):
            return self
        return replace(self.at(index), timing=[chunk for chunk in self.timing if set(chunk["seeds"]) <= seeds])

    def at(self, index: Sequence[int]) -> LabelledRun:
        """The samples at these places, in this order."""
        if list(index) == list(range(len(self))):
            return self
        modes = None if self.modes is None else self.modes[index]
        return replace(self, samples=[self.samples[i] for i in index], labels=self.labels[index], modes=modes,
                       another_class=self.another_class[index])  # fmt: skip

    def position(self) -> dict[str, int]:
        """Where each image is in the run, by its name without a folder of --subdirs."""
        return {image_key(line["name"]): i for i, line in enumerate(self.samples)}

    def file(self, i: int) -> str:
        """Where the image of a sample is in the run's folder, a rejected one too."""
        return str(self.samples[i].get("file", self.samples[i]["name"]))

    def image(self, i: int) -> U8 | None:
        """The image [C, H, W] of a sample; None where its PNG is not there."""
        path = self.path / self.file(i)
        return read_png(path) if path.is_file() else None


def _key(line: Mapping[str, Any]) -> tuple[str, str]:
    kind = next((kind for kind in ("sha256", "pixels", "x") if line.get(kind)), "")
    return kind, str(line.get(kind))


def is_finite(line: Mapping[str, Any]) -> bool:
    """Whether a record is of a sample that could be written."""
    return any(line.get(key) is not None for key in ("sha256", "pixels", "x"))


def _steps(line: Mapping[str, Any]) -> Sequence[float | None]:
    steps: Sequence[float | None] = line.get("H") or line.get("scores") or ()
    return steps


def numbers(values: Sequence[float | None]) -> F64:
    """Scores as JSON has them; what it could not hold is inf."""
    return np.array([np.inf if v is None else v for v in values], dtype=np.float64)


def read_run(path: Path, *, source: str | None = None, labelled: bool = True, rest: bool = False) -> LabelledRun:
    """A labelled run. Samples without a label are left out, or with `rest` uncertain; with `labelled` False all are.

    Raises UserError: no run, no labels (see `read_labels`), or files that are not a run's.
    """
    options = path / OPTIONS_NAME
    if not options.is_file():
        raise UserError(f"{path} is not a run: it has no {OPTIONS_NAME}; give a folder that generate.py made")
    labels = read_labels(path, source=source) if labelled else {}
    if rest or not labelled:
        labels = {**_uncertain(path), **labels}
    samples = [line for line in read_lines(path / SAMPLES_NAME) if line["name"] in labels]
    if not samples:
        raise UserError(f"{path} has no labelled sample; label it by scripts/bench.py label")
    try:
        about = json.loads(options.read_text())
        if not is_identity(about["identity"]):
            raise TypeError
        own = [labels[line["name"]] for line in samples]
        modes = [label.mode for label in own]
        timing = [json.loads(text) for text in _text(path / TIMING_NAME).splitlines()]
        return LabelledRun(
            path,
            str(about.get("method", path.name)),
            bool(about.get("is_score", False)),
            about["identity"],
            samples,
            np.array([VERDICTS.index(label.label) for label in own], dtype=np.int8),
            None if None in modes else np.array(modes, dtype=np.int64),
            np.array([(label.fault or "").startswith(ANOTHER_CLASS) for label in own], dtype=np.bool_),
            [line for line in timing if "seconds" in line],
            [line for line in timing if "seconds" not in line],
        )
    except (AttributeError, KeyError, TypeError, ValueError):
        raise UserError(f"{path}: {OPTIONS_NAME} or {TIMING_NAME} was changed; sample the run again") from None


def labelled_in_both(base: LabelledRun, other: LabelledRun, source: str | None) -> list[LabelledRun]:
    """Both runs, of the images that have a label in both. UserError: there is none."""
    labelled = set.intersection(
        *({image_key(name) for name in read_labels(run.path, source=source)} for run in (base, other))
    )
    places = [run.position() for run in (base, other)]
    if not (both := [name for name in places[0] if name in places[1] and name in labelled]):
        raise UserError(
            f"{base.path} and {other.path} have no labelled seed in common; sample and label the same seeds"
        )
    return [run.at([place[name] for name in both]) for run, place in zip((base, other), places, strict=True)]


def _uncertain(path: Path) -> dict[str, ImageLabel]:
    names = [line["name"] for line in read_lines(path / SAMPLES_NAME)]
    return {name: ImageLabel(name, VERDICTS[0], "nobody") for name in names}


def _text(path: Path) -> str:
    return path.read_text() if path.is_file() else ""
