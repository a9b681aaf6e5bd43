"""Gated restart with any score as its gate and any corrector inside, and with scores in flight."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from exact import Counting, latents, mixture
from rods.image_scores import Lid
from rods.scoring import Limit
from torch import Tensor

from rods import RodsResult, bind, edm_sampler, euler_sampler, gaussian, lid, restart_sampler, trajectory
from rods.restart import image_score
from rods.schedules import edm_grid
from torch_utils.rng import SeedStreams

CPU = torch.device("cpu")
SEEDS = [11, 3, 7, 29, 5, 2]
GRID = [*edm_grid(10, sigma_min=0.002, sigma_max=80, time_rho=7).tolist(), 0.0]
BELOW = 6  # steps of a restarted part from sigma_r = 2
LID = "lid:sigma=.7,draws=3"
GATES = [
    "lid:sigma=.7,draws=4,first=1,near=.05",
    "tvf:sigma=1.5",
    "h-index:rho=.3,lo=.1,hi=1.5",
    "lambda-max:iterations=2,lo=.1,hi=1.5",
    "lmi:runs=2",
    "learned(-1;5*lid:sigma=.7,draws=2;.3*log(tvf:sigma=1.5))",
    "screen(tvf:sigma=1.5>.0004;lid:sigma=.7,draws=3)",
]


def restart(denoiser: Any = None, rows: list[int] | None = None, **options: Any) -> RodsResult:
    order = list(range(6)) if rows is None else rows
    draw = SeedStreams([SEEDS[b] for b in order], CPU).second().randn_like
    given = {"sigma_r": 2.0, "num_steps": 10, "detector": LID, "randn_like": draw, **options}
    return restart_sampler(denoiser or mixture(), latents()[order], **given)


def tries(result: RodsResult) -> list[tuple[tuple[float, ...], int]]:
    return [(r.restart.scores, r.restart.kept) for r in result.records if r.restart is not None]


def median(**options: Any) -> float:
    """Between two of the scores, so that rounding flips none."""
    ordered = sorted(scores[0] for scores, _ in tries(restart(threshold=math.inf, **options)))
    return (ordered[2] + ordered[3]) / 2


# -- any score as the gate --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gate", GATES)
def test_any_score_is_a_gate(gate: str) -> None:
    """Nothing changes below it, everything is counted, a kept score is the lowest, and mates do not matter."""
    base, threshold = euler_sampler(mixture(), latents(), num_steps=10), median(detector=gate)
    assert torch.equal(restart(detector=gate, threshold=math.inf).images, base)
    counting = Counting(mixture())
    result = restart(counting, detector=gate, threshold=threshold)
    assert counting.forward == sum(record.forward for record in result.records)
    assert counting.backward == sum(record.backward for record in result.records)
    assert len({len(scores) for scores, _ in tries(result)}) > 1
    for b, (scores, kept) in enumerate(tries(result)):
        assert (len(scores) > 1) == (scores[0] > threshold)
        assert torch.equal(result.images[b], base[b]) == (kept == 0)
        assert scores[kept] == min(scores)
    for order in ([5, 0, 3, 1, 4, 2], [2, 4], [1]):
        part = restart(rows=order, detector=gate, threshold=threshold)
        torch.testing.assert_close(part.images, result.images[order], rtol=0, atol=1e-9)
        for (scores, kept), b in zip(tries(part), order, strict=True):
            assert kept == tries(result)[b][1]
            assert scores == pytest.approx(tries(result)[b][0], rel=1e-5)


def test_a_written_score_is_that_of_the_options() -> None:
    options: dict[str, Any] = {"threshold": median(), "rounds": 2}
    assert restart(**options).records == restart(detector="lid", lid_sigma=0.7, draws=3, **options).records
    late = {"threshold": median(detector="tvf", tvf_sigma=1.5)}
    named = restart(detector="tvf", tvf_sigma=1.5, **late)
    assert restart(detector="tvf:sigma=1.5", **late).records == named.records


def test_a_screen_saves_the_full_score_of_those_it_holds_healthy() -> None:
    result = restart(detector="screen(tvf:sigma=1.5>.0004;lid:sigma=.7,draws=3)", threshold=math.inf)
    cheap = [scores[0] for scores, _ in tries(restart(detector="tvf:sigma=1.5", threshold=math.inf))]
    full = [scores[0] for scores, _ in tries(restart(threshold=math.inf))]
    for c, f, record, (scores, _) in zip(cheap, full, result.records, tries(result), strict=True):
        assert scores == (pytest.approx(f, rel=1e-9) if c > 0.0004 else 0.0,)
        assert record.forward == 10 + (3 if c > 0.0004 else 0)


# -- scores in flight -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_a_run_that_is_only_looked_at_in_flight_stays_what_it_is(solver: str) -> None:
    result = restart(threshold=math.inf, score_at=0.5, solver=solver)
    base = euler_sampler if solver == "euler" else edm_sampler
    assert torch.equal(result.images, base(mixture(), latents(), num_steps=10))
    assert {record.forward for record in result.records} == {(10 if solver == "euler" else 19) + 3}


def test_in_flight_the_score_is_that_of_the_denoised_state() -> None:
    sigmas = torch.tensor(GRID, dtype=torch.float64)
    steps = list(trajectory(mixture(), 80 * latents().double(), sigmas))
    last_above = next(step for step in steps if float(step.sigma_next) <= 0.5)
    draw = SeedStreams(SEEDS, CPU).second().randn_like
    e = torch.stack([draw(latents().double()) for _ in range(3)])
    known = lid(mixture(), last_above.denoised, 0.7, noise=e)
    found = [scores[0] for scores, _ in tries(restart(threshold=math.inf, score_at=0.5))]
    torch.testing.assert_close(found, known.tolist())


def test_a_restart_in_flight_is_the_base_solver_from_more_noise() -> None:
    """On a Gaussian each step scales the state; from level t the noise added is sqrt(sigma_r^2 - t^2)."""
    s0 = 0.5

    def scale(levels: list[float]) -> float:
        return math.prod(1 + (b - a) * a / (s0**2 + a**2) for a, b in pairwise(levels))

    end = next(t for t in GRID if t <= 0.5)
    counting = Counting(gaussian(torch.zeros(2, 3, 3), s0))
    result = restart(counting, threshold=0, rounds=1, score_at=0.5)
    draw = SeedStreams(SEEDS, CPU).second().randn_like
    for _ in range(3):
        draw(latents().double())
    head, part, tail = [t for t in GRID if t >= end], [2.0, *(t for t in GRID if end <= t < 2)], GRID[GRID.index(end) :]
    y = 80 * latents().double() * scale(head) + math.sqrt(2.0**2 - end**2) * draw(latents().double())
    y = y * scale(part) * scale(tail)
    replaced = [b for b, (_, kept) in enumerate(tries(result)) if kept]
    assert replaced
    torch.testing.assert_close(result.images[replaced], y[replaced], rtol=1e-11, atol=1e-13)
    assert {record.forward for record in result.records} == {10 + 3 + (len(part) - 1) + 3}
    assert counting.forward == 6 * result.records[0].forward


def test_in_flight_mates_do_not_matter_either() -> None:
    options: dict[str, Any] = {"score_at": 0.5, "threshold": median(score_at=0.5)}
    together = restart(**options)
    assert len({len(scores) for scores, _ in tries(together)}) > 1
    for order in ([5, 0, 3, 1, 4, 2], [1]):
        part = restart(rows=order, **options)
        torch.testing.assert_close(part.images, together.images[order], rtol=0, atol=1e-12)


# -- any corrector inside ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("inside", "forward", "backward"),
    [
        ({"inside": "cas"}, 1, 1),
        ({"inside": "cas", "ascent_steps": 5}, 5, 5),
        ({"inside": "sas"}, 1, 0),
        ({"inside": "sas", "sas_sign": "downhill"}, 1, 0),
        ({"inside": "overshoot"}, 0, 0),
    ],
)
def test_a_corrector_inside_acts_and_is_counted(inside: dict[str, Any], forward: int, backward: int) -> None:
    plain, result = restart(threshold=median()), restart(threshold=median(), rho=0.3, **inside)
    changed = [not torch.equal(a, b) for a, b in zip(plain.images, result.images, strict=True)]
    assert any(changed)
    for record, (scores, _), has_changed in zip(result.records, tries(result), changed, strict=True):
        went = len(scores) - 1
        assert record.forward == 10 + 3 + went * (BELOW + 3 + BELOW * forward)
        assert record.backward == went * BELOW * backward
        assert went or not has_changed


def test_the_restarted_part_may_have_its_own_solver() -> None:
    plain, result = restart(threshold=median()), restart(threshold=median(), inside_solver="heun")
    for record, (scores, _) in zip(result.records, tries(result), strict=True):
        assert record.forward == 10 + 3 + (len(scores) - 1) * (2 * BELOW - 1 + 3)
    assert not torch.equal(plain.images, result.images)
    both = restart(threshold=median(solver="heun"), solver="heun", inside_solver="heun")
    assert torch.equal(both.images, restart(threshold=median(solver="heun"), solver="heun").images)


def test_a_score_for_some_rows_takes_their_draws() -> None:
    """`image_score` on the rows 4 and 1 of a batch gives what it gives for all."""
    noise = SeedStreams(SEEDS, CPU).second().randn_like(latents().double())[None]
    score = image_score(Limit(Lid(sigma=0.7, draws=1)), noise, "euler")
    denoise, x = bind(mixture(), 6), 80 * latents().double()
    sigmas = torch.tensor(GRID, dtype=torch.float64)
    _, whole = score(denoise, trajectory(denoise, x, sigmas))
    rows = denoise.rows(torch.tensor([4, 1]))
    _, part = score(rows, trajectory(rows, x[[4, 1]], sigmas))
    torch.testing.assert_close(part, whole[[4, 1]])


# -- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"detector": "lid:t=1"}, "detector: lid has no option 't'"),
        ({"detector": "learned"}, "detector: learned: no preset gives its weights"),
        (
            {"detector": "tvf:sigma=3"},
            "detector: tvf:sigma=3 looks at noise levels up to 3, above sigma_r = 2.0; lower",
        ),
        ({"detector": "h-index:lo=.6,hi=.61"}, "no step lies at noise levels 0.6 to 0.61"),
        ({"score_at": 9}, "score_at: the run is scored at .*, not below sigma_r = 2.0"),
        ({"score_at": 80}, "score_at: 80 will not do; give a noise level below 80"),
        ({"score_at": -1}, "score_at: -1 will not do"),
        ({"score_at": math.nan}, "score_at: nan will not do"),
        ({"inside": "iq", "rho": 1}, "inside: unknown corrector 'iq'; give cas or sas or overshoot"),
        ({"inside_solver": "rk4"}, "solver: unknown solver"),
        ({"inside": "sas", "sas_sign": "up", "rho": 1}, "sas_sign: unknown sign"),
        ({"ascent_steps": 0, "rho": 1}, "ascent_steps: 0 is too few"),
    ],
)
def test_bad_arguments_are_one_clear_line(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said) as error:
        restart(**{"threshold": 1.0, **options})
    assert "\n" not in str(error.value)


def test_an_image_that_is_not_a_number_is_left_alone() -> None:
    def broken(x: Tensor, sigma: Tensor) -> Tensor:
        return mixture()(x, sigma) * math.nan

    for gate in ("lid:sigma=.7,draws=4,first=1", "screen(tvf:sigma=1.5>.0004;lid)"):
        result = restart(broken, detector=gate, threshold=0)
        assert [(len(scores), kept) for scores, kept in tries(result)] == [(1, 0)] * 6
        assert all(math.isnan(scores[0]) for scores, _ in tries(result))
