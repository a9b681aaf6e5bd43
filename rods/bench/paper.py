"""The paper's experiment on any network: run folders of several methods on the same seeds, and their labels."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dnnlib.errors import UserError
from rods.base_samplers import Sampler
from rods.bench.methods import Method, resolve, split_methods
from rods.bench.paper_values import BATCH, STEPS, STUDIES, Study, study_of
from rods.bench.task import Task
from rods.bench.tasks import TASKS
from rods.config import to_json
from rods.eval.correction import PairedOutcomes, paired_outcomes
from rods.eval.labels import Label
from rods.labels.agreement import codes, people_in, verdicts
from rods.labels.folders import Folder, read_folder
from rods.labels.growing_file import Line
from rods.labels.labels import ImageLabel, settle
from rods.labels.old_answers import read_any
from rods.presets import PAPER_PRESETS, Preset
from rods.runs.chunk import cut_chunks
from rods.runs.decode import check_channels, open_network
from rods.runs.folder import OutputFolder
from rods.runs.images import U8, read_png
from rods.runs.presets import find_preset
from rods.runs.records import largest_score
from rods.runs.run import Job, run_chunks
from rods.runs.snapshot_grid import radius
from training.checkpoint import Snapshot
from training.header import tool_version
from training.model_zoo import MODELS

EULER, CAS, INDEX = "euler", "rods-cas", "h-index"
OWN_BATCH = 32  # of networks that are not the paper's
FLAGGED = 0.2  # the share of the images that is flagged where no threshold was calibrated


@dataclass(frozen=True)
class Usual:
    """What is sampled where nothing else is asked for."""

    study: str  # of the paper
    network: str  # of ours
    images: int  # of ours
    batches: int | None = None  # of the paper; None: all of its seeds
    trajectory: tuple[int, ...] = ()  # steps of which strips are kept


@dataclass(frozen=True)
class Experiment:
    """Runs of several methods (`rods.bench.methods`, with options: `rods-cas ascent_steps=5`) on the same seeds.

    Their folders are those of generate.py, one for each method below `folder`. RODS has the settings of the preset,
    else those of a rule of thumb. Labels are those of `answers`, files of the labelling page by method, each of Euler's
    images against the method's; else those of the labeller of the network's task; without either there are none.
    """

    folder: Path
    snapshot: Snapshot
    preset: Preset | None
    study: Study  # of the paper, whose values stand beside ours
    task: Task | None
    seeds: tuple[int, ...]
    batch: int
    per_batch: bool  # a seed draws a whole batch, as in the paper
    device: torch.device
    answers: Mapping[str, Path] = field(default_factory=dict)
    eps: float | None = None  # H from which an image is flagged; None: see `threshold`
    trajectory: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        return self.snapshot.name

    @property
    def num(self) -> int:
        """How many images a method makes."""
        return len(self.seeds) * (self.batch if self.per_batch else 1)

    @property
    def num_steps(self) -> int:
        return STEPS

    @property
    def settings(self) -> dict[str, dict[str, Any]]:
        """Of samplers that the preset does not have: RODS corrects every image in 10-50 % of the steps."""
        net: Any = self.snapshot.net
        rule = {
            "eps": 0.0,
            "rho": radius((net.img_channels, net.img_resolution, net.img_resolution)),
            "window": (0.1, 0.5),
        }
        return {**((self.task and self.task.settings) or {}), "rods-cas": rule, "rods-sas": rule}

    def sampler(self, method: str) -> Sampler:
        """Raises UserError: an unknown method, an option that it does not have, a sampler without settings."""
        return self.method(method).sampler

    def method(self, text: str) -> Method:
        """A method with its options, such as `rods-cas eps=inf`."""
        ((name, given),) = split_methods(text)
        return resolve(name, self, self.preset, given=given, name=text)

    def path(self, method: str) -> Path:
        name = self.method(method).folder
        return self.folder / (f"{name}-trajectories" if self.trajectory else name)

    def job(self, method: str) -> Job:
        sampler = self.sampler(method)
        return Job(
            denoiser=self.snapshot.net,
            network_sha256=self.snapshot.sha256,
            sampler=sampler,
            chunks=cut_chunks(self.seeds, batch=self.batch, per_batch=self.per_batch),
            batch=self.batch,
            device=self.device,
            threads=torch.get_num_threads() if self.device.type == "cpu" else None,
            detect_eps=self.preset.risk_threshold(sampler) if self.preset else None,
            trajectory=self.trajectory,
        )

    def check(self, methods: Sequence[str]) -> None:
        """Raises UserError now for whatever would be wrong with these methods later."""
        check_channels(self.snapshot.net, option="--network")
        for method in methods:
            OutputFolder(self.path(method), identity=self.job(method).identity(), option="--out")

    def sample(self, methods: Sequence[str], *, say: Callable[[str], object]) -> None:
        """Makes what is missing of every method's images."""
        for method in methods:
            job = self.job(method)
            folder = OutputFolder(self.path(method), identity=job.identity(), option="--out")
            about = {"network": self.snapshot.describe(), "torch": torch.__version__, "version": tool_version()}
            with folder.open(about):
                if missing := [c for c in job.chunks if not folder.is_done(job.names(c))]:
                    say(f"{method}: {len(missing)} of {len(job.chunks)} batches to sample")
                run_chunks(job, folder, show_progress=True)
                folder.finish()

    def names(self) -> list[str]:
        """File names of the images, the same for every method."""
        job = self.job(EULER)
        return [name for chunk in job.chunks for name in job.names(chunk)]

    def records(self, method: str) -> list[dict[str, Any]]:
        """One record per image [N]. Raises UserError where an image could not be made."""
        path = self.path(method) / "samples.jsonl"
        found = {line["name"]: line for line in map(json.loads, path.read_text().splitlines()) if line["sha256"]}
        if missing := [name for name in self.names() if name not in found]:
            raise UserError(f"{path} lacks {missing[0]}; if sampling failed on it, leave its seed out of --seeds")
        return [found[name] for name in self.names()]

    def images(self, method: str) -> U8:
        """The images of a run [N, C, H, W]."""
        return np.stack([read_png(self.path(method) / name) for name in self.names()])

    def scores(self, method: str) -> NDArray[np.float64]:
        """The largest H of each image of a run [N]."""
        return np.array([largest_score(record) for record in self.records(method)])

    @property
    def index_run(self) -> str:
        """The run whose H is the detector's: Euler's own, or the corrected one where all images are corrected.

        A threshold was calibrated on the latter there. Up to its first flag an image's corrected run is Euler's.
        """
        return CAS if getattr(self.sampler(CAS), "eps", None) == 0 else INDEX

    def threshold(self, run: str) -> tuple[float, str]:
        """(H from which an image is flagged, where that number comes from); where from H itself, the H of that run."""
        if self.eps is not None:
            return self.eps, "as given"
        calibrated = self.job(CAS).risk_threshold()
        if calibrated < inf and self.preset is not None:
            return calibrated, f"preset {self.preset.name}"
        return float(np.quantile(self.scores(run), 1 - FLAGGED)), "the highest fifth; not calibrated"

    def _folder(self, method: str) -> Folder:
        return read_folder(self.path(method), option="--out")

    def _lines(self, method: str) -> list[Line]:
        """The lines of the file of answers on Euler's images against this method's."""
        return read_any(self.answers[method], {"A": self._folder(EULER), "B": self._folder(method)})

    @cached_property
    def _settled(self) -> dict[str, ImageLabel]:
        """What people say of an image, by its checksum: that on which all raters of a file, and all files, agree."""
        return settle(label for method in self.answers for label in settle(people_in(self._lines(method))).values())

    def labels(self, method: str) -> list[Label | None]:
        """Of each image [N]; None where there is none.

        People's labels belong to image files: an image of a method that is the same file as Euler's has its label.
        """
        if not self.answers:
            if self.task is None:
                return [None] * self.num
            return list(map(Label, self.task.label(self.images(method) / 127.5 - 1).tolist()))
        labels = codes(self._settled, self._folder(method).sums)
        return [labels.get(name) for name in self.names()]

    def answers_to_euler(self) -> dict[str, str]:
        """What people said of Euler's images, in their words, by name."""
        found = {name: self._settled.get(checksum) for name, checksum in self._folder(EULER).sums.items()}
        return {name: label.answer for name, label in found.items() if label and label.answer}

    def judged(self, method: str) -> dict[str, int]:
        """How many pairs people found better, worse, the same, unclear; empty where nobody judged."""
        if method not in self.answers:
            return {}
        return verdicts(self._lines(method), self._folder(EULER).sums, self._folder(method).sums)[0]

    def outcomes(self, method: str) -> PairedOutcomes | None:
        """The method against Euler on what both have labels for; None where that is nothing."""
        pairs = zip(self.labels(EULER), self.labels(method), strict=True)
        both = [(a, b) for a, b in pairs if a is not None and b is not None]
        return paired_outcomes(*(np.array(side, dtype=np.int8) for side in zip(*both, strict=True))) if both else None

    def describe(self) -> dict[str, Any]:
        """What the JSON beside a table or figure says of its images."""
        return {
            "network": self.name,
            "network_sha256": self.snapshot.sha256,
            "study": self.study.name,
            "seeds": [self.seeds[0], self.seeds[-1], len(self.seeds)],
            "batch": self.batch,
            "seeding": "per-batch" if self.per_batch else "per-image",
            "preset": self.preset.source if self.preset else None,
            "labels": self.label_source(),
        }

    def label_source(self) -> str | None:
        if self.answers:
            return "the labelling page"
        return None if self.task is None else f"the labeller of {self.task.name}"

    def rods_settings(self) -> str:
        """RODS-CAS's settings and their source, in words."""
        options = to_json(self.sampler(CAS))
        known = self.preset is not None and CAS in self.preset.samplers
        source = f"preset {self.preset.name}" if self.preset is not None and known else "a rule of thumb"
        return f"rho {options['rho']:g}, window {options['window']}, eps {float(options['eps']):g}, by {source}"


