"""Data sets from folders and zips: what is read, and one clear line for what is not."""

from __future__ import annotations

import io
import json
import struct
import zipfile
import zlib
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch

from dnnlib.errors import UserError
from training.dataset import ImageDataset, data_order

GREY = np.arange(256, dtype=np.uint8).reshape(16, 16)


def save(path: Path, image: PIL.Image.Image | None = None, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    (image or PIL.Image.fromarray(GREY)).save(path, **options)


def folder(path: Path, *names: str) -> Path:
    for i, name in enumerate(names or ("a.png", "b.png", "c.png")):
        save(path / name, PIL.Image.fromarray(GREY + np.uint8(i)))
    return path


def label(path: Path, labels: Any) -> Path:
    (path / "dataset.json").write_text(json.dumps({"labels": labels}))
    return path


def test_folder_and_zip_are_one_data_set(tmp_path: Path) -> None:
    names = ["00000/b.png", "00000/a.png", "c.png"]
    path = label(folder(tmp_path / "set", *names, ".hidden/x.png", "__MACOSX/._a.png"), [[n, 0] for n in names])
    (path / "readme.txt").write_text("no image")
    archive = tmp_path / "set.zip"
    with zipfile.ZipFile(archive, "w") as z:
        for file in path.rglob("*"):
            z.write(file, file.relative_to(path).as_posix())
    for source in (path, archive):
        dataset = ImageDataset(source, cond=True)
        assert (len(dataset), dataset.resolution, dataset.num_channels, dataset.label_dim) == (3, 16, 1, 1)
        assert dataset.name == "set"
        images, labels = dataset.batch([0, 2, 1])  # by name: 00000/a, c, 00000/b
        assert images.dtype == torch.uint8
        expected = torch.from_numpy(np.stack([GREY + np.uint8(i) for i in (1, 2, 0)])[:, None])
        assert torch.equal(images, expected)
        assert torch.equal(labels, torch.ones(3, 1))


def test_labels(tmp_path: Path) -> None:
    path = folder(tmp_path)
    classes = ImageDataset(label(path, [["c.png", 2], ["a.png", 0], ["b.png", 1]]), cond=True)
    assert classes.label_dim == 3
    assert torch.equal(classes.batch([2, 0])[1], torch.eye(3)[[2, 0]])
    vectors = ImageDataset(label(path, [["a.png", [0, 0.5]], ["b.png", [1, 2]], ["c.png", [3, 4]]]), cond=True)
    assert torch.equal(vectors.batch([1, 0])[1], torch.tensor([[1, 2], [0, 0.5]]))
    unlabelled = ImageDataset(path)
    assert unlabelled.label_dim == 0
    assert unlabelled.batch([0, 1])[1].shape == (2, 0)


def test_modes_without_loss_are_converted(tmp_path: Path) -> None:
    rgb = np.stack([GREY, GREY.T, GREY[::-1]], axis=2) // 64 * 64
    palette = PIL.Image.fromarray(rgb).quantize(64, dither=PIL.Image.Dither.NONE)
    assert np.array_equal(np.asarray(palette.convert("RGB")), rgb)
    save(tmp_path / "p" / "a.png", palette)
    assert np.array_equal(ImageDataset(tmp_path / "p").image(0), rgb.transpose(2, 0, 1))
    save(tmp_path / "b" / "a.png", PIL.Image.fromarray(GREY).point(lambda v: 255 * (v > 99)).convert("1"))
    assert np.array_equal(ImageDataset(tmp_path / "b").image(0)[0], 255 * (GREY > 99))


def test_cameras_rotation_is_applied(tmp_path: Path) -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # stored lying on its side
    save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(ImageDataset(tmp_path).image(0)[0], np.rot90(GREY, -1))


def test_images_are_decoded_once_with_the_cache(tmp_path: Path) -> None:
    folder(tmp_path)
    cached, reread = ImageDataset(tmp_path), ImageDataset(tmp_path, cache=False)
    before = cached.image(0)
    assert np.array_equal(before, reread.image(0))
    (tmp_path / "a.png").unlink()
    assert np.array_equal(cached.image(0), before)
    with pytest.raises(FileNotFoundError):
        reread.image(0)


def deep_png() -> bytes:
    """16x16 RGB with 16 bits per channel, by hand: Pillow cannot write it, and opens it as 8 bits without a word."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header, rows = struct.pack(">IIBBBBB", 16, 16, 16, 2, 0, 0, 0), 16 * (b"\0" + bytes(16 * 6))
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    assert PIL.Image.open(io.BytesIO(png)).mode == "RGB"
    return png


def noisy_png(*, cut: int = 0, flip: int = 0) -> bytes:
    data = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (16, 16), dtype=np.uint8)
    PIL.Image.fromarray(noise).save(data, format="png")
    png = bytearray(data.getvalue())
    if flip:
        png[flip] ^= 255
    return bytes(png[: len(png) - cut])


BAD_IMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "not square": (lambda p: save(p, PIL.Image.new("L", (16, 12))), "is 16x12 pixels; crop all images to squares"),
    "another size": (lambda p: save(p, PIL.Image.new("L", (8, 8))), "is 8x8x1, and the first image is 16x16x1; give"),
    "another mode": (lambda p: save(p, PIL.Image.new("RGB", (16, 16))), "is 16x16x3, and the first image is 16x16x1"),
    "alpha": (lambda p: save(p, PIL.Image.new("RGBA", (16, 16))), "has Pillow's mode RGBA; convert all images"),
    "grey and alpha": (lambda p: save(p, PIL.Image.new("LA", (16, 16))), "has Pillow's mode LA"),
    "see-through palette": (
        lambda p: save(p, PIL.Image.fromarray(GREY).quantize(16), transparency=0),
        "has Pillow's mode with transparency",
    ),
    "16 bits": (lambda p: p.write_bytes(deep_png()), "has 16 bits per channel; convert all images to 8"),
    "truncated": (lambda p: p.write_bytes(noisy_png(cut=150)), "cannot be decoded ("),
    "flipped byte": (lambda p: p.write_bytes(noisy_png(flip=90)), "cannot be decoded ("),
    "cut header": (lambda p: p.write_bytes(noisy_png()[:20]), "cannot be decoded ("),
    "empty": (lambda p: p.write_bytes(b""), "cannot be decoded ("),
    "text": (lambda p: p.write_bytes(b"<html>404</html>"), "cannot be decoded ('unknown format'); remove or"),
}


@pytest.mark.parametrize("case", BAD_IMAGES)
def test_bad_images_are_named(tmp_path: Path, case: str) -> None:
    spoil, says = BAD_IMAGES[case]
    folder(tmp_path)
    spoil(tmp_path / "b.png")
    dataset = ImageDataset(tmp_path)
    with pytest.raises(UserError) as error:
        dataset.batch([0, 1])
    assert str(error.value).startswith(f"--data={tmp_path}: the image 'b.png' ")
    assert says in str(error.value)
    assert "\n" not in str(error.value)


BAD_SETS: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda p: None, "does not exist; name a folder or a zip of images"),
    "empty folder": (lambda p: p.mkdir(), ".png, .pnm, .ppm, .tif, .tiff, .webp); name another"),
    "no images": (lambda p: (p.mkdir(), (p / "a.txt").touch()), "holds no images"),
    "no zip": (lambda p: p.write_bytes(noisy_png()), "is not a readable zip; make it again"),
    "empty file": (lambda p: p.touch(), "is not a readable zip"),
    "first image": (lambda p: (folder(p), (p / "a.png").write_bytes(b"")), "the image 'a.png' cannot be decoded"),
    "no labels": (folder, "has no dataset.json; label every image or use --cond=0"),
    "no JSON": (lambda p: (folder(p) / "dataset.json").write_text('{"labels'), "is not JSON ("),
    "null labels": (
        lambda p: label(folder(p), None),
        "has no labels in its dataset.json; label every image",
    ),
    "no pairs": (lambda p: label(folder(p), ["a.png"]), 'holds no {"labels": [["NAME.png", LABEL], ...]}'),
    "a list": (lambda p: (folder(p) / "dataset.json").write_text("[]"), 'holds no {"labels"'),
    "incomplete": (lambda p: label(folder(p), [["a.png", 0]]), "has no label for 2 of 3 images, such as 'b.png'"),
    "gap": (
        lambda p: label(folder(p), [["a.png", 0], ["b.png", 3], ["c.png", 3]]),
        "no image has class 1, and some have class 3; number classes 0 to n-1",
    ),
    "from one": (lambda p: label(folder(p), [[n, 1] for n in ("a.png", "b.png", "c.png")]), "no image has class 0"),
    "huge": (lambda p: label(folder(p), [["a.png", 0], ["b.png", 10**30], ["c.png", 1]]), "no image has class 2"),
    **{
        f"class {value!r}": (
            lambda p, value=value: label(folder(p), [["a.png", 0], ["b.png", value], ["c.png", 1]]),
            f"the label {says} of 'b.png' is not a class; label images with whole numbers from 0",
        )
        for value, says in [(True, "True"), (1.0, "1.0"), (-1, "-1"), ("cat", "'cat'"), (None, "None"), ([1], "a list")]
    },
    **{
        f"vector {value!r}": (
            lambda p, value=value: label(folder(p), [["a.png", [0, 1]], ["b.png", value], ["c.png", [0, 1]]]),
            "'b.png' has no vector of 2 numbers",
        )
        for value in ([1], [], 1, [1, True], [1, "x"], [1, float("nan")])
    },
}


@pytest.mark.parametrize("case", BAD_SETS)
def test_bad_data_sets_are_one_clear_line(tmp_path: Path, case: str) -> None:
    spoil, says = BAD_SETS[case]
    path = tmp_path / "set"
    spoil(path)
    with pytest.raises(UserError) as error:
        ImageDataset(path, cond=True)
    assert f"--data={path}" in str(error.value)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_damaged_zips(tmp_path: Path) -> None:
    whole = tmp_path / "set.zip"
    with zipfile.ZipFile(whole, "w") as z:
        z.writestr("a.png", noisy_png())
        z.writestr("b.png", noisy_png())
    data = whole.read_bytes()
    damaged = tmp_path / "damaged.zip"
    damaged.write_bytes(data[:500] + bytes([data[500] ^ 255]) + data[501:])  # in b.png
    dataset = ImageDataset(damaged)
    with pytest.raises(UserError, match=r"damaged.zip is damaged: 'b.png' cannot be read .*CRC.*; make the zip again"):
        dataset.image(1)
    damaged.write_bytes(data[:-30])
    with pytest.raises(UserError, match="is not a readable zip"):
        ImageDataset(damaged)


def test_order_visits_every_image_once_an_epoch_and_starts_anywhere() -> None:
    order = list(islice(data_order(7, seed=1, start=0), 35))
    assert all(sorted(order[e : e + 7]) == list(range(7)) for e in range(0, 35, 7))
    assert len({tuple(order[e : e + 7]) for e in range(0, 35, 7)}) > 1
    for start in (1, 6, 7, 20):
        assert list(islice(data_order(7, seed=1, start=start), 35 - start)) == order[start:]
    assert list(islice(data_order(7, seed=2, start=0), 35)) != order
