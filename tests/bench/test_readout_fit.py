"""rods.bench.readout_fit and scripts/fit_readout.py: what is learned, from whose labels, and the commands."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import LABELLED, SMALL, generate, generated, options_json, records, refusal, said

from dnnlib.errors import UserError
from rods.base_samplers import Edm, Euler
from rods.bench.readout_fit import (
    Judged,
    Kind,
    decoder_blocks,
    features,
    fit,
    judge,
    learning_curve,
    pooled_activations,
    standardised,
)
from rods.eval.detection import auroc
from rods.gate import Readout
from rods.labels.folders import read_folder
from rods.labels.label_set import label_set
from rods.labels.labels import ImageLabel, write_labels
from rods.labels.session import Answers, open_session
from rods.presets import Preset
from rods.restart import Restart
from rods.runs.gates import read_gate, write_gate
from rods.runs.images import read_png
from rods.runs.presets import read_preset, write_preset
from scripts.fit_readout import main, with_readout
from training.checkpoint import load_denoiser

BLOCK = "model.dec.8x8_block0"
OTHERS = '{"name": "x", "network": "other", "source": "", "samplers": {"euler": {}}}'
FINGERPRINT = "0123456789ab"


def network() -> Any:
    return load_denoiser(SMALL)


def measured(n: int = 600) -> tuple[dict[tuple[str, float], np.ndarray], np.ndarray]:
    """Activations of three kinds: noise, one that tells the labels by a product, one that tells them a little."""
    draw = np.random.default_rng(0)
    z, logit = draw.normal(size=(n, 2)), 0.5 * draw.logistic(size=n)
    bad = 4 * z[:, 0] * z[:, 1] + logit > 1
    weak = np.stack([bad + 2 * draw.normal(size=n), np.full(n, 7.0)], axis=1)
    return {("noise", 1.0): draw.normal(size=(n, 2)), ("product", 2.0): 5 + 3 * z, ("weak", 1.0): weak}, bad


def readout(bias: float = 0.25) -> Readout:
    return Readout((BLOCK,), 0.5, 2, FINGERPRINT, bias, (0.0, 0.5), (1.0, 2.0), (0.25, -1.0))


def test_the_kind_that_tells_most_is_found_and_fitted() -> None:
    at, bad = measured()
    told: list[Judged] = []
    ranked = judge(at, bad, report=told.append)
    best = ranked[0].kind
    assert (best.blocks, best.sigma, best.quadratic) == (("product",), 2.0, True)
    assert ranked[0].auroc > 0.9
    assert len(told) == len(ranked) == 8, "three blocks, with and without products, and two more ridges for the best"
    by_kind = {(*j.kind.blocks, j.kind.quadratic): j.auroc for j in told[:6]}
    assert abs(by_kind["noise", True] - 0.5) < 0.08
    assert by_kind["product", False] < 0.6 < by_kind["weak", False] < 0.75
    r = fit(best, at, bad, draws=3, network=FINGERPRINT)
    assert (r.draws, r.network) == (3, FINGERPRINT)
    mine = r.of(torch.from_numpy(at["product", 2.0])).numpy()
    assert auroc(mine, bad) > 0.9
    assert abs(mine.mean() - bad.mean()) < 0.01, "a probability"
    z = standardised(at["product", 2.0])[0]
    assert (features(z, 2).shape, features(z, 0).shape) == ((600, 5), (600, 2))


def test_blocks_together_tell_more_than_each_alone(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    a, b, n = draw.normal(size=(900, 2)), draw.normal(size=(900, 2)), draw.normal(size=(900, 2))
    bad = a[:, 0] * a[:, 1] + b[:, 0] + 0.2 * draw.logistic(size=900) > 0.5
    at = {("n", 1.0): n, ("a", 1.0): a, ("b", 1.0): b, ("b", 2.0): n, ("a", 2.0): n}
    ranked = judge(at, bad, report=lambda _: None)
    best, tried = ranked[0].kind, {j.kind.blocks for j in ranked}
    alone = {("n",), ("a",), ("b",)}  # b tells more than a does with its product, a gains most by its product
    assert tried == alone | {("a", "b"), ("b", "a"), ("n", "a", "b"), ("a", "n", "b"), ("b", "n", "a")}
    assert (set(best.blocks) >= {"a", "b"}, best.blocks[0], best.quadratic, best.sigma) == (True, "a", True, 1.0)
    assert ranked[0].auroc > 0.1 + max(j.auroc for j in ranked if len(j.kind.blocks) == 1)
    r = fit(best, at, bad, draws=1, network=FINGERPRINT)
    assert (len(r.mean), r.width, len(r.quadratic)) == (2 * len(best.blocks), 2, 3)
    p = np.concatenate([at[block, 1.0] for block in best.blocks], axis=1)
    assert auroc(r.of(torch.from_numpy(p)).numpy(), bad) > 0.95
    write_gate(tmp_path / "r.safetensors", r)
    assert read_gate(tmp_path / "r.safetensors", "readout", option="--preset") == r
    with pytest.raises(ValueError, match="2 activations, and"):
        r.of(torch.zeros(1, 2))


def test_more_labels_tell_more() -> None:
    at, bad = measured(1600)
    p = np.concatenate([at["product", 2.0], np.random.default_rng(1).normal(size=(1600, 10))], axis=1)
    curve = learning_curve(Kind(("product",), 2.0, True, 1.0), {("product", 2.0): p}, bad)
    assert [n for n, _, _ in curve] == [128, 256, 512, 1024, 1280]
    assert [b for _, b, _ in curve] == [int(bad[:n].sum()) for n, _, _ in curve]
    assert curve[0][2] + 0.03 < curve[-1][2]
    assert curve[-1][2] > 0.9


def test_a_few_labels_are_too_few() -> None:
    at, _ = measured()
    with pytest.raises(UserError, match="9 bad and 591 good images are too few"):
        judge(at, np.arange(600) < 9, report=lambda _: None)


def test_blocks_of_the_decoder_are_read() -> None:
    assert decoder_blocks(network()) == (BLOCK, "model.dec.8x8_block1")
    with pytest.raises(UserError, match="--network has no"):
        decoder_blocks(torch.nn.Linear(2, 2))
    images = np.random.default_rng(0).integers(0, 256, (5, 1, 8, 8), dtype=np.uint8)
    done: list[int] = []
    parts = [
        pooled_activations(network(), images, 0.5, (BLOCK,), draws=2, batch=b, report=done.append)[BLOCK]
        for b in (5, 2)
    ]
    assert parts[0].shape == (5, 8)
    np.testing.assert_allclose(parts[0], parts[1], rtol=1e-5, atol=1e-6)
    assert done == [5, 2, 2, 1]


# -- presets ----------------------------------------------------------------------------------------------------------


def test_a_new_readout_takes_the_settings_of_the_old_one_out(tmp_path: Path) -> None:
    old = Preset("x", "x", "by hand | readout: old", {"edm": Edm()}, fitted={"readout": readout()})
    gated = Restart(threshold=0.5, sigma_r=2, detector=readout())
    both = Preset("x", "x", "by hand | readout: old", {**old.samplers, "restart": gated}, fitted=old.fitted)
    same, stale = with_readout(both, readout(), "again")
    assert (same.samplers, stale, same.source) == (both.samplers, [], "by hand | readout: again")
    new, stale = with_readout(both, readout(0.5), "new")
    assert (new.samplers, stale) == (old.samplers, ["restart"])
    alone, _ = with_readout(Preset("x", "x", "", {"restart": gated}, fitted=old.fitted), readout(0.5), "new")
    assert alone.samplers == {"euler": Euler()}, "for --filter"
    for preset in (same, new, alone):
        write_preset(tmp_path / "x.preset.json", preset)
        assert read_preset(tmp_path / "x.preset.json") == preset
    data = json.loads((tmp_path / "x.preset.json").read_text())
    assert data["readout"] == "x.readout.safetensors"


# -- the commands -----------------------------------------------------------------------------------------------------


def fitted(*options: str, code: int = 0) -> str:
    return said(main, *options, "--threads=1", code=code)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the small network, a rater's answers, which go by what a layer of it says, and the same as labels."""
    folder = tmp_path_factory.mktemp("labelled")
    generated(folder / "run", "--sampler=euler", "--seeds=0-59", "--batch=20")
    session = open_session([read_folder(folder / "run", option="--images")], labels=label_set("hands"))
    answers = Answers(folder / "answers.jsonl", session)
    names = sorted(item.name for item in session.items.values())
    images = np.stack([read_png(folder / "run" / name) for name in names])
    p = pooled_activations(network(), images, 0.3, (BLOCK,), draws=4, batch=60, report=lambda _: None)[BLOCK]
    high = dict(zip(names, p[:, 0] > np.median(p[:, 0]), strict=True))
    for n, item in enumerate(session.items.values()):
        what = "extra fingers" if high[item.name] else "normal"
        answers.record("alice", {"item": item.key, "answer": what, "note": "", "seen": 0, "id": f"{n:08x}"})
    verdicts = {name: "hallucinated" if is_high else "valid" for name, is_high in high.items()}
    write_labels(folder / "run", [ImageLabel(name, verdict, "alice") for name, verdict in verdicts.items()])
    return folder


