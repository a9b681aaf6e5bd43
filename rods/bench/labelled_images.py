"""Labelled images to learn from: those of one run or more, each image once, uncertain ones left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dnnlib.cli import check_once
from dnnlib.errors import UserError, counted
from dnnlib.run_folder import OPTIONS_NAME
from rods.bench.labelled import LabelledRun, is_finite, read_run
from rods.eval.labels import Label
from rods.labels.labels import named_file
from rods.runs.images import stacked
from rods.types import Denoiser

U8 = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """Images of a network and whether each is hallucinated."""

    images: U8  # [N, C, H, W]
    bad: NDArray[np.bool_]  # [N]
    source: str  # where they are from, in words
    classes: tuple[int | None, ...] = ()  # [N], of a network with classes

    def class_labels(self, net: Denoiser) -> Tensor | None:
        """One-hot labels [N, label_dim] of a network with classes, else None. UserError: the run has no classes."""
        if not net.label_dim:
            return None
        if None in self.classes or len(self.classes) != len(self.images):
            raise UserError("--run: the network has classes, and the records of the run have none; sample it again")
        return torch.eye(net.label_dim)[list(self.classes)]

    def counts(self) -> str:
        return f"{counted(len(self.bad), 'label')}, {int(self.bad.sum())} hallucinated"


def of_run(run: LabelledRun, sha256: str, source: str, *, option: str) -> LabelledImages:
    """The images of a labelled run, without those whose label is uncertain and those that are not finite.

    `sha256` is the network's. Raises UserError: points, a run of another network, or an image that is missing.
    """
    if run.is_points:
        raise UserError(f"{option}: its samples are points, whose network has no layers to read; use a run of images")
    own = run.options.get("network_sha256")
    if own and own != sha256:
        raise UserError(
            f"{option} was sampled by another network (checksum {own[:12]}, not {sha256[:12]}); give that one by "
            "--network"
        )
    index = [i for i, line in enumerate(run.samples) if is_finite(line) and run.labels[i] != Label.UNCERTAIN]
    images = []
    for i in index:
        if (image := run.image(i)) is None:
            missing = run.samples[i]["name"]
            raise UserError(f"{option}: {missing} is missing; sample the run again by the command that made it")
        images.append(image)
    if not images:
        raise UserError(f"{option}: no image is labelled valid or hallucinated; label more")
    classes = tuple(run.samples[i].get("class") for i in index)
    return LabelledImages(stacked(images, of=option), run.labels[index] == Label.HALLUCINATED, source, classes)


def of_runs(paths: Sequence[Path], labels: str | None, sha256: str) -> LabelledImages:
    """The labelled images of several runs, pooled. `labels` is whose, or a file of labels.

    Equal images count once, and not at all where the runs' labels of them differ.
    """
    parts = [of_run(read_run(path, source=labels), sha256, str(path), option=f"--run={path}") for path in paths]
    if len({part.images.shape[1:] for part in parts}) > 1:
        raise UserError(f"--run={paths[-1]}: its images have another size than those of the other runs")
    images = np.concatenate([part.images for part in parts])
    bad, classes = np.concatenate([part.bad for part in parts]), [c for part in parts for c in part.classes]
    said: dict[bytes, set[bool]] = {}
    for image, is_bad in zip(images, bad.tolist(), strict=True):
        said.setdefault(image.tobytes(), set()).add(is_bad)
    once = sorted({image.tobytes(): i for i, image in reversed(list(enumerate(images)))}.values())
    once = [i for i in once if len(said[images[i].tobytes()]) == 1]
    source = f"{counted(len(once), 'image')} of {', '.join(path.name for path in paths)}"
    return LabelledImages(images[once], bad[once], source, tuple(classes[i] for i in once))


def runs_of(paths: Sequence[Path], labels: str | None) -> list[Path]:
    """The run folders that are meant: those given, or the one in which the file of labels lies. UserError: none."""
    check_once(paths, option="--run=")
    if paths or labels is None:
        return list(paths)
    if (file := named_file(labels)) and ((folder := file[0].parent) / OPTIONS_NAME).is_file():
        return [folder]
    if file is None and Path(labels.rpartition(":")[0] or labels).suffix:
        raise UserError(f"--labels={labels}: there is no such file; check the path, and give --run=DIR")
    raise UserError(f"--labels={labels}: give the folder of the images that it labels, by --run=DIR")
