"""Tables 1 and 2 on a network that costs nothing: the paper's values, numbers of the formulas, resuming, refusals."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from click.testing import CliRunner
from commands import SMALL, files
from test_fid import PIXELS, as_json, pictures
from test_fid import run as run_fid

from rods.bench import paper, paper_values
from rods.bench.task import Task
from rods.eval.labels import Label
from rods.presets import PAPER_PRESETS
from scripts import figures


def call(*arguments: object, code: int = 0) -> Any:
    result = CliRunner().invoke(figures.main, [str(a) for a in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A preset of the small network, a reference, and the options that make 6 images a method."""
    folder = tmp_path_factory.mktemp("paper")
    preset = {"name": "p", "network": "small", "source": "test",
              "samplers": {"rods-cas": {"eps": 0.0, "rho": 1.0, "window": "0,1", "num_steps": 40}},
              "detect_eps": {"rods-cas": 1e-9}}  # fmt: skip
    (folder / "p.json").write_text(json.dumps(preset))
    pictures(folder / "real", 12)
    run_fid("ref", f"--data={folder / 'real'}", f"--dest={folder / 'real.npz'}", *PIXELS)
    options = [f"--network={SMALL}", f"--preset={folder / 'p.json'}", "--seeds=0,1", "--batch=3", "--per-batch",
               "--threads=1"]  # fmt: skip
    out = folder / "out"
    return {"folder": folder, "options": options, "out": out, "runs": out / "samples" / "small"}


def halves(x: np.ndarray) -> np.ndarray:
    """A labeller: images above the median of all are hallucinated, the first is uncertain."""
    means = x.mean(axis=(1, 2, 3))
    labels = np.where(means > np.median(means), Label.HALLUCINATED, Label.VALID).astype(np.int8)
    labels[0] = Label.UNCERTAIN
    return labels


TASK = Task("small", "", {"small": list}, halves, None, 0, lambda n, seed: np.zeros((7, 1, 8, 8)), list)  # type: ignore[dict-item]


def labels_of(folder: Path) -> dict[str, Label]:
    paths = sorted(folder.glob("0*.png"))
    codes = halves(np.stack([np.asarray(PIL.Image.open(path))[None] for path in paths]).astype(float))
    return {path.name: Label(code) for path, code in zip(paths, codes, strict=True)}


def test_the_papers_numbers_fit_together() -> None:
    """Table 2's shares are whole images of 900, and lead from Euler's count to each method's."""
    hands = paper_values.STUDIES["11k-hands"]
    assert len(hands.seeds) * paper_values.BATCH == hands.detection.images == 900
    assert round(100 * hands.detection.hallucinated / 900, 1) == hands.correction["euler"].hallucinated
    for name in ("heun", "euler-200", "rods-cas"):
        row = hands.correction[name]
        assert row.corrected is not None
        assert row.broken is not None
        corrected, broken = round(175 * row.corrected / 100), round(725 * row.broken / 100)
        assert (100 * (175 - corrected + broken) / 900) == pytest.approx(row.hallucinated, abs=0.06)
    for name in ("ffhq", "afhqv2"):
        study = paper_values.STUDIES[name]
        assert len(study.seeds) * paper_values.BATCH == study.detection.images == 1080
        assert paper_values.study_of(study.preset) is study
    assert paper_values.study_of("my-hands") is hands
    assert all(study.preset in PAPER_PRESETS for study in paper_values.STUDIES.values())


@pytest.mark.slow
def test_table_1_is_what_fid_py_says(work: dict[str, Any]) -> None:
    out, ref = work["out"], work["folder"] / "real.npz"
    table = ("table1", *work["options"], f"--out={out}", f"--ref={ref}", "--detector=pixels", "--num=5")
    first = call(*table)
    assert "euler: 2 of 2 batches to sample" in first.stderr
    found = json.loads((out / "table1.json").read_text())
    assert [row["method"] for row in found["rows"]] == ["euler", "heun", "rods-cas"]
    assert found["rows"][2]["paper"] == {"fid": 16.68, "variance": 0.0318, "dreamsim": 0.1509}
    for row in found["rows"]:
        folder = work["runs"] / row["method"]
        assert len(list(folder.glob("0*.png"))) == 6
        assert {m["n"] for m in row["metrics"]} == {5}
        last = folder / "000001_002.png"  # the sixth, which --num=5 leaves out
        data = last.read_bytes()
        last.unlink()
        theirs = as_json("calc", f"--images={folder}", f"--ref={ref}", *PIXELS, "--metrics=fid,inception-var,cosine")
        last.write_bytes(data)
        assert [m["value"] for m in row["metrics"]] == [m["value"] for m in theirs["metrics"]]
    before = files(out)
    again = call(*table)
    assert (again.stdout, again.stderr) == (first.stdout, "")  # nothing sampled
    assert files(out) == before
    assert "FID" not in first.stdout.replace("paper: FID", "")
    assert "Warning: 5 images are fewer than 2048" in first.stdout
    assert first.stdout.startswith("| sampler ")


