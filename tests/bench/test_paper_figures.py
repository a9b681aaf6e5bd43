"""Figures 3 to 14 on a network that costs nothing: their numbers by another way, resuming, defaults, refusals."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from commands import SMALL, files
from numpy.typing import NDArray
from overridden import last_of_each
from PIL import Image

pytest.importorskip("matplotlib", reason="matplotlib is not installed")

from rods.bench import paper
from rods.bench.paper import CAS, EULER, INDEX, Experiment, open_experiment
from rods.bench.paper_figures import PLANS, SOLVERS, WHOLE
from rods.bench.paper_parts import batch_tile, change, rms, telling
from rods.bench.plots import drawing
from rods.bench.task import Task
from rods.eval.detection import auroc
from rods.eval.labels import Label
from scripts import figures

BAD, WELL, UNCERTAIN = Label.HALLUCINATED, Label.VALID, Label.UNCERTAIN


def by_mean(x: NDArray[Any]) -> NDArray[np.int8]:
    """A labeller for this network's images alone: hallucinated where too dark or bright, uncertain in a band."""
    mean = x.mean(axis=(1, 2, 3))
    is_bad = (mean < 0.87) | (mean > 0.94)
    return np.where(is_bad, BAD, np.where(mean < 0.873, UNCERTAIN, WELL)).astype(np.int8)


TASK = Task(
    name="small", title="", networks={}, label=by_mean, kinds=None, num_kinds=0, real=lambda n, seed: np.zeros((n, 1)),
    audit=lambda: (), faults=lambda x: ["wrong" if code == BAD else "" for code in by_mean(x)],
)  # fmt: skip


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("figures")


@pytest.fixture(autouse=True)
def labelled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paper, "task_of", lambda name: TASK if name == "small" else None)


def call(name: str, out: Path, *options: str, code: int = 0) -> str:
    given = [f"--network={SMALL}", "--seeds=0-8", "--batch=9", "--threads=1", f"--out={out}", *options]
    result = CliRunner().invoke(figures.main, [name, *last_of_each(given)])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result.output


def numbers(out: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / f"{name}.json").read_text())
    return found


def experiment(name: str, out: Path, **changed: Any) -> Experiment:
    """Of nine images in one batch of the small network, unless `changed`; None: as usual."""
    network, preset = changed.pop("network", SMALL), changed.pop("preset", None)
    e = open_experiment(network, PLANS[name].usual, preset=preset, out=out, device=torch.device("cpu"))
    asked = {"seeds": tuple(range(9)), "batch": 9, **changed}
    return replace(e, **{key: value for key, value in asked.items() if value is not None})


SLOW = ("fig3", "fig4", "fig8", "fig9", "fig11", "fig13")  # like the others; they need the most images


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in PLANS]
)
def test_every_figure_is_drawn_and_the_same_file_from_the_images_that_are_there(name: str, out: Path) -> None:
    assert "to sample" in call(name, out) or name not in ("fig3", "fig7", "fig8", "fig9", "fig13")
    with Image.open(out / f"{name}.png") as image:
        assert len(set(image.convert("L").resize((64, 64)).tobytes())) > 10
    assert numbers(out, name)["network"] == "small"
    before = files(out)
    said = call(name, out)
    assert "to sample" not in said
    assert files(out) == before


def test_side_by_side_counts_what_the_files_say(out: Path) -> None:
    call("fig5", out)
    found, e = numbers(out, "fig5"), experiment("fig5", out)
    H = np.array([max(r["H"]) for r in e.records(CAS)])  # every sample is corrected: its own run has the index
    bad = by_mean(e.images(EULER) / 127.5 - 1)
    told = found["detection"]
    assert told["eps"] == np.quantile(H, 0.8)
    flagged = told["eps"] <= H
    for key, label in (("hallucinated", BAD), ("valid", WELL)):
        assert told[key]["k"] == int((flagged & (bad == label)).sum())
        assert told[key]["n"] == int((bad == label).sum())
    after = by_mean(e.images(CAS) / 127.5 - 1)
    assert found["methods"][CAS]["outcomes"]["repaired"]["k"] == int(((bad == BAD) & (after == WELL)).sum())
    assert found["methods"][CAS]["outcomes"]["broken"]["n"] == int((bad == WELL).sum())
    assert found["methods"]["heun"]["forward"] == 79
    assert "169 of 175 hallucinated images flagged" in found["lines"][2]


