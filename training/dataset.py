"""Image data sets in EDM's format, as training reads them: equal, square images in memory, with their labels."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dnnlib.errors import UserError, shown
from training.datasets.files import LABELS_NAME, ImageFiles, label_array
from training.datasets.images import open_image


class ImageDataset:
    """Images as uint8 [C, H, W] and, with `cond`, labels as float32 [L] (one-hot for integer classes).

    Order is by name, so the same files give the same indices everywhere. Images are decoded on first use and, with
    `cache`, kept in memory (C H W bytes each).

    Args:
        option: the option that named `path`, for messages.
        labels_needed: why `cond`, where that is no option of the command.
    Raises:
        UserError: no such path, no images, one that cannot be decoded or is not 8-bit grey or RGB, images of several
            shapes, labels that are missing, of several kinds, or leave out a class.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        cond: bool = False,
        cache: bool = True,
        option: str = "--data",
        labels_needed: str = "",
    ) -> None:
        self.path = Path(path)
        self._files = ImageFiles(self.path, option=option)
        self._names = self._files.names
        self._cache: dict[int, np.ndarray] | None = {} if cache else None
        self._shape: tuple[int, ...] | None = None
        self.num_channels, self.resolution = self.image(0).shape[:2]
        self._labels: np.ndarray | None = None
        self.label_dim = 0
        if cond:
            remedy = f"label every image, for {labels_needed}" if labels_needed else "label every image or use --cond=0"
            self._labels, self.label_dim = self._read_labels(remedy)

    @property
    def name(self) -> str:
        """The name of the zip or folder, of characters that fit in file names."""
        return self._files.name()

    def __len__(self) -> int:
        return len(self._names)

    @property
    def cached(self) -> bool:
        """Whether decoded images are kept in memory."""
        return self._cache is not None

    @property
    def left_out(self) -> str | None:
        """What was passed over in the folder or zip and may be missed, and why."""
        return self._files.left_out() if self._files.may_be_missed() else None

    @property
    def runs(self) -> list[str]:
        """The folders of sampling runs in the folder or zip, "" for itself: their images are a network's."""
        return self._files.runs()

    @property
    def names(self) -> list[str]:
        """The images' paths in the folder or zip, in order of index."""
        return list(self._names)

    def image(self, index: int) -> np.ndarray:
        """uint8 [C, H, W]; grey images have C = 1, RGB and palette images C = 3."""
        if self._cache is not None and index in self._cache:
            return self._cache[index]
        where = f"{self._files.where}: the image {shown(self._names[index])}"
        image = _pixels(self._files.read(self._names[index]), where)
        if image.shape[1] != image.shape[2]:
            size = f"{image.shape[2]}x{image.shape[1]}"
            raise UserError(f"{where} is {size} pixels; crop all images to squares (scripts/dataset_tool.py does)")
        if self._shape not in (None, image.shape):
            raise UserError(
                f"{where} is {image.shape[1]}x{image.shape[1]}x{image.shape[0]}, and the first image is "
                f"{self.resolution}x{self.resolution}x{self.num_channels}; give all images one size and one mode"
            )
        self._shape = image.shape
        if self._cache is not None:
            self._cache[index] = image
        return image

    def batch(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """(images uint8 [B, C, H, W], labels float32 [B, L])"""
        images = torch.from_numpy(np.stack([self.image(i) for i in indices]))
        if self._labels is None:
            return images, torch.zeros(len(indices), 0)
        labels = torch.from_numpy(self._labels[indices])
        return images, torch.nn.functional.one_hot(labels, self.label_dim).float() if labels.ndim == 1 else labels

    def _read_labels(self, remedy: str) -> tuple[np.ndarray, int]:
        """(int64 [N] or float32 [N, L], L)"""
        table = self._files.labels(remedy=f"mend it: {remedy}")
        if table is None:
            lacks = f"no labels in its {LABELS_NAME}" if self._files.labels_name() else f"no {LABELS_NAME}"
            raise UserError(f"{self._files.where} has {lacks}; {remedy}")
        where = f"{LABELS_NAME} of {self._files.where}"
        if missing := [n for n in self._names if n not in table]:
            raise UserError(
                f"{where} has no label for {len(missing)} of {len(self)} images, such as {shown(missing[0])}; {remedy}"
            )
        return label_array([table[n] for n in self._names], self._names, where)


def _pixels(data: bytes, where: str) -> np.ndarray:
    """uint8 [C, H, W] of a file's bytes. A copy: a view would keep Pillow's file and decoder alive in the cache."""
    array = np.array(open_image(data, where))
    return array[None] if array.ndim == 2 else np.ascontiguousarray(array.transpose(2, 0, 1))


def data_order(n: int, *, seed: int, start: int) -> Iterator[int]:
    """Indices from image counter `start` on: every epoch its own permutation, a function of (seed, epoch) alone."""
    counter = start
    while True:
        epoch, position = divmod(counter, n)
        order = np.random.default_rng([seed, epoch]).permutation(n)
        for i in order[position:]:
            yield int(i)
            counter += 1
