"""rods.runs.scores: what the records of a run say of its images already."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import RESTART, RODS, generated, records

from dnnlib.errors import UserError
from rods.runs.scores import image_scores


def test_scores_have_the_names_of_their_detectors(tmp_path: Path) -> None:
    generated(tmp_path / "h", *RODS, "--seeds=0-3")
    generated(tmp_path / "flight", *RESTART, "--detector=lid", "--score-at=1", "--seeds=0-3")
    (name,) = image_scores(tmp_path / "flight")
    assert name.startswith("lid:")
    assert name.endswith(", in flight at 1")
    generated(tmp_path / "two", *RESTART, "--detector=tvf", "--seeds=0-3", "--filter=lid", "--filter-threshold=inf")
    h = image_scores(tmp_path / "h")
    assert h == {"h-index": {line["name"]: max(line["H"]) for line in records(tmp_path / "h")}}
    two = image_scores(tmp_path / "two")
    lines = records(tmp_path / "two")
    kept = {line["name"]: line["restart"]["scores"][line["restart"]["kept"]] for line in lines}
    assert {name.partition(":")[0]: scores for name, scores in two.items()} == {
        "tvf": kept,
        "lid": {line["name"]: line["filter_score"] for line in lines},
    }


def test_a_folder_that_is_no_run_has_no_scores(tmp_path: Path) -> None:
    assert image_scores(tmp_path) == {}
    (tmp_path / "options.json").write_text("{}")
    with pytest.raises(UserError, match=r"options\.json was not written by generate\.py"):
        image_scores(tmp_path)
