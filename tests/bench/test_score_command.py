"""scripts/score.py: the scores of a run against its labels, without sampling it again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from commands import LABELLED, RESTART, SMALL, files, generated, records, refusal, said

from rods.bench.labelled import read_run
from rods.bench.scores import judged, recorded_scores, with_labels
from rods.eval.detection import auroc
from rods.labels.labels import ImageLabel, read_labels, write_labels
from scripts import score as command

DETECTORS = ("--filter=lid", "--filter-threshold=inf")


def label_all(run: Path, worst: set[str], *, uncertain: tuple[str, ...] = ()) -> None:
    """Labels a run: these images are hallucinated, these uncertain, the others valid."""
    lines = []
    for line in records(run):
        label = "hallucinated" if line["name"] in worst else "uncertain" if line["name"] in uncertain else "valid"
        lines.append(ImageLabel(line["name"], label, "program test", sha256=line["sha256"]))
    write_labels(run, lines)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that records LID, not labelled."""
    folder = tmp_path_factory.mktemp("score") / "run"
    generated(folder, "--sampler=euler", *DETECTORS, "--seeds=0-11", "--batch=4")
    return folder


def test_a_score_that_labels_follow_finds_all(run: Path, tmp_path: Path) -> None:
    by_score = sorted(records(run), key=lambda line: -line["filter_score"])
    label_all(run, {line["name"] for line in by_score[:3]}, uncertain=(by_score[3]["name"],))
    before = files(run)
    assert "--by=tvf" in refusal(command.main, run, "--by=tvf")
    told = said(command.main, run, "--by=lid", f"--sheet={tmp_path / 'sheet.png'}")
    assert "3 hallucinated, 8 valid; left out: 1 uncertain" in told
    assert "| lid" in told
    assert "1.000 (1.000-1.000)" in told, "an interval of resampled images"
    assert "3/3" in told, "a threshold that flags all of them"
    assert files(run) == before, "the sheet goes where it was asked for"
    with PIL.Image.open(tmp_path / "sheet.png") as image:
        sheet = np.asarray(image).reshape(-1, 3)
    pooled = tmp_path / "pooled.jsonl"
    (run / "labels.jsonl").rename(pooled)
    assert "no labels" in said(command.main, run, f"--sheet={tmp_path / 'sheet.png'}")
    assert said(command.main, run, f"--labels={pooled}", "--by=lid", f"--sheet={tmp_path / 'sheet.png'}") == told
    for colour in ((230, 60, 40), (40, 150, 70), (170, 170, 170)):
        assert (sheet == colour).all(axis=1).any(), colour


def test_numbers_are_those_of_the_statistics(run: Path) -> None:
    label_all(run, {"000001.png", "000004.png", "000007.png"}, uncertain=("000002.png",))
    found = with_labels(read_run(run, labelled=False), read_labels(run))
    (score,) = recorded_scores(found)
    certain = found.labels != 0
    expected = auroc(score.values[certain], found.labels[certain] == 2)
    d = judged(found, score)
    assert d is not None
    assert d.auroc.value == expected
    assert d.auroc.low <= expected <= d.auroc.high
    assert not score.chose


def test_without_labels_there_are_quantiles_and_the_sheet(tmp_path: Path) -> None:
    generated(tmp_path / "run", *RESTART[:1], "--threshold=-inf", "--sigma-r=2", "--seeds=0-5", "--score-at=.5",
              steps=8)  # fmt: skip
    told = said(command.main, tmp_path / "run", "--most=2")
    assert "no labels" in told
    assert "AUROC" not in told
    assert "lid:sigma=1.2,draws=4, in flight at 0.5" in told
    assert "of every 3 of 6" in told
    assert (tmp_path / "run" / "scores.png").is_file()
    generated(tmp_path / "run", *RESTART[:1], "--threshold=-inf", "--sigma-r=2", "--seeds=0-6", "--score-at=.5",
              steps=8)  # fmt: skip
    assert len(records(tmp_path / "run")) == 7, "a run with its sheet goes on"
    (kept,) = recorded_scores(read_run(tmp_path / "run", labelled=False))
    assert kept.chose
    assert kept.values.tolist() == [
        line["restart"]["scores"][line["restart"]["kept"]] for line in records(tmp_path / "run")
    ]


