"""Readouts: what they compute and cost, their text, how one is fitted, and the commands that use one."""

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
from click.testing import CliRunner
from commands import SMALL, generate, generated, options_json, records
from exact import latents, mixture
from rods.combined_scores import Screened
from rods.image_scores import Lid, Score
from rods.pipeline import SamplerConfig
from rods.readout import Readout, activations, fingerprint, pooled, products, read_readout, shortened, write_readout
from rods.room import Room
from rods.score_text import format_score, parse_score

from rods import bind
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
from rods.labels.session import Answers, open_session
from rods.presets import with_readout
from scripts.fit_readout import main
from training.checkpoint import load_denoiser

BLOCK = "model.dec.8x8_block0"
OTHERS = '{"name": "x", "network": "other", "source": "", "samplers": {"euler": {}}}'
SIGMA = torch.tensor(0.5, dtype=torch.float64)


def network() -> Any:
    return load_denoiser(SMALL)


def pictures(n: int = 6) -> torch.Tensor:
    return torch.randn(n, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def noise(k: int, n: int = 6) -> torch.Tensor:
    return torch.randn(k, n, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def own() -> str:
    return fingerprint(network(), (BLOCK,))


def readout(*, quadratic: bool = True, draws: int = 2, blocks: tuple[str, ...] = (BLOCK,)) -> Readout:
    K = 8  # of 4 channels
    draw = torch.Generator().manual_seed(3)
    a, b, c, d = (torch.randn(n, generator=draw).tolist() for n in (K, K, K, K * (K + 1) // 2))
    scale = tuple(abs(v) + 0.5 for v in b)
    return Readout(blocks, 0.5, draws, own(), 0.25, tuple(a), scale, tuple(c), tuple(d) if quadratic else ())


def scored(score: Score, x: torch.Tensor, e: torch.Tensor, *, room: Room | None = None) -> tuple[torch.Tensor, Any]:
    denoise = bind(network(), len(x), room=room)
    return score.watch(denoise, e, limit=math.inf, solver="euler").score(x), denoise


# -- what it is -------------------------------------------------------------------------------------------------------


def test_it_is_the_regression_of_what_the_block_puts_out() -> None:
    net, r, x, e = network(), readout(), pictures(), noise(2)
    seen: list[torch.Tensor] = []
    net.get_submodule(BLOCK).register_forward_hook(lambda _m, _i, output: seen.append(output.double()))
    for draw in e:
        net(x + 0.5 * draw, SIGMA)
    p = sum(torch.cat([o.mean(dim=(2, 3)), o.var(dim=(2, 3), correction=0).sqrt()], dim=1) for o in seen) / 2
    z = (p - torch.tensor(r.mean)) / torch.tensor(r.scale)
    i, j = torch.triu_indices(8, 8)
    logit = 0.25 + z @ torch.tensor(r.linear).double() + (z[:, i] * z[:, j]) @ torch.tensor(r.quadratic).double()
    score, denoise = scored(r, x, e)
    torch.testing.assert_close(score, torch.sigmoid(logit), rtol=1e-4, atol=1e-6)
    assert score.std() > 0.03 * score.mean()
    assert denoise.forward.tolist() == [2] * 6
    assert denoise.backward.tolist() == [0] * 6
    assert not net.get_submodule("model.dec.8x8_in0")._forward_hooks


def test_an_image_knows_no_mates_and_memory_may_be_short() -> None:
    x, e = pictures(), noise(2)
    whole, _ = scored(readout(), x, e)
    for rows in (slice(0, 1), slice(2, 5)):
        torch.testing.assert_close(scored(readout(), x[rows], e[:, rows])[0], whole[rows], rtol=1e-5, atol=1e-6)
    room = Room()
    room.limits["forward"] = 4
    split, denoise = scored(readout(), x, e, room=room)
    torch.testing.assert_close(split, whole, rtol=1e-5, atol=1e-6)
    assert denoise.forward.tolist() == [2] * 6


def test_pooling_has_its_closed_form() -> None:
    checker = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
    output = torch.stack([3 + 2 * checker, checker * 0 - 1])[None]
    torch.testing.assert_close(pooled(output), torch.tensor([[3.0, -1.0, 2.0, 0.0]], dtype=torch.float64))
    with pytest.raises(ValueError, match="choose one whose output is"):
        pooled(torch.zeros(2, 3))
    torch.testing.assert_close(products(torch.tensor([[2.0, 3.0]])), torch.tensor([[4.0, 6.0, 9.0]]))


def test_only_a_network_with_that_block_has_it() -> None:
    with pytest.raises(ValueError, match="no torch module"):
        activations(bind(mixture(), 6), latents().double(), SIGMA, torch.zeros(1, *latents().shape), (BLOCK,))
    with pytest.raises(ValueError, match=r"no module model\.dec\.9"):
        scored(readout(blocks=("model.dec.9",)), pictures(), noise(2))
    with pytest.raises(ValueError, match=rf"of another network \(model.dec.8x8_block1 has .*, not {own()}\)"):
        scored(readout(blocks=("model.dec.8x8_block1",)), pictures(), noise(2))
    never = network()
    never.unused = torch.nn.Identity()
    with pytest.raises(ValueError, match="evaluations do not show unused"):
        activations(bind(never, 6), pictures(), SIGMA, noise(1), ("unused",))


@pytest.mark.parametrize(
    "change",
    [{"blocks": ("",)}, {"blocks": ()}, {"mean": (0.0,)}, {"scale": (0.0,) * 8}, {"linear": (math.nan,) * 8},
     {"quadratic": (1.0,) * 2}, {"quadratic": (1.0,) * 45}, {"sigma": 0.0}, {"draws": 0}, {"bias": math.inf},
     {"network": "small"}],
)  # fmt: skip
def test_what_is_no_readout_is_refused(change: dict[str, Any]) -> None:
    good = {k: getattr(readout(), k) for k in readout().__dataclass_fields__}
    with pytest.raises(ValueError, match="readout"):
        Readout(**{**good, **change})


# -- as text ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("quadratic", [False, True])
def test_its_text_is_read_back(quadratic: bool) -> None:
    r = readout(quadratic=quadratic)
    text = format_score(r)
    again = parse_score(text)
    assert isinstance(again, Readout)
    assert format_score(again) == text == write_readout(again)
    np.testing.assert_allclose(again.quadratic, r.quadratic, rtol=1e-6)
    assert parse_score("readout", named={"readout": r}) is r
    assert parse_score("screen(lid>3;readout)", named={"readout": r}) == Screened(Lid(), 3, r)
    assert re.fullmatch(rf"restart readout\({BLOCK};0\.5;2;#[0-9a-f]{{8}}\) x", shortened(f"restart {text} x"))
    assert shortened(text) != shortened(format_score(readout(quadratic=not quadratic)))


@pytest.mark.parametrize("body", ["", "a;1;2;f;3;4", "a;1;2;f;3;4;!!", "a;1;2;f;3;4;AAAA", "a;x;2;f;3;4;AAAAAA=="])
def test_a_text_that_is_none_is_refused(body: str) -> None:
    with pytest.raises(ValueError, match="readout: "):
        read_readout(body)
    with pytest.raises(ValueError, match="readout: "):
        parse_score(f"readout({body})")


def test_the_fingerprint_is_of_the_weights_alone() -> None:
    net = network()
    assert fingerprint(net.to(torch.float64), (BLOCK,)) == own()
    assert fingerprint(net.to(memory_format=torch.channels_last), (BLOCK,)) == own()
    others = fingerprint(net, ("model.dec.8x8_block1",)), fingerprint(net, (BLOCK, "model.dec.8x8_block1"))
    with torch.no_grad():
        next(net.get_submodule(BLOCK).parameters()).flatten()[0] += 1e-3
    assert len({own(), *others, fingerprint(net, (BLOCK,))}) == 4


def test_rehearsals_look_for_the_block_and_whose_it_is() -> None:
    trained_on = network()
    with torch.no_grad():
        next(trained_on.get_submodule(BLOCK).parameters()).mul_(1.01)
    options = {"threshold": 0.5, "sigma_r": 1.0, "num_steps": 4}
    SamplerConfig("restart", {**options, "detector": format_score(readout())}).rehearse(network())
    for block, denoiser, why in (
        ("model.x", network(), "no module model.x"),
        (BLOCK, mixture(), "no torch module"),
        (BLOCK, trained_on, "detector: the preset's readout is of another network"),
    ):
        with pytest.raises(ValueError, match=why):
            SamplerConfig("restart", {**options, "detector": format_score(readout(blocks=(block,)))}).rehearse(denoiser)


# -- fitting ----------------------------------------------------------------------------------------------------------


def measured(n: int = 600) -> tuple[dict[tuple[str, float], np.ndarray], np.ndarray]:
    """Activations of three kinds: noise, one that tells the labels by a product, one that tells them a little."""
    draw = np.random.default_rng(0)
    z, logit = draw.normal(size=(n, 2)), 0.5 * draw.logistic(size=n)
    bad = 4 * z[:, 0] * z[:, 1] + logit > 1
    weak = np.stack([bad + 2 * draw.normal(size=n), np.full(n, 7.0)], axis=1)
    return {("noise", 1.0): draw.normal(size=(n, 2)), ("product", 2.0): 5 + 3 * z, ("weak", 1.0): weak}, bad


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
    r = fit(best, at, bad, draws=3, network="0123456789ab")
    assert (r.draws, r.network) == (3, "0123456789ab")
    mine = r.of(torch.from_numpy(at["product", 2.0])).numpy()
    assert auroc(mine, bad) > 0.9
    assert abs(mine.mean() - bad.mean()) < 0.01, "a probability"
    z = standardised(at["product", 2.0])[0]
    assert (features(z, 2).shape, features(z, 0).shape) == ((600, 5), (600, 2))


def test_blocks_together_tell_more_than_each_alone() -> None:
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
    r = fit(best, at, bad, draws=1, network="0123456789ab")
    assert (len(r.mean), r.width, len(r.quadratic)) == (2 * len(best.blocks), 2, 3)
    p = np.concatenate([at[block, 1.0] for block in best.blocks], axis=1)
    assert auroc(r.of(torch.from_numpy(p)).numpy(), bad) > 0.95
    again = read_readout(write_readout(r).removeprefix("readout(").removesuffix(")"))
    assert (again.blocks, again.width) == (r.blocks, 2)
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
    with pytest.raises(ValueError, match="9 bad and 591 good images are too few"):
        judge(at, np.arange(600) < 9, report=lambda _: None)


def test_decoder_blocks_are_read() -> None:
    assert decoder_blocks(network()) == (BLOCK, "model.dec.8x8_block1")
    with pytest.raises(ValueError, match="no decoder blocks"):
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


# -- the commands -----------------------------------------------------------------------------------------------------


def fitted(*options: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, [*options, "--threads=1"])
    torch.set_flush_denormal(False)  # the command sets it for its process, which here goes on to other tests
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the small network and a rater's answers, which go by what a layer of it says."""
    folder = tmp_path_factory.mktemp("labelled")
    generated(folder / "run", "--sampler=euler", "--seeds=0-59", "--batch=20")
    session = open_session(folder / "run", None, kind="hands", seed=0)
    answers = Answers(folder / "answers.jsonl", session)
    names = sorted(item.name for item in session.items.values())
    images = np.stack([np.asarray(PIL.Image.open(folder / "run" / name))[None] for name in names])
    p = pooled_activations(network(), images, 0.3, (BLOCK,), draws=4, batch=60, report=lambda _: None)[BLOCK]
    high = dict(zip(names, p[:, 0] > np.median(p[:, 0]), strict=True))
    for n, item in enumerate(session.items.values()):
        what = "extra fingers" if high[item.name] else "normal"
        answers.record("alice", {"item": item.key, "answer": what, "note": "", "seen": 0, "id": f"{n:08x}"})
    return folder


def test_people_teach_a_readout_and_it_restarts_and_filters(labelled: Path, tmp_path: Path) -> None:
    preset = tmp_path / "small.preset.json"
    asked = (f"--network={SMALL}", f"--images={labelled / 'run'}", f"--answers={labelled / 'answers.jsonl'}",
             "--levels=.3", f"--out={tmp_path / 'kept'}", f"--dest={preset}")  # fmt: skip
    code, output = fitted(*asked)
    assert code == 0, output
    assert "60 sure labels, 30 bad" in output
    data = json.loads(preset.read_text())
    assert data["readout"].startswith("readout(model.dec.8x8_block")
    lines = [json.loads(line) for line in (tmp_path / "small.readout.jsonl").read_text().splitlines()]
    assert lines[1]["auroc"] > 0.9
    assert max(line["auroc"] for line in lines[1:] if "ridge" in line) == lines[1]["auroc"]

    assert data["samplers"] == {"euler": {}}, "for --filter"
    data["samplers"] |= {"restart": {"detector": "readout", "threshold": 0.5, "sigma_r": 1.0}}
    preset.write_text(json.dumps(data))
    assert fitted(*asked)[0] == 0, "again, and what else the preset has stays"
    assert json.loads(preset.read_text()) == data

    run = ("--sampler=restart", f"--preset={preset}", "--seeds=0-7", "--batch=4")
    said = generated(tmp_path / "out", *run)
    scores = [line["restart"]["scores"] for line in records(tmp_path / "out")]
    assert all((len(s) > 1) == (s[0] > 0.5) for s in scores)
    code, output = generate(tmp_path / "out", *run, "--detector=lid")
    assert code == 2, "another recipe"
    assert max(map(len, (said + output).splitlines())) < 600, "weights are not for people to read"
    assert {len(s) > 1 for s in scores} == {True, False}
    assert options_json(tmp_path / "out")["identity"]["detector"] == data["readout"]
    data["samplers"] |= {"edm": {}}
    del data["samplers"]["euler"]
    preset.write_text(json.dumps(data))
    code, output = generate(tmp_path / "none", "--sampler=euler", f"--preset={preset}", "--seeds=0")
    assert (code, output.count("\n")) == (2, 1)
    assert "no settings for --sampler=euler" in output
    filtered = ("--sampler=euler", f"--preset={preset}", "--seeds=0-7", "--batch=4", "--filter=readout")
    generated(tmp_path / "all", *filtered, "--filter-threshold=inf")
    found = [line["filter_score"] for line in records(tmp_path / "all")]
    assert all(0 < f < 1 for f in found)
    assert {line["forward"] for line in records(tmp_path / "all")} == {6}

    code, output = fitted(*asked, "--draws=3")
    assert code == 0
    assert "left out, for they were of the readout before: the settings of restart; calibrate again" in output
    again = json.loads(preset.read_text())
    assert again["samplers"] == {"edm": {}}
    assert again["source"].startswith("readout: scripts/fit_readout.py")
    assert again["source"].count("readout: ") == 1


def test_a_new_readout_takes_the_tables_of_the_old_one_out() -> None:
    tables = [{"score": "lid"}, {"score": "readout"}, {"score": "learned(1;2*lid)"}]
    old = {"readout": "a", "samplers": {"restart": {"detector": "readout"}}, "retention": tables, "source": "x"}
    assert with_readout(old, "a") == (old, [])
    new, dropped = with_readout(old, "b")
    assert new == {**old, "readout": "b", "samplers": {"euler": {}}, "retention": [tables[0], tables[2]]}
    assert dropped == ["the settings of restart", "1 table(s) of retention"]


def test_mistakes_are_one_line(labelled: Path, tmp_path: Path) -> None:
    good = (f"--network={SMALL}", f"--images={labelled / 'run'}", f"--answers={labelled / 'answers.jsonl'}")
    dest = f"--dest={tmp_path / 'p.json'}"
    for options, says in (
        (good[:2], "all of --network, --images and --answers"),
        (("--task=hands-32", *good), "labels by a program, or by people"),
        (("--task=grid25",), "no layers to read"),
        (("--task=hands-32", "--network=x"), "--network=x: hands-32 has hands-32"),
        ((*good, "--blocks=model.nowhere"), "--blocks: small has no module 'model.nowhere'; it has model.dec."),
        ((*good, f"--blocks={BLOCK},"), "--blocks: small has no module ''"),
        ((*good, "--levels=0"), "--levels=0.0: give noise levels > 0"),
    ):
        code, output = fitted(*options, dest)
        assert (code, output.count("\n")) == (2, 1), output
        assert says in output
    code, output = fitted(*good, f"--dest={tmp_path / 'no' / 'p.json'}")
    assert (code, output.count("\n")) == (2, 1)
    assert "there is no such folder" in output
    preset = tmp_path / "q.json"
    for text, says in (("{", f"--dest={preset} is not JSON"), (OTHERS, "is for network other, not small")):
        preset.write_text(text)
        code, output = fitted(*good, f"--dest={preset}")
        assert (code, output.count("\n")) == (2, 1)
        assert says in output
    preset.unlink()
    assert list(tmp_path.iterdir()) == []
    code, output = generate(tmp_path / "x", "--sampler=restart", "--detector=readout", "--threshold=.5", "--sigma-r=1")
    assert (code, output.count("\n")) == (2, 1)
    assert "no preset gives its weights; fit one by scripts/fit_readout.py" in output
