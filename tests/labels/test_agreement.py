"""Agreement of raters, rates, the floor of what can be seen, and the report, of new files and old ones."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commands import refusal, said
from hypothesis import given
from hypothesis import strategies as st
from labelling import answer

from rods.eval.detection import Confusion
from rods.eval.labels import Label
from rods.labels.agreement import cohen_kappa, floor, people_in
from rods.labels.folders import Folder
from rods.labels.label_set import label_set
from rods.labels.report import Runs, agreement_lines, flagged, pair_lines, rate_lines
from rods.labels.session import Answers, Order, Session, open_session
from scripts import label

LabelAll = Callable[..., None]


def test_kappa_of_the_textbook() -> None:
    """20 yes/yes, 5 yes/no, 10 no/yes, 15 no/no: p_o = .7, p_e = .5, kappa = .4."""
    first = ["y"] * 25 + ["n"] * 25
    second = ["y"] * 20 + ["n"] * 5 + ["y"] * 10 + ["n"] * 15
    found = cohen_kappa(first, second, categories=["y", "n"])
    assert found.table == ((20, 5), (10, 15))
    assert found.observed == pytest.approx(0.7)
    assert found.kappa == pytest.approx(0.4)
    assert cohen_kappa(first, first, categories=["y", "n"]).kappa == 1
    assert math.isnan(cohen_kappa(["y"], ["y"], categories=["y", "n"]).kappa)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abc")), min_size=2))
def test_kappa_is_symmetric_and_at_most_one(pairs: list[tuple[str, str]]) -> None:
    first, second = zip(*pairs, strict=True)
    there, back = cohen_kappa(first, second, categories="abc"), cohen_kappa(second, first, categories="abc")
    assert there.kappa == pytest.approx(back.kappa, nan_ok=True)
    assert math.isnan(there.kappa) or there.kappa <= 1 + 1e-12


def runs_of(folders: tuple[Folder, Folder]) -> dict[str, Folder]:
    return dict(zip("AB", folders, strict=True))


def test_a_noisy_rater_breaks_no_unchanged_image(
    store: Answers, folders: tuple[Folder, Folder], label_all: LabelAll
) -> None:
    """The first image is the same file in both runs: its second answer takes the place of the first, in both."""
    label_all(store, "alice", "A", ["normal", "extra fingers", "missing fingers", "normal"])
    label_all(store, "alice", "B", ["extra fingers", "normal", "missing fingers", "abnormal palm"])
    lines = rate_lines(store.lines, Runs.of(store.lines, runs_of(folders)))
    assert "hallucinated, run A: 3 of 4" in lines[1]
    assert "hallucinated, run B: 3 of 4" in lines[2]
    assert lines[3:6] == [
        "4 images labelled in both runs, 1 of them the same file",
        "  corrected (hallucinated in A, valid in B): 1 of 3 = 33.3% (0.8% to 90.6%)",
        "  newly hallucinated (valid in A, hallucinated in B): 1 of 1 = 100.0% (2.5% to 100.0%)",
    ]


def test_pairs_say_which_run_is_better(store: Answers, session: Session, folders: tuple[Folder, Folder]) -> None:
    for n, item in enumerate(session.of_mode("pair")):  # B is always better, whichever side it is on
        better = "left better" if item.sums[0] == folders[1].sums[item.name] else "right better"
        store.record("alice", answer(item.key, better, ident=f"000000{n:02x}"))
        if n == 0:
            store.record("bob", answer(item.key, "same", ident="000000ff"))
    lines = pair_lines(store.lines, Runs.of(store.lines, runs_of(folders)))
    assert "better 2, worse 0, same 0, unclear 0; 1 disputed" in lines[1]


def test_the_floor_of_what_can_be_seen(folders: tuple[Folder, Folder], tmp_path: Path, label_all: LabelAll) -> None:
    """One rater, asked twice: of three images first called valid, one is then called hallucinated."""
    session = open_session(folders[:1], labels=label_set("good,bad"), repeat=4)
    store = Answers(tmp_path / "labels.jsonl", session)
    label_all(store, "alice", "A", ["good", "good", "bad", "good"])
    assert "No image has two answers" in " ".join(floor(people_in(store.lines)).lines())
    label_all(store, "alice", "A", ["good", "bad", "bad", "good"], round=2)
    found = floor(people_in(store.lines))
    counts = [(p.k, p.n) for p in (found.differ, found.broken, found.repaired)]
    assert counts == [(1, 4), (1, 3), (0, 1)]
    text = "\n".join(agreement_lines(store.lines))
    assert "alice and alice, again, images: n = 4, same answer 75.0%" in text
    assert "a changed image that is as valid as before looks newly broken: 1 of 3 = 33.3%" in text


def test_rates_of_images_that_a_score_chose_are_said_to_be(
    folders: tuple[Folder, Folder], tmp_path: Path, label_all: LabelAll
) -> None:
    worst = Order("score lid", list(folders[0].sums.values()))
    store = Answers(tmp_path / "labels.jsonl", open_session(folders[:1], labels=label_set("good,bad"), order=worst))
    label_all(store, "alice", "A", ["bad", None, None, None])
    runs = Runs.of(store.lines, {"A": folders[0]})
    assert "1 label of images that a score chose" in rate_lines(store.lines, runs)[-1]
    label_all(store, "alice", "A", [None, "good", "good", "good"])
    runs = Runs.of(store.lines, {"A": folders[0]})
    assert "chose" not in " ".join(rate_lines(store.lines, runs)), "all of the run is labelled now"


def test_the_confusion_matrix_of_a_detector() -> None:
    labels = {
        "a": Label.VALID,
        "b": Label.HALLUCINATED,
        "c": Label.HALLUCINATED,
        "d": Label.VALID,
        "e": Label.UNCERTAIN,
    }
    scores = {"a": 0.0, "b": 1.0, "c": 2.0, "d": 3.0, "e": 9.0}
    assert flagged(labels, scores, 2.0) == Confusion(tp=1, fp=1, fn=1, tn=1)


# -- the command ------------------------------------------------------------------------------------------------------


def test_the_report_command(store: Answers, runs: tuple[Path, Path], label_all: LabelAll) -> None:
    label_all(store, "alice", "A", ["normal", "extra fingers", "normal", "normal"])
    label_all(store, "bob", "A", ["normal", "extra fingers", "normal", "normal"])
    everything = said(label.main, "report", f"--answers={store.path}")
    assert "n = 4, same answer 100.0%, Cohen's kappa 1.000" in everything
    assert "hallucinated, all labelled images: 1 of 4 = 25.0%" in everything
    output = said(label.main, "report", f"--answers={store.path}", f"--images={runs[0]}", f"--against={runs[1]}")
    assert "hallucinated, run A: 1 of 4 = 25.0%" in output
    assert "need --images" in refusal(label.main, "report", f"--answers={store.path}", "--eps=1")


def test_the_detector_of_a_run(store: Answers, runs: tuple[Path, Path], label_all: LabelAll) -> None:
    label_all(store, "alice", "A", ["normal", "extra fingers", "normal", "normal"])
    (runs[0] / "options.json").write_text('{"identity": {"sampler": "rods-cas"}}')
    names = [f"000000/{i:06d}.png" for i in range(4)]
    own = {"seed": 0, "forward": 2, "backward": 0, "sha256": "x"}
    lines = [{"name": n, **own, "H": [0.1, i]} for i, n in enumerate(names)]
    (runs[0] / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    options = ("report", f"--answers={store.path}", f"--images={runs[0]}", "--eps=1")
    assert "tp 1, fp 2, fn 0, tn 1" in said(label.main, *options)
    (runs[0] / "samples.jsonl").write_text("".join(json.dumps({**line, "H": []}) + "\n" for line in lines))
    assert "no H of a labelled image" in refusal(label.main, *options)


# -- files of before version 0.2 --------------------------------------------------------------------------------------


@pytest.fixture
def old(runs: tuple[Path, Path], tmp_path: Path) -> Path:
    """What version 0.1 wrote of two runs: answers of alice to all images of A and one of B, and to a pair."""
    digests = []
    for run in runs:
        total = hashlib.sha256()
        for path in sorted(run.rglob("*.png")):
            total.update(f"{path.relative_to(run)}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
        digests.append(total.hexdigest())
    session = {"schema": 1, "kind": "hands", "seed": 0, "images": digests[0], "against": digests[1]}
    names = [f"000000/{i:06d}.png" for i in range(4)]
    told: list[tuple[str, str, list[str], str | None]] = [("image", name, ["A"], "normal") for name in names]
    told += [("image", names[1], ["A"], "extra fingers"), ("image", names[1], ["B"], "normal")]
    told += [("image", names[2], ["A"], None), ("pair", names[1], ["B", "A"], "left better")]
    lines: list[dict[str, Any]] = [{"session": session, "time": "x"}]
    for n, (mode, name, of, what) in enumerate(told):
        line = {"id": f"{n:08x}", "rater": "alice", "item": f"{mode}{name}{of}", "mode": mode, "name": name, "runs": of}
        lines.append({**line, "answer": what, "note": "", "time": "x"})
    path = tmp_path / "answers.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_an_old_file_is_reported_with_its_folders_or_without(old: Path, runs: tuple[Path, Path]) -> None:
    alone = said(label.main, "report", f"--answers={old}")
    with_folders = said(label.main, "report", f"--answers={old}", f"--images={runs[0]}", f"--against={runs[1]}")
    for output in (alone, with_folders):
        assert "hallucinated, run A: 1 of 3" in output
        assert "corrected (hallucinated in A, valid in B): 1 of 1" in output
        assert "better 1, worse 0, same 0, unclear 0" in output
    (runs[0] / "000000/000003.png").unlink()
    assert "answers to other images than those of --images=" in refusal(
        label.main, "report", f"--answers={old}", f"--images={runs[0]}"
    )


def test_an_old_file_is_imported(old: Path, runs: tuple[Path, Path], tmp_path: Path) -> None:
    new = tmp_path / "new" / "labels.jsonl"
    options = ("import", old, f"--images={runs[0]}", f"--against={runs[1]}", f"--answers={new}")
    assert "8 labels added" in said(label.main, *options)
    assert "0 labels added" in said(label.main, *options)
    output = said(label.main, "report", f"--answers={new}", f"--images={runs[0]}", f"--against={runs[1]}")
    assert "hallucinated, run A: 1 of 3" in output
    assert "better 1, worse 0" in output
    assert "give the folders that were labelled" in refusal(label.main, "import", old, f"--answers={new}")
    before = old.read_bytes()
    assert "scripts/label.py import" in refusal(label.main, "serve", f"--images={runs[0]}", f"--answers={old}")
    assert old.read_bytes() == before
