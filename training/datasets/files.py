"""The files of a data set in EDM's format: a folder or a zip of images, with an optional dataset.json of labels."""

from __future__ import annotations

import json
import math
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dnnlib.errors import UserError, shown
from training.datasets.images import SUFFIXES

LABELS_NAME = "dataset.json"


class ImageFiles:
    """The images in a folder or zip, by name, and their labels. Dot-files and files of other kinds are passed over.

    Args:
        path: the folder or zip.
        option: the option that named it, for messages.
    Raises:
        UserError: no such path, no zip, no images.
    """

    def __init__(self, path: str | Path, *, option: str = "--data") -> None:
        self.path = Path(path)
        self.where = f"{option}={path}"
        self.zip = self._open_zip()
        self.files = self._list_files()
        self.names = sorted(n for n in self.files if is_image(n))
        if not self.names:
            raise UserError(f"{self.where} holds no images ({', '.join(sorted(SUFFIXES))}); name another zip or folder")

    def name(self) -> str:
        """The name of the zip or folder, of characters that fit in file names."""
        path = self.path.resolve()
        return re.sub(r"[^\w.-]+", "_", path.stem if self.zip else path.name) or "data"

    def read(self, name: str) -> bytes:
        """The bytes of a file. Raises UserError for a damaged zip."""
        if self.zip is None:
            return (self.path / name).read_bytes()
        try:
            return self.zip.read(name)
        except Exception as e:  # besides BadZipFile: zlib's errors, RuntimeError (a password), NotImplementedError, ...
            raise UserError(
                f"{self.where} is damaged: {shown(name)} cannot be read ({shown(str(e))}); make the zip again"
            ) from None

    def labels(self, *, remedy: str) -> Mapping[str, Any] | None:
        """{name: label} of dataset.json, or None where there are none.

        `remedy` ends the message of the UserError for one that cannot be used.
        """
        if LABELS_NAME not in self.files:
            return None
        return _label_table(self.read(LABELS_NAME), f"{LABELS_NAME} of {self.where}", remedy)

    def _open_zip(self) -> zipfile.ZipFile | None:
        """The zip, or None for a folder."""
        if not self.path.exists():
            raise UserError(f"{self.where} does not exist; name a folder or a zip of images")
        if self.path.is_dir():
            return None
        try:
            return zipfile.ZipFile(self.path)
        except zipfile.BadZipFile:
            raise UserError(
                f"{self.where} is not a readable zip; make it again, or name a folder or zip of images"
            ) from None

    def _list_files(self) -> set[str]:
        if self.zip is not None:
            return {entry.filename for entry in self.zip.infolist() if not entry.is_dir()}
        return {p.relative_to(self.path).as_posix() for p in self.path.rglob("*") if p.is_file()}


def is_image(name: str) -> bool:
    """Whether a file counts as an image: by its suffix, and with no part of its path hidden by a dot."""
    path = Path(name)
    return path.suffix.lower() in SUFFIXES and not any(part.startswith(".") for part in path.parts)


def _label_table(text: bytes, where: str, remedy: str) -> Mapping[str, Any] | None:
    """{name: label} of a dataset.json; None for `{"labels": null}`, as EDM writes a set without labels."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise UserError(f"{where} is not JSON ({shown(str(e))}); {remedy}") from None
    match content:
        case {"labels": [*entries]} if entries and all(_is_entry(e) for e in entries):
            return dict(entries)
        case {"labels": None}:
            return None
    raise UserError(f'{where} holds no {{"labels": [["NAME.png", LABEL], ...]}}; {remedy}')


def _is_entry(entry: object) -> bool:
    return isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str)


def label_array(labels: list[Any], names: list[str], where: str) -> tuple[np.ndarray, int]:
    """(classes int64 [N], their number) or (vectors float32 [N, L], L). Raises UserError for anything else."""
    if is_vector(labels[0]):
        for name, label in zip(names, labels, strict=True):
            if not is_vector(label) or len(label) != len(labels[0]):
                raise UserError(f"{where}: {shown(name)} has no vector of {len(labels[0])} numbers as the first image")
        return np.array(labels, dtype=np.float32), len(labels[0])
    for name, label in zip(names, labels, strict=True):
        if not is_class(label):
            raise UserError(
                f"{where}: the label {shown(label)} of {shown(name)} is not a class; "
                "label images with whole numbers from 0, or with lists of numbers"
            )
    classes = set(labels)
    if max(classes) >= len(classes):
        gap = next(c for c in range(len(classes)) if c not in classes)
        raise UserError(
            f"{where}: no image has class {gap}, and some have class {max(classes)}; number classes 0 to n-1"
        )
    return np.array(labels, dtype=np.int64), len(classes)


def is_class(label: object) -> bool:
    """Whether a label is a class: a whole number from 0 (a bool is an int to isinstance)."""
    return type(label) is int and label >= 0


def is_vector(label: object) -> bool:
    """Whether a label is a list of finite numbers."""
    return (
        isinstance(label, list)
        and len(label) > 0
        and all(isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in label)
    )
