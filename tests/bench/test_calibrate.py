"""rods.bench.calibrate, its families and scripts/calibrate.py: the rule of choice, and calibrations that go on."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import small_tasks
import torch
from commands import SMALL, said
from overridden import last_of_each
from small_tasks import PICTURES, POINTS

from dnnlib.errors import UserError
from rods.base_samplers import Edm, Euler
from rods.bench.calibrate import Search, Trial, choose, method_of, short_name
from rods.bench.calibrate_restart import recording, restarts
from rods.bench.calibrate_rods import critical_steps, level_of
from rods.bench.compare import compare
from rods.bench.methods import Method
from rods.bench.task import LoadedNetwork
from rods.config import SAMPLERS, build, changed
from rods.correctors import Overshoot
from rods.detectors import Lid
from rods.eval.bootstrap import Estimate
from rods.eval.correction import proportion_interval
from rods.gate import Readout, fingerprint
from rods.presets import Preset
from rods.restart import Restart
from rods.runs.presets import read_preset, write_preset
from rods.samplers import Corrected, RodsCas
from rods.schedules import SigmaWindow
from rods.variance import Tvf
from scripts import calibrate
from training.checkpoint import load_snapshot


@pytest.fixture(scope="module")
def row(tmp_path_factory):
    runs = small_tasks.run(POINTS, tmp_path_factory.mktemp("row"), ["euler", "heun"])
    return compare(runs["euler"], runs["heun"])


def trial(
    row,
    *,
    repaired: int,
    broken: int,
    variance: float = 1.0,
    passes: float = 40,
    n: int = 2048,
    spread=math.nan,
    healthy: int = 1200,
) -> Trial:
    outcomes = replace(
        row.outcomes, repaired=proportion_interval(repaired, 100), broken=proportion_interval(broken, healthy)
    )
    kept = Estimate(variance, variance, variance, 0.95)
    done = replace(row, outcomes=outcomes, variance_kept=kept, forward=passes, backward=0.0, n=n)
    return Trial("f", Method("heun", Edm()), done, passes / 40, spread)


def test_the_most_repaired_minus_broken_wins_within_the_bars(row):
    good, better = trial(row, repaired=30, broken=1), trial(row, repaired=32, broken=2)
    breaks, shrinks = trial(row, repaired=90, broken=8), trial(row, repaired=90, broken=0, variance=0.96)
    assert choose([good, better, breaks, shrinks]) is better
    assert "misses" not in better.remark()
    assert "broken 2/1200 (at most 0.6%)" in better.remark()
    assert breaks.row.outcomes.broken.rate < 0.01 < breaks.row.outcomes.broken.high, "judged by the upper end"
    few = trial(row, repaired=90, broken=0, healthy=300)
    assert "misses: broken above 1%" in few.remark(), "300 without a break are not yet below 1 %"


def test_ties_go_to_the_cheapest_and_few_seeds_do_not_decide(row):
    dear, cheap = trial(row, repaired=30, broken=1, passes=60), trial(row, repaired=31, broken=2, passes=50)
    small = trial(row, repaired=99, broken=0, n=128)
    assert choose([dear, cheap, small]) is cheap


def test_where_no_setting_clears_the_bars_the_remark_says_so(row):
    one, two = trial(row, repaired=20, broken=12), trial(row, repaired=90, broken=12, variance=0.5)
    assert choose([one, two]) is one
    assert one.remark().endswith("misses: broken above 1%")
    assert list(trial(row, repaired=0, broken=0, variance=float("nan")).missed) == ["variance below 0.97"]
    dear = trial(row, repaired=40, broken=0, passes=70, spread=0.8)
    assert dear.remark().endswith("spread 0.80, NFE 1.75x; misses: spread below 0.97, NFE above 1.5x")
    assert choose([one, dear]) is dear


def test_a_setting_that_does_nothing_clears_no_bar(row):
    idle, weak, strong = (
        trial(row, repaired=r, broken=b, passes=p) for r, b, p in ((0, 0, 40), (9, 1, 40), (90, 0, 66))
    )
    assert choose([idle, strong]) is strong, "it takes 1.65 times the passes, but repairs"
    assert choose([idle, weak, strong]) is weak, "nothing that misses a bar comes before one that clears all"
    narrow = trial(row, repaired=99, broken=0, spread=0.5)
    assert choose([narrow, trial(row, repaired=60, broken=0, spread=0.9)]) is not narrow, "by how much it misses counts"


def test_the_grid_is_in_noise_levels_and_in_units_of_the_state(tmp_path):
    search = Search(POINTS, POINTS.networks["exact"](), tmp_path, [1000, 1001], 2, 2)
    assert search.level(0) == 80
    assert search.level(0.99) == 0.002
    assert search.radii() == pytest.approx(np.sqrt(2) * np.array([1 / 32, 1 / 8, 1 / 2]), rel=0.01)
    for window in search.windows():
        assert isinstance(window, SigmaWindow)
        assert 0.002 < window.lo < window.hi <= 82


def test_critical_steps_add_up(tmp_path):
    search = Search(POINTS, POINTS.networks["exact"](), tmp_path, list(range(1000, 1016)), 16, 16)
    found = critical_steps(search, RodsCas(eps=0, rho=0.02, window=(0.5, 1), num_steps=6), eps=0.0)
    assert len(found["steps"]) == POINTS.num_steps
    assert sum(s["largest"] for s in found["steps"]) == pytest.approx(1)
    assert [s["flagged"] for s in found["steps"]] == [None] * 3 + [1.0] * 3, "eps 0 flags all, in the window only"


def test_a_level_is_a_quantile_of_the_healthy(tmp_path):
    runs = small_tasks.run(POINTS, tmp_path, ["euler", "h-index rho=.02 window=0,1"])
    base, run = runs.values()
    level = level_of(base, run, 0.25)
    healthy = base.labels != 2
    assert (run.scores[healthy] >= level).mean() == pytest.approx(0.25, abs=0.05)


@pytest.fixture
def calibrated(offer_tasks):
    """What scripts/calibrate.py prints."""

    def call(*args: object, task=POINTS, code: int = 0) -> str:
        offer_tasks(calibrate, {"points": task})
        return said(calibrate.main, "--task=points", *last_of_each(args), code=code)

    return call


def test_a_calibration_goes_on_and_writes_a_preset_that_generate_reads(tmp_path, calibrated):
    dest, out = tmp_path / "exact.preset.json", tmp_path / "out"
    args = ["--seeds=1000-1023", "--first=8", "--batch=8", "--threads=1", f"--out={out}", f"--dest={dest}"]
    few = "--samplers=rods-cas,overshoot,restart"
    printed = calibrated(few, *args)
    preset = read_preset(dest)
    assert set(preset.samplers) == {"rods-cas", "overshoot", "restart", "random"}
    assert isinstance(preset.samplers["rods-cas"].window, SigmaWindow)
    assert preset.samplers["random"].correct.rho == preset.samplers["overshoot"].correct.rho
    assert preset.detect_eps["rods-cas"] > 0
    assert "24 seeds from 1000" in preset.source
    assert preset.source.count("(at most ") == 3, "the upper bound of what each breaks"
    assert "sigma_max" not in json.loads(dest.read_text())["samplers"]["restart"], "only what was set"

    beside = tmp_path / "exact.calibration.jsonl"
    header, *lines = map(json.loads, beside.read_text().splitlines())
    assert header["seeds"] == [1000, 1023, 24]
    tried = [line for line in lines if "family" in line]
    assert {line["family"] for line in tried} == {"rods-cas", "overshoot", "restart"}
    assert {line["n"] for line in tried} == {8, 24}
    assert all(line["config"]["rho"] and line["config"]["window"] for line in tried if line["family"] != "restart")
    assert sum("critical" in line for line in lines) == 1
    folders = {path.parent.name for path in out.rglob("labels.jsonl")}
    assert folders >= {line["method"] for line in tried} | {"euler"}

    first = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    for path in (out / "points" / "exact" / "euler", out / "points" / "exact" / tried[0]["method"]):
        for name in ("labels.jsonl", "samples.jsonl"):  # as if it had been cut off there
            kept = (path / name).read_text().splitlines(keepends=True)[:8]
            (path / name).write_text("".join(kept))
    assert calibrated(few, *args) == printed
    timing = {p for p in first if p.name == "timing.jsonl"}
    assert {p: p.read_bytes() for p in set(first) - timing} == {p: first[p] for p in set(first) - timing}

    other = tmp_path / "more.preset.json"
    calibrated("--samplers=tag", *args[:-1], f"--base={dest}", f"--dest={other}")
    both = read_preset(other)
    assert {**both.samplers, "tag": None} == {**preset.samplers, "tag": None}
    assert both.detect_eps == preset.detect_eps
    assert both.source.endswith(preset.source)


def test_the_readout_of_the_base_preset_gates_restarts(tmp_path, calibrated):
    snapshot = load_snapshot(SMALL)
    networks = {"small": lambda: LoadedNetwork(snapshot.net, snapshot.name, snapshot.sha256)}
    task = replace(PICTURES, networks=networks, num_steps=6, kinds=None, num_kinds=0)
    blocks = ("model.dec.8x8_block0",)
    weights = torch.randn(8, generator=torch.Generator().manual_seed(0)).tolist()
    own = fingerprint(snapshot.net, blocks)
    readout = Readout(blocks, 0.5, 1, own, 0.0, (0.0,) * 8, (1.0,) * 8, tuple(weights))
    base = Preset("small", "small", "by hand", {"edm": Edm()}, fitted={"readout": readout})
    write_preset(tmp_path / "base.preset.json", base)
    (tmp_path / "other").mkdir()
    dest = tmp_path / "other" / "p.preset.json"
    args = ["--seeds=1000-1007", "--first=4", "--batch=4", "--threads=1", f"--out={tmp_path / 'out'}"]
    args += [f"--base={tmp_path / 'base.preset.json'}", f"--dest={dest}", "--samplers=restart"]
    assert "AUROC on all of these seeds: readout" in calibrated(*args, task=task)
    preset = read_preset(dest)
    assert preset.samplers["restart"].detector == preset.fitted["readout"] == readout
    assert preset.samplers["edm"] == Edm()
    assert json.loads(dest.read_text())["readout"] == "p.readout.safetensors"
    assert '"detector": "readout"' in dest.read_text()
    assert preset.source.endswith("edm: by hand")


@pytest.mark.parametrize("family", ["rods-sas", "sigma-offset", "iq", "laplacian"])
def test_every_family_finds_options(tmp_path, calibrated, family):
    dest = tmp_path / "p.preset.json"
    args = ["--seeds=1000-1007", "--first=4", "--batch=8", "--threads=1", f"--out={tmp_path / 'out'}"]
    calibrated(f"--samplers={family}", *args, f"--dest={dest}")
    assert list(read_preset(dest).samplers) == [family]


def test_what_can_be_calibrated_is_a_sampler():
    assert set(calibrate.FAMILIES) < set(SAMPLERS)


def test_names_are_short_and_tell_candidates_apart():
    lid = Lid(0.0275, 2)
    restart = Restart(threshold=2.578, sigma_r=0.47, detector=lid, num_steps=6)
    assert short_name(restart) == "restart-t2.578-r0.47-lid_0.0275_2"
    assert short_name(changed(restart, {"rounds": 1})) == "restart-t2.578-r0.47-k1-lid_0.0275_2"
    window = SigmaWindow(0.0172, 0.839)
    overshoot = Corrected(correct=Overshoot(0.177), window=window, num_steps=6)
    assert short_name(overshoot) == "overshoot-rho0.177-w0.0172_0.839"
    all_steps = changed(overshoot, {"window": (0, 1)})
    assert short_name(all_steps) == "overshoot-rho0.177-w0_1_of_steps"
    own = RodsCas(eps=0, rho=4, window=window, detect=False)
    assert short_name(own) == "rods-cas-eps=0-rho4-w0.0172_0.839-detect=false"
    assert short_name(build("tag", {"eta": 1.1})) == "tag-eta=1.1"
    assert short_name(Euler()) == "euler"
    for sampler in (restart, overshoot, all_steps, own):
        assert method_of(sampler).folder == short_name(sampler)
    assert method_of(changed(restart, {"threshold": math.inf})).is_score
    assert not method_of(restart).is_score


def test_restarts_go_back_further_than_their_score_looks(tmp_path):
    search = Search(POINTS, POINTS.networks["exact"](), tmp_path, [1000, 1001], 2, 2)
    levels = [0.2, 0.5, 1.0]
    by_lid, in_flight = recording(search, Lid(0.1, 2)), recording(search, Lid(0.1, 2), 0.3)
    assert [s.sigma_r for s in restarts(by_lid, [3.0], levels)] == levels
    assert [s.sigma_r for s in restarts(in_flight, [3.0], levels)] == [0.5, 1.0]
    found = restarts(recording(search, Tvf(0.5)), [3.0, 4.0], levels)
    assert [(s.threshold, s.sigma_r) for s in found] == [(3.0, 1.0), (4.0, 1.0)]
    with pytest.raises(UserError, match=r"--samplers: restart-t0-r99.* on points: sigma_r: 99"):
        search.run([Restart(threshold=0, sigma_r=99, num_steps=6)], [1000])


@pytest.mark.parametrize(
    ("args", "what"),
    [
        (["--samplers=magic"], "--samplers: 'magic' cannot be calibrated"),
        (["--network=other"], "--network=other: points has exact"),
        (["--dest=/no/such/folder/x.json"], "'--dest': /no/such/folder/x.json: there is no such folder; make it first"),
        (["--seeds=3-1"], "--seeds"),
    ],
)
def test_mistakes_get_one_line(tmp_path, calibrated, args, what):
    printed = calibrated(f"--dest={tmp_path / 'p.preset.json'}", f"--out={tmp_path / 'out'}", *args, code=2)
    assert what in printed
    assert printed.count("\n") == 1
    assert not list(tmp_path.iterdir())
