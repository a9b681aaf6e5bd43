"""Image data sets in EDM's format: a folder or a zip of equal, square images with an optional dataset.json."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from torch import Tensor

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp"}


class ImageDataset:
    """Images as uint8 [C, H, W] and, with `cond`, labels as float32 [L] (one-hot for integer classes).

    Images are decoded on first use and kept when `cache` is on. Order is by name, so the same files give the same
    indices everywhere.

    Raises:
        ValueError: no such path, no images, images of several sizes or modes, missing or uneven labels.
    """

    def __init__(
        self, path: str | Path, *, cond: bool = False, max_size: int | None = None, cache: bool = True
    ) -> None:
        self.path = Path(path)
        self._zip: zipfile.ZipFile | None = None
        self._open_container()
        self._names = sorted(n for n in self._list_files() if _is_image(n))[:max_size]
        if not self._names:
            raise ValueError(
                f"--data={path} holds no images ({', '.join(sorted(SUFFIXES))}); make it with dataset_tool.py"
            )
        self._cache: dict[int, np.ndarray] | None = {} if cache else None
        self._shape: tuple[int, ...] | None = None
        self.num_channels, self.resolution = self.image(0).shape[:2]
        self._labels = self._read_labels() if cond else np.zeros([len(self), 0], dtype=np.float32)
        self.label_dim = self._labels.shape[1]

    @property
    def name(self) -> str:
        return self.path.stem

    def __len__(self) -> int:
        return len(self._names)

    def image(self, index: int) -> np.ndarray:
        """uint8 [C, H, W]; grey images have C = 1, all others C = 3."""
        if self._cache is not None and index in self._cache:
            return self._cache[index]
        name = self._names[index]
        image = _decode(self._read(name), f"{self.path}:{name}")
        if self._shape is None:
            if image.shape[1] != image.shape[2]:
                raise ValueError(
                    f"{self.path}:{name} is {image.shape[2]}x{image.shape[1]}, not square; run dataset_tool.py"
                )
            self._shape = image.shape
        if image.shape != self._shape:
            raise ValueError(
                f"{self.path}:{name} has shape {image.shape}, the first image {self._shape}; run dataset_tool.py"
            )
        if self._cache is not None:
            self._cache[index] = image
        return image

    def label(self, index: int) -> np.ndarray:
        """float32 [label_dim]"""
        return self._labels[index]

    def batch(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """(images uint8 [B, C, H, W], labels float32 [B, L])"""
        images = np.stack([self.image(i) for i in indices])
        return torch.from_numpy(images), torch.from_numpy(self._labels[indices])

    def _open_container(self) -> None:
        if not self.path.exists():
            raise ValueError(f"--data={self.path} does not exist; name a folder or a zip of images")
        if self.path.is_file():
            try:
                self._zip = zipfile.ZipFile(self.path)
            except zipfile.BadZipFile:
                raise ValueError(f"--data={self.path} is no readable zip; make it again with dataset_tool.py") from None

    def _list_files(self) -> list[str]:
        if self._zip is not None:
            return self._zip.namelist()
        return [p.relative_to(self.path).as_posix() for p in self.path.rglob("*") if p.is_file()]

    def _read(self, name: str) -> bytes:
        return self._zip.read(name) if self._zip is not None else (self.path / name).read_bytes()

    def _read_labels(self) -> np.ndarray:
        if "dataset.json" not in self._list_files():
            raise ValueError(f"--cond=1 needs labels, but {self.path} has no dataset.json; use --cond=0")
        table = dict(json.loads(self._read("dataset.json")).get("labels") or [])
        missing = [n for n in self._names if n not in table]
        if missing:
            raise ValueError(
                f"dataset.json of {self.path} has no label for {missing[0]}; label every image or --cond=0"
            )
        labels = np.array([table[n] for n in self._names])
        if labels.ndim == 1:
            return np.eye(int(labels.max()) + 1, dtype=np.float32)[labels.astype(np.int64)]
        return labels.astype(np.float32)


def _is_image(name: str) -> bool:
    path = Path(name)
    return path.suffix.lower() in SUFFIXES and not any(part.startswith(".") for part in path.parts)


def _decode(data: bytes, where: str) -> np.ndarray:
    try:
        image: PIL.Image.Image = PIL.Image.open(io.BytesIO(data))
        image = image.convert("L" if image.mode in ("1", "L") else "RGB") if image.mode != "RGBA" else image
    except (PIL.UnidentifiedImageError, OSError) as e:
        raise ValueError(f"{where} cannot be decoded ({e}); remove it or make the data set again") from None
    if image.mode == "RGBA":
        raise ValueError(f"{where} has an alpha channel; flatten it with dataset_tool.py")
    array = np.array(image)  # a copy: the view would keep Pillow's file and decoder alive in the cache
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
