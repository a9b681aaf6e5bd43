"""Noise grids, schedules and the range of noise levels."""

from __future__ import annotations

import math

import pytest
import torch
from exact import golden
from hypothesis import given, settings
from hypothesis import strategies as st

from rods.schedules import (
    LINEAR,
    VPSigma,
    clip_range,
    default_range,
    edm_grid,
    iddpm_grid,
    iddpm_levels,
    schedule_of,
    ve_grid,
    vp_grid,
)

VP = VPSigma()
TIMES = torch.linspace(0.01, 0.99, 25, dtype=torch.float64)


@settings(max_examples=60, deadline=None)
@given(
    num_steps=st.integers(1, 300), sigma_min=st.floats(1e-4, 0.5), ratio=st.floats(1.5, 1e5), time_rho=st.floats(1, 10)
)
def test_edm_grid_falls_from_sigma_max_to_sigma_min(
    num_steps: int, sigma_min: float, ratio: float, time_rho: float
) -> None:
    grid = edm_grid(num_steps, sigma_min=sigma_min, sigma_max=sigma_min * ratio, time_rho=time_rho)
    assert grid.dtype == torch.float64
    assert grid.shape == (num_steps,)
    assert grid[0].item() == pytest.approx(sigma_min * ratio, rel=1e-9)
    assert (grid.diff() < 0).all()
    if num_steps > 1:
        assert grid[-1].item() == pytest.approx(sigma_min, rel=1e-6)


@pytest.mark.parametrize("num_steps", [1, 2, 18, 1000])
def test_the_other_grids_fall_between_their_ends(num_steps: int) -> None:
    vp = vp_grid(num_steps, vp=VP, epsilon_s=1e-3)
    ve = ve_grid(num_steps, sigma_min=0.02, sigma_max=100)
    iddpm = iddpm_grid(num_steps, sigma_min=0.002, sigma_max=81, C_1=0.001, C_2=0.008, M=1000)
    for grid, first in ((vp, VP.sigma(torch.ones(())).item()), (ve, 100), (iddpm, iddpm[0].item())):
        assert grid.shape == (num_steps,)
        assert grid[0].item() == pytest.approx(first, rel=1e-6)
        assert (grid.diff() <= 0).all()
    if num_steps == 18:
        assert vp[-1].item() == pytest.approx(VP.sigma(torch.tensor(1e-3, dtype=torch.float64)).item(), rel=1e-9)
        assert ve[-1].item() == pytest.approx(0.02, rel=1e-9)
        assert ve.log().diff().std() < 1e-9  # geometric
        assert 79 < iddpm[0] <= 81
        assert 0.002 <= iddpm[-1] < 0.01
        assert set(iddpm.tolist()) <= set(iddpm_levels(C_1=0.001, C_2=0.008, M=1000).tolist())


def test_iddpm_levels_obey_their_recursion() -> None:
    u = iddpm_levels(C_1=0.001, C_2=0.008, M=1000)
    assert u.shape == (1001,)
    assert u[-1] == 0
    assert (u.diff() < 0).all()
    j = torch.arange(1001, dtype=torch.float64)
    abar = (math.pi / 2 * j / 1000 / 1.008).sin() ** 2
    expected = ((u[1:] ** 2 + 1) / (abar[:-1] / abar[1:]).clamp(min=0.001) - 1).sqrt()
    torch.testing.assert_close(u[:-1], expected, rtol=1e-3, atol=0)  # abar is float32 in the table


def test_edm_grid_is_the_reference() -> None:
    t = golden("rods/mixture")["t_steps"]
    assert t[-1] == 0
    torch.testing.assert_close(edm_grid(40, sigma_min=0.002, sigma_max=80), t[:-1], rtol=1e-12, atol=0)


@settings(max_examples=40, deadline=None)
@given(sigma_min=st.floats(0.001, 0.02), sigma_max=st.floats(10, 200))
def test_vp_sigma_goes_through_the_range(sigma_min: float, sigma_max: float) -> None:
    vp = VPSigma.through(sigma_min=sigma_min, sigma_max=sigma_max, epsilon_s=1e-3)
    ends = vp.sigma(torch.tensor([1e-3, 1.0], dtype=torch.float64))
    assert ends.tolist() == pytest.approx([sigma_min, sigma_max], rel=1e-6)


