"""rods.bench.report, stored and plots.benchmark, and scripts/bench.py: Markdown from result files alone."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from functools import partial

import PIL.Image
import pytest
import small_tasks
import torch
from commands import said
from small_tasks import PICTURES, POINTS

from rods.bench import report
from rods.bench.bars import clears_bars
from rods.bench.compare import compare
from rods.bench.plots import benchmark
from rods.bench.plots.drawing import has_matplotlib
from rods.bench.report import Figure, audit_record, report_parts, verdict
from rods.bench.stored import read_sections
from rods.bench.task import AuditLine
from rods.eval.bootstrap import Estimate
from rods.eval.correction import proportion_interval
from scripts import bench

LID = "lid detector=lid:sigma=.1"
METHODS = ["euler", "heun", LID, "h-index rho=.02 window=0,1", "overshoot", "restart"]
cli = partial(said, bench.main)
AUDIT = (AuditLine("real data, fresh", "hallucinated", proportion_interval(0, 100), 0.005),)


needs_plots = pytest.mark.skipif(not has_matplotlib(), reason="matplotlib is not installed (the extra plots)")


@pytest.fixture
def benchmark_tasks(offer_tasks):
    few = [replace(task, real=lambda n, seed, real=task.real: real(200, seed)) for task in (POINTS, PICTURES)]
    tasks = {t.name: replace(t, audit=lambda: AUDIT) for t in few}
    offer_tasks(bench, tasks)
    return tasks


def test_the_command_reports_what_was_run_and_audited(tmp_path, benchmark_tasks):
    out = f"--out={tmp_path}"
    small_tasks.run(POINTS, tmp_path, METHODS)
    cli("audit", "--task=points", out)
    dest = tmp_path / "report"
    assert cli("report", f"--dest={dest}", "--threads=1", out).splitlines()[0] == str(dest / "report.md")
    text = (dest / "report.md").read_text()
    figures = re.findall(r"\(figures/([^)]+)\)", text)
    assert len(figures) >= (8 if has_matplotlib() else 0)
    for figure in figures:
        with PIL.Image.open(dest / "figures" / figure) as image:
            assert image.width > 300
    for wanted in ("0/100", "AUROC", "window=0,1", "FD-coordinates", "torch " + torch.__version__, "by flag and label"):
        assert wanted in text
    again = tmp_path / "again"
    cli("report", f"--dest={again}", "--threads=1", out)
    for name in ("report.md", *(f"figures/{figure}" for figure in figures)):
        assert (again / name).read_bytes() == (dest / name).read_bytes()


def test_without_matplotlib_the_report_has_no_charts_and_says_so(tmp_path, benchmark_tasks, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    small_tasks.run(POINTS, tmp_path, ["euler", "heun", LID])
    printed = cli("report", f"--dest={tmp_path / 'report'}", "--threads=1", f"--out={tmp_path}")
    assert printed.splitlines()[1:] == [report.NO_FIGURES]
    text = (tmp_path / "report" / "report.md").read_text()
    assert report.NO_FIGURES in text
    assert "figures/" not in text
    assert "AUROC" in text


def test_images_that_changed_are_shown_with_the_control_of_tone(tmp_path, benchmark_tasks):
    task = benchmark_tasks["bars"]
    small_tasks.run(task, tmp_path, ["euler", "overshoot", "restart threshold=0 sigma_r=3 detector=lid:sigma=1"])
    parts = report_parts(read_sections({"bars": task}, tmp_path, tmp_path))
    sheets = [part for part in parts if isinstance(part, Figure) and "pairs" in part.name]
    told = [part for part in parts if isinstance(part, str) and part.startswith("Tone control")]
    assert len(sheets) == len(told) >= 1
    for image in (tmp_path / "bars").rglob("*.png"):
        image.unlink()
    parts = report_parts(read_sections({"bars": task}, tmp_path, tmp_path))
    assert any(isinstance(part, str) and "not on this machine" in part for part in parts), "a fresh clone still reports"


def test_the_verdict_names_what_is_too_small(tmp_path):
    runs = small_tasks.run(POINTS, tmp_path, ["euler", "heun"])
    base, row = (compare(runs["euler"], run) for run in runs.values())
    lines = verdict([base, row])
    assert lines[0].endswith("relative reduction: none.")
    assert "valid images: with none broken" in lines[1]
    good = replace(
        row,
        outcomes=replace(row.outcomes, broken=proportion_interval(0, 500)),
        relative_reduction=Estimate(0.5, 0.4, 0.6, 0.95),
        variance_kept=Estimate(0.97, 0.9, 1, 0.95),
        forward=1.5 * base.forward,
    )
    assert clears_bars(good, base)
    assert verdict([base, good])[0].endswith("relative reduction: heun (50 %).")
    for worse in (
        {"forward": 1.6 * base.forward},
        {"variance_kept": Estimate(0.96, 0.9, 1, 0.95)},
        {"relative_reduction": Estimate(0.5, 0, 0.6, 0.95)},
        {"outcomes": replace(row.outcomes, broken=proportion_interval(5, 500))},
    ):
        assert not clears_bars(replace(good, **worse), base)


@needs_plots
def test_the_curves_of_a_calibration_come_from_its_file(tmp_path, benchmark_tasks):
    small_tasks.run(POINTS, tmp_path, ["euler"])
    share = {"k": 3, "n": 10}
    tried = [
        {"family": "overshoot", "config": {"rho": r, "window": w}, "repaired": share, "broken": {"k": 1, "n": 50}}
        for r in (0.1, 0.2)
        for w in ("0,1", "0.5,1")
    ]
    step = {"sigma": 1.0, "H": 0.2, "H_scaled": 0.1, "auroc": None, "largest": 0.5, "flagged": None}
    critical = {"eps": 0.1, "steps": [step, {**step, "sigma": 0.5, "auroc": 0.7, "flagged": 0.2}]}
    lines = [{"task": "points"}, *tried, {"critical": critical}]
    (tmp_path / "exact.calibration.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    sections = read_sections({"points": benchmark_tasks["points"]}, tmp_path, tmp_path)
    names = [part.name for part in report_parts(sections) if isinstance(part, Figure)]
    assert [n for n in names if "calibration" in n] == [
        f"points-exact-calibration-{kind}.png" for kind in ("overshoot", "H", "auroc", "critical")
    ]


def test_every_method_has_a_group():
    names = ("euler-200", "random rho=8", "rods-cas-all", "restart x=1", "iq", "tag")
    assert [benchmark.group(name) for name in names] == [
        "baselines", "controls", "RODS", "restart", "rivals", "rivals",
    ]  # fmt: skip


def test_an_audit_is_kept_as_text():
    (line,) = audit_record(AUDIT)["lines"]
    assert line == {
        "what": "real data, fresh",
        "label": "hallucinated",
        "share": "0/100: 0.0 % (0.0-3.6)",
        "bar": "0.5 %",
    }
