"""scripts/reproduce_paper.py on a network that costs nothing: stops for labels, goes on, one JSON for all networks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from commands import SMALL, files
from test_paper_tables import TASK, work  # noqa: F401  (a fixture)

from rods.bench.paper_correction import write_machine_answers
from rods.bench.paper_runs import Protocol, Runs
from rods.runs.presets import read_preset
from scripts import reproduce_paper
from training.checkpoint import load_snapshot


def call(*arguments: object, code: int = 0) -> Any:
    result = CliRunner().invoke(reproduce_paper.main, [str(a) for a in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result


def test_it_stops_for_the_labels_and_goes_on(work: dict[str, Any], tmp_path: Path) -> None:  # noqa: F811
    folder, out = work["folder"], tmp_path / "out"
    command = [*work["options"], f"--out={out}", f"--ref={folder / 'real.npz'}", "--detector=pixels", "--figures=none",
               "--samplers=euler,rods-cas"]  # fmt: skip
    first = call(*command)
    answers = out / "answers" / "small" / "rods-cas.jsonl"
    runs = out / "samples" / "small"
    assert f"label.py serve --kind=hands --images={runs / 'euler'} --against={runs / 'rods-cas'}" in first.stdout
    assert f"--answers={answers}" in first.stdout
    found = json.loads((out / "reproduction.json").read_text())["networks"]["small"]
    assert [row["method"] for row in found["table1"]["rows"]] == ["euler", "rods-cas"]
    assert (found["rehearsal"], found["seeding"], found["seeds"]) == (False, "per-batch", [0, 1, 2])
    assert "table2" not in found

    sampled = Runs(runs, load_snapshot(SMALL), read_preset(folder / "p.json"),
                   Protocol((0, 1), 3, torch.device("cpu")))  # fmt: skip
    write_machine_answers(sampled, "rods-cas", answers, kind="hands", task=TASK, raters=("a", "b"))
    before = files(runs)
    second = call(*command)
    assert files(runs) == before  # nothing sampled, measured or timed again
    assert "Now label" not in second.stdout
    assert "5 of 6 baseline images have one label" in second.stdout
    (out / "reproduction.json").write_text((out / "reproduction.json").read_text().replace('"small"', '"another"', 1))
    call(*command, "--figures=fig0")
    networks = json.loads((out / "reproduction.json").read_text())["networks"]
    assert set(networks) == {"small", "another"}  # the part of another network stays
    found = networks["small"]
    assert found["table2"]["rows"][0]["bad"]["k"] == 3
    assert found["table2"]["rating"]["rods-cas"]["images"] + found["table2"]["rating"]["rods-cas"]["disputed"] == 12
    assert found["figures"]["fig0"].startswith("not drawn: Error: No such command 'fig0'")
    image = found["images"][1]
    assert image["H"] > 0
    assert image["labels"].keys() == {"euler", "rods-cas"}


def test_a_rehearsal_labels_by_machine(
    work: dict[str, Any],  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    command = [*work["options"], "--rehearse", f"--ref={work['folder'] / 'real.npz'}", "--detector=pixels",
               "--figures=none", "--samplers=euler,rods-cas"]  # fmt: skip
    refused = call(*command, f"--out={tmp_path / 'no'}", code=2).stderr
    assert "nothing labels its images; leave --network out" in refused
    assert not (tmp_path / "no").exists()
    monkeypatch.setattr(reproduce_paper, "task_of", lambda name: TASK)
    said = call(*command, f"--out={tmp_path / 'out'}")
    assert "24 answers by the labeller of small, no person's" in said.stderr
    found = json.loads((tmp_path / "out" / "reproduction.json").read_text())["networks"]["small"]
    assert found["rehearsal"] is True
    assert found["seeds"] == [0, 1, 2]  # what was given is not replaced
    assert list(found["table2"]["rating"]["rods-cas"]["kappa"]) == ["machine-1, machine-2"]
    shutil.rmtree(tmp_path / "out")


def test_mistakes(work: dict[str, Any], tmp_path: Path) -> None:  # noqa: F811
    out = f"--out={tmp_path / 'out'}"
    for arguments, says in (
        ((*work["options"], "--samplers=euler"), "--samplers=euler: rods-cas is missing"),
        ((f"--network={SMALL}", "--samplers=euler,rods-cas"), "--preset: rods-cas needs settings for this network"),
        ((*work["options"], "--detector=pixels"), "--ref is needed for network small"),
    ):
        assert says in call(*arguments, out, code=2).stderr
    assert not (tmp_path / "out").exists()
