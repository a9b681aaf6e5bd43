"""EDM's samplers: reference vectors, exact solutions, orders, pass counts, what they refuse."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from exact import Stepped, close, final, golden, latents, mixture, recorded_noise
from torch import Tensor

from rods import Ablation, bind, edm_sampler, euler_sampler, gaussian, trajectory
from rods.schedules import VPSigma, edm_grid, schedule_of


def ablation(denoiser: Any, x: Tensor, *, randn_like: Any = None, **options: Any) -> Tensor:
    """The images of `Ablation`."""
    return Ablation(**options).sample(denoiser, x, randn_like=randn_like).images


LIMITS = {"S_min": 0.05, "S_max": 50, "S_noise": 1.003}
EDM = {
    "edm_heun_18": {},
    "edm_heun_40": {"num_steps": 40},
    "edm_heun_18_rho3_smin0.01_smax50": {"time_rho": 3, "sigma_min": 0.01, "sigma_max": 50},
    "edm_churn_18_S40_0.05_50_1.003": {"S_churn": 40, **LIMITS},
}
ABLATION = sorted(name for name in golden("samplers/mixture") if name.startswith("ablation_"))


# -- reference vectors ------------------------------------------------------------------------------------------------


def test_every_reference_is_used() -> None:
    inputs = {"mu", "w", "s0", "latents", "noise"}
    assert set(golden("samplers/mixture")) == inputs | set(EDM) | set(ABLATION)
    assert len(ABLATION) == 48 + 3 + 1


@pytest.mark.parametrize("name", EDM)
def test_edm_sampler_is_the_reference(name: str) -> None:
    x = edm_sampler(mixture(), latents(), randn_like=recorded_noise(), **EDM[name])
    assert close(x, golden("samplers/mixture")[name], tol=1e-9)


@pytest.mark.parametrize("name", ABLATION)
def test_ablation_sampler_is_the_reference(name: str) -> None:
    _, solver, disc, schedule, scaling, _, *extra = name.split("_")
    options = {"churn30": {"S_churn": 30, **LIMITS}, "alpha0.5": {"alpha": 0.5}}[extra[0]] if extra else {}
    x = ablation(
        mixture(),
        latents(),
        randn_like=recorded_noise(),
        solver=solver,
        discretization=disc,
        schedule=schedule,
        scaling=scaling,
        **options,
    )
    assert close(x, golden("samplers/mixture")[name], tol=1e-9)


def test_streams_of_random_numbers() -> None:
    """Per seed: latent float32, randint, then float64 draws, as `randn_like` is asked for them."""
    z = golden("samplers/rng")
    for k, seed in enumerate(z["seeds"].tolist()):
        stream = torch.Generator().manual_seed(seed % 2**32)
        latent = torch.randn([1, 4, 4], generator=stream)
        label = torch.randint(10, [], generator=stream)
        asked: list[Tensor] = []

        def randn_like(x: Tensor, stream: torch.Generator = stream, asked: list[Tensor] = asked) -> Tensor:
            asked.append(torch.randn(x.shape[1:], generator=stream, dtype=x.dtype)[None])
            return asked[-1]

        edm_sampler(gaussian(torch.zeros(1, 4, 4), 0.5), latent[None], randn_like=randn_like, num_steps=3)
        assert torch.equal(latent, z["latents"][k])
        assert label == z["labels"][k]
        assert torch.equal(asked[0][0], z["churn1"][k])
        assert len(asked) == 3  # also where nothing is added


# -- laws -------------------------------------------------------------------------------------------------------------


def test_euler_and_ablation_agree_with_edm() -> None:
    for sampler_options in ({}, {"S_churn": 40, **LIMITS}):
        a = edm_sampler(mixture(), latents(), randn_like=recorded_noise(), **sampler_options)
        b = ablation(mixture(), latents(), randn_like=recorded_noise(), **sampler_options)
        assert close(b, a, tol=1e-9)
    a = euler_sampler(mixture(), latents(), num_steps=18)
    b = ablation(mixture(), latents(), solver="euler")
    assert close(b, a, tol=1e-9)


@pytest.mark.parametrize(("solver", "order", "slack"), [("euler", 1, 0.05), ("heun", 2, 0.1)])
@pytest.mark.parametrize("schedule", ["linear", "vp"])
def test_order_of_convergence(solver: str, order: int, slack: float, schedule: str) -> None:
    """x(s) = x(s0) sqrt((s_d^2 + s^2) / (s_d^2 + s0^2)), measured at sigma_min: the step to 0 bends Heun."""
    s_d, lo, hi = 0.5, 0.002, 80.0
    D = gaussian(torch.zeros(2, 3, 3), s_d)
    exact = math.sqrt((s_d**2 + lo**2) / (s_d**2 + hi**2))
    ode = schedule_of(schedule, "none", VPSigma())  # type: ignore[arg-type]
    errors = []
    for N in (64, 128, 256, 512):
        sigmas = edm_grid(N + 1, sigma_min=lo, sigma_max=hi)
        x = final(trajectory(D, hi * latents(), sigmas, solver=solver, schedule=ode))  # type: ignore[arg-type]
        errors.append((x - exact * hi * latents()).norm().item())
    slope = -np.polyfit(np.log([64, 128, 256, 512]), np.log(errors), 1)[0]
    assert abs(slope - order) < slack


@pytest.mark.parametrize("sampler", [edm_sampler, euler_sampler, ablation])
def test_one_step_goes_from_sigma_max_to_the_denoised(sampler) -> None:  # type: ignore[no-untyped-def]
    x = sampler(mixture(), latents(), num_steps=1)
    sigma_max = edm_grid(1, sigma_min=0.002, sigma_max=80)[0]
    torch.testing.assert_close(x, mixture()(sigma_max * latents(), sigma_max), rtol=0, atol=1e-12)


# -- the denoiser's side ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("S_churn", [0, 20])
def test_levels_are_clipped_and_rounded(S_churn: float) -> None:
    D = Stepped()
    x = edm_sampler(D, latents(), S_churn=S_churn, S_max=20)
    table = set(D.u.float().tolist())
    assert x.dtype == torch.float64
    assert {float(sigma) for sigma in D.asked} <= table
    assert max(D.asked) == pytest.approx(40, rel=0.01)
    assert min(D.asked) == pytest.approx(0.02, rel=0.2)


def test_labels_reach_the_denoiser() -> None:
    D, labels = Stepped(), torch.eye(6)
    euler_sampler(D, latents(), labels, num_steps=3)
    assert len(D.labels) == 3
    assert all(given is not None and torch.equal(given, labels) for given in D.labels)


# -- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "option"),
    [
        (lambda D, z: edm_sampler(D, z, num_steps=0), "num_steps"),
        (lambda D, z: edm_sampler(D, z[0]), "latents"),
        (lambda D, z: ablation(D, z.long()), "latents"),
        (lambda D, z: edm_sampler(D, z, sigma_min=0), "sigma_min, sigma_max"),
        (lambda D, z: edm_sampler(D, z, time_rho=0), "time_rho"),
        (lambda D, z: edm_sampler(D, z, S_churn=-1), "S_churn, S_noise"),
        (lambda D, z: edm_sampler(D, z, S_noise=math.nan), "S_churn, S_noise"),
        (lambda D, z: edm_sampler(D, z, S_min=2, S_max=1), "S_min, S_max"),
        (lambda D, z: ablation(D, z, solver="rk4"), "solver"),
        (lambda D, z: ablation(D, z, discretization="x"), "discretization"),
        (lambda D, z: ablation(D, z, schedule="x"), "schedule"),
        (lambda D, z: ablation(D, z, scaling="x"), "scaling"),
        (lambda D, z: ablation(D, z, alpha=0), "alpha"),
        (lambda D, z: ablation(D, z, epsilon_s=0), "epsilon_s"),
        (lambda D, z: euler_sampler(D, z, torch.eye(5)), "class_labels"),
        (lambda D, z: edm_sampler(lambda x, s: x[:, :1], z), "denoiser"),
        (lambda D, z: edm_sampler(bind(D, 3), z), "denoiser"),
        (lambda D, z: edm_sampler(bind(D, 6), z, torch.eye(6)), "class_labels"),
    ],
)
def test_bad_arguments_are_one_line_that_names_the_argument(call, option: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=f"^{option}: ") as error:
        call(mixture(), latents())
    assert "\n" not in str(error.value)
