"""Real images as --real names them: no samples of a network among them, and some of many with every class in them."""

from __future__ import annotations

import numpy as np

from dnnlib.errors import UserError, shown
from training.dataset import ImageDataset


def open_real(path: str, *, cond: bool = False, labels_needed: str = "") -> ImageDataset:
    """The images of a folder or zip. Arguments and errors as `ImageDataset`; UserError also where a run lies in it."""
    dataset = ImageDataset(path, cond=cond, cache=False, option="--real", labels_needed=labels_needed)
    if runs := dataset.runs:
        where = f"{shown(runs[0])} in it is" if runs[0] else "that is"
        raise UserError(
            f"--real={path}: {where} a run of generate.py, whose images are samples; give real images alone"
        )
    return dataset


def some_of(count: int, most: int) -> list[int]:
    """Which of `count` images are read, where that is more than `most`: any, for the first may be of one class."""
    if count <= most:
        return list(range(count))
    return sorted(np.random.default_rng(0).choice(count, most, replace=False).tolist())
