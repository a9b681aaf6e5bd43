"""Filters and limits, from the outside: what is dropped, what is drawn again, and whose weights decide."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from commands import LABELLED, RESTART, SMALL, files, generate, generated, options_json, ranked, records, refused, tiny
from vectors import ROOT

from rods import Lid, Readout
from rods.gate import fingerprint
from rods.runs.accept import Accept, Filter
from rods.runs.gates import write_gate
from torch_utils.rng import redrawn
from training.checkpoint import load_denoiser

SCORE = "lid:sigma=1.2,draws=2"
RUN = ("--sampler=euler", "--seeds=0-7", "--batch=4")


# -- filters ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose scores are only recorded."""
    outdir = tmp_path_factory.mktemp("scored") / "out"
    generated(outdir, *RUN, f"--filter={SCORE}", "--filter-threshold=inf")
    return outdir


def test_what_a_filter_drops() -> None:
    risks = (-1.0, 2.0, 2.1, math.inf, math.nan)
    assert [Filter(Lid(), 2.0).drops(risk) for risk in risks] == [False, False, True, True, True]
    assert not any(Filter(Lid(), math.inf).drops(risk) for risk in risks)


def pngs(outdir: Path) -> dict[str, str]:
    return {name: sha for name, sha in files(outdir).items() if name.endswith(".png")}


def middle(scored: Path) -> float:
    ordered = sorted(line["filter_score"] for line in records(scored))
    return float(ordered[3] + ordered[4]) / 2


def test_a_recorded_score_changes_no_image(scored: Path, tmp_path: Path) -> None:
    generated(tmp_path, *RUN)
    assert pngs(scored) == pngs(tmp_path)
    assert {line["forward"] for line in records(scored)} == {2 + 2}
    assert not any(line["dropped"] for line in records(scored))
    assert "filter" not in options_json(tmp_path)["identity"]
    assert not any("dropped" in line or "tries" in line for line in records(tmp_path))


def test_a_filter_drops_what_scores_above_its_threshold(scored: Path, tmp_path: Path) -> None:
    limit, run = middle(scored), (*RUN, f"--filter={SCORE}")
    output = generated(tmp_path / "gone", *run, f"--filter-threshold={limit}", "--grid")
    assert "4 images in" in output
    assert "4 of 8 dropped" in output
    kept = {line["name"] for line in records(scored) if line["filter_score"] <= limit}
    assert pngs(tmp_path / "gone") == {n: s for n, s in pngs(scored).items() if n in kept} | {
        "grid.png": files(tmp_path / "gone")["grid.png"]
    }
    for line, was in zip(records(tmp_path / "gone"), records(scored), strict=True):
        assert line["filter_score"] == was["filter_score"]
        assert line["dropped"] == (line["sha256"] is None) == (line["name"] not in kept)

    generated(tmp_path / "aside", *run, f"--filter-threshold={limit}", "--rejected", "--subdirs")
    aside = pngs(tmp_path / "aside")
    assert set(aside) == {f"000000/{n}" if n in kept else f"rejected/000000/{n}" for n in pngs(scored)}
    assert set(aside.values()) == set(pngs(scored).values())
    for line in records(tmp_path / "aside"):
        assert aside[line.get("file", line["name"])] == line["sha256"]


@pytest.mark.parametrize("rejected", [(), ("--rejected",)])
def test_a_filtered_run_goes_on_where_it_was(rejected: tuple[str], scored: Path, tmp_path: Path) -> None:
    run = (*RUN, f"--filter={SCORE}", f"--filter-threshold={middle(scored)}", *rejected)
    generated(tmp_path / "whole", *run)
    generated(tmp_path / "parts", *run, "--seeds=0-3")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "parts").rglob("*.png")}
    generated(tmp_path / "parts", *run)
    assert files(tmp_path / "parts") == files(tmp_path / "whole")
    assert all(path.stat().st_mtime_ns == when for path, when in before.items())
    if rejected:  # a rejected image that is gone is made again
        next((tmp_path / "parts" / "rejected").glob("*.png")).unlink()
        (tmp_path / "parts" / "rejected" / ".tmp-0123456789ab.png").write_text("half")
        generated(tmp_path / "parts", *run)
        assert files(tmp_path / "parts") == files(tmp_path / "whole")
    said = refused(tmp_path / "whole", *run, "--filter-threshold=inf")
    assert "holds images made with --filter=lid:sigma=1.2,draws=2" in said


