"""scripts/calibrate.py on labelled runs: no task, nothing is sampled, and higher thresholds are what they would do."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from commands import LABELLED, RODS, SMALL, generated, records, refusal, said

from rods.bench.calibrate_runs import labelled_runs, sampler_of, trials_of
from rods.eval.labels import Label
from rods.labels.labels import VERDICTS, ImageLabel, write_labels
from rods.restart import Restart
from rods.runs.presets import read_preset
from scripts import calibrate as command

SEEDS, STEPS = "--seeds=0-23", 8
RESTARTS = ("--sampler=restart", "--sigma-r=2", "--batch=12")


def verdict(sha256: str) -> str:
    """What a labeller would say who sees nothing but the file."""
    return VERDICTS[1 + int(sha256[:8], 16) % 2]


def label(run: Path, names: set[str] | None = None) -> None:
    lines = [line for line in records(run) if names is None or line["name"] in names]
    write_labels(run, [ImageLabel(line["name"], verdict(line["sha256"]), "person a", sha256=line["sha256"])
                       for line in lines])  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, float]:
    """A run by Euler's method, one that restarts every image, both labelled, and a score that some images exceed."""
    folder = tmp_path_factory.mktemp("runs")
    generated(folder / "euler", "--sampler=euler", "--batch=12", SEEDS, steps=STEPS)
    generated(folder / "all", *RESTARTS, "--threshold=-inf", SEEDS, steps=STEPS)
    label(folder / "euler")
    label(folder / "all")
    first = sorted(line["restart"]["scores"][0] for line in records(folder / "all"))
    return folder / "euler", folder / "all", first[12]


def test_a_higher_threshold_is_judged_as_its_own_run_would_be(runs: tuple[Path, Path, float], tmp_path: Path) -> None:
    euler, every, _ = runs
    base, (run,), _ = labelled_runs([euler, every], None)
    own, *higher = trials_of(base, run, {})
    assert own.row.forward == np.mean([line["forward"] for line in records(every)])
    assert len(higher) == 5
    trial = higher[0]
    assert isinstance(trial.method.sampler, Restart)
    generated(tmp_path / "real", *RESTARTS, f"--threshold={trial.method.sampler.threshold!r}", SEEDS, steps=STEPS)
    label(tmp_path / "real")
    base, (real,), _ = labelled_runs([euler, tmp_path / "real"], None)
    expected = trials_of(base, real, {})[0]
    assert trial.method.sampler == expected.method.sampler
    assert trial.row.forward == pytest.approx(expected.row.forward)
    same = {line["name"]: line["sha256"] for line in records(every)}
    lost = [line for line in records(tmp_path / "real")
            if line["restart"]["kept"] and same[line["name"]] != line["sha256"]]  # fmt: skip
    assert trial.row.outcomes.uncertain_after.k == len(lost), "an image that neither run holds has no label"
    assert trial.row.outcomes.repaired.k <= expected.row.outcomes.repaired.k
    if not lost:
        assert trial.row.outcomes == expected.row.outcomes
        assert trial.row.variance_kept.value == pytest.approx(expected.row.variance_kept.value, rel=1e-3)


def test_the_best_of_labelled_runs_becomes_a_preset(runs: tuple[Path, Path, float], tmp_path: Path) -> None:
    euler, every, threshold = runs
    generated(tmp_path / "some", *RESTARTS, f"--threshold={threshold!r}", SEEDS, steps=STEPS)
    generated(tmp_path / "cas", *RODS, "--batch=12", SEEDS, steps=STEPS)
    changed = {line["name"] for line in records(tmp_path / "some") if line["restart"]["kept"]}
    label(tmp_path / "some", changed)
    label(tmp_path / "cas")
    (tmp_path / "base.json").write_text(json.dumps(
        {"name": "b", "network": SMALL.stem, "source": "by hand", "samplers": {"edm": {"num_steps": 18}}}
    ))  # fmt: skip
    told = said(command.main, euler, every, tmp_path / "some", tmp_path / "cas", f"--base={tmp_path / 'base.json'}",
                f"--dest={tmp_path / 'my.preset.json'}")  # fmt: skip
    assert "have no label" not in told, "what is Euler's own file has Euler's label"
    assert "| all at " in told
    preset = read_preset(tmp_path / "my.preset.json")
    assert preset.network == SMALL.stem
    assert set(preset.samplers) == {"edm", "euler", "restart", "rods-cas"}
    assert preset.source.endswith("edm: by hand")
    log = [json.loads(line) for line in (tmp_path / "my.calibration.jsonl").read_text().splitlines()]
    tried = [line for line in log[1:] if line["family"] == "restart"]
    assert len(tried) == told.count("| all") + told.count("| some")
    generated(
        tmp_path / "run", f"--preset={tmp_path / 'my.preset.json'}", "--sampler=restart", "--seeds=0-3", steps=None
    )
    assert "restart" in records(tmp_path / "run")[0]