def test_table_1_draws_real_data_of_the_networks_task(work: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    table = ("table1", *work["options"], f"--out={work['out']}", "--detector=pixels", "--samplers=euler")
    assert "--ref is needed for network small" in call(*table, code=2).stderr
    monkeypatch.setattr(paper, "TASKS", {"small": lambda: TASK})
    call(*table)
    assert json.loads((work["out"] / "table1.json").read_text())["rows"][0]["metrics"][0]["n_ref"] == 7


@pytest.mark.slow
def test_table_2_by_the_tasks_labeller(work: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paper, "task_of", lambda name: TASK)
    table = ("table2", *work["options"], f"--out={work['out']}", "--samplers=euler,heun,rods-cas")
    text = call(*table).stdout
    found = json.loads((work["out"] / "table2.json").read_text())
    labels = {m: np.array(list(labels_of(work["runs"] / m).values())) for m in ("euler", "heun", "rods-cas")}
    euler, cas = labels["euler"], labels["rods-cas"]
    rows = {row["method"]: row for row in found["rows"]}
    bad = rows["euler"]["hallucinated"]
    assert (bad["k"], bad["n"], rows["euler"]["outcomes"]) == (int((euler == Label.HALLUCINATED).sum()), 6, None)
    o = rows["rods-cas"]["outcomes"]
    assert o["repaired"]["k"] == int(((euler == Label.HALLUCINATED) & (cas == Label.VALID)).sum())
    assert o["broken"]["n"] == int((euler == Label.VALID).sum())
    assert (rows["heun"]["forward"], rows["heun"]["backward"]) == (79, 0)
    assert rows["rods-cas"]["paper"]["corrected"] == 26.3
    assert all(row["seconds"] > 0 for row in found["rows"])
    flagged = found["detection"]["hallucinated"]
    assert flagged["k"] == flagged["n"] == bad["k"]  # H is above 1e-9 everywhere
    assert "Paper, 11k-hands, 128x128: 169 of 175 hallucinated found, of 900 images." in text


def test_table_2_by_answers(work: dict[str, Any], monkeypatch: pytest.MonkeyPatch, write_answers: Any) -> None:
    """Answers of two raters who see what the labeller sees give the labeller's table."""
    table = ["table2", *work["options"], f"--out={work['out']}", "--samplers=euler,rods-cas", "--no-times"]
    monkeypatch.setattr(paper, "task_of", lambda name: TASK)
    call(*table)
    by_task = json.loads((work["out"] / "table2.json").read_text())
    runs = work["runs"] / "euler", work["runs"] / "rods-cas"
    answers = work["folder"] / "answers.jsonl"
    write_answers(answers, runs, (labels_of(runs[0]), labels_of(runs[1])), raters=("a", "b"))
    monkeypatch.setattr(paper, "task_of", lambda name: None)
    call(*table, f"--answers=rods-cas={answers}")
    by_hand = json.loads((work["out"] / "table2.json").read_text())
    for one, two in zip(by_hand["rows"], by_task["rows"], strict=True):
        assert one["hallucinated"]["k"] == two["hallucinated"]["k"]
        assert one["hallucinated"]["n"] == two["hallucinated"]["n"]  # what raters disagree on is uncertain
        assert one["seconds"] is None
    assert by_hand["detection"] == by_task["detection"]
    assert by_hand["rows"][1]["judged"] == {"better": 0, "worse": 0, "same": 0, "unclear": 0}
    wrong = f"--answers=rods-cas={work['folder'] / 'p.json'}"
    assert "p.json is not a file of labels" in call(*table, wrong, code=2).stderr


def test_an_unchanged_image_has_eulers_label(work: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """What a method did not touch need not be labelled twice."""
    line = {"mode": "image", "rater": "x", "runs": ["A"], "note": "", "answer": "extra fingers"}
    lines = [{**line, "item": name, "name": name} for name in ("a.png", "b.png")]
    monkeypatch.setattr(paper.Experiment, "_lines", lambda *_: lines)
    monkeypatch.setattr(paper.Experiment, "names", lambda _: ["a.png", "b.png"])
    records = lambda _, method: [{"name": "a.png", "sha256": "1"}, {"name": "b.png", "sha256": method}]  # noqa: E731
    monkeypatch.setattr(paper.Experiment, "records", records)
    usual = paper.Usual("11k-hands", "small", 2)
    e = paper.open_experiment(SMALL, usual, preset=None, out=work["out"], device=torch.device("cpu"))
    e = replace(e, answers={"heun": Path()})
    assert e.labels("euler") == [Label.HALLUCINATED, Label.HALLUCINATED]
    assert e.labels("heun") == e.labels("churn") == [Label.HALLUCINATED, None]


def test_mistakes(work: dict[str, Any], tmp_path: Path) -> None:
    options = work["options"]
    for arguments, says in (
        (("table1", *options, "--samplers=euler,ddim"), "--samplers: unknown method 'ddim'; use euler"),
        (("table1", *options, "--metrics=fod"), "'fod' is unknown"),
        (("table1", *options, "--detector=pixels", f"--ref={SMALL}"), "is not a readable .npz"),
        (("table2", *options, "--samplers=heun"), "euler is missing; all others are compared with it"),
        (("table2", *options), "--answers is needed: nothing labels the images of small by machine"),
        (("table2", *options, "--answers=heun"), "--answers=heun: write SAMPLER=FILE with one of heun"),
        (("table2", *options, "--answers=heun=no.jsonl"), "there is no file no.jsonl"),
    ):
        lines = call(*arguments, f"--out={tmp_path / 'out'}", code=2).stderr.splitlines()
        assert len(lines) == 1
        assert says in lines[0]
    assert not (tmp_path / "out").exists()
