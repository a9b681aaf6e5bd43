"""Labels in fit_gate.py: what they choose, that few leave the density ratio as it is, dry runs, and several ranks."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import LABELLED, SMALL, files, generated, ranked, records, refusal, said
from overridden import last_of_each
from test_gate_fit import real_folder
from vectors import ROOT

from dnnlib.errors import UserError
from rods.bench.gate_fit import Choice, Features, Level
from rods.bench.gate_labels import (
    Candidate,
    Labelled,
    candidates,
    check_labels,
    chosen_way,
    final_gate,
    learned_from,
    ratio_of,
)
from rods.bench.gate_preset import HeldOut
from rods.bench.labelled_images import runs_of
from rods.eval.detection import auroc
from rods.gate import Readout
from rods.labels.labels import ImageLabel, write_labels
from rods.runs.gates import read_gate, write_gate
from rods.runs.presets import read_preset
from scripts import fit_gate as command
from training.checkpoint import load_denoiser

LEVEL = Level(0.47, 0.3, 3, 0.5)
K = 6


def made(n: int, m: int, *, told: float, seed: int = 0) -> tuple[Features, Labelled]:
    """Real images and labelled ones of one block of K numbers.

    Hallucinated ones are far out in the first number, which real images hardly have, and `told` up in the second, where
    that alone says little without labels.
    """
    rng = np.random.default_rng(seed)
    real, own = rng.standard_normal((200, K)), rng.standard_normal((n + m, K))
    bad = np.arange(n + m) < n
    own[bad, 0] *= 2.5
    own[bad, 1] += told
    order = rng.permutation(n + m)
    f = Features([LEVEL], ("a",), (K,), {LEVEL.score_at: torch.from_numpy(real)}, {})
    return f, Labelled([LEVEL], ("a",), (K,), {LEVEL.score_at: torch.from_numpy(own[order])}, bad[order])


FREE = Choice(LEVEL, ("a",), False, K, 1.0, 0.5)


def test_labels_that_tell_more_refine_the_density_ratio() -> None:
    f, labelled = made(150, 300, told=1.2)
    chosen, best = chosen_way(candidates(f, FREE, labelled))
    assert [c.way for c in best] == [0, 1, 2]
    assert chosen.way == 1
    assert chosen.auroc > max(best[0].auroc, best[2].auroc), "what both know"
    gate = final_gate(f, chosen, labelled, "0" * 12)
    assert isinstance(gate, Readout)
    fresh = made(400, 400, told=1.2, seed=1)[1]
    found = auroc(gate.of(fresh.of(LEVEL, 1)).numpy(), fresh.bad)
    assert abs(found - chosen.auroc) < 0.04, "held-out labels foretell what new ones say"


def test_labels_that_tell_nothing_more_leave_what_was_chosen_without_them() -> None:
    f, labelled = made(60, 120, told=0.0)
    found = candidates(f, FREE, labelled)
    free = found[0]
    gate = final_gate(f, free, labelled, "0" * 12)
    assert gate == ratio_of(f, free)
    np.testing.assert_array_equal(gate.of(labelled.of(LEVEL, 1)).numpy(), free.held_out)
    chosen, _ = chosen_way(found)
    fresh = made(400, 400, told=0.0, seed=1)[1]
    by_free, by_chosen = (auroc(final_gate(f, c, labelled, "0" * 12).of(fresh.of(LEVEL, 1)).numpy(), fresh.bad)
                          for c in (free, chosen))  # fmt: skip
    assert by_chosen > by_free - 0.02, "the ridge holds noise back"
    better = replace(free, way=1, auroc=free.auroc + 0.009)
    assert chosen_way([better, free])[0] is free, "as good but for a hundredth"
    assert chosen_way([replace(better, auroc=free.auroc + 0.02), free])[0].way == 1


def test_a_large_ridge_is_the_density_ratio(tmp_path: Path) -> None:
    f, labelled = made(40, 80, told=1.0)
    start = Candidate(1, LEVEL, 1, False, None, np.zeros(120), 0.0)
    ratio = ratio_of(f, start).of(labelled.of(LEVEL, 1)).numpy()
    held = learned_from(f, start, labelled, 1e9)
    gate = final_gate(f, held, labelled, "0" * 12)
    values = gate.value(labelled.of(LEVEL, 1)).numpy()
    np.testing.assert_array_equal(np.argsort(values), np.argsort(ratio))
    write_gate(tmp_path / "x.readout.safetensors", gate)
    assert read_gate(tmp_path / "x.readout.safetensors", "readout", option="--preset") == gate, "in float64"


def test_few_labels_teach_nothing_and_choose() -> None:
    f, labelled = made(9, 100, told=1.0)
    assert [c.way for c in candidates(f, FREE, labelled)] == [0]
    check_labels(labelled.bad, has_real=True)
    with pytest.raises(UserError, match="9 hallucinated and 100 valid images are too few"):
        check_labels(labelled.bad, has_real=False)
    assert {c.way for c in candidates(None, None, made(10, 100, told=1.0)[1])} == {2}
    with pytest.raises(UserError, match="0 hallucinated and 50 valid images; a choice needs both kinds"):
        check_labels(made(0, 50, told=1.0)[1].bad, has_real=True)
    assert HeldOut((0.1, 0.9, 0.5), (False, True, True)).at(0.5) == "1 of 2 hallucinated and 0 of 1 valid"


@pytest.fixture(scope="module")
def labelled_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the small network, 16 of whose 40 images are called hallucinated."""
    run = tmp_path_factory.mktemp("labelled") / "run"
    generated(run, "--sampler=euler", "--seeds=0-39", "--batch=20", steps=8)
    lines = records(run)
    order = sorted(lines, key=lambda line: line["sha256"])
    bad = {line["name"] for line in order[:16]}
    labels = ["hallucinated" if line["name"] in bad else "valid" for line in lines]
    write_labels(run, [ImageLabel(line["name"], label, "program test", sha256=line["sha256"])
                       for line, label in zip(lines, labels, strict=True)])  # fmt: skip
    return run