def test_people_teach_a_readout_and_it_restarts_and_filters(labelled: Path, tmp_path: Path) -> None:
    preset = tmp_path / "small.preset.json"
    asked = (f"--network={SMALL}", f"--images={labelled / 'run'}", f"--answers={labelled / 'answers.jsonl'}",
             "--levels=.3", f"--out={tmp_path / 'kept'}", f"--dest={preset}")  # fmt: skip
    output = fitted(*asked)
    assert "60 labels, 30 hallucinated" in output
    weights = tmp_path / "small.readout.safetensors"
    assert json.loads(preset.read_text())["readout"] == weights.name
    lines = [json.loads(line) for line in (tmp_path / "small.readout.jsonl").read_text().splitlines()]
    assert lines[1]["auroc"] > 0.9
    assert max(line["auroc"] for line in lines[1:] if "ridge" in line) == lines[1]["auroc"]

    data = json.loads(preset.read_text())
    assert list(data["samplers"]) == ["euler"], "for --filter"
    data["samplers"]["restart"] = {"detector": "readout", "threshold": 0.5, "sigma_r": 1.0}
    preset.write_text(json.dumps(data))
    before, bits = read_preset(preset), weights.read_bytes()
    fitted(*asked)
    assert (read_preset(preset), weights.read_bytes()) == (before, bits), "again, and what else the preset has stays"

    run = ("--sampler=restart", f"--preset={preset}", "--seeds=0-7", "--batch=4")
    generated(tmp_path / "out", *run)
    scores = [line["restart"]["scores"] for line in records(tmp_path / "out")]
    assert all((len(s) > 1) == (s[0] > 0.5) for s in scores)
    assert {len(s) > 1 for s in scores} == {True, False}
    assert generate(tmp_path / "out", *run, "--detector=lid")[0] == 2, "another run"
    identity = options_json(tmp_path / "out")["identity"]
    assert (identity["detector"], identity["detector_sha256"]) == ("readout", before.fitted["readout"].digest)
    filtered = ("--sampler=euler", f"--preset={preset}", "--seeds=0-7", "--batch=4", "--filter=readout")
    generated(tmp_path / "all", *filtered, "--filter-threshold=inf")
    found = [line["filter_score"] for line in records(tmp_path / "all")]
    assert all(0 < f < 1 for f in found)
    assert {line["forward"] for line in records(tmp_path / "all")} == {6}

    output = fitted(*asked, "--draws=3")
    assert "left out, for they were of the readout before: the settings of restart; calibrate again" in output
    again = read_preset(preset)
    assert list(again.samplers) == ["euler"]
    assert again.source.startswith("readout: scripts/fit_readout.py")
    assert again.source.count("readout: ") == 1


