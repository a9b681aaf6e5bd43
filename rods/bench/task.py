"""What the benchmark needs to know of a task: data, labeller, network, protocol. Each task is one value."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from dnnlib.errors import UserError
from rods.densities import Mixture
from rods.eval.correction import Proportion, proportion_interval
from rods.eval.labels import Label
from rods.types import Denoiser
from training.checkpoint import load_snapshot
from training.model_zoo import MODELS, find_model

if TYPE_CHECKING:
    from rods.bench.tasks.labeller_training import LabellerTraining

F64 = NDArray[np.float64]
U8 = NDArray[np.uint8]


@dataclass(frozen=True)
class LoadedNetwork:
    """A denoiser with the name and checksum that its numbers travel with."""

    denoiser: Denoiser
    name: str
    sha256: str  # of the file; of the parameters' bytes for a denoiser without one (an exact density)


@dataclass(frozen=True)
class AuditLine:
    """One line of a labeller's audit: of n images whose truth is known, how many got this label."""

    what: str  # "real data, fresh", "planted: two squares in a column"
    label: str  # "hallucinated"
    share: Proportion
    bar: float | None = None  # the share it must not exceed (real data) or must reach (planted)
    must_reach: bool = False  # which of the two

    @property
    def passes(self) -> bool:
        """Whether the share, as measured, meets the bar."""
        if self.bar is None:
            return True
        return self.share.rate >= self.bar if self.must_reach else self.share.rate <= self.bar


def audit_line(
    what: str, labels: NDArray[np.int8], label: Label, *, most: float | None = None, least: float | None = None
) -> AuditLine:
    """The share of `labels` [n] that are `label`, with its exact 95 % interval and a bar: at most, or at least."""
    share = proportion_interval(int((labels == label).sum()), len(labels))
    return AuditLine(what, label.verdict, share, most if least is None else least, must_reach=least is not None)


class Audit(Protocol):
    """The audit of a task's labeller; the defaults are the sizes that the benchmark reports."""

    def __call__(self, *, num: int = ..., num_planted: int = ...) -> Sequence[AuditLine]:
        """Labels `num` real samples that nothing was fitted to, and `num_planted` with each known error."""
        ...


@dataclass(frozen=True)
class DrawnData:
    """Data that a program draws. Image i depends on (seed, i), the resolution and the kind alone."""

    draw: Callable[[Sequence[int], int, int], U8]  # (indices, seed, resolution) -> real images [n, H, H]
    num: int  # of the set that the embedded networks were trained on
    resolutions: tuple[int, int]  # the least, which the task's networks have, and the largest


@dataclass(frozen=True)
class Task:
    """A benchmark task.

    Samples are arrays [N, C, H, W] as the sampler returns them, float64 (grid25: [N, 2, 1, 1]). Seed blocks do not
    overlap: what calibration saw, no report uses.
    """

    name: str  # as in --task
    title: str  # one line for people
    networks: Mapping[str, Callable[[], LoadedNetwork]]  # by name, the default first; loaded when asked for
    label: Callable[[F64], NDArray[np.int8]]  # [N, C, H, W] -> codes of rods.eval.labels.Label [N]
    kinds: Callable[[F64], NDArray[np.int64]] | None  # mode, class or count of each sample, -1 for none; for coverage
    num_kinds: int  # 0 where `kinds` is None
    real: Callable[[int, int], F64]  # (n, seed) -> held-out real data in the network's range; never training data;
    # fewer than n where there are no more (mnist)
    audit: Audit
    kinds_are_classes: bool = False  # a valid sample of a class-conditional network must be of the kind asked for
    is_picture: bool = True  # False: points, which have no tone and are drawn as a scatter plot
    calibration_seeds: range = range(1_000_000, 1_000_512)
    report_seeds: range = range(512)
    batch: int = 32
    num_steps: int = 40
    settings: Mapping[str, Any] | None = None  # per-task sampler defaults that no preset has, by sampler name
    faults: Callable[[F64], Sequence[str]] | None = None  # what is wrong with each sample in words, "" for nothing
    planted: Callable[[int], Mapping[str, NDArray[Any]]] | None = None  # n samples with each known error, by its name
    drawn: DrawnData | None = None  # for scripts/make_data.py; None where the data are not drawn
    labeller: Callable[[], LabellerTraining] | None = None  # how a learned labeller is trained; reads the data for it


def load_network(task: Task, name: str | None) -> LoadedNetwork:
    """The network of that name, or the task's first. UserError for one that the task does not have."""
    if name is None:
        return next(iter(task.networks.values()))()
    if name not in task.networks:
        raise UserError(f"--network={name}: {task.name} has {', '.join(task.networks)}")
    return task.networks[name]()


def embedded_network(name: str, *, made_by: str, folder: Path = MODELS) -> LoadedNetwork:
    """The network NAME.safetensors of `folder`.

    Raises UserError where there is no such file, with `made_by`, the command that makes it, or where it is damaged.
    """
    snapshot = load_snapshot(find_model(name, made_by=made_by, folder=folder))
    # A Module has the attributes of a Denoiser, which mypy cannot see: hence the cast.
    return LoadedNetwork(cast(Denoiser, snapshot.net), snapshot.name, snapshot.sha256)


def exact_network(name: str, density: Mixture) -> LoadedNetwork:
    """A density's own denoiser; the checksum is that of its parameters (mu, weights, s0 in float64)."""
    digest = hashlib.sha256()
    for array in (density.mu.numpy(), density.weights.numpy()):
        digest.update(array.astype("<f8").tobytes())
    digest.update(float(density.s0).hex().encode())
    return LoadedNetwork(cast(Denoiser, density), name, digest.hexdigest())
