"""Two small runs to label, and a rater who answers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from labelling import answer
from PIL import Image

from rods.labels.folders import Folder, read_folder
from rods.labels.label_set import label_set
from rods.labels.session import Answers, Session, open_session


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path]:
    """Two runs of four images; the first image is the same in both."""
    for run, value in (("A", 10), ("B", 20)):
        (tmp_path / run / "000000").mkdir(parents=True)
        for i in range(4):
            level = 50 if i == 0 else value + i
            Image.fromarray(np.full((8, 8), level, np.uint8)).save(tmp_path / run / f"000000/{i:06d}.png")
    return tmp_path / "A", tmp_path / "B"


@pytest.fixture
def folders(runs: tuple[Path, Path]) -> tuple[Folder, Folder]:
    return read_folder(runs[0], option="--images"), read_folder(runs[1], option="--against")


@pytest.fixture
def session(folders: tuple[Folder, Folder]) -> Session:
    return open_session(folders[:1], folders[1], labels=label_set("hands"))


@pytest.fixture
def store(session: Session, tmp_path: Path) -> Answers:
    return Answers(tmp_path / "labels.jsonl", session)


@pytest.fixture
def label_all(folders: tuple[Folder, Folder]) -> Callable[..., None]:
    """Gives a rater's answers to the images of a run, in the order of their names; None: no answer."""

    def label(store: Answers, rater: str, run: str, answers: list[str | None], *, round: int = 1) -> None:
        sums = folders["AB".index(run)].sums
        items = {item.sums[0]: item for item in store.session.of_mode("image") if item.round == round}
        for name, what in zip(sorted(sums), answers, strict=True):
            item = items.get(sums[name])
            if what is not None and item is not None:
                seen = next(r for r in store.view(rater, "image") if r["item"] == item.key)["seen"]
                store.record(rater, answer(item.key, what, ident=f"{len(store.lines):08x}", seen=seen))

    return label