def test_an_image_that_is_not_finite_is_neither_dropped_nor_kept(tmp_path: Path) -> None:
    network = tiny(tmp_path / "nan.safetensors", first_weight=math.nan)
    run = ("--seeds=0-1", "--sampler=euler", "--filter=lid", "--filter-threshold=1", "--accept=lid<1", "--max-tries=2")
    code, output = generate(tmp_path / "out", *run, network=network)
    assert code == 1
    assert "2 of 2 images not finite" in output
    for line in records(tmp_path / "out"):
        assert (line["filter_score"], line["dropped"], line["sha256"]) == (None, False, None)
        assert (line["tries"]["scores"], line["tries"]["kept"]) == ([None, None], 0)
    assert "NaN" not in (tmp_path / "out" / "samples.jsonl").read_text()


# -- retries ----------------------------------------------------------------------------------------------------------


def test_an_image_at_risk_is_that_of_a_derived_seed(scored: Path, tmp_path: Path) -> None:
    limit = middle(scored)
    run = ("--sampler=euler", "--batch=4", f"--filter={SCORE}", "--filter-threshold=inf")
    output = generated(tmp_path / "out", *RUN, f"--accept={SCORE}<{limit}", "--max-tries=3")
    lines = records(tmp_path / "out")
    assert f"4 of 8 drawn again (not lid:sigma=1.2,draws=2<{limit!r})" in output
    derived = [seed for line in lines for seed in line["tries"]["seeds"][1:]]
    assert len(set(derived)) == len(derived) >= 4
    generated(tmp_path / "again", *run, f"--seeds={','.join(map(str, derived))}")
    again = {line["seed"]: line for line in [*records(tmp_path / "again"), *records(scored)]}
    pixels = {**{s: picture(tmp_path / "again", again[s]["name"]) for s in derived}}
    for line, was in zip(lines, records(scored), strict=True):
        tries = line["tries"]
        assert tries["seeds"] == [redrawn(line["seed"], t) for t in range(len(tries["seeds"]))]
        assert tries["scores"] == pytest.approx([again[s]["filter_score"] for s in tries["seeds"]], rel=1e-4)
        best = tries["scores"][tries["kept"]]
        assert best == min(tries["scores"])
        assert tries["accepted"] == (best < limit)
        assert all(score >= limit for score in tries["scores"][:-1])
        assert len(tries["seeds"]) == 3 or tries["accepted"]
        assert line["forward"] == 4 * len(tries["seeds"])
        if tries["kept"]:
            made = picture(tmp_path / "out", line["name"])
            assert np.abs(made - pixels[tries["seeds"][tries["kept"]]]).max() <= 1  # another batch rounds otherwise
        else:
            assert line["sha256"] == was["sha256"]
    assert any(line["tries"]["kept"] for line in lines)


def picture(outdir: Path, name: str) -> np.ndarray:
    with PIL.Image.open(outdir / name) as image:
        return np.asarray(image).astype(int)


def test_retries_do_not_depend_on_the_batch_or_on_interruptions(scored: Path, tmp_path: Path) -> None:
    run = ("--sampler=euler", f"--accept={SCORE}<{middle(scored)}", "--max-tries=2")
    for name, order, batch in (("together", "0-7", 8), ("apart", "3,1,2,0,7,6,5,4", 3)):
        generated(tmp_path / name, *run, f"--seeds={order}", f"--batch={batch}")
    for together, apart in zip(records(tmp_path / "together"), records(tmp_path / "apart"), strict=True):
        assert together["tries"]["seeds"] == apart["tries"]["seeds"]
        assert together["tries"]["kept"] == apart["tries"]["kept"]
        assert together["tries"]["scores"] == pytest.approx(apart["tries"]["scores"], rel=1e-4)
    generated(tmp_path / "parts", *run, "--seeds=0-3", "--batch=4")
    generated(tmp_path / "parts", *run, "--seeds=0-7", "--batch=4")
    generated(tmp_path / "whole", *run, "--seeds=0-7", "--batch=4")
    assert files(tmp_path / "parts") == files(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 3])
