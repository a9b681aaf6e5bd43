"""Tables 1 and 2 on a network that costs nothing: paper's values, numbers of the formulas, resuming, refusals."""

from __future__ import annotations

import json
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

from rods.bench import paper, paper_commands, paper_correction
from rods.bench.paper_runs import Protocol, Runs
from rods.bench.task import Task
from rods.eval.labels import Label
from rods.presets import PAPER_PRESETS
from rods.runs.presets import read_preset
from scripts import figures
from training.checkpoint import load_snapshot

torch.set_num_threads(1)


def call(*arguments: object, code: int = 0) -> Any:
    result = CliRunner().invoke(figures.main, [str(a) for a in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result


def error(*arguments: object) -> str:
    lines = call(*arguments, code=2).stderr.splitlines()
    assert len(lines) == 1, lines
    return str(lines[0])


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A preset of the small network, a reference, and the options that make 6 images a method."""
    folder = tmp_path_factory.mktemp("paper")
    preset = {"name": "p", "network": "small", "source": "test",
              "samplers": {"rods-cas": {"eps": 0.0, "rho": 1.0, "window": "0,1", "num_steps": 6}},
              "detect_eps": {"rods-cas": 1e-9}}  # fmt: skip
    (folder / "p.json").write_text(json.dumps(preset))
    pictures(folder / "real", 12)
    run_fid("ref", f"--data={folder / 'real'}", f"--dest={folder / 'real.npz'}", *PIXELS)
    options = [f"--network={SMALL}", f"--preset={folder / 'p.json'}", "--seeds=0,1", "--batch=3", "--threads=1"]
    return {"folder": folder, "options": options, "out": f"--out={folder / 'out'}", "runs": folder / "out" / "small"}


def halves(x: np.ndarray) -> np.ndarray:
    """A labeller: pictures above the mean of all are bad, the first is ambiguous."""
    means = x.mean(axis=(1, 2, 3))
    labels = np.where(means > np.median(means), Label.BAD, Label.WELL).astype(np.int8)
    labels[0] = Label.AMBIGUOUS
    return labels


TASK = Task("small", "", {}, halves, None, 0, lambda n, seed: np.zeros((n, 1, 8, 8)), list)


# -- the paper's numbers ----------------------------------------------------------------------------------------------


def test_the_papers_numbers_fit_together() -> None:
    """Table 2's shares are whole images of 900, and lead from Euler's count to each method's."""
    hands = paper.STUDIES["11k-hands"]
    assert len(hands.seeds) * paper.BATCH == hands.detection.images == 900
    assert round(100 * hands.detection.hallucinated / 900, 1) == hands.correction["euler"].hallucinated
    for name in ("heun", "euler-200", "rods-cas"):
        row = hands.correction[name]
        assert row.corrected is not None
        assert row.broken is not None
        corrected, broken = round(175 * row.corrected / 100), round(725 * row.broken / 100)
        assert (100 * (175 - corrected + broken) / 900) == pytest.approx(row.hallucinated, abs=0.06)
    for name in ("ffhq", "afhqv2"):
        study = paper.STUDIES[name]
        assert len(study.seeds) * paper.BATCH == study.detection.images == 1080
        assert paper.study_of(study.preset) is study
    assert paper.study_of("my-hands") is hands
    assert all(study.preset in PAPER_PRESETS for study in paper.STUDIES.values())


def test_methods_are_the_papers() -> None:
    preset = PAPER_PRESETS["edm-ffhq-64x64-uncond-ve"]
    configs = {name: paper.method_config(name, preset) for name in paper.METHODS}
    assert [configs[n].options["num_steps"] for n in paper.METHODS] == [40, 40, 200, 40]
    assert (configs["heun"].sampler, configs["rods-cas"].options["rho"]) == ("edm", 8)
    with pytest.raises(ValueError, match="rods-cas needs settings"):
        paper.method_config("rods-cas", None)


# -- Table 1 ----------------------------------------------------------------------------------------------------------


def test_table_1_is_what_fid_py_says(work: dict[str, Any]) -> None:
    table = ("table1", *work["options"], work["out"], f"--ref={work['folder'] / 'real.npz'}", "--detector=pixels")
    first = call(*table, "--format=json", "--num=5")
    found = json.loads(first.stdout)
    assert "euler: 2 of 2 batches to sample" in first.stderr
    assert [row["method"] for row in found["rows"]] == ["euler", "heun", "rods-cas"]
    assert found["rows"][2]["paper"] == {"fid": 16.68, "variance": 0.0318, "dreamsim": 0.1509}
    for row in found["rows"]:
        folder = work["runs"] / row["method"]
        assert len(list(folder.glob("0*.png"))) == 6
        assert {m["n"] for m in row["metrics"]} == {5}
        last = folder / "000001_002.png"  # the sixth, which --num=5 leaves out
        data = last.read_bytes()
        last.unlink()
        theirs = as_json("calc", f"--images={folder}", f"--ref={work['folder'] / 'real.npz'}", *PIXELS,
                         "--metrics=fid,inception-var,cosine")  # fmt: skip
        last.write_bytes(data)
        assert [m["value"] for m in row["metrics"]] == [m["value"] for m in theirs["metrics"]]
    before = files(work["runs"])
    again = call(*table, "--format=json", "--num=5")
    assert json.loads(again.stdout) == found
    assert again.stderr == ""  # nothing sampled, nothing measured
    assert files(work["runs"]) == before
    text = call(*table, "--num=5").stdout
    assert "FID" not in text.replace("paper: FID", "")
    assert "Warning: 5 images are fewer than 2048" in text
    assert call(*table, "--num=5", "--format=markdown").stdout.startswith("| sampler ")


def test_table_1_draws_real_data_of_the_networks_task(work: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    table = ("table1", *work["options"], work["out"], "--detector=pixels", "--samplers=euler", "--format=json")
    assert "--ref is needed for network small" in error(*table)
    task = Task(**{**vars(TASK), "networks": {"small": lambda: None}})
    monkeypatch.setattr("rods.bench.paper_quality.TASKS", {"small": lambda: task})
    found = call(*table, "--num-real=7")
    assert "up to 7 fresh real images of task small" in found.stderr
    assert json.loads(found.stdout)["rows"][0]["metrics"][0]["n_ref"] == 7
    assert "fresh" not in call(*table, "--num-real=7").stderr  # kept


# -- Table 2 ----------------------------------------------------------------------------------------------------------


def test_table_2_by_the_tasks_labeller(work: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paper_commands, "task_of", lambda name: TASK)
    table = ("table2", *work["options"], work["out"], "--samplers=euler,heun,rods-cas", "--format=json")
    found = json.loads(call(*table).stdout)
    labels = {}
    for method in ("euler", "heun", "rods-cas"):
        paths = sorted((work["runs"] / method).glob("0*.png"))
        labels[method] = halves(np.stack([np.asarray(PIL.Image.open(p))[None] for p in paths]).astype(float))
    euler, cas = labels["euler"], labels["rods-cas"]
    rows = {row["method"]: row for row in found["rows"]}
    assert (rows["euler"]["bad"]["k"], rows["euler"]["bad"]["n"], rows["euler"]["outcomes"]) == (3, 6, None)
    o = rows["rods-cas"]["outcomes"]
    assert o["repaired"]["k"] == int(((euler == Label.BAD) & (cas == Label.WELL)).sum())
    assert o["broken"]["n"] == int((euler == Label.WELL).sum())
    assert rows["heun"]["passes"] == [79, 0]
    assert rows["rods-cas"]["paper"]["corrected"] == 26.3
    assert all(row["seconds"] > 0 for row in found["rows"])
    assert found["detection"]["found"]["k"] == found["detection"]["found"]["n"] == 3  # H is above 1e-9 everywhere
    assert json.loads(call(*table).stdout) == found  # times, too, are kept
    text = call(*table[:-1]).stdout
    assert "paper, 11k-hands, 128x128: 169 of 175 hallucinated found" in text


def test_table_2_by_answers(work: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers of two raters by the labelling page's own store, made by the labeller: they give its table."""
    folder = work["folder"]
    runs = Runs(work["runs"], load_snapshot(SMALL), read_preset(folder / "p.json"),
                Protocol((0, 1), 3, torch.device("cpu")))  # fmt: skip
    runs.sample(["euler", "rods-cas"], say=lambda line: None)
    answers = folder / "answers.jsonl"
    wrote = paper_correction.write_machine_answers(
        runs, "rods-cas", answers, kind="hands", task=TASK, raters=("machine-1", "machine-2")
    )
    assert wrote == 2 * 12
    again = paper_correction.write_machine_answers(
        runs, "rods-cas", answers, kind="hands", task=TASK, raters=("machine-1", "machine-2")
    )
    assert again == 0
    options = ["table2", *work["options"], work["out"], "--samplers=euler,rods-cas", "--no-times", "--format=json"]
    by_hand = json.loads(call(*options, f"--answers=rods-cas={answers}").stdout)
    monkeypatch.setattr(paper_commands, "task_of", lambda name: TASK)
    by_task = json.loads(call(*options).stdout)
    for one, two in zip(by_hand["rows"], by_task["rows"], strict=True):
        assert one["bad"]["k"] == two["bad"]["k"]
        assert one["bad"]["n"] == two["bad"]["n"] - 1  # the ambiguous image is disputed, and has no label
        assert one["seconds"] is None
    assert by_hand["detection"] == by_task["detection"]
    assert by_hand["rows"][1]["verdicts"] == {"better": 0, "worse": 0, "same": 0, "unclear": 0}
    assert "p.json is not an answers file" in error(*options, f"--answers=rods-cas={folder / 'p.json'}")


def test_an_unchanged_image_has_the_baselines_label() -> None:
    """What CAS did not touch need not be labelled twice."""

    class SameFiles(Runs):
        def records(self, method: str) -> list[dict[str, Any]]:
            return [{"name": "a.png", "sha256": "1"}, {"name": "b.png", "sha256": method}]

    line = {"mode": "image", "rater": "x", "runs": ["A"], "note": ""}
    lines = [{**line, "item": name, "name": name, "answer": "extra fingers"} for name in ("a.png", "b.png")]
    original = paper_correction._lines
    paper_correction._lines = lambda *_, **__: lines
    try:
        runs = SameFiles(Path(), load_snapshot(SMALL), None, Protocol((0,), 2, torch.device("cpu")))
        labels, _ = paper_correction.answered_labels(runs, {"heun": Path()}, kind="hands")
    finally:
        paper_correction._lines = original
    assert labels == {"euler": {"a.png": Label.BAD, "b.png": Label.BAD}, "heun": {"a.png": Label.BAD}}


def test_mistakes(work: dict[str, Any], tmp_path: Path) -> None:
    out = f"--out={tmp_path / 'out'}"
    network = f"--network={SMALL}"
    for arguments, says in (
        (("table1", network, "--samplers=euler,ddim"), "--samplers=euler,ddim: 'ddim' is unknown; use some of euler"),
        (("table1", network), "--preset: rods-cas needs settings for this network"),
        (("table1", *work["options"], "--metrics=fod"), "'fod' is unknown"),
        (("table1", *work["options"], "--detector=pixels", f"--ref={SMALL}"), "is no readable .npz"),
        (("table2", *work["options"], "--samplers=heun"), "euler is missing; all others are compared with it"),
        (("table2", *work["options"]), "--answers is needed: nothing labels the images of small by machine"),
        (("table2", *work["options"], "--answers=heun"), "--answers=heun: write SAMPLER=FILE with one of heun"),
        (("table2", *work["options"], "--answers=heun=no.jsonl"), "there is no file no.jsonl"),
    ):
        assert says in error(*arguments, out)
    assert not (tmp_path / "out").exists()
