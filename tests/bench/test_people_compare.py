"""`bench.py compare` with people's labels: a pooled file, images of both runs, the floor, and a blind sheet."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from commands import generated, records, refusal, said

from rods.bench import blind
from rods.bench.blind import blind_sheet
from rods.bench.compare import agreeing
from rods.bench.labelled import read_run
from rods.bench.labelled_images import of_runs
from rods.eval.labels import Label
from rods.labels.growing_file import append_lines
from rods.labels.labels import LABELS_NAME
from scripts.bench import main as bench


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Euler and a restart of the same eight seeds, three of which are restarted."""
    folder = tmp_path_factory.mktemp("runs")
    generated(folder / "scores", "--sampler=restart", "--threshold=inf", "--sigma-r=5", "--seeds=0-7", steps=4)
    generated(folder / "euler", "--sampler=euler", "--seeds=0-7", steps=4)
    middle = sorted(line["restart"]["scores"][0] for line in records(folder / "scores"))[4]
    generated(folder / "restart", "--sampler=restart", f"--threshold={middle}", "--sigma-r=5", "--seeds=0-7", steps=4)
    return folder / "euler", folder / "restart"


def sums(run: Path) -> list[str]:
    return [line["sha256"] for line in records(run)]


def line(checksum: str, label: str, rater: str = "alice", **more: object) -> dict[str, object]:
    return {
        "id": f"{rater}{checksum}{more}",
        "source": f"person {rater}",
        "name": "x",
        "sha256": checksum,
        "label": label,
    } | more


def changed(runs: tuple[Path, Path]) -> list[int]:
    return [i for i, (a, b) in enumerate(zip(*map(sums, runs), strict=True)) if a != b]


def test_a_pooled_file_says_what_was_repaired_and_what_raters_miss(runs: tuple[Path, Path], tmp_path: Path) -> None:
    """All of Euler's images are valid but the first that changed; the restarts are valid but the last that changed."""
    differ, pooled = changed(runs), tmp_path / "labels.jsonl"
    before, after = map(sums, runs)
    assert 2 <= len(differ) < 8
    said_of = dict.fromkeys([*before, *after], "valid")
    said_of |= {before[differ[0]]: "hallucinated", after[differ[-1]]: "hallucinated"}
    append_lines(pooled, [line(checksum, label) for checksum, label in said_of.items()])
    options = ("compare", *runs, f"--labels={pooled}")
    output = said(bench, *options)
    assert "1/1: 100.0 %" in output, "repaired"
    assert f"1/7: {100 / 7:.1f} %" in output, "newly broken"
    assert "No image has two answers" in output
    twice = [line(before[i], "valid" if i else "hallucinated", round=2) for i in range(8) if i not in differ]
    append_lines(pooled, twice)
    output = said(bench, *options)
    again = 8 - len(differ)
    assert f"The raters' own disagreement: {int(0 not in differ)} of {again} = " in output
    assert "a changed image that is as valid as before looks newly broken:" in output


def test_labels_of_some_images_leave_what_changed_and_its_cost_to_all(runs: tuple[Path, Path], tmp_path: Path) -> None:
    pooled, differ = tmp_path / "labels.jsonl", changed(runs)
    append_lines(pooled, [line(checksum, "valid") for checksum in sums(runs[0])])  # no restarted one has a label
    output = said(bench, "compare", *runs, f"--labels={pooled}", f"--blind={tmp_path / 'blind.png'}")
    assert f"{8 - len(differ)} of the 8 images that both runs have are labelled in both" in output
    assert f"8 seeds: {len(differ)} images changed" in output
    assert (tmp_path / "blind.png").is_file()


def test_an_image_of_both_runs_has_one_label(runs: tuple[Path, Path], tmp_path: Path) -> None:
    """By name, without checksums, as a checker of one's own may write them beside each run: two labels of one file."""
    same = next(i for i in range(8) if i not in changed(runs))
    pair = []
    for run, label in zip(runs, ("valid", "hallucinated"), strict=True):
        (tmp_path / run.name).mkdir()
        for name in ("options.json", "samples.jsonl"):
            (tmp_path / run.name / name).write_bytes((run / name).read_bytes())
        names = [record["name"] for record in records(run)]
        verdicts = [label if i == same else "valid" for i in range(8)]
        text = [
            json.dumps({"name": n, "label": v, "source": "mine"}) + "\n" for n, v in zip(names, verdicts, strict=True)
        ]
        (tmp_path / run.name / LABELS_NAME).write_text("".join(text))
        pair.append(read_run(tmp_path / run.name))
    assert [run.labels[same] for run in pair] == [Label.VALID, Label.HALLUCINATED]
    found = agreeing(*pair)
    assert [run.labels[same] for run in found] == [Label.UNCERTAIN] * 2
    assert [(run.labels == Label.VALID).sum() for run in found] == [7, 7]


