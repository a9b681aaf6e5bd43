"""rods.bench.run and scripts/bench.py: runs that go on where they were cut, experiments, and runs of generate.py."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import small_tasks
from commands import SMALL, files, generated, ranked, refusal, said
from small_tasks import PICTURES, POINTS
from vectors import ROOT

from dnnlib.errors import UserError
from rods.bench.labelled import TIMING_NAME, read_run
from rods.bench.run import run_methods
from rods.bench.task import AuditLine, LoadedNetwork
from rods.eval.correction import proportion_interval
from scripts import bench
from training.checkpoint import load_snapshot

ALL = ["euler", "lid detector=lid:sigma=.1,draws=2", "h-index rho=.02 window=0,1", "lmi", "overshoot", "restart"]
NAMES = [text.split()[0] for text in ALL]
cli = partial(said, bench.main)
AUDIT = (AuditLine("real data, fresh", "hallucinated", proportion_interval(0, 100), 0.005),)


@pytest.fixture
def small(offer_tasks) -> None:
    """The small tasks instead of the benchmark's, and one whose network is that of the commands' tests."""
    tasks = {"points": replace(POINTS, audit=lambda: AUDIT), "bars": PICTURES}
    snapshot = load_snapshot(SMALL)
    networks = {"small": lambda: LoadedNetwork(snapshot.net, snapshot.name, snapshot.sha256)}
    tasks["tiny"] = replace(PICTURES, name="tiny", networks=networks, num_steps=2, batch=4, kinds=None, num_kinds=0)
    offer_tasks(bench, tasks)


def without_times(folder: Path) -> dict[str, str]:
    return {name: digest for name, digest in files(folder).items() if not name.endswith(TIMING_NAME)}


# -- the library ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", [POINTS, PICTURES], ids=lambda task: task.name)
def test_a_run_cut_anywhere_goes_on_to_the_same_files(tmp_path: Path, task) -> None:
    methods = ALL if task is POINTS else ["euler", "overshoot"]
    names = NAMES if task is POINTS else methods
    seeds = list(task.report_seeds)
    small_tasks.run(task, tmp_path / "a", methods)
    small_tasks.run(task, tmp_path / "b", methods, seeds[: len(seeds) // 2])
    for name in names:
        cut = small_tasks.folder(task, tmp_path / "b", name)
        for file, keep in (("samples.jsonl", 3), ("labels.jsonl", 2)):
            lines = (cut / file).read_text().splitlines(keepends=True)
            (cut / file).write_text("".join(lines[:keep]))
        for image in sorted(cut.glob("*.png"))[4:]:
            image.unlink()
    found = small_tasks.run(task, tmp_path / "b", methods)
    whole, again = without_times(tmp_path / "a"), without_times(tmp_path / "b")
    assert again == whole
    assert all(len(run.machines) >= 2 for run in found.values()), "each invocation says who it is"
    before = files(tmp_path / "b")
    small_tasks.run(task, tmp_path / "b", methods)
    assert files(tmp_path / "b") == before, "nothing to do, nothing written"


def test_times_stand_beside_the_baselines_of_the_same_run(tmp_path: Path) -> None:
    first = small_tasks.run(POINTS, tmp_path, ["euler", "overshoot"])
    assert all(c["baseline_seconds"] == c["seconds"] for c in first["euler"].timing)
    assert [c["baseline_seconds"] > 0 for c in first["overshoot"].timing] == [True] * 4
    late = small_tasks.run(POINTS, tmp_path, ["euler", "heun"])["heun"]
    assert ["baseline_seconds" in c for c in late.timing] == [False] * 4, "the baseline was not sampled beside it"
    assert late.machines[0]["torch"]


def test_another_run_in_the_folder_is_refused(tmp_path: Path) -> None:
    small_tasks.run(POINTS, tmp_path, ["euler"])
    with pytest.raises(UserError, match="steps"):
        small_tasks.run(replace(POINTS, num_steps=7), tmp_path, ["euler"], list(range(100)))
    with pytest.raises(UserError, match=r"batch"):
        small_tasks.run(replace(POINTS, batch=9), tmp_path, ["euler"], list(range(100)))


def test_the_baseline_comes_first_and_names_differ(tmp_path: Path) -> None:
    network = POINTS.networks["exact"]()
    for names, what in ((["heun", "euler"], "euler comes first"), (["euler", "heun", "heun"], "'heun' is there twice")):
        methods = [small_tasks.method(name, POINTS) for name in names]
        with pytest.raises(UserError, match=what):
            run_methods(POINTS, network, methods, [0], out=tmp_path, batch=4)
    assert list(tmp_path.iterdir()) == []


# -- the command ------------------------------------------------------------------------------------------------------


def test_the_command_run_twice_gives_identical_files(tmp_path: Path, small) -> None:
    out = f"--out={tmp_path}"
    asked = ["--task=points", "--threads=1", out, "--samplers=heun,overshoot,restart"]
    asked += [f"--samplers={text}" for text in ALL[1:3]]
    printed = cli(*asked)
    assert re.findall(r"^\| ([\w-]+) ", printed, re.MULTILINE) == [
        "sampler", "euler", "heun", "overshoot", "restart", "score", "lid", "h-index",
    ]  # fmt: skip
    before = files(tmp_path)
    assert cli("run", *asked) == printed
    assert files(tmp_path) == before
    assert "hallucinated 0/100" in cli("audit", "--task=points", out)
    assert json.loads((tmp_path / "points" / "audit.json").read_text())["lines"][0]["what"] == "real data, fresh"


EXPERIMENT = """
[[table]]
task = "points"
batch = 16

