"""rods.bench.compare and rods.eval.detection: rows from known labels, and the sampling of several configs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rods.bench.compare import Sampled, compare, format_table, sample_all
from rods.bench.pairs import ADDED, REMOVED, Pair, change_map, pair_sheet
from rods.densities import Mixture
from rods.eval.detection import auroc
from rods.eval.labels import Label
from rods.pipeline import SamplerConfig
from rods.runs.images import to_uint8
from rods.types import SampleRecord


def sampled(images: list[int], *, forward: int, seconds: list[float]) -> Sampled:
    """A finished run whose images are single grey pixels."""
    run = Sampled(SamplerConfig("euler", {}), seconds=seconds)
    run.images = np.array(images, np.uint8).reshape(-1, 1, 1, 1)
    run.records = [SampleRecord((), (), (), (), (), forward, 0) for _ in images]
    return run


def by_grey(images: np.ndarray) -> np.ndarray:
    """0: bad, 1: unsure, more: well."""
    grey = images[:, 0, 0, 0]
    return np.where(grey == 0, Label.BAD, np.where(grey == 1, Label.AMBIGUOUS, Label.WELL)).astype(np.int8)


def test_rows_count_what_changed_and_what_it_cost():
    runs = {
        "base": sampled([0, 0, 9, 9, 1], forward=40, seconds=[2.0, 9.0, 2.0]),
        "other": sampled([9, 0, 0, 9, 9], forward=56, seconds=[3.0, 3.0, 3.0]),
    }
    base, other = compare(runs, by_grey, baseline="base")
    assert (base.outcomes.bad_after.k, base.outcomes.ambiguous_after.k, base.variance_kept) == (2, 1, 1.0)
    assert (other.outcomes.repaired.k, other.outcomes.repaired.n) == (1, 2)
    assert (other.outcomes.broken.k, other.outcomes.broken.n) == (1, 2)
    assert (other.forward, other.backward, other.time_ratio) == (56, 0, 1.5)
    expected = np.var([9, 0, 0, 9, 9]) / np.var([0, 0, 9, 9, 1])
    assert other.variance_kept == pytest.approx(expected)
    lines = format_table([base, other], baseline="base").splitlines()
    assert len({len(line) for line in lines}) == 1, "columns line up"
    assert "1/2 (50.0%)" not in lines[2], "the baseline repairs nothing of itself"
    assert lines[3].count("1/2 (50.0%)") == 2
    assert "1.50x" in lines[3]


def test_sample_all_gives_what_each_sampler_gives_alone():
    density = Mixture(torch.tensor([-0.5, 0.5]).reshape(2, 1, 1, 1).expand(2, 1, 4, 4), torch.ones(2), 0.1)
    configs = {
        "euler": SamplerConfig("euler", {"num_steps": 5}),
        "cas": SamplerConfig("rods-cas", {"num_steps": 5, "eps": 0.0, "rho": 0.1}),
    }
    runs = sample_all(density, configs, [3, 4, 5], batch=2)
    for run in runs.values():
        latents = torch.stack([torch.randn(1, 4, 4, generator=torch.Generator().manual_seed(s)) for s in (3, 4, 5)])
        assert np.array_equal(run.images, to_uint8(run.config.run(density, latents).images.numpy()))
        assert len(run.records) == 3
        assert len(run.seconds) == 2
    assert runs["cas"].flagged().all()
    assert not runs["euler"].flagged().any()
    assert runs["cas"].max_scores().shape == (3,)


def test_auroc_against_counting_pairs():
    rng = np.random.default_rng(0)
    scores, bad = rng.integers(0, 5, 40).astype(float), rng.random(40) < 0.4
    pairs = scores[bad][:, None] - scores[~bad][None]
    assert auroc(scores, bad) == pytest.approx(((pairs > 0) + 0.5 * (pairs == 0)).mean())
    assert auroc(np.array([0.0, 1.0]), np.array([False, True])) == 1
    assert np.isnan(auroc(np.array([0.0, 1.0]), np.array([True, True])))
    with pytest.raises(ValueError, match="nan"):
        auroc(np.array([np.nan]), np.array([True]))


def test_change_map_marks_additions_green_and_removals_red_and_nothing_else():
    before = np.full([1, 1, 3], 100, np.uint8)
    after = np.array([[[100, 230, 0]]], np.uint8)
    unchanged, added, removed = np.asarray(change_map(before, after))[0]
    assert tuple(unchanged) == (60, 60, 60)
    assert tuple(added) == ADDED
    assert tuple(removed) == REMOVED


def test_pair_sheet_frames_those_at_risk():
    tile = np.zeros([1, 4, 4], np.uint8)

    def red(at_risk: bool) -> int:
        sheet = np.asarray(pair_sheet([Pair(tile, tile, "a", "b", at_risk)], heading=""))
        return int((sheet == (230, 60, 40)).all(axis=2).sum())

    assert red(True) > red(False) == 0
