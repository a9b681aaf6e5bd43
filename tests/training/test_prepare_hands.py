"""prepare_hands.py: a folder in the form of 11k-hands to equal squares, and a clear line for what is wrong with it."""

from __future__ import annotations

import csv
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from commands import said
from overridden import last_of_each

from dnnlib.util import alone
from scripts.prepare_hands import main
from training.dataset import ImageDataset
from training.datasets import hands11k
from training.datasets.hands11k import ASPECTS, Hand, Shape, classes, of_held_out_persons

NUM = 12  # three photographs of each of four persons


def shade(i: int) -> int:
    return 10 + 20 * i


def photo(i: int) -> PIL.Image.Image:
    """60x40: one shade in the centred square of 40, another left and right of it."""
    pixels = np.full((40, 60, 3), 250, np.uint8)
    pixels[:, 10:50] = shade(i)
    return PIL.Image.fromarray(pixels)


def row(i: int) -> dict[str, object]:
    return {
        "id": 100 - i // 3, "age": 30, "gender": "female", "skinColor": "fair", "accessories": int(i % 4 == 0),
        "nailPolish": 0, "aspectOfHand": ASPECTS[i % 4], "imageName": f"Hand_{i:07d}.jpg",
        "irregularities": int(i % 6 == 1), "fingers": 4 + i % 3,
    }  # fmt: skip


def table(path: Path, rows: list[dict[str, object]]) -> None:
    with open(path / "HandInfo.csv", "w", newline="") as f:
        writer = csv.DictWriter(f, rows[0])
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "hands"
    path.mkdir()
    table(path, [row(i) for i in range(NUM)])
    for i in range(NUM):
        photo(i).save(path / f"Hand_{i:07d}.jpg", quality=100, subsampling=0)
    return path


def run(source: Path, *options: str, code: int = 0, dest: str = "out.zip") -> str:
    args = [f"--source={source}", f"--dest={source.parent / dest}", "--resolution=16", "--workers=2", *options]
    return said(main, *last_of_each(args), code=code)


def refused(source: Path, *options: str) -> str:
    last = run(source, *options, code=2).splitlines()[-1]
    assert last.startswith("Error: ")
    return last


def shades(path: Path) -> list[int]:
    """Which photograph each picture of a data set is."""
    read = ImageDataset(path)
    return [round((float(read.image(i)[:, 5:11, 5:11].mean()) - 10) / 20) for i in range(len(read))]


def test_the_whole_way(source: Path) -> None:
    output = run(source)
    assert "Warning: 12 hands; the full set has 11,076\n" in output
    assert "out.zip: 12 images, 16x16 RGB, no labels\n" in output
    assert "--fit=crop: the largest centred square of each photograph" in output
    dataset = ImageDataset(source.parent / "out.zip")
    for i in range(NUM):
        np.testing.assert_allclose(dataset.image(i), np.full((3, 16, 16), shade(i)), atol=2)
    assert sorted(os.listdir(source.parent)) == ["hands", "out.zip"], "the work folder is gone"


def test_fit_white_keeps_all_of_the_photograph(source: Path) -> None:
    run(source, "--fit=white", "--resolution=60")
    image = ImageDataset(source.parent / "out.zip").image(3)
    np.testing.assert_allclose(image[:, 10:50], np.asarray(photo(3)).transpose(2, 0, 1), atol=2)
    assert (image[:, :10] == 255).all()
    assert (image[:, 50:] == 255).all()


def test_equal_bytes_for_any_number_of_workers(source: Path) -> None:
    run(source, "--workers=1", dest="a.zip")
    run(source, "--workers=8", dest="b.zip")
    assert (source.parent / "a.zip").read_bytes() == (source.parent / "b.zip").read_bytes()


def test_labels(source: Path) -> None:
    output = run(source, "--label=aspectOfHand")
    assert "4 classes, 3 images each" in output
    assert "classes dorsal left, dorsal right, palmar left, palmar right" in output
    dataset = ImageDataset(source.parent / "out.zip", cond=True)
    assert np.array_equal(dataset.batch(list(range(NUM)))[1].numpy(), np.eye(4)[np.arange(NUM) % 4])
    run(source, "--label=fingers", dest="fingers")
    content = json.loads((source.parent / "fingers" / "dataset.json").read_text())
    assert content["label_names"] == ["4", "5", "6"]
    assert [label for _, label in content["labels"]] == [i % 3 for i in range(NUM)]


def hands(column: str, *values: str) -> list[Hand]:
    return [Hand(f"{i}.jpg", i + 2, {column: value}) for i, value in enumerate(values)]


def test_classes() -> None:
    assert classes(hands("aspectOfHand", "Palmar  right", "dorsal left"), "aspectOfHand") == ([3, 0], list(ASPECTS))
    assert classes(hands("fingers", "10", "4", "4"), "fingers") == ([1, 0, 0], ["4", "10"])
    assert classes(hands("skinColor", "fair", "dark"), "skinColor") == ([1, 0], ["dark", "fair"])


