"""--accept and --filter in flight, from the outside: what is drawn, what it costs, and what is said of it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from commands import LABELLED, RESTART, SMALL, files, generate, generated, options_json, ranked, records, refused, tiny
from vectors import ROOT

from rods.gate import DensityRatio, fingerprint
from rods.runs.gates import write_gate
from training.checkpoint import load_denoiser
from training.model_zoo import MODELS

STEPS, LEVEL = 10, 0.8
SCORE = "lid:sigma=1.2,draws=2"
RUN = ("--sampler=euler", "--seeds=0-7", "--batch=4")
TO_LEVEL = 6 + 2  # F of an image that is given up: its steps above the level, and the score


@pytest.fixture(scope="module")
def limit(tmp_path_factory: pytest.TempPathFactory) -> float:
    """A limit that half of the images are below."""
    outdir = tmp_path_factory.mktemp("scored") / "out"
    generated(outdir, *RUN, f"--filter={SCORE}@{LEVEL}", "--filter-threshold=inf", steps=STEPS)
    assert {line["forward"] for line in records(outdir)} == {STEPS + 2}
    ordered = sorted(line["filter_score"] for line in records(outdir))
    return float(ordered[3] + ordered[4]) / 2


def test_what_fails_is_given_up_and_drawn_again(limit: float, tmp_path: Path) -> None:
    output = generated(tmp_path / "out", *RUN, f"--accept={SCORE}<{limit}@{LEVEL}", "--max-tries=3", steps=STEPS)
    lines = records(tmp_path / "out")
    assert options_json(tmp_path / "out")["identity"]["accept"] == f"{SCORE}<{limit!r}@0.8"
    given_up = sum(len(line["tries"]["seeds"]) - 1 for line in lines)
    assert f"4 of 8 drawn again (not {SCORE}<{limit!r}@0.8), {8 + given_up} images drawn in all" in output
    cost, full = given_up * TO_LEVEL, given_up * (STEPS + 2)
    assert f"{given_up} images given up at noise level 0.8, for {cost} NFE; run to the end, " in output
    assert f"of what was kept: {full}\n" in output
    for line in lines:
        tries = line["tries"]
        cost = [STEPS + 2 if k == tries["kept"] else TO_LEVEL for k in range(len(tries["seeds"]))]
        assert (tries["level"], tries["forward"], tries["backward"]) == (0.8, cost, [0] * len(cost))
        assert line["forward"] == sum(cost)
        assert tries["accepted"] == (tries["scores"][tries["kept"]] < limit)

    derived = [line["tries"]["seeds"][line["tries"]["kept"]] for line in lines]
    generated(tmp_path / "by-hand", "--sampler=euler", f"--seeds={','.join(map(str, derived))}", steps=STEPS)
    known = {line["seed"]: line["sha256"] for line in records(tmp_path / "by-hand")}
    assert [line["sha256"] for line in lines] == [known[seed] for seed in derived]
    finished = generated(tmp_path / "end", *RUN, f"--accept={SCORE}<{limit}", "--max-tries=1", steps=STEPS)
    assert "given up" not in finished
    assert all(set(line["tries"]) == {"scores", "seeds", "kept", "accepted"} for line in records(tmp_path / "end"))


def test_a_run_goes_on_where_it_was_and_its_batches_decide_nothing(limit: float, tmp_path: Path) -> None:
    run = ("--sampler=euler", f"--accept={SCORE}<{limit}@{LEVEL}", "--max-tries=2")
    generated(tmp_path / "parts", *run, "--seeds=0-3", "--batch=4", steps=STEPS)
    generated(tmp_path / "parts", *run, "--seeds=0-7", "--batch=4", steps=STEPS)
    generated(tmp_path / "whole", *run, "--seeds=0-7", "--batch=4", steps=STEPS)
    assert files(tmp_path / "parts") == files(tmp_path / "whole")
    generated(tmp_path / "apart", *run, "--seeds=3,1,2,0,7,6,5,4", "--batch=3", steps=STEPS)
    for one, other in zip(records(tmp_path / "whole"), records(tmp_path / "apart"), strict=True):
        assert (one["tries"]["kept"], one["forward"]) == (other["tries"]["kept"], other["forward"])
    told = refused(tmp_path / "whole", *RUN, f"--accept={SCORE}<{limit}", "--max-tries=2", steps=STEPS)
    assert "holds images made with --accept=" in told


@pytest.mark.slow
def test_ranks_give_the_files_of_one_process(limit: float, tmp_path: Path) -> None:
    run = ["--sampler=euler", "--seeds=0-7", "--batch=2", f"--accept={SCORE}<{limit}@{LEVEL}", f"--steps={STEPS}",
           "--threads=1", f"--network={SMALL}"]  # fmt: skip
    generated(tmp_path / "alone", *run, network=None, steps=None)
    done = ranked(3, ROOT / "generate.py", *run, f"--outdir={tmp_path / 'ranks'}")
    assert done.returncode == 0, done.stderr
    assert files(tmp_path / "ranks") == files(tmp_path / "alone")


def test_a_filter_gives_up_what_it_drops(limit: float, tmp_path: Path) -> None:
    run = (*RUN, f"--filter={SCORE}@{LEVEL}", f"--filter-threshold={limit}")
    output = generated(tmp_path / "out", *run, "--rejected", steps=STEPS)
    assert "4 images given up at noise level 0.8, for 32 NFE; run to the end, " in output
    assert "of what was kept: 48\n" in output
    generated(tmp_path / "plain", *RUN, steps=STEPS)
    plain, made = files(tmp_path / "plain"), files(tmp_path / "out")
    for line in records(tmp_path / "out"):
        assert line["forward"] == (TO_LEVEL if line["dropped"] else STEPS + 2)
        if line["dropped"]:  # its D(x_t), which is not the image
            assert made[f"rejected/{line['name']}"] == line["sha256"] != plain[line["name"]]
        else:
            assert made[line["name"]] == line["sha256"] == plain[line["name"]]
    generated(tmp_path / "gone", *run, steps=STEPS)
    assert sum(line["sha256"] is None for line in records(tmp_path / "gone")) == 4
    assert "4 images in" in generated(tmp_path / "gone", *run, steps=STEPS)
    none = generated(tmp_path / "none", *RUN[:2], f"--filter={SCORE}@{LEVEL}", "--filter-threshold=-1", steps=STEPS)
    assert "8 images given up at noise level 0.8, for 64 NFE\n" in none


def test_an_image_keeps_its_class_and_a_restart_its_rounds(tmp_path: Path) -> None:
    seeds = ("--seeds=0-3", "--sampler=euler")
    generated(tmp_path / "once", *seeds, network=LABELLED, steps=4)
    again = (*seeds, "--accept=lid:draws=1<0@1", "--max-tries=2")
    generated(tmp_path / "again", *again, network=LABELLED, steps=4)
    once, twice = records(tmp_path / "once"), records(tmp_path / "again")
    assert [line["class"] for line in twice] == [line["class"] for line in once]
    assert all(len(line["tries"]["seeds"]) == 2 for line in twice)

    restart = (*RESTART, "--seeds=0-3", "--threshold=0", "--rounds=1", "--accept=lid<0@1", "--max-tries=2")
    generated(tmp_path / "restart", *restart, "--filter=lid", "--filter-threshold=inf", steps=6)
    for line in records(tmp_path / "restart"):
        assert len(line["restart"]["scores"]) == 2
        assert line["tries"]["forward"][1 - line["tries"]["kept"]] == 3 + 4, "before it restarts"
        assert line["tries"]["forward"][line["tries"]["kept"]] == 6 + 4 + 4 + 4 + (4 + 4)


def a_preset(folder: Path) -> Path:
    """A preset with a restart in flight at LEVEL by a gate of the small network, and quantiles of its scores."""
    block = "model.dec.8x8_block0"
    own = fingerprint(load_denoiser(SMALL), (block,))
    gate = DensityRatio((block,), 0.5, 1, own, 0.0, (0.0,) * 8, (1.0,) * 8, (0.5,) * 8)
    write_gate(folder / "p.density-ratio.safetensors", gate)
    sampler = {"detector": "density-ratio", "threshold": 1e9, "sigma_r": 5.0, "score_at": LEVEL}
    data = {"name": "p", "network": None, "source": "s", "density-ratio": "p.density-ratio.safetensors",
            "samplers": {"restart": sampler}, "quantiles": {"restart": [i / 10 for i in range(101)]}}  # fmt: skip
    (folder / "p.json").write_text(json.dumps(data))
    return folder / "p.json"


def test_a_percentage_is_of_scores_at_the_presets_own_level(tmp_path: Path) -> None:
    preset = f"--preset={a_preset(tmp_path)}"
    accept = f"--accept=density-ratio<25%@{LEVEL}"
    output = generated(tmp_path / "out", *RUN, preset, accept, steps=STEPS)
    assert "(not density-ratio<2.5@0.8)" in output
    generated(tmp_path / "restart", "--sampler=restart", "--seeds=0-3", preset, accept, steps=STEPS)
    shown = [line["restart"]["scores"][0] for line in records(tmp_path / "restart")]
    assert shown == pytest.approx(
        [line["tries"]["scores"][line["tries"]["kept"]] for line in records(tmp_path / "restart")], abs=1.0
    ), "the same score of the same step, by other draws"
    for other in ("density-ratio<25%@.5", f"lid<25%@{LEVEL}"):
        told = refused(tmp_path / "no", *RUN, preset, f"--accept={other}", steps=STEPS)
        assert told.startswith("Error: --accept: 25% of ")
        assert "knows scores in flight of the restart's own, density-ratio at @0.8; give a number" in told


GATE = MODELS / "hands-32-gate.preset.json"
REFUSED = {
    "no level": (("--accept=lid<3@",), "--accept: @ is not a noise level"),
    "no number": (("--accept=lid<3@low",), "--accept: @low is not a noise level"),
    "zero": (("--accept=lid<3@0",), "--accept: @0 is not a noise level"),
    "infinite": (("--filter=lid@inf", "--filter-threshold=3"), "--filter: @inf is not a noise level"),
    "above the run": (("--accept=lid<3@80",), "--accept: 80 is not a noise level of this run"),
    "not known yet": (("--accept=tvf<3@5",), "--accept: tvf:sigma=2 reads 2 steps or more, and 0 "),
    "no step yet": (("--accept=h-index<3@5",), "--accept: h-index:"),
    "steps of a restart": ((*RESTART, "--accept=tvf<3@.1"), "--accept: Tvf reads a run's steps"),
    "percentage without preset": (("--accept=lid<50%@1", "--preset=none"), "--accept: 50% needs a preset"),
    "both": (("--filter=lid@1", "--filter-threshold=3", "--accept=lid<3"), "--filter=...@1 gives images up"),
    "strips": (("--trajectory=0", "--filter=lid@1", "--filter-threshold=3"), "--trajectory shows whole runs"),
    "no score": (("--accept=<12",), "--accept=<12 names no score; write score<value"),
    "no detector": (("--filter=:draws=2", "--filter-threshold=3"), "--filter: no detector is named in ':draws=2'"),
    "another level": (("--accept=density-ratio<50%", f"--preset={GATE}"), "--accept: 50% of density-ratio: preset "
                      "hands-32-gate knows the scores that its restart reads in flight; write "
                      "--accept='density-ratio<50%@0.131'"),
    "a folder for a preset": (("--accept=lid<3", f"--preset={MODELS}"), f"--preset={MODELS} is a folder"),
    "no network": (("--network=no.pkl",), "--network: no.pkl: there is no such file"),
    "no guide": (("--guidance=2", "--guide=no.pkl"), "--guide: no.pkl: there is no such file"),
    "no checksum": (("--guidance=2", "--guide-sha256=12"), "Invalid value for '--guide-sha256': '12' is"),
    "level before the limit": (("--accept=lid@1<3",), "--accept: unknown detector"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_one_line_that_names_the_option_and_nothing_is_written(case: str, tmp_path: Path) -> None:
    options, says = REFUSED[case]
    options = options if options[0] in RESTART else ("--sampler=euler", *options)
    assert refused(tmp_path / "out", *options, steps=STEPS).startswith(f"Error: {says}")
    assert list(tmp_path.iterdir()) == []


def test_a_network_that_breaks_is_the_worst_try(tmp_path: Path) -> None:
    network = tiny(tmp_path / "nan.safetensors", first_weight=math.nan)
    run = ("--seeds=0-1", "--sampler=euler", "--accept=lid<1@1", "--max-tries=2")
    code, output = generate(tmp_path / "out", *run, network=network, steps=4)
    assert code == 1
    assert "2 of 2 images not finite" in output
    for line in records(tmp_path / "out"):
        assert (line["tries"]["scores"], line["tries"]["kept"]) == ([None, None], 0)