[[table.run]]
methods = ["euler", "heun"]
seeds = "0-31"

[[table.run]]
name = "lid-near"
method = "lid"
detector = "lid:sigma=.1,draws=2"
seeds = "0-15"

[[table]]
task = "bars"
seeds = "0-7"

[[table.run]]
method = "overshoot"
rho = 1.5
"""


def test_an_experiment_runs_its_tables(tmp_path: Path, small) -> None:
    path, out = tmp_path / "e.toml", tmp_path / "out"
    path.write_text(EXPERIMENT)
    printed = cli("run", path, f"--out={out}", "--threads=1")
    numbers = {
        "points/exact/euler": 32, "points/exact/heun": 32, "points/exact/lid-near": 16,
        "bars/exact/euler": 8, "bars/exact/overshoot": 8,
    }  # fmt: skip
    assert {name: len(read_run(out / name)) for name in numbers} == numbers
    assert len(list(out.rglob("options.json"))) == len(numbers)
    assert read_run(out / "bars/exact/overshoot").options["rho"] == 1.5
    before = files(out)
    assert cli("run", path, f"--out={out}", "--threads=1") == printed
    assert files(out) == before
    path.write_text(EXPERIMENT + "\n[[table.run]]\nmethod = 'heun'\nname = 'fine'\nnum_steps = 0\n")
    assert "num_steps" in refusal(bench.main, "run", path, f"--out={tmp_path / 'none'}")
    assert not (tmp_path / "none").exists(), "the first table was sampled before the last was read"
    for args, what in (
        ((path, "--samplers=heun"), "--samplers: the experiment says it"),
        ((path, "--task=points"), "give either an experiment's TOML file, or --task=NAME"),
        ((), "give either an experiment's TOML file, or --task=NAME"),
    ):
        assert what in refusal(bench.main, "run", *args, f"--out={out}")


def test_runs_of_generate_are_labelled_and_compared_whatever_made_them(tmp_path: Path, small) -> None:
    """In this process, on two ranks, and through the library by the benchmark: the same images."""
    common = ["--steps=2", "--batch=4", "--seeds=0-15"]
    over = ["--sampler=overshoot", "--rho=2", "--window=0,1", f"--network={SMALL}", "--threads=1"]
    generated(tmp_path / "euler", "--sampler=euler", *common)
    done = ranked(2, ROOT / "generate.py", *common, *over, f"--outdir={tmp_path / 'over'}")
    assert done.returncode == 0, done.stderr
    for name in ("euler", "over"):
        printed = cli("label", tmp_path / name, "--task=tiny", "--threads=1")
        assert printed == f"16 images of {tmp_path / name} labelled\n"
    table = cli("compare", tmp_path / "euler", tmp_path / "over")
    assert re.findall(r"^\| (\w+) ", table, re.MULTILINE) == ["sampler", "euler", "over"]

    cli("--task=tiny", "--samplers=overshoot rho=2 window=0,1", "--seeds=0-15", "--threads=1", f"--out={tmp_path}/out",
        "--preset=none")  # fmt: skip
    for name, other in (("euler", "euler"), ("over", "overshoot")):
        mine, theirs = read_run(tmp_path / name), read_run(tmp_path / "out" / "tiny" / "small" / other)
        assert mine.keys == theirs.keys
        assert mine.labels.tolist() == theirs.labels.tolist()
        assert [line["sha256"] for line in mine.samples] == [line["sha256"] for line in theirs.samples]

    generated(tmp_path / "later", "--sampler=euler", *common, "--seeds=90-91")
    cli("label", tmp_path / "later", "--task=tiny")
    assert "no seed in common" in refusal(bench.main, "compare", tmp_path / "euler", tmp_path / "later")


def test_all_leaves_out_what_nobody_calibrated_and_says_so(tmp_path: Path, small) -> None:
    printed = cli("--task=points", "--seeds=0-1", "--threads=1", f"--out={tmp_path}", "--batch=2")
    assert "left out: --samplers: sigma-offset on points: kappa" in printed
    assert "| tag " in printed


@pytest.mark.parametrize(
    ("args", "what"),
    [
        (["--task=points", "--samplers=tvf detector=tvf:sigma=99"], "sigma"),
        (["--task=points", "--samplers=nonsense"], "--samplers: unknown method 'nonsense'"),
        (["--task=points", "--network=other"], "--network=other: points has exact"),
        (["report"], "holds no results of points, bars"),
        (["--task=points", "--preset=missing"], "--preset=missing is unknown"),
    ],
)
def test_mistakes_get_one_line(tmp_path: Path, small, args, what) -> None:
    assert what in refusal(bench.main, *args, f"--out={tmp_path / 'out'}")
    assert not (tmp_path / "out").exists()


def test_calibration_seeds_are_named(tmp_path: Path, small) -> None:
    printed = said(
        bench.main, "--task=points", "--samplers=euler", "--seeds=1000-1001", "--threads=1", f"--out={tmp_path}"
    )
    assert "2 calibration seeds among them, such as 1000" in printed
    said(bench.main, "--task=points", "--samplers=euler", "--seeds=3", "--threads=1", f"--out={tmp_path / 'one'}")
    (about,) = (tmp_path / "one").rglob("options.json")
    assert json.loads(about.read_text())["seeds"] == "1 seed, 3 to 3"
