"""The pictures behind a figure: runs of several methods on the same seeds, their labels, and the index of each."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from rods.bench.methods import resolve
from rods.bench.paper import STEPS, Study
from rods.bench.paper_correction import answered_labels, task_labels
from rods.bench.paper_runs import Runs
from rods.bench.task import Task
from rods.eval.correction import PairedOutcomes, paired_outcomes
from rods.eval.labels import Label
from rods.pipeline import SamplerConfig
from rods.runs.grids import radius
from rods.runs.sampling import Job, largest_score

U8 = NDArray[np.uint8]
F64 = NDArray[np.float64]
EULER, CAS, INDEX = "euler", "rods-cas", "h-index"
AT_RISK = 0.2  # the share that is held at risk where no threshold was calibrated


@dataclass(frozen=True)
class Threshold:
    """The H from which an image is held at risk, and where that number comes from."""

    eps: float
    source: str


@dataclass(frozen=True)
class Pictures(Runs):
    """Runs below `folder`, one for each method of `rods.bench.methods` (with options: `rods-cas ascent_steps=5`).

    Methods without settings of their own use `settings`. Labels come from the answers of the labelling page where
    there are any, else from the task; without either there are none.
    """

    study: Study  # of the paper, whose values stand beside ours
    task: Task | None = None
    answers: Mapping[str, Path] = field(default_factory=dict)  # by method: Euler's images against its own
    eps: float | None = None
    trajectory: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        return self.snapshot.name

    @property
    def num_steps(self) -> int:
        return STEPS

    @property
    def shape(self) -> tuple[int, int, int]:
        """[C, H, W] of an image."""
        net: Any = self.snapshot.net
        return net.img_channels, net.img_resolution, net.img_resolution

    @property
    def settings(self) -> dict[str, dict[str, Any]]:
        """Of a network that nobody calibrated: every sample corrected in 10-50 % of the steps, by a rule of thumb."""
        common = {"eps": 0.0, "rho": radius(self.shape), "window": (0.1, 0.5)}
        return {**((self.task and self.task.settings) or {}), "rods-cas": common, "rods-sas": common}

    def config(self, method: str) -> SamplerConfig:
        return resolve(method, self, self.preset).config

    def job(self, method: str) -> Job:
        return replace(super().job(method), trajectory=self.trajectory)

    def path(self, method: str) -> Path:
        """A folder for these very options: other options never meet its images."""
        identity = json.dumps(self.job(method).identity(), sort_keys=True)
        name = resolve(method, self, self.preset).file_name.removesuffix(".jsonl")
        return self.folder / f"{name}-{hashlib.sha256(identity.encode()).hexdigest()[:8]}"

    def names(self) -> list[str]:
        """File names of the images, the same for every method."""
        job = self.job(EULER)
        return [name for chunk in job.chunks for name in job.names(chunk)]

    def images(self, method: str) -> U8:
        """The images of a run [N, C, H, W]."""
        return np.stack([read_png(self.path(method) / record["name"]) for record in self.records(method)])

    @property
    def index_run(self) -> str:
        """The run whose H is the detector's.

        With a threshold the index of the uncorrected run: up to its first flag an image's run is that one. Where all
        images are corrected (eps 0) that of the corrected run, on which a preset's threshold was calibrated.
        """
        return CAS if self.config(CAS).options["eps"] == 0 else INDEX

    def indices(self) -> F64:
        """The largest H of each image [N]."""
        method = self.index_run
        return np.array([largest_score(record) for record in self.records(method)])

    @cached_property
    def _answered(self) -> dict[str, Any]:
        return dict(answered_labels(self, self.answers, kind=self.study.kind)[0])

    def labels(self, method: str) -> list[Label | None]:
        """Of each image [N]; None where there is none."""
        found: Mapping[str, Label] = {}
        if self.answers:
            found = self._answered.get(method, {})
        elif self.task is not None:
            found = task_labels(self.task, self, method)
        return [found.get(name) for name in self.names()]

    def outcomes(self, method: str) -> PairedOutcomes | None:
        """The method against Euler on what both have labels for; None where that is nothing."""
        return outcomes_of(self.labels(EULER), self.labels(method))

    def threshold(self) -> Threshold:
        """What is held at risk: as given, as the preset says, else the highest fifth of these very images."""
        if self.eps is not None:
            return Threshold(self.eps, "as given")
        calibrated = super().job(CAS).risk_threshold()
        if calibrated < inf and self.preset is not None:
            return Threshold(calibrated, f"preset {self.preset.name}")
        return Threshold(float(np.quantile(self.indices(), 1 - AT_RISK)), "the highest fifth; not calibrated")

    def describe(self) -> dict[str, Any]:
        """What a figure's JSON says of its images."""
        p = self.protocol
        return {
            "network": self.name,
            "network_sha256": self.snapshot.sha256,
            "seeds": [p.seeds[0], p.seeds[-1], len(p.seeds)],
            "images": p.num,
            "seeding": "per-image" if p.per_image else "per-batch",
            "preset": self.preset.source if self.preset else None,
            "labels": self.label_source(),
        }

    def label_source(self) -> str | None:
        if self.answers:
            return "the labelling page"
        return None if self.task is None else f"the labeller of {self.task.name}"


def outcomes_of(before: Sequence[Label | None], after: Sequence[Label | None]) -> PairedOutcomes | None:
    """Labels of the same images before and after, where both are known."""
    both = [(a, b) for a, b in zip(before, after, strict=True) if a is not None and b is not None]
    if not both:
        return None
    return paired_outcomes(*(np.array(side, dtype=np.int8) for side in zip(*both, strict=True)))


def read_png(path: Path) -> U8:
    """[C, H, W]"""
    with PIL.Image.open(path) as image:
        x = np.asarray(image)
    return x[None] if x.ndim == 2 else x.transpose(2, 0, 1)
