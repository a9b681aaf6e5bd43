"""CSV and class folders in and out, and merging files of labels, by the command."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import files, refusal, said

from rods.labels.labels import labels_in, read_label_lines, settle
from rods.labels.session import Answers
from scripts import label


@pytest.fixture
def labelled(store: Answers, label_all: Callable[..., None]) -> Path:
    label_all(store, "alice", "A", ["normal", "extra fingers", None, "uncertain"])
    label_all(store, "bob", "A", ["normal", "normal", None, None])
    return store.path


def test_a_csv_goes_out_and_comes_back(labelled: Path, tmp_path: Path) -> None:
    table = tmp_path / "labels.csv"
    assert "5 labels written" in said(label.main, "export", f"--answers={labelled}", f"--dest={table}")
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert [(row["label"], row["answer"], row["rater"]) for row in rows if row["name"].endswith("1.png")] == [
        ("hallucinated", "extra fingers", "alice"),
        ("valid", "normal", "bob"),
    ]
    again = tmp_path / "again.jsonl"
    for added in (5, 0):
        assert f"{added} labels added" in said(label.main, "import", table, f"--answers={again}")
    found = [settle(labels_in(read_label_lines(path))) for path in (labelled, again)]
    assert {key: (x.label, x.answer) for key, x in found[0].items()} == {
        key: (x.label, x.answer) for key, x in found[1].items()
    }


def test_a_csv_of_names(runs: tuple[Path, Path], tmp_path: Path) -> None:
    table, pooled = tmp_path / "mine.csv", tmp_path / "labels.jsonl"
    table.write_text("file,label,rater\n000001.png,bad,eve\n000000/000002.png,good,\n")
    options = ("import", table, "--labels=good,bad", f"--answers={pooled}")
    assert "give their folder by --images" in refusal(label.main, *options)
    assert "2 labels added" in said(label.main, *options, f"--images={runs[0]}", "--rater=me")
    found = [(x.source, x.label, x.answer) for x in labels_in(read_label_lines(pooled))]
    assert found == [("person eve", "hallucinated", "bad"), ("person me", "valid", "good")]
    both = [f"--images={run}" for run in runs]
    assert "several different images of --images have the name '000001.png'" in refusal(label.main, *options, *both)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("name,verdict\na,good\n", "it needs label, and name or sha256"),
        ("", "has the columns none"),
        (
            "name,label\n000001.png,odd\n",
            "line 2: 'odd' is none of the labels good, bad, uncertain; name them by --labels",
        ),
        ("name,label\nnowhere.png,bad\n", "line 2: no image of --images has the name 'nowhere.png'"),
        ("name,label,rater\n000001.png,bad,A B\n", "rater 'A B' must be small letters"),
        ("name,label\n", "has columns and no row below them"),
        ("sha256,label\n,bad\n", "line 2 has neither the name of an image nor its sha256"),
        ("name,sha256,label\n,,bad\n", "line 2 has neither the name of an image nor its sha256"),
        ("name,label\n000001.png,bad,more\n", "line 2: 3 fields, and the first line has 2"),
        ("name,label\n000001.png\n", "line 2: 1 field, and the first line has 2"),
        ("name,label,label\n000001.png,bad,good\n", "has the column 'label' twice"),
        ("sha256,label\n1234,bad\n", "line 2: '1234' is not a SHA-256"),
        (
            "name,sha256,label\n000001.png," + "0" * 64 + ",bad\n",
            "line 2: the image '000001.png' of --images has another",
        ),
        ("name,label,round\n000001.png,bad,0\n", "line 2: round '0' must be a number"),
        ("name,label,round\n000001.png,bad,again\n", "line 2: round 'again' must be a number"),
        ("name,label\n000001.png,bad\n000001.png,good\n", "line 3: import says 'good' of the image that line 2 calls"),
        ("name,label\n\n000001.png,bad\n\nnowhere.png,bad\n", "line 5: no image"),
        ("name,label\n000001.png," + "b" * 140_000 + "\n", "line 2: not a row of a CSV (field larger than"),
        ('name,label\n000001.png,"bad\n', "is a quote not closed?"),
        ("name,label\n000001.png," + "b" * 1000 + "\n", "bbb...' is none of the labels"),
    ],
)
def test_a_csv_that_is_refused_adds_nothing(text: str, says: str, runs: tuple[Path, Path], tmp_path: Path) -> None:
    table, pooled = tmp_path / "mine.csv", tmp_path / "labels.jsonl"
    table.write_text(text)
    assert says in refusal(
        label.main, "import", table, "--labels=good,bad", f"--images={runs[0]}", f"--answers={pooled}"
    )
    assert not pooled.exists()


def test_class_folders_go_out_and_come_back(labelled: Path, runs: tuple[Path, Path], tmp_path: Path) -> None:
    sorted_images = tmp_path / "sorted"
    options = ("export", f"--answers={labelled}", f"--dest={sorted_images}")
    assert "give theirs by --images" in refusal(label.main, *options)
    assert "2 uncertain, 1 valid" in said(label.main, *options, f"--images={runs[0]}", f"--images={runs[1]}")
    assert list(files(sorted_images)) == ["uncertain/000001.png", "uncertain/000003.png", "valid/000000.png"]
    assert "is not an empty folder" in refusal(label.main, *options, f"--images={runs[0]}")
    (sorted_images / "uncertain").rename(sorted_images / "bad")
    (sorted_images / "valid").rename(sorted_images / "good")
    pooled = tmp_path / "labels.jsonl.new"
    assert "3 labels added" in said(label.main, "import", sorted_images, "--labels=good,bad", f"--answers={pooled}")
    assert sorted(x.label for x in labels_in(read_label_lines(pooled))) == ["hallucinated", "hallucinated", "valid"]
    (sorted_images / "good/copy.png").write_bytes((sorted_images / "bad/000001.png").read_bytes())
    assert "is the same file as one in bad" in refusal(
        label.main, "import", sorted_images, "--labels=good,bad", f"--answers={pooled}"
    )


def test_two_raters_files_become_one(labelled: Path, tmp_path: Path) -> None:
    pooled = tmp_path / "pooled.jsonl"
    for added in (5, 0):
        assert f"{added} labels added" in said(label.main, "import", labelled, f"--answers={pooled}")
    assert read_label_lines(pooled) == read_label_lines(labelled)


def test_rows_of_a_csv_that_agree_are_one_label(runs: tuple[Path, Path], tmp_path: Path) -> None:
    """Of two raters, or of a second round, the same image may have two."""
    table, pooled = tmp_path / "mine.csv", tmp_path / "labels.jsonl"
    rows = ["bad,a,", "bad,a,", "good,b,", "good,a,2"]
    table.write_text("Name, Label, rater, round\n" + "".join(f" 000001.png , {row}\n" for row in rows))
    assert "3 labels added" in said(
        label.main, "import", table, "--labels=good,bad", f"--images={runs[0]}", f"--answers={pooled}"
    )
    assert {(x.source, x.round, x.answer) for x in labels_in(read_label_lines(pooled))} == {
        ("person a", None, "bad"),
        ("person b", None, "good"),
        ("person a", 2, "good"),
    }


def test_options_that_would_not_be_read_are_refused(labelled: Path, runs: tuple[Path, Path], tmp_path: Path) -> None:
    table, pooled, images = tmp_path / "mine.csv", tmp_path / "labels.jsonl", f"--images={runs[0]}"
    table.write_text("name,label\n000001.png,bad\n")
    out = f"--answers={pooled}"
    for wrong, says in {
        ("import", table, images, f"--against={runs[1]}", out): "--against",
        ("import", labelled, f"--against={runs[1]}", out): "after --images",
        ("import", labelled, images, f"--images={runs[1]}", out): f"--images={runs[1]}: a file of labels is of one",
        ("import", runs[0], images, out): "--images",
        ("import", table, images, images, out): "is given twice",
        ("serve", images, f"--against={runs[0]}", out): "is given twice",
        ("report", images, f"--against={runs[0]}", f"--answers={labelled}"): "is given twice",
        ("export", images, f"--answers={labelled}", f"--dest={tmp_path / 'out.csv'}"): "--images",
    }.items():
        assert says in refusal(label.main, *wrong), wrong
    table = tmp_path / "answers.csv"
    table.write_bytes(labelled.read_bytes())
    into, inside = f"--dest={table}", f"--dest={runs[0] / 'sorted'}"
    assert "is given twice" in refusal(label.main, "export", f"--answers={table}", into)
    assert table.read_bytes() == labelled.read_bytes()
    assert "inside of --images" in refusal(label.main, "export", f"--answers={labelled}", images, inside)
    pooled.write_text('{"name": "a.png", "label": "valid", "source": "program x", "sha256": "' + 64 * "0" + '"}\n')
    assert "has no labels of people" in refusal(label.main, "export", out, f"--dest={tmp_path / 'out.csv'}")
    assert not (tmp_path / "out.csv").exists()


def test_labels_of_programs_which_have_no_ids_are_merged(tmp_path: Path) -> None:
    pooled = tmp_path / "labels.jsonl"
    for name, added in (("a", 1), ("b", 1), ("b", 0)):
        mine = tmp_path / f"{name}.jsonl"
        mine.write_text(f'{{"name": "{name}.png", "label": "valid", "source": "program x", "sha256": null}}\n')
        assert f"{added} label{'' if added == 1 else 's'} added" in said(
            label.main, "import", mine, f"--answers={pooled}"
        )
    assert len(read_label_lines(pooled)) == 2
