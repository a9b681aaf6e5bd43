"""Folders of images to label, and their checksums: an image is its file, wherever it lies."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from dnnlib.errors import UserError
from dnnlib.run_folder import not_of_their_run
from dnnlib.util import file_sha256

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


@dataclass(frozen=True)
class Folder:
    """The images of a folder by their names relative to it."""

    path: Path
    files: Mapping[str, Path]
    sums: Mapping[str, str]  # SHA-256 of each file

    @cached_property
    def digest(self) -> str:
        """Names and contents in one checksum."""
        total = hashlib.sha256()
        for name, checksum in self.sums.items():
            total.update(os.fsencode(f"{name}\0{checksum}\n"))
        return total.hexdigest()

    @cached_property
    def by_sum(self) -> Mapping[str, Path]:
        """The first file of each content."""
        return {self.sums[name]: path for name, path in reversed(list(self.files.items()))}


def read_folder(folder: Path, *, option: str) -> Folder:
    """The images of a folder, of a run its own alone. UserError: no images, or links that lead out of the folder."""
    files = image_files(folder, option=option)
    if not files:
        raise UserError(f"{option}={folder} holds no images ({' '.join(SUFFIXES)}); give a folder of images")
    return Folder(folder, files, {name: file_sha256(path) for name, path in files.items()})


def image_files(folder: Path, *, option: str) -> dict[str, Path]:
    """The image files below a folder by their relative names, in the order of these."""
    if not folder.is_dir():
        raise UserError(f"{option}={folder} is not a folder; give a folder of images")
    root, found = folder.resolve(), {}
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    images = [name for name, path in files.items() if path.suffix.lower() in SUFFIXES and path.name[0] != "."]
    strangers = not_of_their_run(images, files, lambda name: files[name].read_bytes())
    for name in images:
        path = files[name]
        if name in strangers:
            continue
        if not path.resolve().is_relative_to(root):
            raise UserError(f"{path} leads out of {option}={folder}; put the image itself there")
        found[name] = path.resolve()
    return found
