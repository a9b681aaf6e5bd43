"""Rows of the benchmark that draw again what does not pass a limit: --accept as options of a run."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_tasks
from commands import SMALL, files, generated, records, refusal, said
from small_tasks import PICTURES, POINTS
from vectors import ROOT

from dnnlib.errors import UserError
from rods.bench import run as bench_run
from rods.bench.compare import compare
from rods.bench.labelled import TIMING_NAME, LabelledRun, read_run
from rods.bench.methods import resolve
from rods.bench.report import report_parts
from rods.bench.run import Place, run_methods
from rods.bench.stored import read_sections
from rods.bench.tables import outcome_table, redrawn_parts, redrawn_table
from rods.bench.task import LoadedNetwork, Task
from rods.eval.labels import Label
from rods.presets import Preset
from scripts import bench
from training.checkpoint import load_snapshot

SCORE, LIMIT, LEVEL = "lid:sigma=.1,draws=2", 0.9, 0.02
END, FLIGHT = f"{SCORE}<{LIMIT}", f"{SCORE}<{LIMIT}@{LEVEL}"
AT_END, IN_FLIGHT = "euler-accept", f"euler-accept@{LEVEL}"
cli = partial(said, bench.main)


@dataclass
class Counting:
    """A denoiser that counts the rows that it is asked for."""

    inner: Any
    rows: int = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def __call__(self, x: Any, *args: Any) -> Any:
        self.rows += len(x)
        return self.inner(x, *args)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counting:
    monkeypatch.setattr(bench_run, "curvature_index", lambda *args, **options: None)  # of the warm-up, in no record
    return Counting(POINTS.networks["exact"]().denoiser)


def sampled(out: Path, accept: str, denoiser: Any = None, *, task: Task = POINTS, tries: int = 3) -> list[LabelledRun]:
    """The baseline and a row that draws again, by the benchmark."""
    network = task.networks["exact"]() if denoiser is None else LoadedNetwork(denoiser, "exact", "0" * 64)
    given = {"accept": accept, "max_tries": tries}
    methods = [resolve("euler", task), resolve("euler", task, None, network.denoiser, given=given)]
    run_methods(task, network, methods, list(task.report_seeds), out=out, batch=task.batch)
    return [read_run(Place(out, task.name, "exact").run(method)) for method in methods]


def tries_of(run: LabelledRun) -> list[dict[str, Any]]:
    return [line["tries"] for line in run.samples]


# -- what is counted --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accept", [END, FLIGHT])
def test_every_evaluation_is_counted_those_of_tries_that_were_given_up_too(
    accept: str, tmp_path: Path, counted: Counting
) -> None:
    base, row = sampled(tmp_path, accept, counted)
    assert (base.name, row.name) == ("euler", IN_FLIGHT if "@" in accept else AT_END)
    assert counted.rows == base.nfe.sum() + row.nfe.sum()
    assert sum(len(t["seeds"]) for t in tries_of(row)) > len(row), "some were drawn again"
    found = compare(base, row).redrawn
    assert found is not None
    assert found.nfe == row.nfe.sum() == counted.rows - 6 * 64


def test_in_flight_costs_less_for_the_same_images(tmp_path: Path) -> None:
    _, end = sampled(tmp_path, END)
    base, flight = sampled(tmp_path, FLIGHT)

    def decided(i: int, run: LabelledRun) -> list[Any]:
        return [tries_of(run)[i][key] for key in ("seeds", "kept", "accepted")]

    alike = [i for i in range(64) if decided(i, end) == decided(i, flight)]
    again = [i for i in alike if len(tries_of(end)[i]["seeds"]) > 1]
    assert len(alike) > 48
    assert len(again) > 12
    for i in alike:
        assert end.samples[i]["x"] == flight.samples[i]["x"]
        given_up = len(tries_of(flight)[i]["seeds"]) - 1
        assert end.nfe[i].sum() - flight.nfe[i].sum() == given_up, "the last of six steps"
    found = compare(base, flight).redrawn
    assert found is not None
    assert found.given_up == ((found.drawn - 64) * 7, (found.drawn - 64) * 8)
    assert compare(base, end).redrawn.given_up is None  # type: ignore[union-attr]


def test_a_row_is_what_generate_does(tmp_path: Path) -> None:
    snapshot = load_snapshot(SMALL)
    network = LoadedNetwork(snapshot.net, snapshot.name, snapshot.sha256)
    task, score = replace(PICTURES, kinds=None, num_kinds=0), "lid:sigma=1.2,draws=2"
    generated(tmp_path / "scores", "--sampler=euler", "--seeds=0-7", "--batch=4", f"--filter={score}@.8",
              "--filter-threshold=inf", steps=6)  # fmt: skip
    ordered = sorted(line["filter_score"] for line in records(tmp_path / "scores"))
    for name, accept in (("end", f"{score}<{ordered[4]}"), ("flight", f"{score}<{ordered[4]}@.8")):
        generated(tmp_path / name, "--sampler=euler", "--seeds=0-7", "--batch=4", f"--accept={accept}",
                  "--max-tries=2", steps=6)  # fmt: skip
        given = {"accept": accept, "max_tries": "2"}
        methods = [resolve("euler", task), resolve("euler", task, given=given, name=name)]
        run_methods(task, network, methods, list(range(8)), out=tmp_path / "out", batch=4)
        run = Place(tmp_path / "out", "bars", network.name).run(methods[1])
        assert records(run) == records(tmp_path / name)
        identity = json.loads((run / "options.json").read_text())["identity"]
        assert (identity["accept"], identity["max_tries"]) == (methods[1].accept.describe(), 2)  # type: ignore[union-attr]


# -- resumed ----------------------------------------------------------------------------------------------------------


def test_a_row_cut_anywhere_goes_on_to_the_same_files(tmp_path: Path) -> None:
    accept = f"{SCORE}<4@.1"
    sampled(tmp_path / "a", accept, task=replace(PICTURES, batch=8), tries=2)
    sampled(tmp_path / "b", accept, task=replace(PICTURES, batch=8, report_seeds=range(20)), tries=2)
    cut = small_tasks.folder(PICTURES, tmp_path / "b", "euler-accept_0.1")
    (cut / "samples.jsonl").write_text("".join((cut / "samples.jsonl").read_text().splitlines(keepends=True)[:11]))
    (cut / "labels.jsonl").unlink()
    for image in sorted(cut.glob("*.png"))[3:9]:
        image.unlink()
    _, row = sampled(tmp_path / "b", accept, task=replace(PICTURES, batch=8), tries=2)
    assert row.redrawn.any()

    def kept(folder: Path) -> dict[str, str]:
        return {name: digest for name, digest in files(folder).items() if not name.endswith(TIMING_NAME)}

    assert kept(tmp_path / "b") == kept(tmp_path / "a")


# -- what is said -----------------------------------------------------------------------------------------------------


def test_the_tables_say_what_was_drawn_and_for_how_much(tmp_path: Path) -> None:
    base, row = sampled(tmp_path, FLIGHT, tries=2)
    rows = [compare(base, base), compare(base, row)]
    plain = outcome_table(rows[:1])
    assert "drawn, per seed" not in plain.headings
    assert redrawn_parts(rows[:1]) == []
    table = outcome_table(rows)
    drawn = f"{sum(len(t['seeds']) for t in tries_of(row)) / 64:.2f}"
    assert [line[table.headings.index("drawn, per seed")] for line in table.rows] == ["", drawn]
    (line,) = redrawn_table(rows).rows
    told = dict(zip(redrawn_table(rows).headings, line, strict=True))
    accepted = [i for i, t in enumerate(tries_of(row)) if t["accepted"]]
    bad = int((row.labels[accepted] == Label.HALLUCINATED).sum())
    spent, total = sum(7 * (len(t["seeds"]) - 1) for t in tries_of(row)), row.nfe.sum()
    assert 0 < spent < total
    assert 0 < len(accepted) < 64
    assert told["limit"] == "lid:sigma=0.1,draws=2<0.9@0.02"
    assert told["drawn, per seed"] == drawn
    assert told["NFE ↓ a kept image"] == f"{total / 64:.1f}"
    assert told["NFE ↓ an accepted image"] == f"{total / len(accepted):.1f}"
    assert told["hallucination rate ↓ of the accepted (95 %)"].startswith(f"{100 * bad / len(accepted):.1f} % (")
    assert told["NFE a kept image, of what was given up in flight"] == f"{spent / 64:.1f}"
    assert told["NFE a kept image, had all been finished"] == f"{(total + spent / 7) / 64:.1f}"
    assert told["of other seeds, of the kept"] == str(sum(t["kept"] > 0 for t in tries_of(row)))
    same = [i for i, t in enumerate(tries_of(row)) if t["kept"] == 0]
    assert [row.samples[i]["x"] for i in same] == [base.samples[i]["x"] for i in same]


def test_a_score_of_another_seeds_image_is_not_the_baselines(tmp_path: Path) -> None:
    """A restart's scores are of the image that was kept: its threshold is not judged by labels of the baseline's."""
    network = POINTS.networks["exact"]()
    rows = [resolve("euler", POINTS), resolve("restart", POINTS), resolve("restart", POINTS, given={"accept": END})]
    run_methods(POINTS, network, rows, list(range(32)), out=tmp_path, batch=16)
    plain, again = (read_run(Place(tmp_path, "points", "exact").run(method)) for method in rows[1:])
    assert again.redrawn.any()
    assert plain.scores is not None
    assert again.scores is None
    assert again.own_scores is not None


EXPERIMENT = f"""
[[table]]
task = "bars"
seeds = "0-15"
run = [
  {{ method = "euler" }},
  {{ method = "euler", name = "again", accept = "{SCORE}<4", max_tries = 2 }},
  {{ method = "euler", accept = "{SCORE}<4@.1", max_tries = 2 }},
]
"""


def test_an_experiment_has_such_rows_and_the_report_says_what_they_are(tmp_path: Path, offer_tasks: Any) -> None:
    task = replace(PICTURES, real=lambda n, seed: PICTURES.real(200, seed))
    offer_tasks(bench, {"bars": task})
    (tmp_path / "e.toml").write_text(EXPERIMENT)
    run = ("run", tmp_path / "e.toml", f"--out={tmp_path / 'out'}", "--threads=1")
    printed = cli(*run)
    note = "**What was drawn again** ({}). An image that does not pass the limit makes room for a draw of another seed;"
    assert note.format("again, euler-accept@0.1") in printed
    before = files(tmp_path / "out")
    assert cli(*run) == printed
    assert files(tmp_path / "out") == before
    (section,) = read_sections({"bars": task}, tmp_path / "out", tmp_path)
    parts = report_parts([section])
    said_first = note.format("euler-accept@0.1, again")  # in the order of the report
    assert any(isinstance(part, str) and part.startswith(said_first) for part in parts)
    assert not any("pairs" in part.name for part in parts if hasattr(part, "name")), "others' images are no pairs"
    shown = cli("compare", *(tmp_path / "out" / "bars" / "exact" / name for name in ("euler", "again")))
    assert "**What was drawn again** (again)" in shown
    command = cli("--task=bars", "--seeds=0-3", f"--samplers=euler accept={SCORE}<4@.1 max_tries=2", "--threads=1",
                  f"--out={tmp_path / 'line'}")  # fmt: skip
    assert "(euler-accept@0.1)" in command


# -- refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "given", "says"),
    [
        ("lid", {"accept": "lid<2"}, "--samplers: lid: accept: this method scores Euler's images and draws none"),
        ("euler", {"accept": "lid"}, "--samplers: euler: --accept=lid has no limit; write score<value"),
        ("euler", {"accept": "lid<low"}, "--samplers: euler: --accept: 'low' is not a limit"),
        ("euler", {"accept": "lid<3@80"}, "--samplers: euler-accept@80 on points: --accept: 80 is not a noise level"),
        ("euler", {"accept": "luck<3"}, "--samplers: euler: --accept: unknown detector 'luck'"),
        ("euler", {"accept": "lid<50%"}, "--samplers: euler: --accept: 50% needs a preset with quantiles"),
        ("euler", {"accept": 3}, "--samplers: euler: accept: 3: must be a text, such as 'lid<12' or 'lid<12@.5'"),
        ("euler", {"max_tries": 3}, "--samplers: euler: --max-tries is for --accept; give a limit"),
        ("euler", {"accept": "lid<2", "max_tries": "x"}, "--samplers: euler: max_tries: 'x': must be a whole number"),
        ("euler", {"accept": "lid<2", "max_tries": True}, "--samplers: euler: max_tries: True: must be a whole"),
        ("euler", {"accept": "lid<2", "max_tries": 0}, "--samplers: euler: --max-tries: 0 must be 1 to 16"),
        ("euler", {"accept": "lid<2", "max_tries": 17}, "--samplers: euler: --max-tries: 17 must be 1 to 16"),
        ("restart", {"accept": "tvf<3"}, "--samplers: restart-accept on points: --accept: Tvf reads a run's steps"),
    ],
)
def test_what_cannot_be_drawn_again_is_one_line(method: str, given: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError) as e:
        resolve(method, POINTS, Preset("none", None, "", {}) if given.get("accept") != "lid<50%" else None,
                POINTS.networks["exact"]().denoiser, given=given)  # fmt: skip
    assert str(e.value).startswith(says)
    assert "\n" not in str(e.value)


def test_the_baseline_draws_nothing_again_and_seeds_must_be_small_enough(tmp_path: Path, offer_tasks: Any) -> None:
    offer_tasks(bench, {"points": POINTS})
    table = '[[table]]\ntask = "points"\nrun = [{{ method = "euler", name = "{}", accept = "lid<2" }}]\n'
    (tmp_path / "e.toml").write_text(table.format("euler"))
    out = f"--out={tmp_path / 'out'}"
    assert "every row is compared with this one; give what is drawn again another name" in refusal(
        bench.main, "run", tmp_path / "e.toml", out)  # fmt: skip
    line = refusal(bench.main, "--task=points", "--samplers=euler accept=lid<2", "--seeds=67108864", out)
    assert line.startswith("Error: --samplers: euler-accept: --seeds: 67108864 cannot be redrawn")
    line = refusal(bench.main, "--task=points", "--samplers=lid accept=lid<2", out)
    assert line.startswith("Error: --samplers: lid: accept: this method scores")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "damage",
    [
        {"seeds": [1]},
        {"accepted": "yes"},
        {"forward": None},
        {"forward": [1, -1]},
        {"forward": [1.5, 2]},
        {"backward": [0]},
        {"kept": 2},
    ],
    ids=str,
)
def test_damaged_records_of_tries_are_one_line(damage: dict[str, Any], tmp_path: Path) -> None:
    _, row = sampled(tmp_path, f"{SCORE}<-99@{LEVEL}", tries=2)  # every seed has two tries
    lines = records(row.path)
    lines[5]["tries"] |= damage
    (row.path / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(UserError, match=r"does not hold generate\.py's records"):
        read_run(row.path)


@pytest.mark.parametrize("accept", ["gone", "lid<x@y", None])
def test_a_limit_that_was_changed_in_a_folder_is_shown_as_it_is(accept: str | None, tmp_path: Path) -> None:
    _, row = sampled(tmp_path, END, tries=1)
    about = json.loads((row.path / "options.json").read_text())
    about["identity"]["accept"] = accept
    (row.path / "options.json").write_text(json.dumps(about))
    changed = read_run(row.path)
    assert redrawn_table([compare(changed, changed)]).rows[0][1] == str(accept)


RESULTS = ROOT / "results" / "hands-32" / "hands-32"


@pytest.mark.parametrize("name", ["accept-gate", "accept-gate-in-flight"])
def test_the_rows_of_the_repository_are_whole(name: str) -> None:
    """What passed at once is Euler's, to the rounding of another processor; what the tries cost adds up."""
    base, row = read_run(RESULTS / "euler").only(set(range(640))), read_run(RESULTS / name)
    assert row.seeds.tolist() == base.seeds.tolist() == list(range(640))
    for line in row.samples:
        tries = line["tries"]
        head, whole = (32 if "forward" in tries else 41), 41  # 31 of 40 steps, and the score
        assert line["forward"] == (len(tries["seeds"]) - 1) * head + whole
    same = ~row.redrawn
    assert 300 < same.sum() < 400
    assert np.abs(base.features - row.features)[same].max() < 3 / 255
    assert (base.labels == row.labels)[same].mean() > 0.98
