"""Gated restart on exact densities: bit-equality, independence, bounds, measured passes."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from exact import Counting, latents, mixture
from torch import Tensor

from rods import (
    Mixture,
    RodsResult,
    SigmaWindow,
    bind,
    edm_sampler,
    euler_sampler,
    finite_dataset,
    gaussian,
    lid,
    restart_sampler,
    trajectory,
    tvf,
)
from rods.schedules import edm_grid
from torch_utils.rng import SeedStreams

CPU = torch.device("cpu")
SEEDS = [11, 3, 7, 29, 5, 2]
OPTIONS: dict[str, Any] = {"sigma_r": 2.0, "lid_sigma": 0.7, "draws": 3, "num_steps": 10}
BELOW = 6  # steps of the restarted part: sigma_r, and the levels of the 10-step grid below it


def noise(seeds: list[int] = SEEDS) -> Callable[[Tensor], Tensor]:
    return SeedStreams(seeds, CPU).second().randn_like


def restart(denoiser: Any = None, x: Tensor | None = None, **options: Any) -> RodsResult:
    given = {"randn_like": noise(), **OPTIONS, **options}
    return restart_sampler(denoiser or mixture(), latents() if x is None else x, **given)


def first_scores(denoiser: Any = None, **options: Any) -> list[float]:
    return [scores[0] for scores, _ in tries(restart(denoiser, threshold=math.inf, **options))]


def tries(result: RodsResult) -> list[tuple[tuple[float, ...], int]]:
    found = [record.restart for record in result.records]
    return [(r.scores, r.kept) for r in found if r is not None]


def median(denoiser: Any = None, **options: Any) -> float:
    return sorted(first_scores(denoiser, **options))[2]


# -- what is not at risk ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("detector", ["lid", "tvf"])
def test_an_infinite_threshold_is_the_base_sampler_bit_for_bit(detector: str) -> None:
    for solver, base in (("euler", euler_sampler), ("heun", edm_sampler)):
        result = restart(threshold=math.inf, solver=solver, detector=detector)
        assert torch.equal(result.images, base(mixture(), latents(), num_steps=10))
        assert all(len(scores) == 1 and kept == 0 for scores, kept in tries(result))


@pytest.mark.parametrize("detector", ["lid", "tvf"])
def test_what_is_not_above_the_threshold_is_untouched(detector: str) -> None:
    threshold, base = median(detector=detector), euler_sampler(mixture(), latents(), num_steps=10)
    result = restart(threshold=threshold, detector=detector)
    sizes = []
    for b, (scores, kept) in enumerate(tries(result)):
        sizes.append(len(scores))
        assert (len(scores) > 1) == (scores[0] > threshold)
        assert torch.equal(result.images[b], base[b]) == (kept == 0)
    assert min(sizes) == 1 < max(sizes)
    assert any(kept for _, kept in tries(result))


# -- the record is what happened --------------------------------------------------------------------------------------


def test_scores_are_those_of_the_images() -> None:
    draw = noise()
    e = torch.stack([draw(latents().double()) for _ in range(3)])
    base = euler_sampler(mixture(), latents(), num_steps=10)
    torch.testing.assert_close(first_scores(), lid(mixture(), base, 0.7, noise=e).tolist())
    result = restart(threshold=0)
    kept = [scores[kept] for scores, kept in tries(result)]
    torch.testing.assert_close(kept, lid(mixture(), result.images, 0.7, noise=e).tolist(), rtol=1e-9, atol=0)

    t = torch.cat([edm_grid(10, sigma_min=0.002, sigma_max=80, time_rho=7), torch.zeros(1, dtype=torch.float64)])
    steps = trajectory(mixture(), 80 * latents(), t)
    known = tvf(steps, window=SigmaWindow(0, 1.5)).tolist()
    torch.testing.assert_close(first_scores(detector="tvf", tvf_sigma=1.5), known, rtol=1e-9, atol=0)


@pytest.mark.parametrize("margin", [0.0, 0.2])
def test_a_score_never_increases(margin: float) -> None:
    """The image kept is the last of a chain of which each beats the one before by the margin; rounds end in time."""
    for threshold, rounds in ((0, 1), (0, 5), (median(), 5)):
        for scores, kept in tries(restart(threshold=threshold, rounds=rounds, margin=margin)):
            best, at = scores[0], 0
            for i, score in enumerate(scores[1:], start=1):
                assert best > threshold  # or it would not have gone round
                if score < (1 - margin) * best:
                    best, at = score, i
            assert at == kept
            assert best <= scores[0]
            assert len(scores) == 1 + rounds or best <= threshold
            assert len(scores) <= 1 + rounds


def test_a_restart_is_the_base_solver_from_more_noise() -> None:
    """On a Gaussian the restarted part is known: each step scales the state by 1 + (t' - t) t / (s0^2 + t^2)."""
    s0, x = 0.5, latents()
    D = gaussian(torch.zeros(2, 3, 3), s0)
    result = restart(D, threshold=0, rounds=1)
    draw = noise()
    for _ in range(3):
        draw(x.double())
    grid = edm_grid(10, sigma_min=0.002, sigma_max=80, time_rho=7).tolist()
    levels = [2.0, *(t for t in grid if t < 2), 0.0]
    assert len(levels) == BELOW + 1
    y = euler_sampler(D, x, num_steps=10) + 2.0 * draw(x.double())
    for t, t_next in pairwise(levels):
        y = y * (1 + (t_next - t) * t / (s0**2 + t**2))
    replaced = [b for b, (_, kept) in enumerate(tries(result)) if kept]
    assert replaced
    torch.testing.assert_close(result.images[replaced], y[replaced], rtol=1e-11, atol=1e-13)


# -- independence -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("detector", ["lid", "tvf"])
@pytest.mark.parametrize("density", [mixture(), finite_dataset(mixture().mu)])
def test_a_sample_knows_neither_its_mates_nor_its_place(density: Mixture, detector: str) -> None:
    options: dict[str, Any] = {"detector": detector, "rounds": 4, "threshold": median(density, detector=detector)}
    together = restart(density, **options)
    assert len({len(scores) for scores, _ in tries(together)}) > 1
    for order in ([5, 0, 3, 1, 4, 2], [2, 4], [1]):
        part = restart(density, latents()[order], randn_like=noise([SEEDS[b] for b in order]), **options)
        torch.testing.assert_close(part.images, together.images[order], rtol=0, atol=1e-12)
        for (scores, kept), b in zip(tries(part), order, strict=True):
            assert kept == tries(together)[b][1]
            torch.testing.assert_close(scores, tries(together)[b][0], rtol=1e-9, atol=1e-15)


def test_labels_follow_the_rows_at_risk() -> None:
    shift = torch.randn(6, 2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))

    def conditional(x: Tensor, sigma: Tensor, labels: Tensor) -> Tensor:
        centre = torch.einsum("bk,kchw->bchw", labels, shift)
        return centre + mixture()(x - centre, sigma)

    labels, options = torch.eye(6, dtype=torch.float64), {**OPTIONS, "threshold": median()}
    together = restart_sampler(conditional, latents(), labels, randn_like=noise(), **options)
    assert len({len(scores) for scores, _ in tries(together)}) > 1
    for b in range(6):
        draws = noise([SEEDS[b]])
        alone = restart_sampler(conditional, latents()[b, None], labels[b, None], randn_like=draws, **options)
        torch.testing.assert_close(alone.images[0], together.images[b], rtol=0, atol=1e-12)