def test_labels_of_a_pooled_file_are_followed_by_the_images(runs: tuple[Path, Path, float], tmp_path: Path) -> None:
    euler, every, _ = runs
    pooled = tmp_path / "pooled.jsonl"
    pooled.write_text("".join((run / "labels.jsonl").read_text() for run in (euler, every)))
    for run in (euler, every):
        shutil.copytree(run, tmp_path / run.name)
        (tmp_path / run.name / "labels.jsonl").unlink()
    base, (run,), _ = labelled_runs([tmp_path / "euler", tmp_path / "all"], str(pooled))
    assert len(base) == len(run) == 24
    assert set(base.labels.tolist()) == {Label.VALID, Label.HALLUCINATED}
    few = tmp_path / "few.jsonl"
    few.write_text("".join((euler / "labels.jsonl").read_text().splitlines(keepends=True)[:9]))
    arguments = tmp_path / "euler", tmp_path / "all", f"--labels={few}", f"--dest={tmp_path / 'p.json'}"
    assert re.search("none of its [0-9]+ changed images has a label", refusal(command.main, *arguments))
    with few.open("a") as file:
        file.write((every / "labels.jsonl").read_text().splitlines(keepends=True)[0])
    assert re.search("changed images have no label and count as uncertain", said(command.main, *arguments))


def test_what_would_be_passed_over_is_refused(runs: tuple[Path, Path, float], tmp_path: Path) -> None:
    again = runs[1].parent / "." / runs[1].name
    told = refusal(command.main, *runs[:2], f"{again}/", f"--dest={tmp_path / 'my.preset.json'}")
    assert "is given twice" in told
    options = (*runs[:2], f"--dest={tmp_path / 'my.preset.json'}")
    for idle in ("--samplers=restart", "--device=cpu", "--threads=1", f"--out={tmp_path / 'out'}", "--seeds=0-3"):
        assert f"{idle.partition('=')[0]} is for --task" in refusal(command.main, *options, idle)
    before = (runs[0] / "samples.jsonl").read_bytes()
    assert "--dest" in refusal(command.main, *runs[:2], f"--dest={runs[0] / 'samples.jsonl'}")
    assert (runs[0] / "samples.jsonl").read_bytes() == before
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_calibrated_is_one_line(runs: tuple[Path, Path, float], tmp_path: Path) -> None:
    euler, every, _ = runs
    dest = f"--dest={tmp_path / 'p.preset.json'}"
    generated(tmp_path / "nine", *RESTARTS, "--threshold=1", "--seeds=0-3", steps=9)
    generated(tmp_path / "other", *RESTARTS, "--threshold=1", "--seeds=0-3", network=LABELLED, steps=STEPS)
    generated(tmp_path / "record", *RESTARTS, "--threshold=inf", SEEDS, steps=STEPS)
    for name in ("nine", "other"):
        label(tmp_path / name)
    for arguments, names in (
        ([], "--task=NAME"),
        ([euler], "one run is a baseline"),
        ([euler, every, "--task=hands-32"], "--task=NAME"),
        ([euler, every, "--seeds=0-3"], "--seeds"),
        (["--task=hands-32", "--labels=people"], "--labels"),
        ([every, euler], "must be by --sampler=euler"),
        ([euler, tmp_path / "nine"], "another number of steps"),
        ([euler, tmp_path / "other"], "another network"),
        ([euler, tmp_path / "record"], "only records scores"),
    ):
        assert names in refusal(command.main, *arguments, dest), arguments
    run = labelled_runs([euler, every], None)[1][0]
    run.options["detector"] = "readout"  # type: ignore[index]
    assert not (tmp_path / "p.preset.json").exists()
    with pytest.raises(Exception, match="--base"):
        sampler_of(run, {})


def test_settings_that_no_sampler_has_are_one_line(runs: tuple[Path, Path, float], tmp_path: Path) -> None:
    shutil.copytree(runs[1], tmp_path / "run")
    about = json.loads((runs[1] / "options.json").read_text())
    for sampler in ("nope", ["restart"]):
        about["identity"]["sampler"] = sampler
        (tmp_path / "run" / "options.json").write_text(json.dumps(about))
        told = refusal(command.main, runs[0], tmp_path / "run", f"--dest={tmp_path / 'my.preset.json'}")
        assert "unknown sampler" in told
        assert "--base" not in told, "no gate is missing"