def options_of(folder: Path, *others: str) -> list[str]:
    return [f"--network={SMALL}", "--steps=8", "--batch=16", "--samples=40", "--trial=16", "--threads=1",
            "--device=cpu", f"--out={folder / 'out'}", f"--dest={folder / 'my.preset.json'}", *others]  # fmt: skip


def test_labels_alone_make_a_readout_that_restarts(labelled_run: Path, tmp_path: Path) -> None:
    told = said(command.main, *options_of(tmp_path, f"--run={labelled_run}"))
    assert "Held-out AUROC of 40 labels, 16 of them hallucinated" in told
    assert "Chosen: readout of labels alone" in told
    assert " hallucinated and " in told.split("of the labels: ")[1]
    preset = read_preset(tmp_path / "my.preset.json")
    assert preset.samplers["restart"].detector == preset.fitted["readout"]
    assert preset.source.startswith("labelled gate: ")
    assert not (tmp_path / "out" / f"{SMALL.stem}").exists()
    assert not list((tmp_path / "out").rglob("euler-8")), "nothing of the network is sampled but the trial"
    log = [json.loads(line) for line in (tmp_path / "my.gate.jsonl").read_text().splitlines()]
    assert {"gate", "way", "sigma_r"} <= {next(iter(line)) for line in log}
    generated(tmp_path / "run", f"--preset={tmp_path / 'my.preset.json'}", "--sampler=restart", "--seeds=0-7")
    assert all("restart" in line for line in records(tmp_path / "run"))


def test_labels_and_images_together_say_what_each_way_finds(labelled_run: Path, tmp_path: Path) -> None:
    real = real_folder(tmp_path / "real", load_denoiser(SMALL), 64)
    told = said(command.main, *options_of(tmp_path, f"--run={labelled_run}", f"--real={real}"))
    for way in ("chosen without labels", "refined by labels", "of labels alone"):
        assert f"{way}: 0." in told
    assert "Chosen: " in told


