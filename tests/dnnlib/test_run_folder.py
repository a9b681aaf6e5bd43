"""A run's folder knows its images, wherever it lies and whoever asks."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from dnnlib.errors import UserError
from dnnlib.run_folder import not_of_their_run

OPTIONS = json.dumps({"identity": {"sampler": "edm"}}).encode()


def run(*lines: dict[str, object], root: str = "") -> dict[str, bytes]:
    records = "".join(json.dumps({"sha256": "0" * 64, **line}) + "\n" for line in lines)
    return {f"{root}options.json": OPTIONS, f"{root}samples.jsonl": records.encode()}


def strangers(images: set[str], files: dict[str, bytes]) -> set[str]:
    return not_of_their_run(images, files, files.__getitem__)


def test_what_no_record_keeps_is_none_of_the_images() -> None:
    files = run({"name": "000000.png"}, {"name": "000001.png", "dropped": True, "file": "rejected/000001.png"},
                {"name": "000002.png", "sha256": None})  # fmt: skip
    others = {"grid.png", "trajectories/000000.png", "rejected/000001.png", "000002.png", "my-own.png"}
    assert strangers({"000000.png", *others}, files) == others


def test_in_a_folder_that_is_no_run_all_count() -> None:
    assert strangers({"grid.png"}, {"samples.jsonl": b"{}\n"}) == set()
    assert strangers({"grid.png"}, {"options.json": OPTIONS}) == set()
    assert strangers({"grid.png"}, {**run({"name": "0.png"}), "options.json": b'{"lr": 1}'}) == set()


def test_each_run_of_several_knows_its_own() -> None:
    files = {**run({"name": "000000/000000.png"}, root="a/"), **run({"name": "000000.png"}, root="a/b/")}
    images = {"a/000000/000000.png", "a/b/000000.png", "a/grid.png", "a/b/grid.png", "grid.png"}
    assert strangers(images, files) == {"a/grid.png", "a/b/grid.png"}


def test_the_work_is_linear_in_runs() -> None:
    """A folder of a thousand runs: all files are looked through a fixed number of times, not once for each run."""

    class Counted(dict[str, bytes]):
        times = 0

        def __iter__(self) -> Iterator[str]:
            self.times += 1
            return super().__iter__()

    files = Counted()
    for i in range(50):
        files |= run({"name": "000000.png"}, root=f"{i}/")
        files[f"{i}/.parts/000000000001-1.jsonl"] = b'{"name": "000001.png", "sha256": "0"}'
    images = {f"{i}/{name}.png" for i in range(50) for name in ("000000", "000001", "grid")}
    assert not_of_their_run(images, files, files.__getitem__) == {f"{i}/grid.png" for i in range(50)}
    assert files.times <= 3


def test_an_interrupted_run_has_what_its_parts_record() -> None:
    line = {"name": "000000.png", "sha256": "0"}
    files = {"options.json": OPTIONS, ".parts/000000000000-1.jsonl": json.dumps(line).encode()}
    assert strangers({"000000.png", "000001.png"}, files) == {"000001.png"}


def test_records_that_cannot_be_read_are_an_error() -> None:
    for damaged in (b"{", b"[]", b'{"name": 3}', b"\xff"):
        with pytest.raises(UserError, match=r"^samples\.jsonl does not hold generate\.py's records"):
            strangers({"0.png"}, {"options.json": OPTIONS, "samples.jsonl": damaged})
