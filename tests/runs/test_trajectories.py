"""generate.py --trajectory: strips of x_t above D(x_t), which cost no pass and move no image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from commands import PLAIN, RESTART, RODS, files, generated, records, refused
from exact import CPU, Watch
from numpy.typing import NDArray

from rods import Euler
from rods.labels.folders import read_folder
from rods.runs.chunk import Chunk, sample_chunk
from rods.runs.images import to_uint8
from rods.runs.sources import image_source
from rods.runs.trajectories import GAP, Strips, tiles_of
from training.checkpoint import load_denoiser


def strip_of(path: Path) -> NDArray[np.uint8]:
    with PIL.Image.open(path) as image:
        array = np.array(image)
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


def test_a_strip_shows_the_states_of_the_run(tmp_path: Path) -> None:
    generated(tmp_path, "--sampler=euler", "--seeds=3-4", "--trajectory=0,2", network=PLAIN, steps=4)
    watch = Watch()
    done = sample_chunk(load_denoiser(PLAIN), Chunk(0, (3, 4)), Euler(num_steps=4), device=CPU, observers=[watch])
    steps = watch.steps
    for row, seed in enumerate((3, 4)):
        states, denoised = tiles_of(strip_of(tmp_path / "trajectories" / f"{seed:06d}.png"))
        image = strip_of(tmp_path / f"{seed:06d}.png")
        for k, i in enumerate((0, 2)):
            x = steps[i].x[row] / (1 + steps[i].sigma ** 2) ** 0.5
            assert np.array_equal(states[k], to_uint8(x.clamp(-1, 1).numpy()))
            assert np.array_equal(denoised[k], to_uint8(steps[i].denoised[row].clamp(-1, 1).numpy()))
        assert np.array_equal(states[2], image)
        assert np.array_equal(denoised[2], image)
        assert np.array_equal(image, to_uint8(done.images[row].numpy()))
    line = records(tmp_path)[0]["trajectory"]
    assert line["file"] == "trajectories/000003.png"
    assert line["steps"] == [0, 2]
    assert line["sigma"] == [float(steps[0].sigma), float(steps[2].sigma)]


@pytest.mark.parametrize("sampler", [("--sampler=edm",), RODS, (*RESTART, "--threshold=0")], ids=str)
def test_strips_change_no_image_and_cost_nothing(tmp_path: Path, sampler: tuple[str, ...]) -> None:
    run = (*sampler, "--seeds=0-1")
    generated(tmp_path / "without", *run, steps=3)
    generated(tmp_path / "with", *run, "--trajectory=0-2", steps=3)
    without, with_strips = files(tmp_path / "without"), files(tmp_path / "with")
    for name in ("000000.png", "000001.png"):
        assert with_strips[name] == without[name]
        assert len(tiles_of(strip_of(tmp_path / "with" / "trajectories" / name))[0]) == 4
    assert [r["forward"] for r in records(tmp_path / "with")] == [r["forward"] for r in records(tmp_path / "without")]


def test_a_lost_strip_is_made_again_and_nothing_else(tmp_path: Path) -> None:
    run = ("--sampler=euler", "--seeds=0-3", "--batch=2", "--trajectory=1", "--subdirs")
    generated(tmp_path, *run)
    before = files(tmp_path)
    lost = tmp_path / "trajectories" / "000000" / "000002.png"
    lost.unlink()
    (lost.parent / ".tmp-0123456789ab.png").write_bytes(b"half")  # what a kill leaves behind
    generated(tmp_path, *run)
    assert files(tmp_path) == before


def test_a_dropped_image_has_no_strip(tmp_path: Path) -> None:
    run = ("--sampler=euler", "--seeds=0-7", "--trajectory=0")
    generated(tmp_path / "all", *run, "--filter=tvf", "--filter-threshold=inf", steps=6)
    limit = sorted(line["filter_score"] for line in records(tmp_path / "all"))[3]
    generated(tmp_path / "some", *run, "--filter=tvf", f"--filter-threshold={limit!r}", steps=6)
    kept = {line["name"] for line in records(tmp_path / "some") if not line["dropped"]}
    assert {p.name for p in (tmp_path / "some" / "trajectories").iterdir()} == kept
    assert len(kept) == 4


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--trajectory=2",), "--trajectory=2 "),
        (("--trajectory=x",), "'--trajectory'"),
        (("--trajectory=0", "--accept=lid<1"), "--trajectory "),
    ],
)
def test_what_cannot_be_shown(tmp_path: Path, options: tuple[str, ...], says: str) -> None:
    assert says in refused(tmp_path / "out", "--sampler=euler", *options)
    assert not (tmp_path / "out").exists()


def test_strips_are_no_images_of_the_run(tmp_path: Path) -> None:
    generated(tmp_path, "--sampler=euler", "--seeds=0-2", "--trajectory=0")
    assert image_source(str(tmp_path), option="--images", batch=8).num == 3
    assert len(read_folder(tmp_path, option="--images").files) == 3


def test_a_state_without_numbers_is_black() -> None:
    class Blank:
        rows, sigma, x, denoised = None, torch.tensor(2.0), torch.full((1, 1, 2, 2), torch.nan), torch.zeros(1, 1, 2, 2)

    strips = Strips((0,))
    strips.add(Blank())  # type: ignore[arg-type]
    assert (strips.states[0] == 0).all()
    assert (strips.denoised[0] == 128).all()


def test_tiles_come_back_from_a_strip() -> None:
    rng = np.random.default_rng(0)
    tiles = rng.integers(0, 256, (2, 4, 3, 3, 7, 7), dtype=np.uint8)  # [x_t or D, step, sample, C, H, W]
    image = rng.integers(0, 256, (3, 7, 7), dtype=np.uint8)
    strips = Strips(range(4), states=list(tiles[0]), denoised=list(tiles[1]))
    strip = np.asarray(strips.strip(2, torch.from_numpy((image - 127.5) / 127.5))).transpose(2, 0, 1)
    assert strip.shape == (3, 14 + GAP, 5 * 7 + 4 * GAP)
    assert np.array_equal(np.array(tiles_of(strip))[:, :4], tiles[:, :, 2])
    assert np.array_equal(tiles_of(strip)[0][4], image)