def test_a_labelled_run_teaches_what_its_raters_do(labelled: Path, tmp_path: Path) -> None:
    common = (f"--network={SMALL}", "--levels=.3", f"--out={tmp_path / 'kept'}")
    people = (f"--images={labelled / 'run'}", f"--answers={labelled / 'answers.jsonl'}")
    a, b, c = (tmp_path / f"{name}.preset.json" for name in "abc")
    fitted(*common, *people, f"--dest={a}")
    output = fitted(*common, f"--run={labelled / 'run'}", f"--dest={b}")
    assert "labelled by alice: 60 labels, 30 hallucinated" in output
    assert read_preset(b).fitted == read_preset(a).fitted

    run = tmp_path / "run"
    shutil.copytree(labelled / "run", run)
    names = sorted(path.name for path in run.glob("0*.png"))
    write_labels(run, [ImageLabel(name, "uncertain" if i < 20 else "valid", "bob") for i, name in enumerate(names)])
    output = refusal(main, *common, f"--run={run}", f"--dest={c}", "--threads=1")
    assert "has labels of 'alice', 'bob'; name one by --labels" in output
    output = fitted(*common, f"--run={run}", "--labels=bob", f"--dest={c}", code=2)
    assert "40 labels, 0 hallucinated" in output
    assert output.endswith("0 bad and 40 good images are too few to learn from; label more\n")
    write_labels(run, [ImageLabel(name, "hallucinated", "bob") for name in names[30:]])
    output = fitted(*common, f"--run={run}", "--labels=bob", f"--dest={c}")
    assert "labelled by bob: 40 labels, 30 hallucinated" in output
    (run / names[25]).unlink()
    output = fitted(*common, f"--run={run}", "--labels=bob", f"--dest={c}", code=2)
    assert f"{names[25]} is missing; sample the run again" in output


