"""scripts/make_data.py: the data sets that tasks draw, as train.py reads them."""

from __future__ import annotations

import zipfile

import numpy as np
import pytest
from commands import refusal, said
from PIL import Image

from rods.bench.tasks import TASKS
from scripts import make_data as command

SEED = 77


@pytest.mark.parametrize("name", command.DRAWN)
def test_it_writes_what_the_task_draws(name, tmp_path):
    first, second = tmp_path / "new" / "a.zip", tmp_path / "b.zip"
    for dest in (first, second):
        output = said(command.main, name, f"--dest={dest}", "--num=5", f"--seed={SEED}")
    assert first.read_bytes() == second.read_bytes()
    drawn = TASKS[name]().drawn
    resolution = drawn.resolutions[0]
    assert output == f"{second}: 5 images, {resolution}x{resolution} grey, no labels; seed {SEED}\n"
    with zipfile.ZipFile(first) as archive:
        assert archive.namelist() == [f"00000/img{i:08d}.png" for i in range(5)]
        assert all(entry.compress_type == zipfile.ZIP_STORED for entry in archive.infolist())
        for entry, expected in zip(archive.namelist(), drawn.draw(range(5), SEED, resolution), strict=True):
            with archive.open(entry) as f, Image.open(f) as image:
                assert image.mode == "L"
                np.testing.assert_array_equal(np.asarray(image), expected)
    assert [p.name for p in first.parent.iterdir()] == ["a.zip"], "no temporary file stays"


def test_chunks_change_nothing(tmp_path, monkeypatch):
    options = ["hands-32", "--num=5", "--resolution=48"]
    said(command.main, *options, f"--dest={tmp_path / 'a.zip'}")
    monkeypatch.setattr(command, "CHUNK", 2)
    output = said(command.main, *options, f"--dest={tmp_path / 'b.zip'}")
    assert output.endswith("5 images, 48x48 grey, no labels; seed 0\n")
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


@pytest.mark.parametrize(
    "args",
    [
        ["hands-32", "--num=0"],
        ["hands-32", "--seed=-1"],
        ["hands-32", "--resolution=8"],
        ["shapes", "--resolution=32"],
        ["shapes", "--dest=x.png"],
        ["shapes", "--number=3"],
        ["mnist"],
    ],
)
def test_bad_options_are_refused_in_one_line(args, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert args[-1].split("=")[0] in refusal(command.main, *args)
    assert not list(tmp_path.iterdir())