def test_a_dry_run_checks_all_inputs_and_writes_nothing(labelled_run: Path, tmp_path: Path) -> None:
    real = real_folder(tmp_path / "real", load_denoiser(SMALL), 64)
    before = files(tmp_path)
    options = options_of(tmp_path, f"--run={labelled_run}", f"--real={real}", "-n")
    told = said(command.main, *options).splitlines()
    assert told[0].startswith("Would sample 40 images")
    assert told[0].endswith(": 400 F"), "40 times 8 steps and 2 levels"
    assert told[1] == "Would read 64 real images: 256 F"
    assert told[2] == "Would read 40 images of run, 40 labels, 16 hallucinated: 160 F"
    assert told[3].endswith(": 480 F"), "3 times 16 times 8 steps and two scores"
    assert told[4].startswith("Time: about ")
    assert " for 1,296 F, and at most " in told[4]
    assert "my.density-ratio.safetensors or my.readout.safetensors" in told[5]
    assert files(tmp_path) == before
    said(command.main, *last_of_each([*options[:-1], "--trial=16"]))
    assert "(there already: 40): 0 F" in said(command.main, *options)
    lid = said(command.main, *options_of(tmp_path, "--real=none", "--budget=2", "-n"))
    assert lid.startswith("Would sample 40 images")
    assert "density-ratio" not in lid
    for wrong, names in (
        (["--batch=8"], "--out="),
        ([f"--real={tmp_path / 'absent'}"], "--real="),
        ([f"--network={LABELLED}"], "is for network"),
        (["--labels=program other"], "program other"),
    ):
        assert names in refusal(command.main, *last_of_each([*options, *wrong])), wrong
    assert "--real" in refusal(command.main, *options_of(tmp_path, "-n"))


def test_two_ranks_fit_the_gate_of_one(labelled_run: Path, tmp_path: Path) -> None:
    real = real_folder(tmp_path / "real", load_denoiser(SMALL), 64)
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        folder.mkdir()
    said(command.main, *options_of(one, f"--real={real}"))
    done = ranked(2, ROOT / "scripts" / "fit_gate.py", *options_of(two, f"--real={real}"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Forecast: ") == 1, "said once"
    gates = [read_preset(folder / "my.preset.json") for folder in (one, two)]
    assert gates[0].samplers == gates[1].samplers, "equal to the last bit: chunks are cut before ranks"
    assert (one / "my.gate.jsonl").read_bytes() == (two / "my.gate.jsonl").read_bytes()
    again = ranked(2, ROOT / "scripts" / "fit_gate.py", *options_of(two, f"--run={labelled_run}"))
    assert again.returncode == 0, again.stderr
    said(command.main, *options_of(one, f"--run={labelled_run}"))
    gates = [read_preset(folder / "my.preset.json") for folder in (one, two)]
    assert gates[0].fitted == gates[1].fitted


def test_runs_that_are_given_twice_or_as_real_images_are_refused(tmp_path: Path) -> None:
    run, dest = tmp_path / "run", tmp_path / "my.preset.json"
    generated(run, "--sampler=euler", "--seeds=0-3")
    options = (f"--network={SMALL}", f"--dest={dest}", f"--out={tmp_path / 'out'}")
    assert "--run" in refusal(command.main, *options, f"--run={run}", f"--run={run}/")
    real = real_folder(tmp_path / "real", load_denoiser(SMALL), 64)
    run.rename(real / "run")
    assert "'run/' in it is a run of generate.py" in refusal(command.main, *options, f"--real={real}")
    assert "--network: no.pkl: there is no such file" in refusal(
        command.main, "--network=no.pkl", *options[1:], "--real=none"
    )
    assert not dest.exists()


@pytest.mark.parametrize("labels", ["nowhere.jsonl", "nowhere.jsonl:people"])
def test_a_file_of_labels_that_is_not_there_is_named(labels: str) -> None:
    with pytest.raises(UserError, match=rf"^--labels={labels}: there is no such file"):
        runs_of([], labels)


def test_a_source_of_labels_needs_the_run_that_has_it() -> None:
    with pytest.raises(UserError, match=r"^--labels=people: give the folder of the images"):
        runs_of([], "people")