def test_a_given_threshold_is_the_detector_of_the_uncorrected_run(out: Path, tmp_path: Path) -> None:
    preset = {"name": "p", "network": "small", "source": "test",
              "samplers": {m: {"eps": 0.01, "rho": 1, "window": "0,1"} for m in ("rods-cas", "rods-sas")}}  # fmt: skip
    (tmp_path / "p.json").write_text(json.dumps(preset))
    e = experiment("fig6", tmp_path, preset=str(tmp_path / "p.json"))
    assert e.index_run == INDEX
    assert PLANS["fig6"].needs(e) == [EULER, CAS, INDEX]
    assert experiment("fig6", tmp_path).index_run == CAS
    assert e.threshold(INDEX)[0] == 0.01
    assert experiment("fig6", tmp_path, eps=0.5).threshold(INDEX)[0] == 0.5


def test_the_roc_is_that_of_the_scores(out: Path) -> None:
    call("fig6", out)
    found, e = numbers(out, "fig6"), experiment("fig6", out)
    labels = e.labels(EULER)
    sure = [i for i, label in enumerate(labels) if label is not UNCERTAIN]
    bad = np.array([labels[i] is BAD for i in sure])
    assert found["auroc"]["value"] == auroc(e.scores(e.index_run)[sure], bad)
    assert (found["hallucinated"], found["valid"]) == (int(bad.sum()), int((~bad).sum()))
    risk = e.scores(e.index_run)[sure] >= found["eps"]
    assert found["at_eps"] == [float(risk[~bad].mean()), float(risk[bad].mean())]


def test_a_step_is_critical_where_any_picture_of_the_batch_is_at_risk(out: Path) -> None:
    call("fig7", out, "--eps=.01")
    found = numbers(out, "fig7")
    records = experiment("fig7", out).records(WHOLE)
    expected = [s for k, s in enumerate(records[0]["probed"]) if any(r["H"][k] >= 0.01 for r in records)]
    assert found["critical"] == [expected]
    assert found["steps"] == list(range(40))


def test_the_examples_are_what_they_are_called(out: Path) -> None:
    for name, before in (("fig9", BAD), ("fig10", WELL)):
        call(name, out)
        e = experiment(name, out)
        labels = {m: e.labels(m) for m in SOLVERS}
        expected = []
        for i, file in enumerate(e.names()):
            others = {labels[m][i] for m in ("euler-200", "heun", "churn")}
            told = WELL not in others if name == "fig9" else BAD in others
            if labels[EULER][i] is before and labels[CAS][i] is WELL and told:
                expected.append(file)
        assert numbers(out, name)["found"] == expected
        assert expected


def test_trajectories_show_the_runs(out: Path) -> None:
    call("fig14", out)
    found, e = numbers(out, "fig14"), experiment("fig14", out)
    assert found["sigma"][0] == pytest.approx(80)
    moved = ((e.images(CAS).astype(float) - e.images(EULER)) ** 2).mean(axis=(1, 2, 3)) ** 0.5
    assert found["cas_against_euler"] == pytest.approx(moved, abs=1e-3)


def test_images_by_label_follow_the_answers_of_the_page(out: Path, tmp_path: Path, write_answers: Any) -> None:
    call("fig9", out)  # makes the images of both runs
    call("fig12", out)
    e = experiment("fig9", out)
    by_machine = numbers(out, "fig12")["images_by_label"]
    labels = [dict(zip(e.names(), e.labels(m), strict=True)) for m in (EULER, CAS)]
    answers = tmp_path / "answers.jsonl"
    write_answers(answers, (e.path(EULER), e.path(CAS)), labels, raters=("a",))
    call("fig12", out, f"--answers={CAS}={answers}")
    by_hand = numbers(out, "fig12")
    assert by_hand["labels"] == "the labelling page"
    assert by_machine["wrong"] == [name for name, label in labels[0].items() if label is BAD]
    assert set(by_machine["wrong"]) <= set(by_hand["images_by_label"]["extra fingers"])


def test_without_labels_a_figure_says_how_to_get_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paper, "task_of", lambda name: None)
    said = call("fig5", tmp_path, "--seeds=0-1")
    assert "images to label:" in said
    assert numbers(tmp_path, "fig5")["detection"]["hallucinated"]["n"] == 0
    assert "give --answers" in call("fig9", tmp_path, "--seeds=0-1")
    assert "a curve needs both" in call("fig6", tmp_path, "--seeds=0-1")


