"""All readers of a sampling run's folder see the same images: measured, paired, labelled, packed, trained on."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import generated, records

from rods.labels.folders import read_folder
from rods.runs.sources import image_source, paired_sources
from training.dataset import ImageDataset
from training.datasets.sources import open_source

EULER = ("--seeds=0-7", "--sampler=euler", "--filter=lid")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(all 8 images; 4 kept and 4 rejected, with a contact sheet, strips and a picture of the user's own)"""
    everything, some = tmp_path_factory.mktemp("all"), tmp_path_factory.mktemp("some")
    generated(everything, *EULER, "--filter-threshold=inf", "--subdirs")
    scores = sorted(line["filter_score"] for line in records(everything))
    middle = f"--filter-threshold={(scores[3] + scores[4]) / 2}"
    generated(some, *EULER, middle, "--rejected", "--grid", "--trajectory=0,1")
    (some / "mine.png").write_bytes((some / "grid.png").read_bytes())
    assert len(list(some.glob("rejected/*.png"))) == 4
    return everything, some


def test_every_reader_has_the_kept_images(runs: tuple[Path, Path]) -> None:
    everything, some = runs
    kept = [line["name"] for line in records(some) if not line.get("dropped")]
    assert len(kept) == 4
    assert ImageDataset(some).names == kept
    assert ImageDataset(some).left_out is not None
    assert "no image of its sampling run" in ImageDataset(some).left_out
    assert image_source(str(some), option="--images", batch=4).num == 4
    assert [item.name for item in open_source(some).items] == kept
    assert len(read_folder(some, option="--images").files) == 4
    pairs = paired_sources(str(everything), str(some), batch=4)  # of which one has subfolders
    assert [(s.num, s.left_out) for s in pairs] == [(4, 4), (4, 0)]