def test_a_blind_sheet_and_its_key(runs: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sheet, key = tmp_path / "new" / "blind.png", tmp_path / "new" / "blind.key.csv"
    told, n = said(bench, "compare", *runs, f"--blind={sheet}"), len(changed(runs))
    assert f"{n} of {n} pairs, drawn at random" in told
    assert f"to {key}: judge before you open it" in told
    rows = list(csv.DictReader(key.read_text().splitlines()))
    names = [record["name"] for record in records(runs[0])]
    assert sorted(row["image"] for row in rows) == [names[i] for i in changed(runs)]
    assert [row["number"] for row in rows] == [str(n + 1) for n in range(len(rows))]
    assert {(row["left"], row["right"]) for row in rows} <= {("A", "B"), ("B", "A")}
    base, run = (read_run(path, labelled=False) for path in runs)
    found = blind_sheet(base, run)
    assert found is not None
    assert found[1] == key.read_text(), "the same two runs give the same sheet"
    monkeypatch.setattr(blind, "MOST_PAIRS", 1)
    assert f"1 of {n} pairs" in said(bench, "compare", *runs, f"--blind={sheet}")
    first = {"A": base, "B": run}[rows[0]["left"]]
    shown = np.asarray(found[0].convert("L"))
    tile = first.image(names.index(rows[0]["image"]))
    assert tile is not None
    scale = 128 // 8
    expected = np.kron(tile[0], np.ones((scale, scale), np.uint8))
    assert any(np.array_equal(shown[y : y + 128, x : x + 128], expected) for y in range(12) for x in range(12)), (
        "the first tile is the left image of the first row of the key"
    )
    shutil.copytree(runs[0], tmp_path / "same")
    assert "No image changed" in said(bench, "compare", runs[0], tmp_path / "same", f"--blind={tmp_path / 'none.png'}")
    assert not (tmp_path / "none.png").exists()


def test_labels_of_nobody_are_refused(runs: tuple[Path, Path], tmp_path: Path) -> None:
    empty = tmp_path / "labels.jsonl"
    append_lines(empty, [])
    assert "has no labels yet; label some images first" in refusal(bench, "compare", *runs, f"--labels={empty}")
    append_lines(empty, [line("0" * 64, "valid")])
    assert "have no labelled seed in common" in refusal(bench, "compare", *runs, f"--labels={empty}")


def test_one_source_of_a_pooled_file_is_chosen(runs: tuple[Path, Path], tmp_path: Path) -> None:
    """The program calls all images valid, and people all hallucinated."""
    pooled = tmp_path / "labels.jsonl"
    for source, label in (("program x", "valid"), ("person alice", "hallucinated")):
        append_lines(pooled, [line(checksum, label, source) | {"source": source}
                              for checksum in dict.fromkeys(c for run in runs for c in sums(run))])  # fmt: skip
    options = ("compare", *runs)
    told = refusal(bench, *options, f"--labels={pooled}")
    assert f"such as --labels='{pooled}:people'" in told
    by = {
        whose: said(bench, *options, f"--labels={pooled}:{whose}") for whose in ("program x", "people", "person alice")
    }
    assert "0.0 %" in by["program x"]
    assert "100.0 %" in by["people"]
    assert by["people"] == by["person alice"]
    assert "no labels of 'bob'" in refusal(bench, *options, f"--labels={pooled}:bob")


def test_a_run_is_not_compared_with_itself(runs: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(runs[0])
    for again in (runs[0], f"{runs[0]}/../{runs[0].name}", tmp_path / "link"):
        assert "is given twice" in refusal(bench, "compare", runs[0], again)
    sheet = tmp_path / "sheet.png"
    assert "is given twice" in refusal(bench, "compare", *runs, f"--pairs={sheet}", f"--blind={sheet}")
    for option in ("--pairs", "--blind"):
        told = refusal(bench, "compare", *runs, f"{option}={runs[0] / '000001.png'}")
        assert f"'{option}': {runs[0] / '000001.png'} is an image of the run {runs[0]}" in told
        assert "does not end in .png" in refusal(bench, "compare", *runs, f"{option}={tmp_path / 'sheet.txt'}")


def test_no_sheet_replaces_an_image_of_a_run(runs: tuple[Path, Path], tmp_path: Path,
                                             monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """Nor one in its folders, from inside of them, or a strip."""
    filtered = ("--sampler=euler", "--filter=tvf", "--filter-threshold=-1", "--rejected", "--subdirs", "--seeds=0-1")
    generated(tmp_path / "rejected", *filtered, "--trajectory=0", steps=2)
    generated(tmp_path / "strips", "--sampler=euler", "--trajectory=0", "--subdirs", "--seeds=0-1", steps=2)
    for folder, file in (("rejected", "rejected/000000/000001.png"), ("strips", "trajectories/000000/000001.png"),
                         ("strips", "000000/000001.png")):  # fmt: skip
        image = tmp_path / folder / file
        before = image.read_bytes()
        monkeypatch.chdir(image.parent)
        for path in (image, "000001.png", f"../{image.parent.name}/000001.png"):
            told = refusal(bench, "compare", *runs, f"--pairs={path}")
            assert f"{path} is an image of the run {tmp_path / folder}; name another file" in told
        assert image.read_bytes() == before
    told = refusal(bench, "compare", *runs, f"--pairs={tmp_path / 'strips' / 'grid.png'}")
    assert "grid.png is the grid of the run" in told
    monkeypatch.chdir(tmp_path)
    assert "Wrote free.png" in said(bench, "compare", *runs, "--pairs=free.png")


def test_an_image_with_two_labels_teaches_nothing(runs: tuple[Path, Path], tmp_path: Path) -> None:
    """Of two runs with labels of their own, which share the images that were not restarted."""
    own = [tmp_path / run.name for run in runs]
    for run, label in zip(own, ("valid", "hallucinated"), strict=True):
        shutil.copytree(runs[own.index(run)], run)
        append_lines(run / LABELS_NAME, [line(checksum, label) for checksum in dict.fromkeys(sums(run))])
    network = json.loads((runs[0] / "options.json").read_text())["identity"]["network_sha256"]
    found = of_runs(own, None, network)
    assert sorted(found.bad.tolist()) == [False] * len(changed(runs)) + [True] * len(changed(runs))
    assert len(of_runs(own[:1], None, network).bad) == 8
