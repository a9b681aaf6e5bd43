"""Filters and retries: derived seeds, retention tables, and generate.py --filter and --accept from the outside."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from commands import LABELLED, RESTART, SMALL, files, generate, generated, options_json, records, tiny, torchrun
from hypothesis import given
from hypothesis import strategies as st
from rods.accept import Accept
from rods.image_scores import Lid, Tvf
from rods.pipeline import SamplerConfig
from rods.retention import KEEP, Retention, retention, retention_of_json
from rods.runs.selection import Filter
from rods.score_text import parse_score
from vectors import ROOT

from rods.presets import parse_preset
from torch_utils.rng import LARGEST_REDRAWN, MOST_TRIES, SECOND, THIRD, SeedStreams, redrawn

EULER = SamplerConfig("euler", {})
SCORE = "lid:sigma=1.2,draws=2"
RUN = ("--sampler=euler", "--seeds=0-7", "--batch=4")

# -- derived seeds ----------------------------------------------------------------------------------------------------

seeds = st.integers(0, LARGEST_REDRAWN - 1)


@given(seeds, seeds)
def test_no_two_tries_or_streams_of_any_seeds_agree(a: int, b: int) -> None:
    streams = [{redrawn(s, t) ^ flips for t in range(MOST_TRIES) for flips in (0, SECOND, THIRD)} for s in (a, b)]
    assert all(len(found) == 3 * MOST_TRIES for found in streams)
    assert a == b or not streams[0] & streams[1]
    assert max(streams[0]) < 1 << 32
    assert redrawn(a, 0) == a


def test_the_third_stream_is_another_one() -> None:
    streams = SeedStreams([5, 9], torch.device("cpu"))
    third = streams.third().randn([1, 2, 2])
    assert torch.equal(third, SeedStreams([5 ^ THIRD, 9 ^ THIRD], torch.device("cpu")).randn([1, 2, 2]))
    assert not torch.equal(third, streams.second().randn([1, 2, 2]))


def test_what_cannot_be_redrawn() -> None:
    with pytest.raises(ValueError, match="seeds: 67108864 is too large to be redrawn; give seeds below 67,108,864"):
        redrawn(LARGEST_REDRAWN, 1)
    with pytest.raises(ValueError, match="max_tries: try 16 of a seed does not exist"):
        redrawn(0, MOST_TRIES)
    for options, says in (
        ((math.nan,), "accept: nan is no limit"),
        ((1.0, 17), "max_tries: 17 will not do; give 1 to"),
    ):
        with pytest.raises(ValueError, match=says):
            Accept(Lid(), *options)


# -- retention --------------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(-1e6, 1e6), min_size=10, max_size=300), st.sampled_from(KEEP))
def test_a_threshold_keeps_at_least_its_share_of_the_calibration_scores(scores: list[float], keep: float) -> None:
    table = retention(scores, score=Lid(), config=EULER, seeds="these")
    assert retention_of_json(json.loads(json.dumps(table.describe()))) == table
    if keep in table.keep:
        threshold = table.threshold_at(keep)
        assert sum(s <= threshold for s in scores) >= keep * len(scores) - 1e-6
        assert sum(s < threshold for s in scores) < keep * len(scores)
        assert (1 - keep) * len(scores) >= 2 - 1e-6


def test_between_two_shares_the_threshold_lies_on_a_line() -> None:
    table = Retention(Lid(), EULER, "these", (0.5, 0.9), (10.0, 14.0))
    assert [table.threshold_at(keep) for keep in (0.5, 0.6, 0.9)] == [10, pytest.approx(11), 14]
    for keep in (0.4, 0.96):
        with pytest.raises(ValueError, match=f"keep: {keep} is not within what these tell, 0.5 to 0.9; choose another"):
            table.threshold_at(keep)


TABLE: dict[str, Any] = {
    "score": SCORE, "sampler": {"sampler": "euler", "num_steps": 2}, "seeds": "8 seeds", "keep": [0.25, 0.75],
    "threshold": [1.0, 2.0],
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"extra": 1}, "a table of retention needs exactly the keys keep, sampler, score, seeds, threshold"),
        ({"sampler": "euler"}, "a table of retention needs exactly"),
        ({"sampler": {}}, "a table of retention names its score, its sampler and its seeds"),
        ({"score": 3}, "a table of retention names"),
        ({"score": "best"}, "unknown detector 'best'"),
        ({"sampler": {"sampler": "ddim"}}, "sampler: unknown sampler 'ddim'"),
        ({"keep": 0.5}, "keep: a table of retention needs numbers"),
        ({"threshold": [1.0, "2"]}, "threshold: a table of retention needs numbers"),
        ({"keep": [0.25]}, "keep, threshold: a table needs as many thresholds as shares"),
        ({"keep": [], "threshold": []}, "keep, threshold: a table needs as many"),
        ({"keep": [0.0, 0.5]}, "keep, threshold: a table needs shares above 0"),
        ({"keep": [0.5, 1.5]}, "keep, threshold: a table needs shares above 0"),
        ({"keep": [0.75, 0.25]}, "keep, threshold: both must rise"),
        ({"threshold": [2.0, 1.0]}, "keep, threshold: both must rise"),
        ({"threshold": [1.0, math.inf]}, "keep, threshold: a table needs .* finite thresholds"),
    ],
)
def test_what_is_no_table_is_one_clear_line(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=f"^{says}"):
        retention_of_json({**TABLE, **changes})


def test_a_preset_holds_tables_and_weights() -> None:
    weights = {"bias": -1.0, "terms": [{"score": "tvf", "log": True, "weight": 2.0}]}
    restart = {"detector": "screen(tvf>.1;learned)", "threshold": 0.5, "sigma_r": 2.0}
    data = {"name": "n", "network": None, "source": "s", "samplers": {}, "retention": [TABLE], "learned": weights}
    preset = parse_preset(data, where="F")
    config = SamplerConfig("euler", {"num_steps": 2})
    assert preset.threshold(Lid(draws=2), config, 0.75) == 2
    with pytest.raises(ValueError, match="keep: preset n has no thresholds of tvf:sigma=2 for these settings"):
        preset.threshold(Tvf(), config, 0.75)
    with pytest.raises(ValueError, match=r"settings of euler; it has lid:sigma=1\.2,draws=2,.* on euler"):
        preset.threshold(Lid(draws=2), EULER, 0.75)
    data["learned"] = {"bias": -1.0, "terms": [{"score": "lid", "weight": 2.0}]}
    data["samplers"] = {"restart": restart}
    chosen = parse_preset(data, where="F").config("restart", {}).options["detector"]
    assert chosen == "screen(tvf:sigma=2>0.1;learned(-1;2*lid:sigma=1.2,draws=4,first=0,near=0.2))"
    assert parse_score(chosen)
    for changes, says in (
        ({"learned": 1}, "F: learned needs exactly"),
        ({"retention": TABLE}, "F: retention is no list"),
        ({"learned": weights}, "F, restart: detector: screen: only a score of the image"),
    ):
        with pytest.raises(ValueError, match=f"^{says}"):
            parse_preset({**data, **changes}, where="F")


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
    code, output = generate(tmp_path / "whole", *run, "--filter-threshold=inf")
    assert code == 2
    assert "holds images made with --filter=lid:sigma=1.2,draws=2" in output


def preset_file(path: Path, scored: Path, **changes: Any) -> Path:
    scores = sorted(line["filter_score"] for line in records(scored))
    table = {**TABLE, "keep": [0.25, 0.5, 0.75], "threshold": [scores[1], scores[3], scores[5]]}
    preset = {"name": "mine", "network": None, "source": "a test", "samplers": {"euler": {}}, "retention": [table]}
    path.write_text(json.dumps({**preset, **changes}))
    return path


def test_a_share_to_keep_becomes_the_presets_threshold(scored: Path, tmp_path: Path) -> None:
    preset = preset_file(tmp_path / "p.json", scored)
    run = ("--sampler=euler", "--batch=4", f"--filter={SCORE}", f"--preset={preset}")
    generated(tmp_path / "half", *run, "--keep=.5", "--seeds=0-7")
    assert sum(line["dropped"] for line in records(tmp_path / "half")) == 4
    generated(tmp_path / "few", *run, "--keep=.5", "--seeds=0-3")
    whole, few = records(tmp_path / "half")[:4], records(tmp_path / "few")
    assert whole == few, "a threshold of the preset, and no quantile of the run"


def test_the_page_says_how_to_make_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "rivals.md").read_text()
    (program,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    (options,) = re.findall(r"# generate\.py (.*) --outdir=scored\n", program)
    generated(tmp_path / "scored", *options.split(), "--seeds=0-9", steps=None)
    Path("my-network.preset.json").write_text(
        '{"name": "n", "network": null, "source": "s", "samplers": {"euler": {}}}'
    )
    exec(program, {})
    run = ("--sampler=euler", "--seeds=0-9", "--filter=lid", "--preset=my-network.preset.json", "--keep=.5")
    generated(tmp_path / "kept", *run, steps=None)
    assert len(pngs(tmp_path / "kept")) == 5


def test_a_learned_score_filters_by_the_presets_weights(scored: Path, tmp_path: Path) -> None:
    weights = {"bias": -1.0, "terms": [{"score": SCORE, "weight": 0.5}]}
    preset = preset_file(tmp_path / "p.json", scored, learned=weights)
    generated(tmp_path / "out", *RUN, "--filter=learned", f"--preset={preset}", "--filter-threshold=inf")
    for line, was in zip(records(tmp_path / "out"), records(scored), strict=True):
        assert line["filter_score"] == pytest.approx(1 / (1 + math.exp(1 - 0.5 * was["filter_score"])))
    assert options_json(tmp_path / "out")["identity"]["filter"].startswith("learned(-1;0.5*lid:sigma=1.2,draws=2")


def test_an_image_that_is_not_finite_is_neither_dropped_nor_kept(tmp_path: Path) -> None:
    network = tiny(tmp_path / "nan.safetensors", first_weight=math.nan)
    run = ("--seeds=0-1", "--sampler=euler", "--filter=lid", "--filter-threshold=1", "--accept=lid<1", "--max-tries=2")
    code, output = generate(tmp_path / "out", *run, network=network)
    assert code == 1
    assert "2 of 2 images are not finite" in output
    for line in records(tmp_path / "out"):
        assert (line["filter_score"], line["dropped"], line["sha256"]) == (None, False, None)
        assert (line["tries"]["scores"], line["tries"]["kept"]) == ([None, None], 0)
    assert "NaN" not in (tmp_path / "out" / "samples.jsonl").read_text()


@pytest.mark.parametrize(("score", "cost"), [("tvf:sigma=90", (2, 0)), ("h-index:lo=.001,hi=90", (6, 4))])
def test_scores_of_the_run(score: str, cost: tuple[int, int], tmp_path: Path) -> None:
    generated(tmp_path, *RUN, f"--filter={score}", "--filter-threshold=inf")
    assert {(line["forward"], line["backward"]) for line in records(tmp_path)} == {cost}
    assert len({line["filter_score"] for line in records(tmp_path)}) > 1


# -- retries ----------------------------------------------------------------------------------------------------------


def test_an_image_at_risk_is_that_of_a_derived_seed(scored: Path, tmp_path: Path) -> None:
    limit = middle(scored)
    run = ("--sampler=euler", "--batch=4", f"--filter={SCORE}", "--filter-threshold=inf")
    output = generated(tmp_path / "out", *RUN, f"--accept={SCORE}<{limit}", "--max-tries=3")
    lines = records(tmp_path / "out")
    assert f"4 of 8 drawn again (not lid:sigma=1.2,draws=2,first=0,near=0.2<{limit!r})" in output
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
    done = torchrun(ranks, ROOT / "generate.py", *run, f"--outdir={tmp_path / 'ranks'}")
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
    "no threshold": (("--filter=lid",), "--filter needs one of --keep=.96, a share for which the preset has"),
    "two": (("--filter=lid", "--keep=.9", "--filter-threshold=3"), "--filter needs one of"),
    "keep alone": (("--keep=.9",), "--keep is for --filter; give a score, such as --filter=lid"),
    "threshold alone": (("--filter-threshold=3",), "--filter-threshold is for --filter"),
    "rejected alone": (("--rejected",), "--rejected is for --filter"),
    "no preset": (
        ("--filter=lid", "--keep=.9"),
        "--keep=0.9: there is no preset for network 'small', so no threshold; calibrate it by scripts/calibrate.py",
    ),
    "not calibrated": (
        ("--filter=lid", "--keep=.9", "--preset=hands-128-ve", "--sampler=rods-cas"),
        "--keep: preset hands-128-ve has no thresholds of lid:sigma=1.2,draws=4,first=0,near=0.2 for these settings of "
        "rods-cas; it has none; calibrate it by scripts/calibrate.py",
    ),
    "no share": (("--filter=lid", "--keep=1.5"), "'--keep': 1.5 is not in the range 0<x<=1"),
    "no score": (("--filter=iq", "--keep=.5"), "'--filter': unknown detector 'iq'; give lid or tvf or h-index"),
    "nan": (("--filter=lid", "--filter-threshold=nan"), "--filter-threshold: nan is not a score"),
    "no weights": (("--filter=learned", "--keep=.5"), "--filter: learned: no preset gives its weights"),
    "no steps": (
        ("--filter=tvf:sigma=.001", "--filter-threshold=1"),
        "--filter: the score's range: no step lies at noise levels up to 0.001",
    ),
    "steps of a restart": (
        (*RESTART, "--filter=tvf", "--filter-threshold=1"),
        "--filter: tvf:sigma=2 looks at a run's steps, and restart takes some of them again",
    ),
    "tries alone": (("--max-tries=3",), "--max-tries is for --accept; give a limit, such as --accept='lid<12'"),
    "no limit": (("--accept=lid",), "--accept=lid has no limit; write score<value"),
    "no number": (("--accept=lid<low",), "--accept: 'low' is no limit; give a number"),
    "nan limit": (("--accept=lid<nan",), "--accept: nan is no limit"),
    "accept no score": (("--accept=best<3",), "--accept: unknown detector 'best'"),
    "too many": (("--accept=lid<3", "--max-tries=17"), "'--max-tries': 17 is not in the range 1<=x<=16"),
    "batch": (("--accept=lid<3", "--seeding=per-batch"), "--accept: a seed that draws a whole batch cannot draw one"),
    "seeds": (("--accept=lid<3", "--seeds=3,67108864"), "--seeds: 67108864 cannot be redrawn; with --accept"),
    "detector": ((*RESTART, "--detector=best"), "'--detector': unknown detector 'best'"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_one_line_and_nothing_is_written(case: str, tmp_path: Path) -> None:
    options, says = REFUSED[case]
    code, output = generate(tmp_path / "out", *options, network=SMALL)
    assert (code, output.count("\n")) == (2, 1), output
    assert output.startswith("Error: ")
    assert says in output
    assert list(tmp_path.iterdir()) == []