def test_mistakes_are_one_line(labelled: Path, tmp_path: Path) -> None:
    good = (f"--network={SMALL}", f"--images={labelled / 'run'}", f"--answers={labelled / 'answers.jsonl'}")
    run = f"--run={labelled / 'run'}"
    dest = f"--dest={tmp_path / 'p.json'}"
    for options, says in (
        (good[:2], "give one of --task, --run, or --images with --answers"),
        (("--task=hands-32", *good), "give one of --task, --run"),
        ((run,), "--network: give the network that sampled --run="),
        ((*good, "--labels=bob"), "--labels=bob says whose labels of --run count"),
        ((f"--network={LABELLED}", run), "needs class labels"),
        ((good[0], run, "--labels=bob"), "has no labels of 'bob', but of 'alice'"),
        (("--task=grid25",), "no layers to read"),
        (("--task=hands-32", "--network=x"), "--network=x: hands-32 has hands-32"),
        ((*good, "--blocks=model.nowhere"), "--blocks: small has no module 'model.nowhere'; it has model.dec."),
        ((*good, f"--blocks={BLOCK},"), "--blocks: small has no module ''"),
        ((*good, "--levels=0"), "--levels=0.0: give noise levels > 0"),
    ):
        output = refusal(main, *options, dest, "--threads=1")
        assert says in output
    output = refusal(main, *good, f"--dest={tmp_path / 'no' / 'p.json'}", "--threads=1")
    assert "there is no such folder" in output
    preset = tmp_path / "q.json"
    for text, says in (("{", f"--dest={preset} is not JSON"), (OTHERS, "is for network other, not small")):
        preset.write_text(text)
        output = refusal(main, *good, f"--dest={preset}", "--threads=1")
        assert says in output
    preset.unlink()
    assert list(tmp_path.iterdir()) == []


def test_a_run_of_another_network_is_refused(labelled: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(labelled / "run", run)
    options = json.loads((run / "options.json").read_text())
    options["identity"]["network_sha256"] = "0" * 64
    (run / "options.json").write_text(json.dumps(options))
    output = refusal(main, f"--network={SMALL}", f"--run={run}", f"--dest={tmp_path / 'p.json'}", "--threads=1")
    assert "was sampled by another network (checksum 000000000000" in output