def test_filters(source: Path) -> None:
    output = run(source, "--accessories=drop", "--irregularities=drop")
    assert "--accessories=drop: 3 hands are left out\n--irregularities=drop: 2 hands are left out" in output
    assert shades(source.parent / "out.zip") == [i for i in range(NUM) if i % 4 and i % 6 != 1]


def test_persons_are_held_out_whole(source: Path) -> None:
    held_out = source.parent / "held.zip"
    run(source, f"--held-out={held_out}", "--every=2")
    assert shades(held_out) == [3, 4, 5, 9, 10, 11]  # of 99 and 97: the ids in order, as text, are 100, 97, 98, 99
    assert shades(source.parent / "out.zip") == [0, 1, 2, 6, 7, 8]
    persons = of_held_out_persons(hands("id", *"abcabc"), 3)
    assert persons == [False, False, True] * 2


def test_images_in_their_own_folder_with_the_table_beside_it(source: Path) -> None:
    (source / "Hands").mkdir()
    for file in source.glob("*.jpg"):
        file.rename(source / "Hands" / file.name)
    run(source, dest="a.zip")
    run(source / "Hands", f"--dest={source.parent / 'b.zip'}")
    assert (source.parent / "a.zip").read_bytes() == (source.parent / "b.zip").read_bytes()


def test_missing_and_extra_images_are_named(source: Path) -> None:
    (source / "Hand_0000004.jpg").rename(source / "Hand_4.jpg")
    (source / ".Hand_0000005.jpg").touch()
    output = run(source)
    assert "Warning: missing images of HandInfo.csv, 1: Hand_0000004.jpg\n" in output
    assert "Warning: images not in HandInfo.csv, left out, 1: Hand_4.jpg\n" in output
    assert "Warning: 11 hands" in output
    assert shades(source.parent / "out.zip") == [0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 11]


def test_the_full_number_gives_no_warning(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hands11k, "FULL_SET", NUM)
    assert "Warning" not in run(source)


def test_damaged_photographs_are_named_and_only_they_are_done_again(source: Path) -> None:
    whole = (source / "Hand_0000007.jpg").read_bytes()
    (source / "Hand_0000007.jpg").write_bytes(whole[:400])
    photo(0).resize((15, 30)).save(source / "Hand_0000002.jpg")
    error = refused(source)
    assert "photographs that cannot be made 16 pixels across, 2: Hand_0000002.jpg is only 15x30 pixels" in error
    assert "Hand_0000007.jpg cannot be decoded (" in error
    assert "replace them and run the command again, or say --damaged=drop" in error
    work = source.parent / ".out.zip.work"
    assert len(list(work.iterdir())) == NUM - 2
    assert "they are left out" in run(source, "--damaged=drop")
    assert shades(source.parent / "out.zip") == [0, 1, 3, 4, 5, 6, 8, 9, 10, 11]


def counted(monkeypatch: pytest.MonkeyPatch, *, stop_after: int | None = None) -> list[str]:
    """The names of the photographs that are shaped from now on; an interruption after so many."""
    shaped: list[str] = []
    lock, original = threading.Lock(), Shape.png

    def png(self: Shape, file: Path) -> bytes:
        with lock:
            if len(shaped) == stop_after:
                raise KeyboardInterrupt
            shaped.append(file.name)
        return original(self, file)

    monkeypatch.setattr(Shape, "png", png)
    return shaped