@pytest.mark.parametrize("schedule", ["vp", "ve", "linear"])
@pytest.mark.parametrize("scaling", ["vp", "none"])
def test_schedules_invert_and_differentiate(schedule: str, scaling: str) -> None:
    ode = schedule_of(schedule, scaling, VP)  # type: ignore[arg-type]
    torch.testing.assert_close(ode.time(ode.sigma(TIMES)), TIMES, rtol=1e-9, atol=1e-12)
    t = TIMES.clone().requires_grad_(True)
    (slope,) = torch.autograd.grad(ode.sigma(t).sum(), t)
    torch.testing.assert_close(ode.sigma_dot(TIMES), slope, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("schedule", ["vp", "ve", "linear"])
@pytest.mark.parametrize("scaling", ["vp", "none"])
def test_rate_is_the_ode_of_the_edm_paper(schedule: str, scaling: str) -> None:
    """dx/dt = (sigma'/sigma + s'/s) x - (sigma' s / sigma) D, with s' by autograd."""
    ode = schedule_of(schedule, scaling, VP)  # type: ignore[arg-type]
    x, D = torch.randn(2, 25, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    t = TIMES.clone().requires_grad_(True)
    s, sigma = ode.s(t), ode.sigma(t)
    s_dot = torch.zeros_like(TIMES) if scaling == "none" else torch.autograd.grad(s.sum(), t, retain_graph=True)[0]
    sigma_dot = ode.sigma_dot(TIMES)
    s, sigma = s.detach(), sigma.detach()
    expected = (sigma_dot / sigma + s_dot / s) * x - sigma_dot * s / sigma * D
    torch.testing.assert_close(ode.rate(TIMES, x, (x / s - D) / sigma), expected, rtol=1e-9, atol=1e-9)


def test_linear_is_edms() -> None:
    assert torch.equal(LINEAR.sigma(TIMES), TIMES)
    assert torch.equal(LINEAR.time(TIMES), TIMES)
    assert torch.equal(LINEAR.rate(TIMES, TIMES, 2 * TIMES), 2 * TIMES)


def test_default_ranges() -> None:
    assert default_range("ve", epsilon_s=1e-3) == (0.02, 100)
    assert default_range("iddpm", epsilon_s=1e-3) == (0.002, 81)
    assert default_range("edm", epsilon_s=1e-3) == (0.002, 80)
    lo, hi = default_range("vp", epsilon_s=1e-3)
    assert lo == pytest.approx(math.sqrt(math.exp(19.9 * 1e-6 / 2 + 1e-4) - 1), rel=1e-9)
    assert hi == pytest.approx(math.sqrt(math.exp(19.9 / 2 + 0.1) - 1), rel=1e-9)


def test_range_is_clipped_to_the_networks() -> None:
    assert clip_range(0.002, 80, allowed=(0.02, 50), num_steps=18) == (0.02, 50)
    assert clip_range(0.002, 80, allowed=(0, math.inf), num_steps=18) == (0.002, 80)
    assert clip_range(1, 1, allowed=(0, math.inf), num_steps=1) == (1, 1)


@pytest.mark.parametrize(
    ("sigma_min", "sigma_max", "num_steps", "said"),
    [
        (0, 80, 18, "sigma_min"),
        (2, 1, 18, "sigma_min"),
        (1, 1, 18, "sigma_min"),
        (0.002, math.inf, 18, "sigma_max"),
        (math.nan, 80, 18, "sigma_min"),
        (0.002, math.nan, 18, "sigma_max"),
        (60, 80, 18, "clipped to the network's range: 60.0, 50"),
        (0.002, 80, 0, "num_steps: 0"),
    ],
)
def test_impossible_ranges_are_refused(sigma_min: float, sigma_max: float, num_steps: int, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        clip_range(sigma_min, sigma_max, allowed=(0, 50 if sigma_min == 60 else math.inf), num_steps=num_steps)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="schedule: unknown schedule 'cosine'"):
        schedule_of("cosine", "none", VP)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="scaling: unknown scaling 'all'"):
        schedule_of("vp", "all", VP)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="discretization: unknown noise grid 'x'"):
        default_range("x", epsilon_s=1e-3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no iddpm level"):
        iddpm_grid(5, sigma_min=1e-5, sigma_max=2e-5, C_1=0.001, C_2=0.008, M=1000)
