"""Fitting a readout: which blocks and noise levels tell most, with and without products, and from how many labels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from commands import SMALL

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
from training.checkpoint import load_denoiser

BLOCK = "model.dec.8x8_block0"


def network() -> Any:
    return load_denoiser(SMALL)


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
