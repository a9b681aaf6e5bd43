"""Writes data sets in EDM's format: a zip or a folder of PNGs that appears when it is complete."""

from __future__ import annotations

import io
import json
import os
import secrets
import shutil
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import PIL.Image
from PIL.Image import Image

from dnnlib.errors import UserError, counted, shown
from dnnlib.util import atomic_write
from training.datasets.files import LABELS_NAME, is_class, is_vector
from training.datasets.images import encode_png

Label = int | list[float] | None

DATE = (1980, 1, 1, 0, 0, 0)  # the same images give the same file


class DatasetWriter:
    """Takes images one by one: `00000/img00000000.png` is the first, and `dataset.json` is written if they have labels.

    All images have one size and one mode, and all are labelled (classes, or vectors of one length) or none is. What is
    kept in memory is a label and an entry of the zip's directory for each image (about 700 bytes).
    """

    def __init__(self, put: Callable[[str, bytes], None], where: str) -> None:
        self._put_file, self._where = put, where
        self._first: tuple[str, str] | None = None  # the shape and kind of label of the first image
        self._labels: list[Label] = []
        self.num = 0

    def add(self, image: Image, label: Label = None, *, source: str = "") -> None:
        """Writes an image of Pillow's mode L or RGB. `source` is what errors call it; its number by default.

        Raises UserError: it differs from the first image in size, mode or kind of label.
        """
        self.add_png(encode_png(image), label, source=source)

    def add_png(self, png: bytes, label: Label = None, *, source: str = "") -> None:
        """Writes an image that is PNG already, as `add` does."""
        header = PIL.Image.open(io.BytesIO(png))
        image = f"{self._where}: the image {shown(source or str(self.num))}"
        self._check(f"{header.width}x{header.height} {_mode_name(header.mode)}", _kind_of(label, image), image)
        self._put(_name(self.num), png)
        self._labels.append(label)
        self.num += 1

    def finish(self, label_names: Sequence[str]) -> None:
        """Writes the labels. Raises UserError for a set without images."""
        if self._first is None:
            raise UserError(f"{self._where} would hold no images: nothing was selected")
        if self._first[1] != "no labels":
            content: dict[str, object] = {"labels": [[_name(i), label] for i, label in enumerate(self._labels)]}
            if label_names:
                content["label_names"] = list(label_names)
            self._put(LABELS_NAME, json.dumps(content).encode())

    def summary(self) -> str:
        """What was written, in a line: number, size, mode, classes."""
        if self._first is None:
            return "no images"
        shape, kind = self._first
        labels = self._classes() if kind == "a class" else kind.removeprefix("a ")
        return f"{counted(self.num, 'image')}, {shape}, {labels}"

    def _put(self, name: str, content: bytes) -> None:
        try:
            self._put_file(name, content)
        except OSError as e:
            raise _cannot_write(self._where, e) from e

    def _classes(self) -> str:
        counts = Counter(label for label in self._labels if isinstance(label, int))
        few, many = min(counts.values()), max(counts.values())
        sizes = f"{counted(few, 'image')} each" if few == many else f"{few} to {many} images each"
        empty = next((c for c in range(max(counts) + 1) if c not in counts), None)
        gap = "" if empty is None else f"; no image has class {empty}, so train.py --cond=1 will refuse them"
        return f"{len(counts)} class{'es' if len(counts) > 1 else ''}, {sizes}{gap}"

    def _check(self, shape: str, kind: str, image: str) -> None:
        if self._first is None:
            self._first = (shape, kind)
        if shape != self._first[0]:
            raise UserError(
                f"{image} is {shape}, and the first one is {self._first[0]}; give all one size and one mode"
            )
        if kind != self._first[1]:
            raise UserError(f"{image} has {kind}, and the first one has {self._first[1]}; label all alike or none")


def _name(i: int) -> str:
    return f"{i // 1000:05d}/img{i:08d}.png"


def _mode_name(mode: str) -> str:
    if mode not in ("L", "RGB"):
        raise ValueError(f"DatasetWriter takes images of mode L and RGB, not {mode}")
    return "grey" if mode == "L" else "RGB"


def _kind_of(label: Label, image: str) -> str:
    if label is None:
        return "no labels"
    if is_class(label):
        return "a class"
    if not isinstance(label, list) or not is_vector(label):
        raise UserError(f"{image} has the label {shown(label)}; label with whole numbers from 0 or lists of numbers")
    return f"a vector of {len(label)} numbers"


@contextmanager
def write_dataset(dest: Path, *, option: str = "--dest", label_names: Sequence[str] = ()) -> Iterator[DatasetWriter]:
    """A writer of the data set `dest`: `NAME.zip` (uncompressed), or a folder otherwise.

    It is written under a hidden name and renamed when the block is left; an error removes it. A zip that is there is
    replaced, a folder that is there must be empty. `label_names` says what each class is and goes into `dataset.json`.

    Raises UserError: another suffix, a folder that is not empty, no images, or it cannot be written.
    """
    check_dest(dest, option=option)
    where = f"{option}={dest}"
    theirs: OSError | None = None
    try:
        dest.parent.mkdir(parents=True, exist_ok=True)
        with _zip_file(dest) if dest.suffix == ".zip" else _folder(dest) as put:
            writer = DatasetWriter(put, where)
            try:
                yield writer
            except OSError as e:  # of what the images come from
                theirs = e
                raise
            writer.finish(label_names)
    except OSError as e:
        if e is theirs:
            raise
        raise _cannot_write(where, e) from e


def _cannot_write(where: str, error: OSError) -> UserError:
    return UserError(f"{where} cannot be written: {error.strerror or error}; make room or name another place")


def check_dests(dest: Path, held_out: Path | None, *, force: bool) -> None:
    """What a command asks before its long work: raises UserError for data sets that it could or should not write.

    A zip that exists may only be replaced with `force`.
    """
    if held_out is not None and held_out.resolve() == dest.resolve():
        raise UserError(f"--held-out={held_out} is --dest too; name two data sets")
    for option, path in (("--dest", dest), ("--held-out", held_out)):
        if path is not None:
            check_dest(path, option=option)
            if path.suffix == ".zip" and path.exists() and not force:
                raise UserError(f"{option}={path} exists; name another place or add --force")


def check_dest(dest: Path, *, option: str = "--dest") -> None:
    """Raises UserError for a name that `write_dataset` would refuse."""
    if dest.suffix not in ("", ".zip"):
        raise UserError(f"{option}={dest} ends in {dest.suffix}; name a .zip, or a folder by a name without a dot")
    if dest.suffix == ".zip" and dest.is_dir():
        raise UserError(f"{option}={dest} is a folder; name a .zip that does not exist")
    if dest.suffix == "" and dest.exists() and not (dest.is_dir() and not any(dest.iterdir())):
        raise UserError(f"{option}={dest} exists and is not an empty folder; name another folder or a .zip")


@contextmanager
def _zip_file(dest: Path) -> Iterator[Callable[[str, bytes], None]]:
    with atomic_write(dest) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:

        def put(name: str, content: bytes) -> None:
            entry = zipfile.ZipInfo(name, DATE)
            entry.create_system = 3  # of Unix: the same bytes on every system
            archive.writestr(entry, content)

        yield put


@contextmanager
def _folder(dest: Path) -> Iterator[Callable[[str, bytes], None]]:
    temporary = dest.with_name(f".tmp-{secrets.token_hex(6)}")

    def put(name: str, content: bytes) -> None:
        path = temporary / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    try:
        yield put
        os.replace(temporary, dest)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
