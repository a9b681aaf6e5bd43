"""Real images for the tests of tasks and labellers, without the data sets that hold them."""

from __future__ import annotations

import json
import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from exact import GOLDEN

from rods.bench.tasks.mnist import data as digits
from rods.bench.tasks.real_data import read_images
from rods.bench.tasks.rendered import data as rendered


@pytest.fixture(scope="session")
def golden_hands() -> dict[int, np.ndarray]:
    """Six rendered hands of each number of fingers, uint8 [6, 64, 64]."""
    sheet = np.asarray(PIL.Image.open(GOLDEN / "rendered" / "hands-8.png")).reshape(3, 64, 6, 64)
    return dict(zip((4, 5, 6), sheet.transpose(0, 2, 1, 3), strict=True))


@pytest.fixture(scope="session")
def all_hands(golden_hands) -> np.ndarray:
    """All eighteen of them."""
    return np.concatenate(list(golden_hands.values()))


@pytest.fixture(scope="session")
def golden_digits() -> tuple[np.ndarray, np.ndarray]:
    """50 held-out digits (five of each class) that no labeller was fitted to: uint8 [50, 32, 32], and classes [50]."""
    with np.load(GOLDEN / "digits.npz") as arrays:
        return arrays["images"], arrays["labels"]


@pytest.fixture
def without_data_sets(monkeypatch, golden_digits, golden_hands) -> None:
    """Digits and rendered hands where their files would be read: few, most of them several times."""
    images, labels = (np.repeat(a, 20, axis=0) for a in golden_digits)
    monkeypatch.setattr(digits, "audit_digits", lambda: (images, labels))
    five = golden_hands[5]
    moved = np.concatenate([np.roll(x, -i, axis=1) for i in range(8) for x in (five, five[:, :, ::-1])])
    monkeypatch.setattr(rendered, "held_out_hands", lambda: moved)
    monkeypatch.setattr(rendered.HandsFiles, "read", lambda files, fingers: golden_hands[fingers])


def write_zip(path: Path, images: np.ndarray, labels: np.ndarray | None = None) -> None:
    """Grey images as a data set."""
    with zipfile.ZipFile(path, "w") as archive:
        names = [f"00000/img{i:08d}.png" for i in range(len(images))]
        for name, image in zip(names, images, strict=True):
            png = BytesIO()
            PIL.Image.fromarray(image).save(png, format="png")
            archive.writestr(name, png.getvalue())
        if labels is not None:
            rows = [[name, int(label)] for name, label in zip(names, labels, strict=True)]
            archive.writestr("dataset.json", json.dumps({"labels": rows}))


@pytest.fixture
def data_folder(tmp_path, monkeypatch, golden_digits, golden_hands):
    """A folder with small data sets under the names of the real ones, read as $RODS_DATA; and `write_zip`."""
    folder = tmp_path / "data"
    folder.mkdir()
    for name, rows in ((digits.TRAINING, slice(0, None, 2)), (digits.HELD_OUT, slice(None))):
        write_zip(folder / name, golden_digits[0][rows], golden_digits[1][rows])
    for files in (rendered.LABELLER_TRAINING, rendered.LABELLER_THRESHOLDS, rendered.LABELLER_FRESH):
        for fingers, hands in golden_hands.items():
            write_zip(folder / f"{files.name}-{fingers}.zip", hands)
    monkeypatch.setenv("RODS_DATA", str(folder))
    read_images.cache_clear()
    yield folder
    read_images.cache_clear()


@pytest.fixture
def zip_writer():
    """`write_zip`."""
    return write_zip