def open_experiment(
    network: str | Path, usual: Usual, *, preset: str | None, out: Path, device: torch.device
) -> Experiment:
    """The usual experiment on `network`, below `out`/samples; nothing is sampled yet.

    A network of the paper draws a batch from each of the paper's seeds, and stands beside its own values in the paper;
    any other draws an image from each of a few seeds, and stands beside those of the usual study.
    Raises UserError: no such network or preset.
    """
    snapshot = open_network(network, device=device)
    found = find_preset(preset, network=snapshot.name, folder=MODELS, source=snapshot.source)
    is_paper = found is not None and found.name in PAPER_PRESETS
    study = study_of(snapshot.name) if is_paper else STUDIES[usual.study]
    return Experiment(
        folder=out / "samples" / snapshot.name,
        snapshot=snapshot,
        preset=found,
        study=study,
        task=task_of(snapshot.name),
        seeds=tuple(study.seeds[: usual.batches] if is_paper else range(usual.images)),
        batch=BATCH if is_paper else OWN_BATCH,
        per_batch=is_paper,
        device=device,
        trajectory=usual.trajectory,
    )


def task_of(network: str) -> Task | None:
    """The benchmark's task of an embedded network: its labeller, its real data. None for other networks."""
    return next((task for make in TASKS.values() if network in (task := make()).networks), None)
