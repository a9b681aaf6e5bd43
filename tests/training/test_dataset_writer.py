"""The writer of data sets: equal bytes for equal images, one size and one kind of label, all or nothing."""

from __future__ import annotations

import errno
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dnnlib.errors import UserError
from training.dataset import ImageDataset
from training.datasets.writer import check_dests, write_dataset

GREY = np.arange(256, dtype=np.uint8).reshape(16, 16)


def picture(i: int = 0) -> PIL.Image.Image:
    return PIL.Image.fromarray(GREY + np.uint8(i))


def write(dest: Path, images: Any, labels: Any = None, **options: Any) -> str:
    with write_dataset(dest, **options) as writer:
        for i, image in enumerate(images):
            writer.add(image, None if labels is None else labels[i], source=f"photo {i}")
    return writer.summary()


@settings(deadline=None, max_examples=20)
@given(data=st.data(), shape=st.sampled_from([(1, 1), (8, 8), (8, 8, 3)]), num=st.integers(1, 4))
def test_what_is_written_is_read_again(
    data: st.DataObject, shape: tuple[int, ...], num: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("law")
    pixels = [data.draw(hnp.arrays(np.uint8, shape)) for _ in range(num)]
    labels = list(range(num))
    for dest in ("set.zip", "again.zip", "set"):
        write(folder / dest, [PIL.Image.fromarray(p) for p in pixels], labels)
        read = ImageDataset(folder / dest, cond=True)
        assert len(read) == num
        for i, expected in enumerate(pixels):
            assert np.array_equal(read.image(i), np.atleast_3d(expected).transpose(2, 0, 1))
        assert np.array_equal(read.batch(labels)[1].numpy(), np.eye(num))
    assert (folder / "set.zip").read_bytes() == (folder / "again.zip").read_bytes()


def test_form_of_the_zip(tmp_path: Path) -> None:
    dest = tmp_path / "new" / "set.zip"
    summary = write(dest, [picture()] * 1001, [i % 2 for i in range(1001)], label_names=("cat", "dog"))
    assert summary == "1,001 images, 16x16 grey, 2 classes, 500 to 501 images each"
    with zipfile.ZipFile(dest) as archive:
        entries = archive.infolist()
        assert [e.filename for e in entries][-3:] == ["00000/img00000999.png", "00001/img00001000.png", "dataset.json"]
        assert {(e.compress_type, e.date_time, e.create_system) for e in entries} == {(0, (1980, 1, 1, 0, 0, 0), 3)}
        content = json.loads(archive.read("dataset.json"))
    assert content["labels"][1000] == ["00001/img00001000.png", 0]
    assert content["label_names"] == ["cat", "dog"]
    assert [p.name for p in dest.parent.iterdir()] == ["set.zip"], "no temporary file stays"


def test_summaries(tmp_path: Path) -> None:
    assert write(tmp_path / "a", [picture()]) == "1 image, 16x16 grey, no labels"
    assert not (tmp_path / "a" / "dataset.json").exists()
    assert write(tmp_path / "b", [picture()], [[0.5, 1]]) == "1 image, 16x16 grey, vector of 2 numbers"
    assert "no image has class 1, so train.py --cond=1 will" in write(tmp_path / "c", [picture()] * 2, [0, 2])


REFUSED: dict[str, tuple[list[PIL.Image.Image], list[Any] | None, str]] = {
    "size": ([picture(), picture().resize((8, 8))], None, "'photo 1' is 8x8 grey, and the first one is 16x16 grey"),
    "mode": ([picture(), picture().convert("RGB")], None, "'photo 1' is 16x16 RGB, and the first one is 16x16 grey"),
    "no label": ([picture()] * 2, [0, None], "'photo 1' has no labels, and the first one has a class"),
    "vector": ([picture()] * 2, [[1], [1, 2]], "has a vector of 2 numbers, and the first one has a vector of 1"),
    "negative": ([picture()], [-1], "'photo 0' has the label -1; label with whole numbers from 0 or lists"),
    "word": ([picture()], ["cat"], "'photo 0' has the label 'cat'; label with"),
    "true": ([picture()], [True], "'photo 0' has the label True; label with"),
    "nothing": ([], None, "would hold no images"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("name", ["set.zip", "set"])
def test_what_does_not_fit_is_named_and_nothing_stays(case: str, name: str, tmp_path: Path) -> None:
    images, labels, says = REFUSED[case]
    with pytest.raises(UserError, match=f"^--dest=.*{says}"):
        write(tmp_path / name, images, labels)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["set.zip", "set"])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), FileNotFoundError(errno.ENOENT, "gone", "source.png")])
def test_an_interruption_leaves_what_was_there(name: str, error: BaseException, tmp_path: Path) -> None:
    if name == "set.zip":
        (tmp_path / name).write_bytes(b"the old one")
    before = sorted(tmp_path.iterdir())

    def images() -> Iterator[PIL.Image.Image]:
        yield picture()
        raise error

    with pytest.raises(type(error)):
        write(tmp_path / name, images())
    assert sorted(tmp_path.iterdir()) == before
    assert all(p.read_bytes() == b"the old one" for p in before)


def full_disk(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zipfile.ZipFile, "writestr", full_disk)
    with pytest.raises(UserError, match=r"--dest=.*set.zip cannot be written: No space left on device; make room"):
        write(tmp_path / "set.zip", [picture()])
    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(UserError, match=r"--dest=.*set cannot be written: No space left on device; make room"):
        write(tmp_path / "set", [picture()])
    assert not list(tmp_path.iterdir())


def test_places_that_are_refused(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a.txt").touch()
    (tmp_path / "folder.zip").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "old.zip").touch()
    for name, says in [
        ("set.tar", "ends in .tar; name a .zip"),
        ("full", "exists and is not an empty folder"),
        ("file", "exists and is not an empty folder"),
        ("folder.zip", "is a folder; name a .zip"),
        ("file/set.zip", "cannot be written: "),
    ]:
        with pytest.raises(UserError, match=f"--dest=.*{name} {says}"):
            write(tmp_path / name, [picture()])
    with pytest.raises(UserError, match=r"--held-out=.*old.zip exists; name another place or add --force"):
        check_dests(tmp_path / "new.zip", tmp_path / "old.zip", force=False)
    with pytest.raises(UserError, match="is --dest too"):
        check_dests(tmp_path / "old.zip", tmp_path / "x" / ".." / "old.zip", force=True)
    check_dests(tmp_path / "old.zip", None, force=True)


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    write(tmp_path / "set", [picture()])
    assert len(ImageDataset(tmp_path / "set")) == 1