def test_an_interrupted_run_goes_on(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(source, dest="whole.zip")
    with monkeypatch.context() as patch:
        first = counted(patch, stop_after=5)
        assert "Interrupted." in run(source, "--workers=1", code=130)
    assert not (source.parent / "out.zip").exists()
    second = counted(monkeypatch)
    os.utime(source / first[0], ns=(1, 1))  # another photograph under the same name
    (source.parent / ".out.zip.work" / ".tmp-0123.png").write_bytes(b"left by a kill")
    run(source)
    assert sorted(second) == sorted({f"Hand_{i:07d}.jpg" for i in range(NUM)} - set(first[1:]))
    assert (source.parent / "out.zip").read_bytes() == (source.parent / "whole.zip").read_bytes()
    assert sorted(os.listdir(source.parent)) == ["hands", "out.zip", "whole.zip"]


def test_finished_images_of_another_shape_are_not_used(source: Path) -> None:
    (source / "Hand_0000007.jpg").rename(source / "x")
    (source / "Hand_0000007.jpg").touch()
    refused(source)
    (source / "x").replace(source / "Hand_0000007.jpg")
    run(source, "--fit=white", "--resolution=20")
    run(source, "--fit=white", "--resolution=20", dest="fresh.zip")
    assert (source.parent / "out.zip").read_bytes() == (source.parent / "fresh.zip").read_bytes()


def test_one_process_at_a_time(source: Path) -> None:
    work = source.parent / ".out.zip.work"
    work.mkdir()
    with alone(work, busy="-"):
        assert "another process is preparing" in refused(source)
    run(source)


def change(i: int, **values: object) -> Callable[[Path], None]:
    return lambda path: table(path, [{**row(k), **(values if k == i else {})} for k in range(NUM)])


def rename_column(old: str, new: str) -> Callable[[Path], None]:
    return lambda path: (path / "HandInfo.csv").write_text((path / "HandInfo.csv").read_text().replace(old, new))


def append(line: str) -> Callable[[Path], None]:
    return lambda path: (path / "HandInfo.csv").write_text((path / "HandInfo.csv").read_text() + line)


BAD: dict[str, tuple[Callable[[Path], object], tuple[str, ...], str]] = {
    "no table": (lambda p: (p / "HandInfo.csv").unlink(), (), "has no HandInfo.csv, nor is one beside it; put"),
    "no text": (lambda p: (p / "HandInfo.csv").write_bytes(b"\xff\xfe"), (), "is not a text in UTF-8"),
    "quotes": (append('"x'), (), "is not a CSV file ('unexpected end of data')"),
    "empty": (lambda p: (p / "HandInfo.csv").write_text(""), (), "has the columns ''; it needs imageName"),
    "no hands": (lambda p: (p / "HandInfo.csv").write_text("imageName\n"), (), "lists no hands; fetch it again"),
    "misspelt": (
        rename_column("imageName", "imagename"),
        (),
        "imagename, irregularities, fingers'; it needs imageName",
    ),
    "doubled": (rename_column("fingers", "age"), (), "it needs imageName, and each one once"),
    "short line": (append("1,2\n"), (), "HandInfo.csv, line 14, has 2 columns instead of 10; mend it"),
    "twice": (change(3, imageName="Hand_0000002.jpg"), (), "line 5: 'Hand_0000002.jpg' is on line 4 too; keep one"),
    "outside": (change(3, imageName="../a.jpg"), (), "line 5: '../a.jpg' is not a name of an image; mend it"),
    "no name": (change(3, imageName=""), (), "line 5: '' is not a name of an image; mend it"),
    "no images": (lambda p: [f.unlink() for f in p.glob("*.jpg")], (), "has none of the 12 images that"),
    "aspect": (
        change(3, aspectOfHand="dorsal rihgt"),
        ("--label=aspectOfHand",),
        "HandInfo.csv, line 5: aspectOfHand is 'dorsal rihgt', none of dorsal left, dorsal right, palmar left, palmar",
    ),
    "empty label": (change(3, fingers=" "), ("--label=fingers",), "line 5: fingers is '', no label; mend it"),
    "label": (lambda p: None, ("--label=fingrs",), "HandInfo.csv has no column fingrs; it has id, age, gender"),
    "accessories": (
        change(3, accessories="no"),
        ("--accessories=drop",),
        "HandInfo.csv, line 5: accessories is 'no', not 0 or 1; mend it or say --accessories=keep",
    ),
    "no ids": (rename_column("id", "person"), ("--held-out=held.zip",), "HandInfo.csv has no column id"),
    "every": (lambda p: None, ("--every=3",), "--every=3 needs --held-out=NAME.zip"),
    "dest": (lambda p: (p.parent / "out.zip").touch(), (), "out.zip exists; name another place or add --force"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_one_line(case: str, source: Path) -> None:
    spoil, options, says = BAD[case]
    spoil(source)
    before = sorted(source.parent.rglob("*"))
    assert says in refused(source, *options)
    assert sorted(source.parent.rglob("*")) == before


def test_no_folder(tmp_path: Path) -> None:
    assert "is not a folder; name the folder of the JPEGs and HandInfo.csv" in refused(tmp_path / "nowhere")


# --- layouts seen in the wild ---


def test_kaggles_archive_and_suffixes_of_another_case(source: Path) -> None:
    plain = run(source).splitlines()[-2:]
    images = sorted(source.glob("*.jpg"))
    (source / "Hands" / "Hands").mkdir(parents=True)
    for image in images:
        image.rename(source / "Hands" / "Hands" / f"{image.stem}.JPG")
    assert run(source, dest="again.zip").splitlines()[-1] == plain[-1]
    assert (source.parent / "again.zip").read_bytes() == (source.parent / "out.zip").read_bytes()


@pytest.mark.parametrize(
    "change",
    [
        lambda text: "\n".join(line + ",," for line in text.splitlines()) + "\n",  # columns that a spreadsheet left
        lambda text: text + "," * text.splitlines()[0].count(",") + "\n",  # and a row
        lambda text: text.replace(",", ";"),
    ],
)
def test_tables_as_spreadsheets_save_them(source: Path, change: Callable[[str], str]) -> None:
    run(source)
    file = source / "HandInfo.csv"
    file.write_text(change(file.read_text()))
    run(source, dest="again.zip")
    assert (source.parent / "again.zip").read_bytes() == (source.parent / "out.zip").read_bytes()


def test_a_column_without_a_name_that_holds_something_is_refused(source: Path) -> None:
    file = source / "HandInfo.csv"
    header, *rows = file.read_text().splitlines()
    file.write_text("\n".join([header + ",", *(f"{r},x" for r in rows)]) + "\n")
    assert "has a column without a name that is not empty; name or remove it" in refused(source)
