"""The files of a data set in EDM's format: a folder or a zip of images, with an optional dataset.json of labels."""

from __future__ import annotations

import json
import math
import os
import re
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from dnnlib.errors import UserError, shown
from dnnlib.run_folder import not_of_their_run, runs_among
from training.datasets.images import SUFFIXES

LABELS_NAME = "dataset.json"


_NO_PICTURES = {".json", ".jsonl", ".csv", ".md", ".txt"}  # nobody misses these among the images


class ImageFiles:
    """The images in a folder or zip, by name, and their labels; linked folders are folders.

    Dot-files, files of other kinds and what is no image of a sampling run are passed over: `passed_over` counts them by
    reason. Where `dataset.json` is not at the top but in one subfolder, its names are relative to that.

    Args:
        path: the folder or zip.
        option: the option that named it, for messages.
    Raises:
        UserError: no such path, no zip, no images, or a damaged record of a sampling run.
    """

    def __init__(self, path: str | Path, *, option: str = "--data") -> None:
        self.path = Path(path)
        self.where = f"{option}={path}"
        self.zip = self._open_zip()
        self.passed_over: Counter[str] = Counter()
        self.files = self._list_files()
        images = {n for n in self.files if is_image(n)}
        strangers = not_of_their_run(images, self.files, self.read)
        self.names = sorted(images - strangers)
        self.passed_over += Counter(_kind(n) for n in self.files - images if PurePosixPath(n).name != LABELS_NAME)
        self.passed_over += Counter({"no image of its sampling run": len(strangers)})
        if not self.names:
            over = f"; passed over: {self.left_out()}" if self.passed_over else ""
            raise UserError(
                f"{self.where} holds no images ({', '.join(sorted(SUFFIXES))}){over}; name another zip or folder"
            )

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

    def runs(self) -> list[str]:
        """The folders of sampling runs in it, "" for itself: their images are a network's."""
        return runs_among(self.files, self.read)

    def left_out(self) -> str:
        """What was passed over and why, in words: `3 .heic, 1 hidden`; empty for nothing."""
        return ", ".join(f"{count:,} {kind}" for kind, count in sorted(self.passed_over.items()))

    def may_be_missed(self) -> bool:
        """Whether somebody may take what was passed over for images."""
        return any(kind not in _NO_PICTURES and kind != "hidden" for kind in self.passed_over)

    def labels(self, *, remedy: str) -> Mapping[str, Any] | None:
        """{name: label} of dataset.json, or None where there are none.

        `remedy` ends the message of the UserError for one that cannot be used.
        """
        found = self.labels_name()
        if found is None:
            return None
        table = _label_table(self.read(found), f"{found} of {self.where}", remedy)
        folder = found.removesuffix(LABELS_NAME)
        return {folder + name: label for name, label in table.items()} if table and folder else table

    def labels_name(self) -> str | None:
        """The path of dataset.json: at the top, or in the one subfolder that has one. UserError for several."""
        if LABELS_NAME in self.files:
            return LABELS_NAME
        below = sorted(n for n in self.files if PurePosixPath(n).name == LABELS_NAME and not is_hidden(n))
        if len(below) > 1:
            raise UserError(
                f"{self.where} holds {shown(below[0])} and {shown(below[1])}; name one of their folders, "
                f"or put one {LABELS_NAME} at the top"
            )
        return below[0] if below else None

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
        files = set()
        for path in entries_below(self.path):
            name = path.relative_to(self.path).as_posix()
            if path.is_file():
                files.add(name)
            elif path.is_symlink() and not is_hidden(name):
                self.passed_over["link to nothing"] += 1
        return files


def entries_below(folder: Path) -> Iterator[Path]:
    """All but folders below a folder, through links, each folder once however many links lead to it from inside."""
    seen = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        yield from (Path(place, name) for name in files)


def is_image(name: str) -> bool:
    """Whether a file counts as an image: by its suffix, and with no part of its path hidden by a dot."""
    return PurePosixPath(name).suffix.lower() in SUFFIXES and not is_hidden(name)


def is_hidden(name: str) -> bool:
    """Whether a part of the path begins with a dot, or is what macOS puts into zips."""
    return any(part.startswith(".") or part == "__MACOSX" for part in PurePosixPath(name).parts)


def _kind(name: str) -> str:
    """Why a file is no image."""
    return "hidden" if is_hidden(name) else PurePosixPath(name).suffix.lower() or "without a suffix"


def _label_table(text: bytes, where: str, remedy: str) -> Mapping[str, Any] | None:
    """{name: label} of a dataset.json; None for `{"labels": null}`, as EDM writes a set without labels."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise UserError(f"{where} is not JSON ({shown(str(e))}); {remedy}") from None
    match content:
        case {"labels": [*entries]} if entries and all(_is_entry(e) for e in entries):
            table: dict[str, Any] = {}
            for name, label in entries:
                if name in table and table[name] != label:
                    raise UserError(f"{where} labels {shown(name)} twice, and differently; {remedy}")
                table[name] = label
            return table
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
