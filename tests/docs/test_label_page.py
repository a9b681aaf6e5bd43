"""docs/how-to/label.md: its commands in their order, on a small network and by a rater to whom every third is bad."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from commands import SMALL, files, generated, said
from pages import Page

from rods.labels.session import Answers
from scripts import bench, label

COMMAND = re.compile(r"^    python (generate|scripts/label|scripts/bench)\.py (.*)$", re.MULTILINE)


def rate(store: Answers, **options: Any) -> None:
    """What a person does in the browser."""
    for mode, answers in (("image", ("good", "good", "bad")), ("pair", ("left better", "same"))):
        for n, row in enumerate(store.view("alice", mode)):
            if row["answer"] is None:
                given = {"item": row["item"], "answer": answers[n % len(answers)], "note": "", "seen": row["seen"]}
                store.record("alice", {**given, "id": f"{len(store.lines):08x}"})


def test_the_commands_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(label, "serve_session", rate)
    Path("mine.csv").write_text("name,label\n000001.png,bad\n")
    output: dict[str, str] = {}
    found = COMMAND.findall(Page("how-to/label").text)
    assert [name.removeprefix("scripts/") for name, _ in found] == [
        "generate",
        *["label"] * 5,
        "generate",
        "label",
        "bench",
        "label",
    ]
    for name, line in found:
        options = [o.replace("0-299", "0-5") for o in shlex.split(line) if not o.startswith("--network")]
        if name == "generate":
            more = ("--threshold=0", "--sigma-r=2") if "--sampler=restart" in options else ()
            generated(Path("out"), *options, *more, network=SMALL)
            continue
        if options[:2] == ["import", "sorted-images"]:
            Path("sorted-images/good").mkdir(parents=True)
            Path("sorted-images/good/x.png").write_bytes(Path("out/euler/000002.png").read_bytes())
        output[options[0]] = said(label.main if name == "scripts/label" else bench.main, *options)
    assert "The raters' own disagreement:" in output["compare"]
    assert "hallucinated, run A: " in output["report"]
    assert "Pairs: run B against run A:" in output["report"]
    assert {name.split("/")[0] for name in files(Path("by-label"))} <= {"valid", "hallucinated", "uncertain"}
    assert Path("labels.csv").read_text().count("\n") == 9, "six answers, two imported ones, and the headings"
