"""Gated restart on exact densities: what goes back, what is kept, what is scored and when, what it costs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import pytest
import torch
from exact import SEEDS, Counting, conditional, isotropic, latents, mixture, normal, second_stream
from torch import Tensor

from rods import (
    Cas,
    CurvatureIndex,
    Detector,
    Lid,
    Mixture,
    Overshoot,
    RandomShift,
    Restart,
    RodsResult,
    Sas,
    Tvf,
    bind,
    edm_sampler,
    euler_sampler,
    restart_sampler,
    trajectory,
)
from rods.schedules import edm_grid

GRID = [*edm_grid(10, sigma_min=0.002, sigma_max=80, time_rho=7).tolist(), 0.0]
BELOW = 6  # steps of the restarted part: sigma_r, and the levels of the 10-step grid below it
LID, TVF = Lid(sigma=0.7, draws=3), Tvf(sigma=1.5)


def restart(denoiser: Any = None, rows: list[int] | None = None, **options: Any) -> RodsResult:
    order = list(range(6)) if rows is None else rows
    draw = second_stream([SEEDS[b] for b in order])
    given = {"sigma_r": 2.0, "num_steps": 10, "detector": LID, "randn_like": draw, **options}
    return restart_sampler(denoiser or mixture(), latents()[order], **given)


def tries(result: RodsResult) -> list[tuple[tuple[float, ...], int]]:
    return [(r.restart.scores, r.restart.kept) for r in result.records if r.restart is not None]


def first_scores(denoiser: Any = None, **options: Any) -> list[float]:
    return [scores[0] for scores, _ in tries(restart(denoiser, threshold=math.inf, **options))]


def median(denoiser: Any = None, **options: Any) -> float:
    """Between two of the scores, so that rounding flips none."""
    ordered = sorted(first_scores(denoiser, **options))
    return (ordered[2] + ordered[3]) / 2


def three_draws() -> tuple[Tensor, Any]:
    """The draws of the score [3, B, C, H, W], and the stream after them."""
    draw = second_stream()
    return torch.stack([draw(latents().double()) for _ in range(3)]), draw


def scale(levels: list[float], s0: float = 0.5) -> float:
    """By what Euler steps scale the state of N(0, s0^2 I)."""
    return math.prod(1 + (b - a) * a / (s0**2 + a**2) for a, b in pairwise(levels))


# -- what goes back, and what is kept ---------------------------------------------------------------------------------


@pytest.mark.parametrize("margin", [0.0, 0.2])
def test_a_score_never_increases(margin: float) -> None:
    """The image kept is the last of a chain of which each beats the one before by the margin; rounds end in time."""
    for threshold, rounds in ((0, 1), (0, 5), (median(), 5)):
        for scores, kept in tries(restart(threshold=threshold, rounds=rounds, margin=margin)):
            best, at = scores[0], 0
            for i, score in enumerate(scores[1:], start=1):
                assert best > threshold  # or it would not have gone back
                if score < (1 - margin) * best:
                    best, at = score, i
            assert at == kept
            assert best <= scores[0]
            assert len(scores) == 1 + rounds or best <= threshold
            assert len(scores) <= 1 + rounds


def test_scores_are_those_of_the_images() -> None:
    e, _ = three_draws()

    def lid(x: Tensor) -> list[float]:
        return LID.score(bind(mixture(), 6), x, noise=e).tolist()

    torch.testing.assert_close(first_scores(), lid(euler_sampler(mixture(), latents(), num_steps=10)))
    result = restart(threshold=0)
    kept = [scores[kept] for scores, kept in tries(result)]
    torch.testing.assert_close(kept, lid(result.images), rtol=1e-9, atol=0)


def test_a_restart_is_the_base_solver_from_more_noise() -> None:
    """On a Gaussian the restarted part is known: each step scales the state."""
    result = restart(isotropic(), threshold=0, rounds=1)
    _, draw = three_draws()
    levels = [2.0, *(t for t in GRID if t < 2)]
    assert len(levels) == BELOW + 1
    y = (euler_sampler(isotropic(), latents(), num_steps=10) + 2.0 * draw(latents().double())) * scale(levels)
    replaced = [b for b, (_, kept) in enumerate(tries(result)) if kept]
    assert replaced
    torch.testing.assert_close(result.images[replaced], y[replaced], rtol=1e-11, atol=1e-13)


def test_labels_follow_the_rows_that_go_back() -> None:
    labels, sampler = (
        torch.eye(6, dtype=torch.float64),
        Restart(threshold=median(), sigma_r=2.0, num_steps=10, detector=LID),
    )
    together = sampler.sample(conditional, latents(), labels, randn_like=second_stream())
    assert len({len(scores) for scores, _ in tries(together)}) > 1
    for b in range(6):
        draw = second_stream([SEEDS[b]])
        alone = sampler.sample(conditional, latents()[b, None], labels[b, None], randn_like=draw)
        torch.testing.assert_close(alone.images[0], together.images[b], rtol=0, atol=1e-12)


# -- scores in flight -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_a_run_that_is_only_looked_at_in_flight_stays_what_it_is(solver: str) -> None:
    result = restart(threshold=math.inf, score_at=0.5, solver=solver)
    base = euler_sampler if solver == "euler" else edm_sampler
    assert torch.equal(result.images, base(mixture(), latents(), num_steps=10))
    assert {record.forward for record in result.records} == {(10 if solver == "euler" else 19) + 3}


def test_in_flight_the_score_is_that_of_the_denoised_state() -> None:
    steps = list(trajectory(mixture(), 80 * latents().double(), torch.tensor(GRID, dtype=torch.float64)))
    last_above = next(step for step in steps if float(step.sigma_next) <= 0.5)
    known = LID.score(bind(mixture(), 6), last_above.denoised, noise=three_draws()[0])
    torch.testing.assert_close(first_scores(score_at=0.5), known.tolist())


def test_a_restart_in_flight_is_the_base_solver_from_more_noise() -> None:
    """On a Gaussian each step scales the state; from level t the noise added is sqrt(sigma_r^2 - t^2)."""
    end = next(t for t in GRID if t <= 0.5)
    counting = Counting(isotropic())
    result = restart(counting, threshold=0, rounds=1, score_at=0.5)
    _, draw = three_draws()
    head, part, tail = [t for t in GRID if t >= end], [2.0, *(t for t in GRID if end <= t < 2)], GRID[GRID.index(end) :]
    y = 80 * latents().double() * scale(head) + math.sqrt(2.0**2 - end**2) * draw(latents().double())
    y = y * scale(part) * scale(tail)
    replaced = [b for b, (_, kept) in enumerate(tries(result)) if kept]
    assert replaced
    torch.testing.assert_close(result.images[replaced], y[replaced], rtol=1e-11, atol=1e-13)
    assert {record.forward for record in result.records} == {10 + 3 + (len(part) - 1) + 3}
    assert counting.forward == 6 * result.records[0].forward


# -- what it costs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", ["euler", "heun"])
@pytest.mark.parametrize(
    ("inside", "forward", "backward"),
    [
        (None, 0, 0),
        (Cas(0.3), 1, 1),
        (Cas(0.3, 5), 5, 5),
        (Sas(0.3), 1, 0),
        (Sas(0.3, "downhill"), 1, 0),
        (Overshoot(0.3), 0, 0),
    ],
)
def test_a_corrector_inside_acts_on_what_goes_back_and_is_counted(
    solver: str, inside: Any, forward: int, backward: int
) -> None:
    plain = restart(threshold=median(solver=solver), solver=solver)
    counting = Counting()
    result = restart(counting, threshold=median(solver=solver), solver=solver, inside=inside)
    changed = [not torch.equal(a, b) for a, b in zip(plain.images, result.images, strict=True)]
    assert any(changed) == (inside is not None)
    base, back = (19, 2 * BELOW - 1) if solver == "heun" else (10, BELOW)
    for record, (scores, _), has_changed in zip(result.records, tries(result), changed, strict=True):
        went = len(scores) - 1
        assert record.forward == base + 3 + went * (back + 3 + BELOW * forward)
        assert record.backward == went * BELOW * backward
        assert went or not has_changed
    assert counting.forward == sum(record.forward for record in result.records)
    assert counting.backward == sum(record.backward for record in result.records)


def test_a_bound_denoiser_keeps_the_count() -> None:
    denoise = bind(mixture(), 6)
    result = restart(denoise, threshold=0)
    assert denoise.forward.tolist() == [record.forward for record in result.records]


# -- guards and refusals ----------------------------------------------------------------------------------------------


def test_an_image_that_is_not_a_number_is_left_alone() -> None:
    result = restart(lambda x, sigma: mixture()(x, sigma) * math.nan, threshold=0)
    assert [(len(scores), kept) for scores, kept in tries(result)] == [(1, 0)] * 6
    assert all(math.isnan(scores[0]) for scores, _ in tries(result))


@pytest.mark.parametrize(
    ("options", "option"),
    [
        ({"threshold": -1, "margin": 0.1}, "margin"),
        ({"threshold": math.nan}, "threshold"),
        ({"sigma_r": 90.0}, "sigma_r"),
        ({"sigma_r": 0}, "sigma_r"),
        ({"sigma_r": -1}, "sigma_r"),
        ({"sigma_r": math.nan}, "sigma_r"),
        ({"detector": "lid"}, "detector"),
        ({"rounds": 1.5}, "rounds"),
        ({"num_steps": 2.5}, "num_steps"),
        ({"inside": "cas"}, "inside"),
        ({"rounds": 0}, "rounds"),
        ({"margin": 1}, "margin"),
        ({"margin": -0.1}, "margin"),
        ({"solver": "rk4"}, "solver"),
        ({"detector": Tvf(sigma=3)}, "detector"),
        ({"detector": CurvatureIndex(lo=0.6, hi=0.61)}, "lo, hi"),
        ({"score_at": 9}, "score_at"),
        ({"score_at": 80}, "score_at"),
        ({"score_at": math.nan}, "score_at"),
        ({"inside": RandomShift(1)}, "inside"),
    ],
)
def test_bad_arguments_are_one_line_that_names_the_argument(options: dict[str, Any], option: str) -> None:
    with pytest.raises(ValueError, match=f"^{option}: ") as error:
        restart(**{"threshold": 1.0, **options})
    assert "\n" not in str(error.value)


# -- acceptance by a ratio of densities --------------------------------------------------------------------------------


def two_modes(*weights: float) -> Mixture:
    """Points at -2 and 2 with these weights."""
    return Mixture(torch.tensor([-2.0, 2.0]).reshape(2, 1, 1, 1), torch.tensor(weights), 0.2)


@dataclass(frozen=True)
class ExactRatio(Detector):
    """log p_own - log p_data of finished images, exactly."""

    own: Mixture
    data: Mixture

    def score(self, denoise: Any, image: Tensor, *, noise: Tensor) -> Tensor:
        return self.own.log_density(image, 0) - self.data.log_density(image, 0)


def restarted_by_ratio(acceptance: Literal["ratio"] | None, rounds: int = 60) -> tuple[RodsResult, float]:
    """3,000 images of a network that draws mode 2 in 70 % of cases, where data have it in 40 %; and M."""
    own, data = two_modes(0.3, 0.7), two_modes(0.6, 0.4)
    M = 0.6 / 0.3  # the largest p_data / p_own, which two mixtures of the same modes reach at one of them
    generator = torch.Generator().manual_seed(3)

    def draw(x: Tensor) -> Tensor:
        return torch.randn(x.shape, generator=generator, dtype=x.dtype)

    sampler = Restart(threshold=-math.log(M), sigma_r=80, rounds=rounds, detector=ExactRatio(own, data), num_steps=24,
                      acceptance=acceptance)  # fmt: skip
    return sampler.sample(own, normal(3000, 1, 1, 1, seed=1), randn_like=draw), M


def share_of_mode_2(images: Tensor) -> float:
    return float((images > 0).double().mean())


def test_acceptance_by_the_exact_ratio_gives_the_distribution_of_the_data() -> None:
    """Rejection sampling: 40 % at mode 2, and M = 2 images drawn on average for one that is accepted."""
    result, M = restarted_by_ratio("ratio")
    error = math.sqrt(0.4 * 0.6 / 3000)
    assert abs(share_of_mode_2(result.images) - 0.4) < 4 * error
    drawn = torch.tensor([float(len(scores)) for scores, _ in tries(result)])
    assert float(drawn.max()) <= 60, "all are accepted"
    assert abs(float(drawn.mean()) - M) < 4 * math.sqrt(M * (M - 1) / 3000), "the mean of a geometric distribution"
    assert all(kept == len(scores) - 1 for scores, kept in tries(result)), "a new image replaces what was rejected"
    plain = share_of_mode_2(euler_sampler(two_modes(0.3, 0.7), normal(3000, 1, 1, 1, seed=1), num_steps=24))
    assert abs(plain - 0.7) < 4 * error


def test_the_lower_score_does_not() -> None:
    """It goes on until the ratio is lowest, at the mode that the network draws too seldom."""
    assert share_of_mode_2(restarted_by_ratio(None)[0].images) < 0.01


def test_by_ratio_nothing_is_kept_for_its_score() -> None:
    result = restart(threshold=-math.inf, acceptance="ratio", rounds=4)
    assert [len(scores) - 1 for scores, _ in tries(result)] == [kept for _, kept in tries(result)] == [4] * 6
    with pytest.raises(ValueError, match=r"^margin: 0.1: acceptance by ratio"):
        Restart(threshold=1, sigma_r=2.0, margin=0.1, acceptance="ratio")
