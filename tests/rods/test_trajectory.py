"""The loop: what a step holds, what a correction changes, churn, and runs that take turns."""

from __future__ import annotations

import math
from itertools import pairwise, zip_longest
from typing import Any

import pytest
import torch
from exact import close, golden, isotropic, latents, mixture, second_stream, state
from torch import Tensor

from rods import Ablation, Cas, CurvatureIndex, Every, Gate, RodsCas, Within, edm_sampler, rods_sampler, trajectory
from rods.denoiser import norms
from rods.schedules import edm_grid

EPS = float(golden("rods/mixture")["eps_gate"])
EPS2 = float(golden("rods/mixture")["eps_gate2"])


def run(correct: Any, denoiser: Any = None) -> Any:
    t = golden("rods/mixture")["t_steps"]
    return trajectory(denoiser or mixture(), t[0] * latents(), t, correct=correct)


def test_euler_trajectory_and_gradients_are_the_reference() -> None:
    z = golden("rods/mixture")
    for i, step in enumerate(run(None)):
        assert close(step.x, z["x"][i], tol=1e-7)
        cur = state(mixture(), float(step.sigma), x=step.x)
        assert close(norms(cur.d / cur.sigma), z["norm_v"][i], tol=1e-7)
        assert close(cur.g, z["grad_norm_v"][i], tol=1e-7)
    assert close(step.x_next, z["euler_40"], tol=1e-7)


def test_steps_tell_the_run() -> None:
    sigmas = torch.cat([edm_grid(5, sigma_min=0.01, sigma_max=10), torch.zeros(1, dtype=torch.float64)])
    steps = list(trajectory(mixture(), 10 * latents(), sigmas, solver="heun"))
    assert [(step.i, step.num_steps) for step in steps] == [(i, 5) for i in range(5)]
    assert torch.equal(torch.stack([step.sigma for step in steps]), sigmas[:-1])
    assert torch.equal(torch.stack([step.sigma_next for step in steps]), sigmas[1:])
    for step, after in pairwise(steps):
        assert torch.equal(step.x_next, after.x)
    for step in steps:
        assert torch.equal(step.d, (step.x - mixture()(step.x, step.sigma)) / step.sigma)
        assert torch.equal(step.d_used, step.d)
        assert torch.equal(step.at, step.x)
        assert step.score is None
        assert not step.flagged.any()


def test_a_step_goes_from_x_along_the_direction_at_the_probe() -> None:
    for step in run(Cas(0.1)):
        cur = state(mixture(), float(step.sigma), x=step.x)
        probe = step.x + 0.1 * cur.g / norms(cur.g).reshape(-1, 1, 1, 1)
        d = (probe - mixture()(probe, step.sigma)) / step.sigma
        torch.testing.assert_close(step.d_used, d, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(step.x_next, step.x + (step.sigma_next - step.sigma) * d, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(step.denoised, mixture()(step.x, step.sigma), rtol=0, atol=1e-12)
        assert step.flagged.all()


def test_rows_that_are_not_flagged_are_untouched_bit_for_bit() -> None:
    seen = set()
    for step in run(Gate(CurvatureIndex(0.1), EPS, Cas(0.1))):
        quiet = ~step.flagged
        seen.add(int(quiet.sum()))
        assert torch.equal(step.d_used[quiet], step.d[quiet])
        assert (step.d_used[step.flagged] != step.d[step.flagged]).flatten(1).any(dim=1).all()
        assert torch.equal(step.flagged, step.score >= EPS)
    assert len(seen) > 2  # the batch was split in several ways


def test_two_runs_at_once_do_not_disturb_each_other() -> None:
    """All that is kept between steps is in the steps: one corrector serves two generators that take turns."""
    correct = Within((0.1, 0.5), Every(3, Gate(CurvatureIndex(0.1), EPS2, Cas(0.1))))
    other = isotropic(0.3)
    alone = [list(run(correct)), list(run(correct, other))]
    for pair in zip_longest(run(correct), run(correct, other)):
        for step, steps in zip(pair, alone, strict=True):
            assert torch.equal(step.x_next, steps[step.i].x_next)


def test_a_sampler_yields_the_steps_of_its_images() -> None:
    sampler = RodsCas(eps=EPS, rho=0.1)
    steps = list(sampler.steps(mixture(), latents()))
    result = sampler.sample(mixture(), latents())
    assert torch.equal(steps[-1].x_next, result.images)
    assert [float(step.sigma) for step in steps] == sampler.levels(mixture())
    index = torch.tensor([5, 2])
    part = steps[5].select(index)
    for name in ("x", "x_next", "d_used", "score", "flagged"):
        assert torch.equal(getattr(part, name), getattr(steps[5], name)[index])


# -- churn ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_churn_under_rods_is_that_of_edm(solver: Any) -> None:
    """With eps = inf the images are those of the base solver with churn; without churn nothing is drawn."""
    churn = {"S_churn": 30.0, "S_min": 0.05, "S_max": 50.0, "S_noise": 1.003}

    def refuse(x: Tensor) -> Tensor:
        raise AssertionError("nothing is drawn")

    options: dict[str, Any] = {"rho": 0.3, "num_steps": 10, "solver": solver}
    found = rods_sampler(mixture(), latents(), eps=math.inf, randn_like=second_stream(), **options, **churn)
    base = Ablation(num_steps=10, solver=solver, **churn).sample(mixture(), latents(), randn_like=second_stream())
    assert close(found.images, base.images, tol=1e-9)
    if solver == "heun":
        plain = edm_sampler(mixture(), latents(), num_steps=10, randn_like=second_stream(), **churn)
        assert torch.equal(found.images, plain)
    corrected = rods_sampler(mixture(), latents(), eps=0, randn_like=second_stream(), **options, **churn)
    assert not close(corrected.images, base.images, tol=1e-3)
    assert all(r.forward == (10 if solver == "euler" else 19) + 4 for r in corrected.records)
    still = rods_sampler(mixture(), latents(), eps=0, randn_like=refuse, **options)
    assert not close(corrected.images, still.images, tol=1e-3)


def test_without_churn_no_global_random_number_is_drawn() -> None:
    before = torch.get_rng_state()
    rods_sampler(mixture(), latents(), eps=EPS, rho=0.1)
    assert torch.equal(torch.get_rng_state(), before)
