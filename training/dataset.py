"""Image data sets in EDM's format: a folder or a zip of equal, square images with an optional dataset.json."""

from __future__ import annotations

import io
import json
import math
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageOps
import torch
from torch import Tensor

from dnnlib.errors import UserError, shown

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp"}
MODES = {"1": "L", "L": "L", "P": "RGB", "RGB": "RGB"}  # Pillow's modes that become grey or RGB without a loss


class ImageDataset:
    """Images as uint8 [C, H, W] and, with `cond`, labels as float32 [L] (one-hot for integer classes).

    Order is by name, so the same files give the same indices everywhere. Images are decoded on first use and, with
    `cache`, kept in memory (C H W bytes each).

    Raises:
        UserError: no such path, no images, one that cannot be decoded or is not 8-bit grey or RGB, images of several
            shapes, labels that are missing, of several kinds, or leave out a class.
    """

    def __init__(self, path: str | Path, *, cond: bool = False, cache: bool = True) -> None:
        self.path = Path(path)
        self._zip = _open_zip(self.path)
        self._files = self._list_files()
        self._names = sorted(n for n in self._files if _is_image(n))
        if not self._names:
            raise UserError(
                f"--data={path} holds no images ({', '.join(sorted(SUFFIXES))}); name another zip or folder"
            )
        self._cache: dict[int, np.ndarray] | None = {} if cache else None
        self._shape: tuple[int, ...] | None = None
        self.num_channels, self.resolution = self.image(0).shape[:2]
        self._labels: np.ndarray | None = None
        self.label_dim = 0
        if cond:
            self._labels, self.label_dim = self._read_labels()

    @property
    def name(self) -> str:
        """The name of the zip or folder, of characters that fit in file names."""
        path = self.path.resolve()
        return re.sub(r"[^\w.-]+", "_", path.stem if self._zip else path.name) or "data"

    def __len__(self) -> int:
        return len(self._names)

    @property
    def names(self) -> list[str]:
        """The images' paths in the folder or zip, in order of index."""
        return list(self._names)

    def image(self, index: int) -> np.ndarray:
        """uint8 [C, H, W]; grey images have C = 1, RGB and palette images C = 3."""
        if self._cache is not None and index in self._cache:
            return self._cache[index]
        where = f"--data={self.path}: the image {shown(self._names[index])}"
        image = _decode(self._read(self._names[index]), where)
        if image.shape[1] != image.shape[2]:
            raise UserError(f"{where} is {image.shape[2]}x{image.shape[1]} pixels; crop all images to squares")
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

    def _list_files(self) -> set[str]:
        if self._zip is not None:
            return set(self._zip.namelist())
        return {p.relative_to(self.path).as_posix() for p in self.path.rglob("*") if p.is_file()}

    def _read(self, name: str) -> bytes:
        if self._zip is None:
            return (self.path / name).read_bytes()
        try:
            return self._zip.read(name)
        except Exception as e:  # besides BadZipFile: zlib's errors, RuntimeError (a password), NotImplementedError, ...
            raise UserError(
                f"--data={self.path} is damaged: {shown(name)} cannot be read ({shown(str(e))}); make the zip again"
            ) from None

    def _read_labels(self) -> tuple[np.ndarray, int]:
        """(int64 [N] or float32 [N, L], L)"""
        if "dataset.json" not in self._files:
            raise UserError(f"--cond=1 needs labels, and --data={self.path} has no dataset.json; use --cond=0")
        where = f"dataset.json of --data={self.path}"
        table = _label_table(self._read("dataset.json"), where)
        if missing := [n for n in self._names if n not in table]:
            raise UserError(
                f"{where} has no label for {len(missing)} of {len(self)} images, such as {shown(missing[0])}; "
                "label every image or use --cond=0"
            )
        return _label_array([table[n] for n in self._names], self._names, where)


def _open_zip(path: Path) -> zipfile.ZipFile | None:
    """The zip at `path`, or None for a folder."""
    if not path.exists():
        raise UserError(f"--data={path} does not exist; name a folder or a zip of images")
    if path.is_dir():
        return None
    try:
        return zipfile.ZipFile(path)
    except zipfile.BadZipFile:
        raise UserError(f"--data={path} is no readable zip; make it again, or name a folder or zip of images") from None


def _label_table(text: bytes, where: str) -> Mapping[str, Any]:
    """{name: label} of a dataset.json."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise UserError(f"{where} is not JSON ({shown(str(e))}); mend it or use --cond=0") from None
    match content:
        case {"labels": [*entries]} if entries and all(_is_entry(e) for e in entries):
            return dict(entries)
    raise UserError(f'{where} holds no {{"labels": [["NAME.png", LABEL], ...]}}; mend it or use --cond=0')


def _is_entry(entry: object) -> bool:
    return isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str)


def _label_array(labels: list[Any], names: list[str], where: str) -> tuple[np.ndarray, int]:
    """(classes int64 [N], their number) or (vectors float32 [N, L], L)."""
    if _is_vector(labels[0]):
        for name, label in zip(names, labels, strict=True):
            if not _is_vector(label) or len(label) != len(labels[0]):
                raise UserError(f"{where}: {shown(name)} has no vector of {len(labels[0])} numbers as the first image")
        return np.array(labels, dtype=np.float32), len(labels[0])
    for name, label in zip(names, labels, strict=True):
        if type(label) is not int or label < 0:  # a bool is an int to isinstance
            raise UserError(
                f"{where}: the label {shown(label)} of {shown(name)} is no class; "
                "label images with whole numbers from 0, or with lists of numbers"
            )
    classes = set(labels)
    if max(classes) >= len(classes):
        gap = next(c for c in range(len(classes)) if c not in classes)
        raise UserError(
            f"{where}: no image has class {gap}, and some have class {max(classes)}; number classes 0 to n-1"
        )
    return np.array(labels, dtype=np.int64), len(classes)


def _is_vector(label: object) -> bool:
    return (
        isinstance(label, list)
        and len(label) > 0
        and all(isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in label)
    )


def _is_image(name: str) -> bool:
    path = Path(name)
    return path.suffix.lower() in SUFFIXES and not any(part.startswith(".") for part in path.parts)


def _decode(data: bytes, where: str) -> np.ndarray:
    """uint8 [C, H, W], upright. What could not be converted without a loss is refused."""
    if data[:8] == b"\x89PNG\r\n\x1a\n" and data[24:25] == b"\x10":  # Pillow would drop half of the bits in silence
        raise UserError(f"{where} has 16 bits per channel; convert all images to 8")
    try:
        image = PIL.Image.open(io.BytesIO(data))
        mode = "with transparency" if image.mode in MODES and "transparency" in image.info else image.mode
        if mode in MODES:
            upright = PIL.ImageOps.exif_transpose(image).convert(MODES[mode])
            array = np.array(upright)  # a copy: the view would keep Pillow's file and decoder alive in the cache
    except Exception as e:  # decoders of damaged files raise nearly anything: OSError, SyntaxError, struct.error, ...
        reason = "unknown format" if isinstance(e, PIL.UnidentifiedImageError) else str(e)
        raise UserError(f"{where} cannot be decoded ({shown(reason)}); remove or replace it") from None
    if mode not in MODES:
        raise UserError(f"{where} has Pillow's mode {mode}; convert all images to 8-bit grey or RGB without alpha")
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
