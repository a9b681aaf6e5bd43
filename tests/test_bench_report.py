"""rods.bench.report, document, svg and looks, and scripts/bench.py: one page from result files alone."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import bench_tasks
import pytest
import torch
from bench_tasks import PICTURES, POINTS
from click.testing import CliRunner

from rods.bench.document import Figure, Heading, Text, html, markdown, write_document
from rods.bench.report import audit_record, report_blocks, verdict
from rods.bench.rows import compare
from rods.bench.svg import Axis, Series, around, chart
from rods.bench.tables import Table
from rods.bench.task import AuditLine
from rods.eval.correction import proportion_interval
from scripts import bench

METHODS = ["euler", "heun", "lid lid_sigma=.1", "h-index rho=.02 window=0,1", "overshoot", "restart"]
AUDIT = (AuditLine("real data, fresh", "surely bad", proportion_interval(0, 100), 0.005),)


pytestmark = pytest.mark.usefixtures("restored_threads")


@pytest.fixture
def small_tasks(monkeypatch):
    few = [replace(task, real=lambda n, seed, real=task.real: real(200, seed)) for task in (POINTS, PICTURES)]
    tasks = {t.name: lambda t=t: replace(t, audit=lambda: AUDIT) for t in few}
    monkeypatch.setattr(bench, "TASKS", tasks)
    for command in bench.main.commands.values():
        for option in command.params:
            if option.name == "task_name":
                monkeypatch.setattr(option, "type", type(option.type)(list(tasks)))
    return {name: make() for name, make in tasks.items()}


def cli(*args: str) -> str:
    result = CliRunner().invoke(bench.main, list(args), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_the_command_runs_goes_on_audits_and_reports(tmp_path, small_tasks):
    out = f"--out={tmp_path}"
    said = cli("--task=points", "--samplers=" + ",".join(METHODS[1:]), "--threads=1", out)
    assert re.findall(r"^\| (\w+) ", said, re.MULTILINE) == [
        "sampler",
        "euler",
        "heun",
        "overshoot",
        "restart",
        "score",
        "lid",
    ]
    assert "| h-index rho=.02 window=0,1 " in said
    files = {p: p.read_bytes() for p in tmp_path.rglob("*.jsonl")}
    assert len(files) == 6
    cli("run", "--task=points", "--samplers=heun", "--threads=1", out)
    assert {p: p.read_bytes() for p in files} == files
    assert "surely bad 0/100" in cli("audit", "--task=points", out)
    dest = tmp_path / "report"
    cli("report", f"--dest={dest}", "--threads=1", out)
    page = (dest / "report.html").read_text()
    assert not re.findall(r'(?:src|href)="(?!data:|#)', page), "the page asks for nothing"
    assert page.count("<svg") == len(list((dest / "figures").glob("*.svg"))) >= 8
    text = (dest / "report.md").read_text()
    for figure in re.findall(r"\(figures/([^)]+)\)", text):
        assert (dest / "figures" / figure).is_file()
    for wanted in ("0/100", "AUROC", "window=0,1", "FD-coordinates", "torch " + torch.__version__, "Confusion"):
        assert wanted in text


def test_all_leaves_out_what_nobody_calibrated_and_says_so(tmp_path, small_tasks):
    said = cli("--task=points", "--seeds=0-1", "--threads=1", f"--out={tmp_path}", "--batch=2")
    assert "left out: --samplers: 'sigma-offset' on points: kappa" in said
    assert "| tag " in said


@pytest.mark.parametrize(
    ("args", "what"),
    [
        (["--task=points", "--samplers=tvf tvf_sigma=99"], "tvf_sigma: 99 will not do"),
        (["--task=points", "--samplers=nonsense"], "--samplers: 'nonsense' is no method"),
        (["--task=points", "--network=other"], "--network=other: points has exact"),
        (["report"], "holds no results of points, bars"),
        (["--task=points", "--preset=missing"], "--preset=missing is unknown"),
    ],
)
def test_mistakes_get_one_line(tmp_path, small_tasks, args, what):
    result = CliRunner().invoke(bench.main, [*args, f"--out={tmp_path / 'out'}"])
    assert result.exit_code == 2
    assert what in result.output
    assert result.output.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_calibration_seeds_are_named(tmp_path, small_tasks):
    said = cli("--task=points", "--samplers=euler", "--seeds=1000-1001", "--threads=1", f"--out={tmp_path}")
    assert "2 of them, such as 1000, are calibration seeds" in said


def test_pictures_that_changed_are_shown_with_the_control_of_tone(tmp_path, small_tasks):
    task = small_tasks["bars"]
    bench_tasks.run(task, tmp_path, ["euler", "overshoot", "restart threshold=0 sigma_r=3 lid_sigma=1"])
    blocks = report_blocks({"bars": task}, tmp_path, tmp_path)
    sheets = [b for b in blocks if isinstance(b, Figure) and b.name.endswith(".png")]
    told = [b.text for b in blocks if isinstance(b, Text) and b.text.startswith("Tone control")]
    assert len(sheets) == len(told) >= 1
    for picture in (tmp_path / ".pictures").rglob("*.npy"):
        picture.unlink()
    blocks = report_blocks({"bars": task}, tmp_path, tmp_path)
    assert any(isinstance(b, Text) and "not on this machine" in b.text for b in blocks), "a fresh clone still reports"


def test_the_verdict_names_what_is_too_small(tmp_path):
    runs = bench_tasks.run(POINTS, tmp_path, ["euler", "heun"])
    lines = verdict([compare(runs["euler"], run) for run in runs.values()])
    assert "no method" in lines[0]
    assert "healthy baseline samples" in lines[1]


def test_the_curves_of_a_calibration_come_from_its_file(tmp_path, small_tasks):
    bench_tasks.run(POINTS, tmp_path, ["euler"])
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
    names = [
        b.name for b in report_blocks({"points": small_tasks["points"]}, tmp_path, tmp_path) if isinstance(b, Figure)
    ]
    assert [n for n in names if "calibration" in n] == [
        f"points-exact-calibration-{kind}.svg" for kind in ("overshoot", "H", "auroc", "critical")
    ]


def test_charts_are_well_formed_and_escape_names():
    x, y = around("a < b", [0.1, 1, 40], log=True), Axis("share", 0, 1, percent=True)
    labels = [f"method {i} & co" for i in range(12)]
    series = [
        Series("line", [0.1, 1.0, 40.0], [0.0, 0.5, 2.0], step=True),
        Series("points", [1.0] * 12, [0.5] * 12, labels, [0.4] * 12, [0.6] * 12),
        Series("dots", [0.5, float("nan")], [0.5, 0.5], dots=True),
        Series("", [], []),
    ]
    svg = chart("t <1>", series, x, y)
    root = ElementTree.fromstring(svg)
    texts = [e.text for e in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "100 %" in texts
    boxes = [
        (float(e.get("x")), float(e.get("y")))
        for e in root.iter("{http://www.w3.org/2000/svg}text")
        if "method" in (e.text or "")
    ]
    assert len(set(boxes)) == len(boxes) >= 10, "names of points at one place do not cover each other"
    assert "nan" not in svg


def test_ticks_are_round_and_inside():
    assert Axis("", 0, 1).ticks() == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1])
    assert Axis("", 0.9, 11, log=True).ticks() == pytest.approx([1, 2, 5, 10])
    assert Axis("", 35, 110, log=True).ticks() == pytest.approx([40, 50, 60, 80, 100])
    flat = around("", [3.0, 3.0])
    assert flat.lo < 3 < flat.hi


def test_documents_read_the_same_in_both_forms(tmp_path):
    blocks = [
        Heading("Title", 1),
        Heading("Part & more", 2),
        Text("- **bold** `x<y`\n- two"),
        Table(("a", "b"), (("1 < 2", "3"),)),
        Figure("one.svg", chart("c", [], Axis("", 0, 1), Axis("", 0, 1)), "a chart"),
        Figure("two.png", b"\x89PNG", "a picture"),
    ]
    assert "- **bold** `x<y`" in markdown(blocks)
    page = html(blocks)
    assert "<li><b>bold</b> <code>x&lt;y</code></li>" in page
    assert "<th>1 &lt; 2</th>" in page
    assert 'href="#part-more"' in page
    written = write_document(blocks, tmp_path, name="page")
    assert {p.name for p in written} == {"one.svg", "two.png", "page.md", "page.html"}


def test_an_audit_is_kept_as_text():
    (line,) = audit_record(AUDIT)["lines"]
    assert line == {
        "what": "real data, fresh",
        "label": "surely bad",
        "share": "0/100: 0.0 % (0.0-3.6)",
        "bar": "0.5 %",
    }
