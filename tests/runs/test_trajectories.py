"""generate.py --trajectory: strips of x_t above D(x_t), which cost no pass and move no image."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from commands import PLAIN, RESTART, RODS, files, generate, generated, records
from numpy.typing import NDArray
from rods.pipeline import SAMPLERS, Chunk, SamplerConfig, sample_chunk

from rods.labels.session import open_session
from rods.runs.images import to_uint8
from rods.runs.sources import image_source
from rods.runs.trajectories import GAP, Recorder, tiles_of
from training.checkpoint import load_denoiser

CPU = torch.device("cpu")
OWN = {
    "rods-cas": RODS,
    "rods-sas": ("--sampler=rods-sas", *RODS[1:]),
    "restart": RESTART,
    "overshoot": ("--sampler=overshoot", "--rho=1"),
    "sigma-offset": ("--sampler=sigma-offset", "--kappa=.1"),
    "random": ("--sampler=random", "--rho=1"),
    "iq": ("--sampler=iq", "--strength=.1", "--threshold=1", "--window=0,1"),
    "laplacian": ("--sampler=laplacian", "--strength=.1"),
    "tag": ("--sampler=tag", "--eta=1.1"),
}


def strip_of(path: Path) -> NDArray[np.uint8]:
    with PIL.Image.open(path) as image:
        array = np.array(image)
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


def test_a_strip_shows_the_states_of_the_run(tmp_path: Path) -> None:
    generated(tmp_path, "--sampler=euler", "--seeds=3-4", "--trajectory=0,2", network=PLAIN, steps=4)
    config = SamplerConfig("euler", {"num_steps": 4})
    steps = []
    done = sample_chunk(load_denoiser(PLAIN), Chunk(0, (3, 4)), config, device=CPU, watch=steps.append)
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


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_has_strips_and_the_images_that_it_has_without(tmp_path: Path, sampler: str) -> None:
    run = (*OWN.get(sampler, (f"--sampler={sampler}",)), "--seeds=0-1")
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
        (("--trajectory=2",), "--trajectory=2 is no step of this run: it has 2, 0 to 1; name others"),
        (("--trajectory=x",), "'x' is not a step or a range of steps; write for example 0-63,70"),
        (("--trajectory=1,1",), "'1,1' lists a step twice"),
        (("--trajectory=0", "--accept=lid<1"), "--trajectory shows one run, and --accept may draw an image several"),
    ],
)
def test_what_cannot_be_shown(tmp_path: Path, options: tuple[str, ...], says: str) -> None:
    code, output = generate(tmp_path / "out", "--sampler=euler", *options)
    assert (code, output.count("\n")) == (2, 1)
    assert re.search(re.escape(says), output)
    assert not (tmp_path / "out").exists()


def test_strips_are_no_images_of_the_run(tmp_path: Path) -> None:
    generated(tmp_path, "--sampler=euler", "--seeds=0-2", "--trajectory=0")
    assert image_source(str(tmp_path), option="--images", batch=8).num == 3
    assert len(open_session(tmp_path, None, kind="hands", seed=0).items) == 3


def test_a_state_without_numbers_is_black() -> None:
    class Step:
        sigma, x, denoised = torch.tensor(2.0), torch.full((1, 1, 2, 2), torch.nan), torch.zeros(1, 1, 2, 2)

    recorder = Recorder((0,))
    recorder.add(Step())  # type: ignore[arg-type]
    assert (recorder.states[0] == 0).all()
    assert (recorder.denoised[0] == 128).all()


def test_tiles_come_back_from_a_strip() -> None:
    rng = np.random.default_rng(0)
    tiles = rng.integers(0, 256, (2, 4, 3, 3, 7, 7), dtype=np.uint8)  # [x_t or D, step, sample, C, H, W]
    image = rng.integers(0, 256, (3, 7, 7), dtype=np.uint8)
    recorder = Recorder(range(4), states=list(tiles[0]), denoised=list(tiles[1]))
    strip = np.asarray(recorder.strip(2, torch.from_numpy((image - 127.5) / 127.5))).transpose(2, 0, 1)
    assert strip.shape == (3, 14 + GAP, 5 * 7 + 4 * GAP)
    assert np.array_equal(np.array(tiles_of(strip))[:, :4], tiles[:, :, 2])
    assert np.array_equal(tiles_of(strip)[0][4], image)