# -- what it costs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", ["euler", "heun"])
@pytest.mark.parametrize(("detector", "draws"), [("lid", 3), ("tvf", 0)])
@pytest.mark.parametrize("rho", [0.0, 0.1])
def test_passes_are_the_calls_that_were_made(solver: str, detector: str, draws: int, rho: float) -> None:
    counting = Counting(mixture())
    result = restart(counting, threshold=median(detector=detector), solver=solver, detector=detector, rho=rho)
    base, back = (19, 2 * BELOW - 1) if solver == "heun" else (10, BELOW)
    for (scores, _), record in zip(tries(result), result.records, strict=True):
        went = len(scores) - 1
        corrected = BELOW if rho else 0
        assert record.forward == base + draws + went * (back + draws + corrected)
        assert record.backward == went * corrected
    assert counting.forward == sum(record.forward for record in result.records)
    assert counting.backward == sum(record.backward for record in result.records)


def test_cas_inside_the_restarted_part_changes_it_alone() -> None:
    plain, inside = restart(threshold=median()), restart(threshold=median(), rho=0.5)
    beside = restart(threshold=median(), rho=0.5, window=SigmaWindow(50, 60))
    assert beside.records == plain.records
    changed = [not torch.equal(a, b) for a, b in zip(plain.images, inside.images, strict=True)]
    assert any(changed)
    for has_changed, (scores, _) in zip(changed, tries(plain), strict=True):
        assert not has_changed or len(scores) > 1


def test_a_bound_denoiser_keeps_the_count() -> None:
    denoise = bind(mixture(), 6)
    result = restart(denoise, threshold=0)
    assert denoise.forward.tolist() == [record.forward for record in result.records]


# -- guards and refusals ----------------------------------------------------------------------------------------------


def test_an_image_that_is_not_a_number_is_left_alone() -> None:
    def broken(x: Tensor, sigma: Tensor) -> Tensor:
        return mixture()(x, sigma) * torch.tensor([1, math.nan, 1, 1, 1, 1][: len(x)]).reshape(-1, 1, 1, 1)

    result = restart(broken, threshold=math.inf)
    assert math.isnan(tries(result)[1][0][0])
    result = restart(lambda x, sigma: mixture()(x, sigma) * math.nan, threshold=0)
    assert [(len(scores), kept) for scores, kept in tries(result)] == [(1, 0)] * 6


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"threshold": -1}, "threshold: -1 is not a score"),
        ({"threshold": math.nan}, "threshold: nan is not a score"),
        ({"sigma_r": 90.0}, "sigma_r: 90.0 is no noise level of this run; give one up to 80"),
        ({"sigma_r": 0}, "sigma_r: 0 is no noise level"),
        ({"sigma_r": -2}, "sigma_r: -2 is no noise level"),
        ({"sigma_r": math.nan}, "sigma_r: nan is no noise level"),
        ({"rounds": 0}, "rounds: 0 is too few"),
        ({"draws": 0}, "draws: 0 is too few"),
        ({"margin": 1}, "margin: 1 is not a fraction"),
        ({"margin": -0.1}, "margin: -0.1 is not a fraction"),
        ({"detector": "iq"}, "detector: unknown detector 'iq'; give lid or tvf"),
        ({"lid_sigma": 0}, "lid_sigma: 0 is not a noise level"),
        ({"detector": "tvf", "tvf_sigma": 2.5}, "tvf_sigma: 2.5 will not do; give a noise level from 0.002 to sigma_r"),
        ({"detector": "tvf", "tvf_sigma": 0.001}, "tvf_sigma: 0.001 will not do"),
        ({"solver": "rk4"}, "solver: unknown solver"),
        ({"rho": -1}, "rho: -1 is not a radius"),
        ({"window": (0.5, 0.1), "rho": 1}, "window"),
    ],
)
def test_bad_arguments_are_one_clear_line(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said) as error:
        restart(**{"threshold": 1.0, **options})
    assert "\n" not in str(error.value)