def test_ranks_give_the_files_of_one_process(ranks: int, scored: Path, tmp_path: Path) -> None:
    options = (f"--accept={SCORE}<{middle(scored)}", f"--filter={SCORE}", "--filter-threshold=1e9", "--batch=2")
    run = ["--sampler=euler", "--seeds=0-7", *options, "--steps=2", "--threads=1", f"--network={SMALL}"]
    generated(tmp_path / "alone", *run, network=None, steps=None)
    done = ranked(ranks, ROOT / "generate.py", *run, f"--outdir={tmp_path / 'ranks'}")
    assert done.returncode == 0, done.stderr
    assert files(tmp_path / "ranks") == files(tmp_path / "alone")


def test_an_image_keeps_its_class(tmp_path: Path) -> None:
    generated(tmp_path / "once", "--seeds=0-3", "--sampler=euler", network=LABELLED)
    run = ("--seeds=0-3", "--sampler=euler", "--accept=lid:draws=1<0", "--max-tries=2")
    generated(tmp_path / "again", *run, network=LABELLED)
    once, again = records(tmp_path / "once"), records(tmp_path / "again")
    assert [line["class"] for line in again] == [line["class"] for line in once]
    assert all(not line["tries"]["accepted"] and len(line["tries"]["seeds"]) == 2 for line in again)


def test_retries_go_with_restarts_and_filters(tmp_path: Path) -> None:
    run = (*RESTART, "--seeds=0-3", "--threshold=0", "--rounds=1", "--accept=lid<0", "--max-tries=2", "--detector=tvf")
    generated(tmp_path, *run, "--filter=lid", "--filter-threshold=0", "--rejected", steps=6)
    assert set(pngs(tmp_path)) == {f"rejected/00000{i}.png" for i in range(4)}
    alone = [line for line in records(tmp_path) if line["tries"]["kept"] == 0]
    for line in records(tmp_path):
        assert line["filter_score"] == min(line["tries"]["scores"])
        assert len(line["restart"]["scores"]) == 2
        below = 4  # the restarted part: from sigma_r = 2, in a grid of 6 steps
        assert line["forward"] == 2 * (6 + below + 4 + 4)
    generated(tmp_path / "plain", *run[:4], "--detector=tvf", steps=6)
    plain = files(tmp_path / "plain")
    assert all(line["sha256"] == plain[line["name"]] for line in alone)


# -- refusals ---------------------------------------------------------------------------------------------------------

