"""What is wrong with a data set in EDM's format: damaged files, sizes, modes, labels, duplicates."""

from __future__ import annotations

import hashlib
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from PIL.Image import Image

from dnnlib.errors import UserError, counted, shown
from training.datasets.files import LABELS_NAME, ImageFiles, label_array
from training.datasets.images import open_image


@dataclass
class Report:
    """`problems` holds a line for each thing that is wrong; `passed_over` counts files that are no images, by kind."""

    num: int
    shape: str = "no readable images"
    labels: str = "no labels"
    passed_over: int = 0
    left_out: str = ""
    problems: list[str] = field(default_factory=list)

    def summary(self) -> str:
        kinds = f" ({self.left_out})" if self.left_out else ""
        others = f"{counted(self.passed_over, 'other file')} passed over{kinds}"
        return f"{counted(self.num, 'image')}, {self.shape}, {self.labels}; {others}"


def lint(files: ImageFiles, names: Iterable[str], *, allow_duplicates: bool = False) -> Report:
    """Reads every image as training does. `names` is `files.names`, perhaps with a progress bar around it.

    The size and mode of most images count as right, and what differs is named. Duplicates are equal pixels. What is
    kept in memory is a name and 20 bytes for each image.
    """
    report = Report(len(files.names), passed_over=files.passed_over.total(), left_out=files.left_out())
    report.problems += _doubled_names(files)
    shapes: dict[str, str] = {}
    first_with: dict[bytes, str] = {}
    for name in names:
        try:
            image = open_image(files.read(name), f"the image {shown(name)}")
        except UserError as e:
            report.problems.append(str(e))
            continue
        shapes[name] = f"{image.width}x{image.height} {'grey' if image.mode == 'L' else 'RGB'}"
        original = first_with.setdefault(_pixel_hash(image), name)
        if original != name and not allow_duplicates:
            report.problems.append(f"the image {shown(name)} has the pixels of {shown(original)}")
    report.problems += _odd_shapes(shapes, report)
    report.problems += _label_problems(files, report)
    return report


def _pixel_hash(image: Image) -> bytes:
    return hashlib.blake2b(f"{image.mode} {image.size} ".encode() + image.tobytes(), digest_size=20).digest()


def _doubled_names(files: ImageFiles) -> Iterator[str]:
    """Names that a zip holds twice: which of the two is read differs from program to program."""
    if files.zip is not None:
        counts = Counter(entry.filename for entry in files.zip.infolist())
        yield from (f"the zip holds {shown(name)} {n} times" for name, n in counts.items() if n > 1)
        packed = [e.filename for e in files.zip.infolist() if e.compress_type != zipfile.ZIP_STORED and not e.is_dir()]
        if packed:
            files_packed = counted(len(packed), "file")
            yield f"compressed in the zip: {files_packed}, such as {shown(packed[0])}; EDM's format is not"


def _odd_shapes(shapes: dict[str, str], report: Report) -> Iterator[str]:
    if shapes:
        report.shape = Counter(shapes.values()).most_common(1)[0][0]
        yield from (
            f"the image {shown(n)} is {s}, most are {report.shape}" for n, s in shapes.items() if s != report.shape
        )
        width, height = report.shape.split()[0].split("x")
        if width != height:
            yield f"the images are {width}x{height} pixels, and networks take squares"


def _label_problems(files: ImageFiles, report: Report) -> Iterator[str]:
    try:
        table = files.labels(remedy="mend or remove it")
    except UserError as e:
        yield str(e)
        return
    if table is None:
        return
    present = set(files.names)
    yield from (f"the image {shown(n)} has no label in {LABELS_NAME}" for n in files.names if n not in table)
    yield from (f"{LABELS_NAME} labels {shown(n)}, which is not there" for n in table if n not in present)
    labelled = [n for n in files.names if n in table]
    if labelled:
        try:
            labels, width = label_array([table[n] for n in labelled], labelled, LABELS_NAME)
        except UserError as e:
            yield str(e)
            return
        report.labels = f"{width} classes" if labels.ndim == 1 else f"vectors of {width} numbers"
