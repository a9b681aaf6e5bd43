"""Names of version 0.1: what works still is what it was, and every old name says what to write instead."""

from __future__ import annotations

import re
import warnings
from typing import Any

import pytest
import torch
from exact import latents, mixture

import rods
from rods import _deprecated
from rods._deprecated import REMOVED, RENAMED
from rods.config import CORRECTORS, build
from rods.denoiser import bind

# `rods.__all__` of version 0.1 without what is still there, and without gate, now a module
GONE = {
    "HIndex", "ImageScore", "Learned", "Point", "Score", "Screened", "Term", "TrajectoryVariance",
    "ablation_sampler", "cas", "chain", "format_score", "gated_restart", "h_index", "iq", "iq_sampler",
    "lambda_max", "laplacian", "laplacian_sampler", "lid", "lid_gradient", "overshoot", "overshoot_sampler",
    "parse_score", "random_sampler", "random_shift", "sas", "sigma_offset_sampler", "tag", "tag_sampler", "tvf",
    "within",
}  # fmt: skip


def old(name: str) -> Any:
    """`rods.NAME`, with the warning that it has to give."""
    with pytest.warns(DeprecationWarning, match=f"^rods.{name} is deprecated; use rods") as seen:
        value = getattr(rods, name)
    assert seen[0].filename == __file__
    return value


def test_every_old_name_is_known() -> None:
    assert {*RENAMED, *REMOVED} == GONE
    assert not {*RENAMED, *REMOVED} & set(rods.__all__)


@pytest.mark.parametrize("name", sorted(RENAMED))
def test_a_renamed_one_warns_and_its_successor_exists(name: str) -> None:
    assert callable(old(name))
    successor = RENAMED[name][1]
    owner: Any = rods
    for part in re.split(r"\.", successor.split("(")[0]):
        owner = getattr(owner, part)


@pytest.mark.parametrize("name", sorted(REMOVED))
def test_a_removed_one_is_an_error_of_one_line(name: str) -> None:
    with pytest.raises(AttributeError, match=f"rods.{name} was removed; use rods.") as error:
        getattr(rods, name)
    assert "\n" not in str(error.value)
    assert hasattr(rods, re.split(r"\W", REMOVED[name])[0])


def test_any_other_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'rods' has no attribute 'nothing'"):
        _ = rods.nothing
    assert not hasattr(rods, "cass")


def test_nothing_warns_that_is_there() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert all(getattr(rods, name) for name in rods.__all__)


def test_old_combinators_are_the_new_classes() -> None:
    correct = old("within")((0.1, 0.5), rods.Gate(old("h_index")(2), 0.1, old("cas")(2, ascent_steps=3)))
    assert correct == rods.Within((0.1, 0.5), rods.Gate(rods.CurvatureIndex(2), 0.1, rods.Cas(2, 3)))
    assert old("chain")(old("sas")(1, sign="downhill"), old("tag")(1.1)) == rods.Chain(
        rods.Sas(1, "downhill"), rods.Tag(1.1)
    )


SAMPLED = {
    "overshoot": {"rho": 0.3}, "sigma-offset": {"kappa": 0.2}, "tag": {"eta": 1.1}, "random": {"rho": 0.3},
    "laplacian": {"strength": 0.1}, "iq": {"strength": 0.1, "threshold": 0.0, "window": (0.1, 0.9)},
    "ablation": {"solver": "euler", "S_churn": 3.0},
}  # fmt: skip


@pytest.mark.parametrize("sampler", sorted(SAMPLED))
def test_old_samplers_give_the_same_images(sampler: str) -> None:
    options = {**SAMPLED[sampler], "num_steps": 6}

    def drawn(x: torch.Tensor) -> torch.Tensor:
        return torch.full_like(x, 0.5)

    done = old(f"{sampler.replace('-', '_')}_sampler")(mixture(), latents(), randn_like=drawn, **options)
    new = build(sampler, options).sample(mixture(), latents(), randn_like=drawn)
    assert torch.equal(getattr(done, "images", done), new.images)
    assert hasattr(done, "records") == (sampler == "iq")
    assert sampler == "ablation" or sampler in CORRECTORS


def test_old_lid_and_texts_of_scores() -> None:
    noise = torch.randn(3, *latents().shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = latents().double()
    denoise = bind(mixture(), len(x))
    assert torch.equal(old("lid")(mixture(), x, 0.7, noise=noise), rods.Lid(0.7, 3).score(denoise, x, noise=noise))
    known = rods.Lid(0.7, 3).score_and_gradient(denoise, x, noise=noise)
    assert all(
        map(torch.equal, old("lid_gradient")(mixture(), x, torch.tensor(0.7, dtype=torch.float64), noise=noise), known)
    )
    assert old("parse_score")("lid:sigma=2,draws=8") == rods.Lid(2, 8)
    assert old("format_score")(rods.Lid(2, 8)) == "lid:sigma=2,draws=8"


def test_the_module_is_short_enough_to_throw_away() -> None:
    with open(_deprecated.__file__) as f:
        assert sum(1 for _ in f) < 120