def test_the_papers_network_gets_the_papers_settings(tmp_path: Path) -> None:
    network = tmp_path / "edm-ffhq-64x64-uncond-ve.safetensors"
    shutil.copy(SMALL, network)
    e = experiment("fig4", tmp_path, network=network, seeds=None, batch=None)
    assert (e.seeds, e.batch, e.per_batch, e.num) == (tuple(range(120)), 9, True, 1080)
    assert e.study.name == "ffhq"
    assert e.sampler(CAS).rho == 8
    assert e.threshold(INDEX)[0] == 0.09
    assert e.index_run == INDEX
    assert experiment("fig13", tmp_path, network=network, seeds=None, batch=None).num == 9
    own = experiment("fig4", tmp_path, seeds=None, batch=None)
    assert (own.seeds, own.batch, own.per_batch) == (tuple(range(PLANS["fig4"].usual.images)), 32, False)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--seeds=3-1",), "runs backwards"),
        (("--answers=rods-cas=nowhere.jsonl",), "--answers=rods-cas=nowhere.jsonl"),
        (("--network=nowhere.pkl",), "nowhere.pkl"),
        (("--preset=nowhere",), "--preset=nowhere is unknown"),
    ],
)
def test_refusals_are_one_line(tmp_path: Path, options: tuple[str, ...], says: str) -> None:
    said = call("fig5", tmp_path / "out", *options, code=2)
    assert says in said
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_all_draws_every_figure_and_says_which_it_could_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []

    def note(name: str, opts: dict[str, Any]) -> None:
        drawn.append(name)
        assert set(opts) == {option.name for option in figures.main.commands["fig5"].params}
        if name == "fig4":
            raise figures.UserError("no such thing")

    monkeypatch.setattr(figures, "drawn", note)
    monkeypatch.setattr(figures, "EXACT", {"fig2": lambda out: drawn.append("fig2")})
    result = CliRunner().invoke(figures.main, ["all", f"--out={tmp_path}"])
    assert drawn == ["fig2", *PLANS]
    assert result.exit_code == 2
    assert "fig4: no such thing" in result.output
    assert result.output.endswith("Error: fig4 could not be drawn; the lines above say why\n")


# -- parts ------------------------------------------------------------------------------------------------------------


def test_what_is_shown_first() -> None:
    before, after = [WELL, BAD, BAD, WELL, None, BAD], [WELL, WELL, BAD, BAD, WELL, WELL]
    assert telling(before, after, np.array([5.0, 1, 9, 3, 4, 2])) == [5, 1, 3, 2, 0, 4]
    assert [change(a, b) for a, b in zip(before, after, strict=True)] == [
        "valid", "repaired", "hallucinated", "newly broken", "", "repaired",
    ]  # fmt: skip
    assert change(UNCERTAIN, WELL) == "uncertain"


def test_a_sheet_frames_by_label() -> None:
    one, two = np.full((1, 4, 4), 7, np.uint8), np.full((3, 4, 4), 9, np.uint8)
    pixels = drawing.sheet([[one, two], [None, one]], [[BAD, None], [None, WELL]], min_tile=8)
    pitch, edge = 8 + drawing.GAP, drawing.GAP // 2
    assert pixels.shape == (2 * pitch, 2 * pitch, 3)
    assert tuple(pixels[edge - 1, edge]) == drawing.COLOURS[BAD]
    assert tuple(pixels[edge, edge]) == (7, 7, 7)
    assert tuple(pixels[edge - 1, pitch + edge]) == drawing.COLOURS[None]
    assert tuple(pixels[edge, pitch + edge]) == (9, 9, 9)
    assert (pixels[pitch:, :pitch] == 255).all()


def test_a_batch_is_a_square_of_nine() -> None:
    tile = batch_tile([np.full((1, 4, 4), k, np.uint8) for k in range(8)])
    assert tile.shape == (3, 12, 12)
    assert tile[0, ::4, ::4].tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 255]]


def test_differences_are_in_grey_levels() -> None:
    a = np.zeros((2, 1, 2, 2), np.uint8)
    b = a.copy()
    b[1] = 10
    assert rms(a, b).tolist() == [0, 10]
