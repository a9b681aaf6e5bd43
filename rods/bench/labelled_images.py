"""Labelled images to learn from: those of one run or more, each image once, uncertain ones left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dnnlib.errors import UserError, counted
from dnnlib.run_folder import OPTIONS_NAME
from rods.base_samplers import Euler
from rods.bench.labelled import LabelledRun, is_finite, read_run
from rods.config import to_json
from rods.eval.labels import Label
from rods.types import Denoiser

U8 = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """Images of a network and whether each is hallucinated."""

    images: U8  # [N, C, H, W]
    bad: NDArray[np.bool_]  # [N]
    source: str  # where they are from, in words
    classes: tuple[int | None, ...] = ()  # [N], of a network with classes
    seeds: tuple[int | None, ...] = ()  # [N] that Euler's method of this network draws them from; None: it does not

    def class_labels(self, net: Denoiser) -> Tensor | None:
        """One-hot labels [N, label_dim] of a network with classes, else None. UserError: the run has no classes."""
        if not net.label_dim:
            return None
        if None in self.classes or len(self.classes) != len(self.images):
            raise UserError("--run: the network has classes, and the records of the run have none; sample it again")
        return torch.eye(net.label_dim)[list(self.classes)]

    def drawn_again(self) -> LabelledImages | None:
        """The images that Euler's method draws from their seeds; None where it draws fewer than half of them."""
        index = [i for i, seed in enumerate(self.seeds) if seed is not None]
        return self.at(index) if 2 * len(index) >= len(self.images) else None

    def at(self, index: Sequence[int]) -> LabelledImages:
        """The images at these places."""
        classes, seeds = ([part[i] for i in index] for part in (self.classes, self.seeds))
        return LabelledImages(self.images[index], self.bad[index], self.source, tuple(classes), tuple(seeds))

    def counts(self) -> str:
        return f"{counted(len(self.bad), 'label')}, {int(self.bad.sum())} hallucinated"


def of_run(run: LabelledRun, sha256: str, source: str, *, option: str, sampler: Euler | None = None) -> LabelledImages:
    """The images of a labelled run, without those whose label is uncertain and those that are not finite.

    `sha256` is the network's; `sampler` is what may draw them again from their seeds. Raises UserError: points, a run
    of another network, or an image that is missing.
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
    seeds = tuple(seed_of(run.options, run.samples[i], sampler) if sampler and own else None for i in index)
    return LabelledImages(np.stack(images), run.labels[index] == Label.HALLUCINATED, source, classes, seeds)


def seed_of(options: Mapping[str, Any], line: Mapping[str, Any], sampler: Euler) -> int | None:
    """The seed from which Euler's method on this grid draws an image of a run again; None where it draws another.

    Of a run of Euler's method, or a restart's image that was not replaced; of single images in float32, unguided.
    """
    grid = all(options.get(key) == value for key, value in to_json(sampler).items() if key != "sampler")
    by_euler = options.get("sampler") == "euler" or (options.get("sampler"), options.get("solver")) == (
        "restart",
        "euler",
    )
    plain = options.get("rows_per_seed", 1) == 1 and options.get("dtype", "float32") == "float32"
    plain = plain and options.get("class") is None and "guide" not in options
    first = all(line.get(key, {}).get("kept", 0) == 0 for key in ("restart", "tries"))
    return int(line["seed"]) if grid and by_euler and plain and first else None


def of_runs(paths: Sequence[Path], labels: str | None, sha256: str, sampler: Euler) -> LabelledImages:
    """The labelled images of several runs, pooled: equal images count once. `labels` is whose, or a file of labels."""
    parts = [
        of_run(read_run(path, source=labels), sha256, str(path), option=f"--run={path}", sampler=sampler)
        for path in paths
    ]
    if len({part.images.shape[1:] for part in parts}) > 1:
        raise UserError(f"--run={paths[-1]}: its images have another size than those of the other runs")
    images = np.concatenate([part.images for part in parts])
    bad, classes = np.concatenate([part.bad for part in parts]), [c for part in parts for c in part.classes]
    once = sorted({image.tobytes(): i for i, image in reversed(list(enumerate(images)))}.values())
    source = f"{counted(len(once), 'image')} of {', '.join(path.name for path in paths)}"
    seeds = tuple(seed for part in parts for seed in part.seeds)
    return LabelledImages(images, bad, source, tuple(classes), seeds).at(once)


def runs_of(paths: Sequence[Path], labels: str | None) -> list[Path]:
    """The run folders that are meant: those given, or the one in which the file of labels lies. UserError: none."""
    if paths or labels is None:
        return list(paths)
    folder = Path(labels).parent
    if Path(labels).is_file() and (folder / OPTIONS_NAME).is_file():
        return [folder]
    raise UserError(f"--labels={labels}: give the folder of the images that it labels, by --run=DIR")
