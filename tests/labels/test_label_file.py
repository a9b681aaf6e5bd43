"""The file of labels: what counts, what a kill leaves, whose files are left alone, and how it meets a run."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from commands import generated, records
from hypothesis import given
from hypothesis import strategies as st

from dnnlib.errors import UserError
from rods.labels.growing_file import append_lines, end_whole, read_lines
from rods.labels.label_set import label_set
from rods.labels.labels import LABELS_NAME, ImageLabel, labels_in, read_label_lines, read_labels, settle, write_labels

LINES: list[dict[str, Any]] = [
    {"id": f"{i:08x}", "source": "person bob", "name": f"{i}.png", "sha256": f"{i:064x}", "label": "valid", "note": "é"}
    for i in range(5)
]


def line(checksum: str, label: str | None, rater: str = "alice", **more: Any) -> dict[str, Any]:
    return {"id": "0", "source": f"person {rater}", "name": "x.png", "sha256": checksum, "label": label, **more}


# -- the file ---------------------------------------------------------------------------------------------------------


@given(cut=st.integers(0, 900))
def test_a_kill_while_writing_loses_at_most_the_line_that_was_not_acknowledged(cut: int) -> None:
    """Reading changes nothing; before more is added, the file is brought to its last whole line."""
    content = b"".join(json.dumps(line, ensure_ascii=False).encode() + b"\n" for line in LINES)[:cut]
    last = content.rpartition(b"\n")[2]
    whole = content.count(b"\n") + any(last == json.dumps(line, ensure_ascii=False).encode() for line in LINES)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "labels.jsonl"
        path.write_bytes(content)
        assert read_lines(path) == LINES[:whole]
        assert path.read_bytes() == content
        end_whole(path)
        append_lines(path, LINES[4:])
        assert read_lines(path) == [*LINES[:whole], LINES[4]]


@pytest.mark.parametrize(
    "content",
    [b'{"labels": [["a.png", 1]]}', b"one line of notes", b'{"a": 1}\n', b"\xff\xfe\x00", b"\n", b'{"session": 3}\n',
     b'{"session": {}}\n', b'{"session": {"kind": "hands", "seed": 0, "images": ""}}\n[1]\n',
     b'{"name": "a", "source": "x", "label": "odd"}\n', b'{"id": "1", "source": "x", "pair": ["a"], "answer": null}\n',
     b'{"id": "1", "source": "x", "pair": ["a", "b"], "answer": null}\n',  # which has no name
     b'{"name": "a", "source": "x", "label": "valid", "round": [1]}\n',
     b'{"name": "a", "source": "x", "label": "valid", "id": [2]}\n',
     b'{"name": "a", "source": "x", "label": "valid", "mode": 1000000000000000000000000000000}\n',
     b'{"name": "a", "source": "x", "label": "valid", "mode": "x"}\n',
     b'{"name": "a", "source": "x", "label": "valid", "fault": 3}\n'],
)  # fmt: skip
def test_a_file_that_is_not_ours_is_left_alone(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    for touch in (end_whole, read_lines):
        with pytest.raises(UserError, match="is not a file of labels; name another file"):
            touch(path)
    assert path.read_bytes() == content


def test_an_old_file_is_not_added_to(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text('{"session": {"kind": "hands", "seed": 0, "images": "0", "against": null}}\n')
    with pytest.raises(UserError, match=r"before version 0\.2; scripts/label\.py import reads it"):
        read_label_lines(path)


# -- what counts ------------------------------------------------------------------------------------------------------


def test_the_last_answer_counts_and_can_be_taken_back() -> None:
    lines = [line("a", "valid"), line("a", "hallucinated"), line("b", "valid"), line("b", None), line("c", "valid")]
    assert {label.sha256: label.label for label in labels_in(lines)} == {"a": "hallucinated", "c": "valid"}
    assert labels_in([{"id": "1", "source": "person x", "pair": ["a", "b"], "answer": "same"}]) == []


@pytest.mark.parametrize(
    ("lines", "label"),
    [
        ([line("a", "valid"), line("a", "valid", "bob")], "valid"),
        ([line("a", "valid"), line("a", "hallucinated", "bob")], "uncertain"),
        ([line("a", "valid"), line("a", "hallucinated", round=2)], "uncertain"),
        (
            [line("a", "valid"), line("a", "hallucinated", "bob"), line("a", "hallucinated", "consensus")],
            "hallucinated",
        ),
        ([line("a", "uncertain"), line("a", "uncertain", "bob")], "uncertain"),
    ],
)
def test_what_answers_agree_on(lines: list[dict[str, Any]], label: str) -> None:
    assert {key: found.label for key, found in settle(labels_in(lines)).items()} == {"a": label}


def test_words_for_the_same_verdict_agree_on_it() -> None:
    lines = [
        line("a", "hallucinated", answer="extra fingers"),
        line("a", "hallucinated", "bob", answer="abnormal palm"),
    ]
    found = settle(labels_in(lines))["a"]
    assert (found.label, found.answer, found.source) == ("hallucinated", None, "people")


# -- and a run --------------------------------------------------------------------------------------------------------


def test_a_pooled_file_meets_each_run_by_its_images(tmp_path: Path) -> None:
    generated(tmp_path / "a", "--sampler=euler", "--seeds=0-3")
    generated(tmp_path / "b", "--sampler=euler", "--seeds=2-5", "--subdirs")
    sums = {record["seed"]: record["sha256"] for run in "ab" for record in records(tmp_path / run)}
    pooled = tmp_path / "labels.jsonl"
    said = {0: "valid", 2: "hallucinated", 5: "valid"}
    append_lines(pooled, [line(sums[seed], label) | {"name": "000001.png"} for seed, label in said.items()])
    found = {run: read_labels(tmp_path / run, source=str(pooled)) for run in "ab"}
    assert {name: x.label for name, x in found["a"].items()} == {"000000.png": "valid", "000002.png": "hallucinated"}
    assert {name: x.label for name, x in found["b"].items()} == {
        "000000/000002.png": "hallucinated",
        "000000/000005.png": "valid",
    }


def test_people_and_a_program_beside_a_run(tmp_path: Path) -> None:
    generated(tmp_path, "--sampler=euler", "--seeds=0-1")
    first, second = (record["sha256"] for record in records(tmp_path))
    append_lines(
        tmp_path / LABELS_NAME, [line(first, "valid"), line(first, "hallucinated", "bob"), line("0" * 64, "valid")]
    )
    assert {name: x.label for name, x in read_labels(tmp_path).items()} == {"000000.png": "uncertain"}
    write_labels(tmp_path, [ImageLabel("000001.png", "valid", "program x", sha256=second)])
    with pytest.raises(UserError, match="has labels of 'program x', 'people'; name one by --labels"):
        read_labels(tmp_path)
    found = {source: list(read_labels(tmp_path, source=source)) for source in ("people", "person bob", "program x")}
    assert found == {"people": ["000000.png"], "person bob": ["000000.png"], "program x": ["000001.png"]}
    with pytest.raises(UserError, match="no labels of 'person eve', but of 'program x', 'people', 'person alice'"):
        read_labels(tmp_path, source="person eve")


# -- label sets -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "verdicts"),
    [
        ("good,bad", {"good": "valid", "bad": "hallucinated", "uncertain": "uncertain"}),
        ("odd = hallucinated, fine=valid", {"odd": "hallucinated", "fine": "valid", "uncertain": "uncertain"}),
        ("ok,unsure,two heads", {"ok": "valid", "two heads": "hallucinated", "unsure": "uncertain"}),
        ("faces", {"normal": "valid", "hallucinated": "hallucinated", "uncertain": "uncertain"}),
    ],
)
def test_label_sets(text: str, verdicts: dict[str, str]) -> None:
    found = label_set(text)
    assert (dict(found.verdicts), found.answers) == (verdicts, tuple(verdicts))
    assert (found.verdict("hallucinated"), found.verdict("nonsense")) == ("hallucinated", None)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "bad,good",
            "'good' is not the first, and the first label is that of a valid image; write good first, or good=",
        ),
        ("good", "not two labels"),
        ("good,,bad", "'' is not a label"),
        ("good,bad,bad", "'bad' is there twice"),
        ("good,bad=wrong", "'wrong' must be one of uncertain, valid, hallucinated"),
        ("good,unsure", "no label means hallucinated; say which one does, such as good=hallucinated"),
        ("a,b,c,d,e,f,g,h,i", "at most 9 have a key"),
        ("x" * 41 + ",bad", "is not a label"),
    ],
)
def test_label_sets_that_are_refused(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        label_set(text)