def test_a_detector_reads_the_finished_images_as_a_filter_does(tmp_path: Path) -> None:
    """With the same draws and classes; what differs is a PNG's rounding."""
    network = LABELLED
    generated(tmp_path / "run", "--sampler=euler", *DETECTORS, "--seeds=3-8", "--batch=4", network=network, steps=8)
    label_all(tmp_path / "run", {"000004.png", "000006.png"})
    told = said(command.main, tmp_path / "run", f"--network={network}", "--detector=lid", "--threads=1",
                "--device=cpu")  # fmt: skip
    (recorded,) = recorded_scores(run := read_run(tmp_path / "run", labelled=False))
    opts = {"network": network, "detectors": ["lid"], "preset": None, "device": "cpu", "threads": 1}
    (again,) = command.Reading.of(run, opts).scores(run, ["lid"])
    np.testing.assert_allclose(again.values, recorded.values, rtol=0.1)
    assert again.name in told


def test_a_run_without_scores_says_what_to_give(tmp_path: Path) -> None:
    generated(tmp_path / "run", "--sampler=euler", "--seeds=0-3")
    run = tmp_path / "run"
    assert "--detector=lid" in refusal(command.main, run)
    label_all(run, {"000001.png"})
    for wrong, names in {
        ("--detector=lid",): "--network",
        (f"--network={SMALL}", "--detector=tvf"): "--filter='tvf",
        (f"--network={LABELLED}", "--detector=lid"): "checksum",
        (f"--network={SMALL}", "--detector=readout"): "--detector",
        ("--labels=program other",): "program other",
        (f"--sheet={tmp_path / 'no' / 'such.png'}",): "--sheet",
        (f"--sheet={tmp_path / 'sheet.txt'}", f"--network={SMALL}", "--detector=lid"): "does not end in .png",
        (f"--network={SMALL}",): "is for --detector",
        ("--preset=none",): "is for --detector",
        (f"--network={SMALL}", "--detector=lid", "--detector=lid"): "is given twice",
        ("--network=no.pkl", "--detector=lid"): "--network: no.pkl: there is no such file",
    }.items():
        assert names in refusal(command.main, run, *wrong), wrong
    assert not (run / "scores.png").exists()
    good, larger = (run / "000002.png").read_bytes(), tmp_path / "larger.png"
    PIL.Image.new("L", (9, 9)).save(larger)
    for image, says in ((b"no", "is not a readable image"), (larger.read_bytes(), "several sizes or modes")):
        (run / "000002.png").write_bytes(image)
        assert says in refusal(command.main, run, f"--network={SMALL}", "--detector=lid")
    (run / "000002.png").write_bytes(good)
    (run / "000002.png").unlink()
    told = refusal(command.main, run, f"--network={SMALL}", "--detector=lid", "--by=tvf")
    assert "--by=tvf is not a score of this run; it has lid:" in told, "before an image is read"
    assert "000002.png is missing" in refusal(command.main, run, f"--network={SMALL}", "--detector=lid")


def test_labels_of_one_kind_give_no_auroc(run: Path) -> None:
    label_all(run, set())
    told = said(command.main, run)
    assert "AUROC needs hallucinated and valid images" in told
    (run / "labels.jsonl").unlink()


DAMAGED = [
    {"filter_score": "high"},
    {"name": ["x"]},
    {"name": "000001.png"},  # that of another
    {"name": "/etc/passwd"},
    {"name": "../run/000003.png"},
    {"file": 5},
    {"class": "x"},
    {"x": [1.0]},  # a point among images
    {"seed": "1"},
    {"forward": -1},
    {"forward": None},
    {"H": [["x"]]},
    {"scores": 3},
    {"restart": {"scores": [], "kept": 0}},
    {"restart": {"scores": [1.0], "kept": 1}},
    {"restart": {"scores": [1.0], "kept": 0}},  # of one image alone
    {"tries": {"scores": ["a"], "kept": 0}},
]


@pytest.mark.parametrize("more", DAMAGED)
def test_damaged_records_are_one_line(more: dict[str, object], run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    lines = [line | (more if i == 3 else {}) for i, line in enumerate(records(run))]
    (tmp_path / "run" / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert "does not hold generate.py's records" in refusal(command.main, tmp_path / "run")


@pytest.mark.parametrize("more", [{"network_sha256": 5}, {"score_at": "x"}])
def test_damaged_options_are_one_line(more: dict[str, object], run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    about = json.loads((run / "options.json").read_text())
    about["identity"] |= more
    (tmp_path / "run" / "options.json").write_text(json.dumps(about))
    told = refusal(command.main, tmp_path / "run", f"--network={SMALL}", "--detector=lid")
    assert "options.json or timing.jsonl was changed" in told
