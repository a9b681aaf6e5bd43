"""ASCED's jumps: what an outlier is, what is scored, and which pixels get fresh noise."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from exact import Watch, close, latents, mixture, normal, second_stream
from registries import a_sampler
from torch import Tensor

from rods import Asced, Jump, SigmaWindow, bind, euler_sampler
from rods.asced import outlyingness


def test_outlyingness_by_hand() -> None:
    """A change of 1, 2, ..., 25, and of 40 at one pixel: the median is 13, the MAD 6."""
    change = torch.arange(1, 26, dtype=torch.float64).reshape(1, 1, 5, 5)
    change[0, 0, 0, 0] = 40
    signs = torch.tensor([1.0, -1.0]).reshape(1, 2, 1, 1)  # the mean over channels is of absolute values
    z = outlyingness(signs * change, torch.zeros(1, 2, 5, 5), blur=1)
    assert float(change.median()) == 14
    spread = 1.4826 * float(np.median(np.abs(change.numpy() - 14)))
    torch.testing.assert_close(z, (change - 14) / spread)
    assert z.argmax() == 0
    assert z.max() > 2 > z.flatten()[1:].max()


def test_a_change_is_averaged_over_a_square() -> None:
    one = torch.zeros(1, 1, 9, 9, dtype=torch.float64)
    one[0, 0, 4, 4] = 9
    field = 0.1 * normal(1, 1, 9, 9)
    before = torch.zeros_like(field)
    z = outlyingness(field.abs() + one, before, blur=3)[0, 0]
    assert (z[3:6, 3:6] > 10).all()
    z[3:6, 3:6] = 0
    assert (z < 10).all()


@pytest.mark.parametrize("size", [1, 4])
def test_where_nothing_stands_out_there_is_no_outlier(size: int) -> None:
    D = torch.ones(2, 3, size, size, dtype=torch.float64)
    assert not outlyingness(D, torch.zeros_like(D), blur=3).any()


def watched(sampler: Any, draw: Any = None) -> Any:
    watch = Watch()
    for step in sampler.steps(bind(mixture(), 6, randn_like=draw or second_stream()), latents()):
        watch.add(step)
    return watch.steps


def test_pixels_that_jump_go_on_from_the_denoised_image_and_the_others_as_they_were() -> None:
    sampler: Any = a_sampler("asced", blur=1)
    draw, steps, redrawn = second_stream(), watched(sampler), 0
    for before, step in zip([None, *steps], steps, strict=False):
        plain = step.x + (step.sigma_next - step.sigma) * step.d
        jumps = torch.zeros(6, 1, 3, 3, dtype=torch.bool)
        if before is not None and 0.3 <= float(step.sigma) <= 8:
            e = draw(step.x)
            jumps = outlyingness(step.denoised, before.denoised, blur=1) > sampler.deviations
            torch.testing.assert_close(
                step.x_next, torch.where(jumps, step.denoised + step.sigma_next * e, plain), rtol=0, atol=1e-12
            )
        else:
            torch.testing.assert_close(step.x_next, plain, rtol=0, atol=1e-12)
        redrawn += int(jumps.sum())
        assert torch.equal(step.flagged, jumps.flatten(1).any(dim=1))
        # What is said to be the direction leads to the next state.
        torch.testing.assert_close(
            step.x + (step.sigma_next - step.sigma) * step.d_used, step.x_next, rtol=0, atol=1e-10
        )
    assert 0 < redrawn < 9 * 6 * sum(0.3 <= float(step.sigma) <= 8 for step in steps)


def test_the_run_goes_on_from_there() -> None:
    steps = watched(a_sampler("asced", blur=1))
    for one, two in pairwise(steps):
        assert torch.equal(one.x_next, two.x)
    assert not close(steps[-1].x_next, euler_sampler(mixture(), latents(), num_steps=10), tol=1e-3)


def test_the_score_is_the_largest_jump_in_its_range() -> None:
    steps = watched(a_sampler("euler"))
    follower = Jump(lo=0.3, hi=8, blur=1).follow(bind(mixture(), 6), torch.empty(0, 6, 2, 3, 3))
    found: list[Tensor] = []
    for before, step in zip([None, *steps], steps, strict=False):
        follower.add(step)
        if before is not None and 0.3 <= float(step.sigma) <= 8:
            found.append(outlyingness(step.denoised, before.denoised, blur=1).flatten(1).amax(dim=1))
    assert len(found) > 1
    assert torch.equal(follower.score(steps[-1].x_next), torch.stack(found).amax(dim=0))


@pytest.mark.parametrize(
    ("make", "option"),
    [
        (lambda: Asced(deviations=-1), "deviations"),
        (lambda: Asced(deviations=math.nan), "deviations"),
        (lambda: Asced(blur=2), "blur"),
        (lambda: Asced(window=(0.5, 0.1)), "window"),
        (lambda: Asced(blur=0), "blur"),
        (lambda: Jump(blur=4), "blur"),
        (lambda: Jump(lo=3, hi=1), "lo, hi"),
        (lambda: Jump(lo=0.011, hi=0.012).check(mixture(), [1.0, 0.5]), "lo, hi"),
        (lambda: Jump(lo=1, hi=2).check(mixture(), [1.5, 0.5]), "lo, hi"),  # of the first step there is no change
        (lambda: Jump().follow(bind(mixture(), 6), torch.empty(0)).score(latents()), "lo, hi"),
    ],
)
def test_bad_options_are_one_line_that_names_the_option(make: Any, option: str) -> None:
    with pytest.raises(ValueError, match=f"^{option}: ") as error:
        make()
    assert "\n" not in str(error.value)


def test_the_window_may_be_of_noise_levels() -> None:
    assert a_sampler("asced").window == SigmaWindow(0.3, 8)  # type: ignore[attr-defined]
