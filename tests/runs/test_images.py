"""Pixels, PNG files and contact sheets."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from rods.runs.images import RED, contact_sheet, save_png, to_pil, to_uint8
from rods.runs.run import write_grid


def test_pixels_are_truncated_and_clipped() -> None:
    x = np.array([-9, -1, -1 / 127.5, 0, 0.9 / 127.5, 1 / 127.5, 126.9 / 127.5, 1, 9])
    assert to_uint8(x).tolist() == [0, 0, 127, 128, 128, 129, 254, 255, 255]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_has_no_colour(value: float) -> None:
    with pytest.raises(ValueError, match="image: some pixels are not finite"):
        to_uint8(np.array([0, value]))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_png_holds_the_pixels(channels: int, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (channels, 4, 5), dtype=np.uint8)
    save_png(to_pil(pixels), tmp_path / "x.png")
    with PIL.Image.open(tmp_path / "x.png") as image:
        assert (image.mode, image.size) == ("L" if channels == 1 else "RGB", (5, 4))
        assert np.array_equal(np.asarray(image), pixels[0] if channels == 1 else pixels.transpose(1, 2, 0))
    assert [path.name for path in tmp_path.iterdir()] == ["x.png"]


@pytest.mark.parametrize(("count", "columns", "size"), [(1, None, (1, 1)), (5, None, (3, 2)), (5, 5, (5, 1))])
def test_a_contact_sheet_has_a_tile_for_each_image(count: int, columns: int | None, size: tuple[int, int]) -> None:
    images = [np.full((3, 32, 32), 10 * i, np.uint8) for i in range(count)]
    sheet = contact_sheet(images, [f"{i}" for i in range(count)], columns=columns)
    wide, high = size
    assert sheet.size == (4 + wide * 100, 4 + high * 114)
    for i in range(count):
        left, top = 4 + i % wide * 100, 4 + i // wide * 114
        assert np.array_equal(np.asarray(sheet)[top : top + 96, left : left + 96], np.full((96, 96, 3), 10 * i))


def test_marked_tiles_are_framed_and_others_are_not() -> None:
    images = [np.zeros((1, 96, 96), np.uint8)] * 2
    sheet = np.asarray(contact_sheet(images, ["", ""], marked=[True, False], columns=2))
    assert tuple(sheet[3, 50]) == tuple(sheet[50, 3]) == tuple(sheet[50, 100]) == tuple(sheet[100, 50]) == RED
    assert tuple(sheet[3, 150]) == tuple(sheet[50, 200]) == (255, 255, 255)


def test_a_sheet_has_blank_places_frames_a_heading_and_lines_of_text() -> None:
    image, green = np.full((1, 8, 8), 9, np.uint8), (0, 255, 0)
    sheet = contact_sheet(
        [image, None, image],
        ["a\nb", "", ""],
        frames=[green, green, None],
        columns=2,
        min_tile=8,
        heading="x",
        margin=6,
    )
    assert sheet.size == (6 + 8 + 4 + 8 + 6, 14 + 6 + 2 * (8 + 28) + 4 + 6)
    pixels = np.asarray(sheet)
    assert tuple(pixels[19, 6]) == tuple(pixels[21, 5]) == green
    assert (pixels[20:28, 6:14] == 9).all()
    assert (pixels[20:28, 18:26] == 255).all()
    assert (pixels[60:68, 6:14] == 9).all()


def test_a_sheet_without_captions_or_margin_is_its_tiles() -> None:
    image = np.full((1, 8, 8), 9, np.uint8)
    assert (np.asarray(contact_sheet([image] * 4, columns=2, min_tile=1, gap=0, margin=0)) == 9).all()


def test_large_images_are_not_made_smaller() -> None:
    assert contact_sheet([np.zeros((3, 128, 128), np.uint8)], [""]).size == (136, 150)


def test_the_grid_leaves_out_what_was_not_written(tmp_path: Path) -> None:
    class Folder:
        outdir = tmp_path

    for name in ("a.png", "b.png"):
        save_png(to_pil(np.zeros((1, 8, 8), np.uint8)), tmp_path / name)
    line = {"seed": 1, "sha256": "x", "H": [], "flagged": []}
    lines = [{**line, "name": "a.png", "H": [None, 2.0]}, {**line, "name": "b.png"}, {**line, "sha256": None}]
    folder: Any = Folder()
    write_grid(folder, lines, tmp_path / "grid.png", threshold=1.0)
    with PIL.Image.open(tmp_path / "grid.png") as grid:
        assert grid.size == (4 + 2 * 100, 4 + 114)
        pixels = np.asarray(grid)
    assert tuple(pixels[3, 50]) == RED, "an H beyond all numbers is at risk"
    assert tuple(pixels[3, 150]) != RED, "no H was measured there"


def test_a_long_grid_says_that_it_is_cut_and_captions_name_the_class(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Folder:
        outdir = tmp_path

    captions: list[str] = []

    def sheet(images: Any, texts: Any, **_: Any) -> PIL.Image.Image:
        captions[:] = texts
        return PIL.Image.new("RGB", (8, 8))

    monkeypatch.setattr("rods.runs.run.contact_sheet", sheet)
    save_png(to_pil(np.zeros((1, 8, 8), np.uint8)), tmp_path / "a.png")
    line = {"name": "a.png", "sha256": "x", "H": [], "flagged": []}
    lines = [{**line, "seed": seed, "class": 7 if seed else None} for seed in range(257)]
    folder: Any = Folder()
    assert (
        write_grid(folder, lines, tmp_path / "grid.png", threshold=1.0) == "grid.png shows the first 256 of 257 images"
    )
    assert (len(captions), captions[0], captions[1]) == (256, "0", "1  class 7\n")
    assert write_grid(folder, lines[:256], tmp_path / "grid.png", threshold=1.0) is None