REFUSED = {
    "no threshold": (("--filter=lid",), "--filter "),
    "threshold alone": (("--filter-threshold=3",), "--filter-threshold "),
    "rejected alone": (("--rejected",), "--rejected "),
    "no score": (("--filter=iq", "--filter-threshold=1"), "--filter: "),
    "nan": (("--filter=lid", "--filter-threshold=nan"), "--filter-threshold: "),
    "no weights": (("--filter=readout", "--filter-threshold=1"), "--filter: "),
    "removed": (("--filter=learned", "--filter-threshold=1"), "Invalid value for '--filter'"),
    "no steps": (("--filter=tvf:sigma=.001", "--filter-threshold=1"), "--filter: "),
    "steps of a restart": ((*RESTART, "--filter=tvf", "--filter-threshold=1"), "--filter: "),
    "tries alone": (("--max-tries=3",), "--max-tries "),
    "no limit": (("--accept=lid",), "--accept=lid "),
    "no number": (("--accept=lid<low",), "--accept: "),
    "nan limit": (("--accept=lid<nan",), "--accept: "),
    "accept no score": (("--accept=best<3",), "--accept: "),
    "too many": (("--accept=lid<3", "--max-tries=17"), "Invalid value for '--max-tries'"),
    "batch": (("--accept=lid<3", "--seeding=per-batch"), "--accept: "),
    "seeds": (("--accept=lid<3", "--seeds=3,67108864"), "--seeds: "),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_one_line_that_names_the_option_and_nothing_is_written(case: str, tmp_path: Path) -> None:
    options, says = REFUSED[case]
    assert refused(tmp_path / "out", *options).startswith(f"Error: {says}")
    assert list(tmp_path.iterdir()) == []


def test_a_limit_is_a_number_and_tries_are_few() -> None:
    for options, option in (((math.nan,), "accept"), ((1.0, 17), "max_tries"), ((1.0, 0), "max_tries")):
        with pytest.raises(ValueError, match=rf"^{option}: "):
            Accept(Lid(), *options)


# -- readouts ---------------------------------------------------------------------------------------------------------


def a_preset(path: Path, bias: float) -> Path:
    """A preset of the small network with a readout of one of its blocks."""
    block = "model.dec.8x8_block0"
    own = fingerprint(load_denoiser(SMALL), (block,))
    readout = Readout((block,), 0.5, 2, own, bias, (0.0,) * 8, (1.0,) * 8, (0.5,) * 8)
    write_gate(path.with_suffix(".readout.safetensors"), readout)
    data = {"name": "p", "network": None, "source": "s", "readout": path.with_suffix(".readout.safetensors").name,
            "samplers": {"restart": {"detector": "readout", "threshold": 0.5, "sigma_r": 1.0}}}  # fmt: skip
    path.write_text(json.dumps(data))
    return path


def test_a_readout_filters_accepts_and_restarts_and_another_one_is_another_run(tmp_path: Path) -> None:
    one, other = (a_preset(tmp_path / f"{name}.json", bias) for name, bias in (("one", 0.25), ("other", 0.5)))
    for name, used in (
        ("filter", ("--sampler=euler", "--filter=readout", "--filter-threshold=inf")),
        ("accept", ("--sampler=euler", "--accept=readout<2")),
        ("restart", ("--sampler=restart",)),
        ("detector", ("--sampler=restart", "--detector=readout", "--threshold=.9", "--sigma-r=2")),
    ):
        said = generated(tmp_path / name, *used, f"--preset={one}", "--seeds=0-3", steps=4)
        assert max(map(len, said.splitlines())) < 600, "weights are not for people to read"
        for line in records(tmp_path / name):
            scores = [line["filter_score"]] if name == "filter" else line.get("tries", line.get("restart"))["scores"]
            assert all(0 < score < 1 for score in scores)
        said = refused(tmp_path / name, *used, f"--preset={other}", "--seeds=0-3", steps=4)
        assert f"holds images made with --{name.replace('restart', 'detector')} sha256=" in said


def test_a_percentage_is_of_the_scores_that_the_limit_is_compared_with(tmp_path: Path) -> None:
    """A restart's own scores stand for its detector: of finished images where it scores these, else at its level."""
    quantiles = {"restart": list(range(101))}
    for score_at, accept, limit in ((0, "lid<30%", 30), (0.5, "lid<20%@0.5", 20), (0.5, "lid<7%", 107)):
        own = {"lid:sigma=1.2,draws=4": list(range(100, 201))} if limit > 100 else {}
        restart = {"threshold": 3, "sigma_r": 2, "detector": "lid", "score_at": score_at, "num_steps": 4}
        path = tmp_path / f"{limit}.preset.json"
        path.write_text(json.dumps({"name": "mine", "network": None, "source": "", "samplers": {"restart": restart},
                                    "quantiles": quantiles | own}))  # fmt: skip
        out = tmp_path / str(limit)
        generated(out, *RUN, f"--preset={path}", f"--accept={accept}", "--max-tries=1", steps=4)
        assert f"<{limit}" in options_json(out)["identity"]["accept"]


def test_a_level_that_is_proposed_has_all_its_digits(tmp_path: Path) -> None:
    restart = {"threshold": 3, "sigma_r": 2, "detector": "lid", "score_at": 0.123456789, "num_steps": 4}
    path = tmp_path / "mine.preset.json"
    path.write_text(json.dumps({"name": "mine", "network": None, "source": "", "samplers": {"restart": restart},
                                "quantiles": {"restart": list(range(101))}}))  # fmt: skip
    run = (*RUN, f"--preset={path}", "--max-tries=1")
    told = refused(tmp_path / "out", *run, "--accept=lid<20%", steps=4)
    proposed = re.search("--accept='([^']*)'", told)
    assert proposed is not None
    assert proposed[1].endswith("<20%@0.123456789")
    for other in ("lid<20%@1", "tvf<20%@.123456789"):
        told = refused(tmp_path / "out", *run, f"--accept={other}", steps=4)
        assert "in flight of the restart's own, lid:sigma=1.2,draws=4 at @0.123456789; give a number" in told
    generated(tmp_path / "out", *run, f"--accept={proposed[1]}", steps=4)
