"""RODS for fewer passes: the gradient by a finite difference, and probes at every k-th step of the window."""

from __future__ import annotations

import math
import sys
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from exact import GOLDEN, Axes, Counting, close, golden, latents, mixture
from torch import Tensor

import rods.evaluation
from rods import (
    BoundDenoiser,
    Correction,
    Point,
    Step,
    bind,
    cas,
    chain,
    curvature_index,
    euler_sampler,
    gate,
    gaussian,
    h_index,
    rods_sampler,
    sas,
    trajectory,
    within,
)
from rods.bench.gradients import compare_gradients, table
from rods.correctors import every
from rods.detectors import curvature
from rods.evaluation import norms, unit
from rods.types import Probe

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))

import compare_gradients as command

EPS = float(golden("rods/mixture")["eps_gate"])
EPS2 = float(golden("rods/mixture")["eps_gate2"])
LEVELS = [0.05, 0.3, 2.0, 30.0]


def a_point(denoiser: Any, sigma: float, gradient: Any = "difference") -> Point:
    x = math.sqrt(0.25 + sigma**2) * latents().double()
    return Point(bind(denoiser, 6), x, torch.tensor(sigma, dtype=torch.float64), gradient=gradient)


# -- the finite difference --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", LEVELS)
def test_on_gaussians_the_difference_is_the_gradient(sigma: float) -> None:
    """v = A x is linear: the difference has no error but rounding."""
    axes = Axes(torch.linspace(0.1, 4, 18, dtype=torch.float64).reshape(2, 3, 3))
    for density in (axes, gaussian(torch.zeros(2, 3, 3), 0.5)):
        by_difference, by_backward = a_point(density, sigma), a_point(density, sigma, "backward")
        assert close(by_difference.g, by_backward.g, tol=1e-9)
        H, known = curvature(by_difference, 0.5), curvature(by_backward, 0.5)
        assert ((H - known).abs() <= 1e-9 * norms(by_backward.g)).all()
    assert close(a_point(axes, sigma).g, axes.g(a_point(axes, sigma).x, sigma), tol=1e-9)


@pytest.mark.parametrize("sigma", LEVELS)
def test_on_mixtures_the_difference_is_of_first_order_in_its_length(
    sigma: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    g = a_point(mixture(), sigma, "backward").g
    errors = []
    for h in (0.002, 0.001):
        monkeypatch.setattr(rods.evaluation, "DIFFERENCE", h)
        errors.append(norms(a_point(mixture(), sigma).g - g).max())
    assert errors[0] < 0.01 * norms(g).max()
    assert errors[1] < 0.6 * errors[0] or errors[0] < 1e-9 * norms(g).max()


def test_where_the_jacobian_is_not_symmetric_they_differ() -> None:
    """v = M x: the backward gives M^T v / ||v||, the difference M v / ||v||."""
    M = torch.randn(18, 18, dtype=torch.float64, generator=torch.Generator().manual_seed(7))

    def crooked(x: Tensor, sigma: Tensor) -> Tensor:
        return x - sigma**2 * (x.flatten(1) @ M.T).reshape(x.shape)

    v = (a_point(crooked, 2.0).x.flatten(1) @ M.T) / norms(a_point(crooked, 2.0).d / 2)[:, None]
    assert close(a_point(crooked, 2.0).g.flatten(1), v @ M.T, tol=1e-9)
    assert close(a_point(crooked, 2.0, "backward").g.flatten(1), v @ M, tol=1e-9)


def test_points_made_of_a_point_keep_its_gradient() -> None:
    cur = a_point(mixture(), 2.0)
    index = torch.tensor([3, 1])
    for point in (cur.moved(cur.x), cur.uphill(0.1), cur.using(2 * cur.d), cur.towards(cur.d), cur.rows(index)):
        assert point.gradient == "difference"
    other = cur.using(2 * cur.d)
    assert torch.equal(other.d, 2 * cur.d)
    torch.testing.assert_close(cur.rows(index).g, cur.g[index], rtol=0, atol=1e-12)


def test_guards() -> None:
    """No direction: g = 0 and H = 0; NaN stays in the image and out of H, and a sample's mates are not touched."""
    still = a_point(lambda x, sigma: x * 1.0, 2.0)
    assert torch.equal(still.g, torch.zeros_like(still.x))
    assert curvature(still, 3.0).tolist() == [0.0] * 6

    def broken(x: Tensor, sigma: Tensor) -> Tensor:
        return mixture()(x, sigma) * torch.tensor([1, math.nan, 1, 1, 1, 1][: len(x)]).reshape(-1, 1, 1, 1)

    whole = rods_sampler(mixture(), latents(), eps=math.inf, rho=0.1, gradient="difference", probe_every=2)
    result = rods_sampler(broken, latents(), eps=math.inf, rho=0.1, gradient="difference", probe_every=2)
    assert result.images[1].isnan().all()
    assert set(result.records[1].H) == {0.0}
    assert torch.equal(result.images[2:], whole.images[2:])
    assert result.records[2:] == whole.records[2:]


def test_finals_are_near_those_of_the_backward() -> None:
    for method in ("cas", "sas"):
        options: dict[str, Any] = {"eps": 0, "rho": 0.1, "method": method}
        full = rods_sampler(mixture(), latents(), **options)
        cheap = rods_sampler(mixture(), latents(), gradient="difference", **options)
        assert close(cheap.images, full.images, tol=1e-2)
        for a, b in zip(cheap.records, full.records, strict=True):
            assert all(abs(h - known) <= 0.1 * known for h, known in zip(a.H, b.H, strict=True))


def test_the_comparison_says_where_the_difference_will_do() -> None:
    """Symmetric: cosine 1. v = M x, M far from symmetric: the cosine of M v and M^T v, and H of either."""
    axes = Axes(torch.linspace(0.1, 4, 18, dtype=torch.float64).reshape(2, 3, 3))
    for row in compare_gradients(axes, latents(), num_steps=6, rho=0.1):
        assert row.difference_least > 1 - 1e-9
        assert row.H_error < 1e-4
    M = torch.eye(18, dtype=torch.float64) + 0.2 * torch.randn(
        18, 18, dtype=torch.float64, generator=torch.Generator().manual_seed(7)
    )

    def crooked(x: Tensor, sigma: Tensor) -> Tensor:
        return x - 1e-3 * sigma**2 * (x.flatten(1) @ M.T).reshape(x.shape)

    rows = compare_gradients(crooked, latents(), num_steps=3, rho=0.1)
    v = 80 * latents().double().flatten(1) @ M.T
    expected = torch.cosine_similarity(v @ M, v @ M.T).median()
    assert rows[0].difference == pytest.approx(float(expected), rel=1e-6)
    assert rows[0].d == pytest.approx(float(torch.cosine_similarity(v @ M, v).median()), rel=1e-6)
    assert expected < 0.95
    lines = table(rows).splitlines()
    assert len(lines) == 4
    assert lines[1].split()[:2] == ["0", "80.0000"]


def test_the_command_prints_a_line_per_step() -> None:
    network = f"--network={GOLDEN / 'pickles' / 'edm-ddpmpp-uncond.pkl'}"
    result = CliRunner().invoke(command.main, [network, "--batch=1", "--steps=2", "--rho=.1"])
    assert result.exit_code == 0, result.output
    assert len(result.output.splitlines()) == 5
    assert "1 samples, rho 0.1" in result.output
    missing = CliRunner().invoke(command.main, ["--network=nowhere.pkl"])
    assert missing.exit_code == 2
    assert "nowhere.pkl: there is no such file" in missing.output


# -- passes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "forward", "backward"),
    [
        ({"gradient": "difference", "detect": False}, 72, 0),  # 16 steps in the window: 3F
        ({"gradient": "difference"}, 88, 0),  # 4F
        ({"gradient": "difference", "eps": math.inf}, 88, 0),
        ({"gradient": "difference", "method": "sas"}, 104, 0),  # the SAS point is one more
        ({"gradient": "difference", "ascent_steps": 3, "detect": False}, 136, 0),  # 7F
        ({"gradient": "difference", "solver": "heun"}, 127, 0),
        ({"probe_every": 4, "detect": False}, 44, 4),  # B at steps 4, 8, 12, 16 only, and one F between
        ({"probe_every": 4}, 44, 8),
        ({"probe_every": 4, "ascent_steps": 2, "detect": False}, 72, 20),  # g at x + rho u in all steps
        ({"probe_every": 4, "eps": math.inf}, 44, 8),  # nobody is flagged: F between the probes
        ({"probe_every": 4, "method": "sas"}, 60, 8),
        ({"probe_every": 3, "detect": False, "gradient": "difference"}, 52, 0),  # 6 probes
        ({"probe_every": 100, "gradient": "difference"}, 43, 0),
    ],
)
def test_records_tell_the_passes_that_were_made(options: dict[str, Any], forward: int, backward: int) -> None:
    count = Counting(mixture())
    result = rods_sampler(count, latents(), **{"eps": 0, "rho": 0.1, **options})
    assert [(r.forward, r.backward) for r in result.records] == [(forward, backward)] * 6
    assert (count.forward, count.backward) == (6 * forward, 6 * backward)


@pytest.mark.parametrize("method", ["cas", "sas"])
def test_between_probes_only_flagged_rows_of_sas_cost_more(method: Any) -> None:
    result = rods_sampler(mixture(), latents(), method=method, eps=EPS2, rho=0.1, probe_every=4, gradient="difference")
    assert len({record.flagged for record in result.records}) > 1
    for record in result.records:
        assert record.probed == (4, 8, 12, 16)
        assert record.forward == 40 + 3 * 4 + (len(record.flagged) if method == "sas" else 0)


# -- defaults, and what must not change -------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["cas", "sas"])
@pytest.mark.parametrize("eps", [0, EPS2])
def test_the_defaults_are_a_backward_at_every_step(method: Any, eps: float) -> None:
    default = rods_sampler(mixture(), latents(), method=method, eps=eps, rho=0.1)
    t = golden("rods/mixture")["t_steps"]
    correct = within((0.1, 0.5), gate(h_index(0.1), eps, {"cas": cas, "sas": sas}[method](0.1)))
    steps = list(trajectory(mixture(), t[0] * latents(), t, correct=correct))
    said = rods_sampler(mixture(), latents(), method=method, eps=eps, rho=0.1, gradient="backward", probe_every=1)
    assert torch.equal(default.images, said.images)
    assert default.records == said.records
    assert close(default.images, steps[-1].x_next, tol=1e-9)
    assert all(step.probe is None for step in steps)


CHEAP = [
    {"gradient": "difference"},
    {"probe_every": 2},
    {"gradient": "difference", "probe_every": 2, "method": "sas"},
    {"gradient": "difference", "probe_every": 4, "solver": "heun"},
]


@pytest.mark.parametrize("options", CHEAP)
def test_nothing_is_corrected_at_eps_inf_or_rho_0(options: dict[str, Any]) -> None:
    if "solver" not in options:
        plain = euler_sampler(mixture(), latents())
        assert torch.equal(rods_sampler(mixture(), latents(), eps=math.inf, rho=0.1, **options).images, plain)
        assert torch.equal(rods_sampler(mixture(), latents(), eps=0, rho=0, **options).images, plain)


@pytest.mark.parametrize("options", CHEAP)
def test_samples_do_not_depend_on_their_mates(options: dict[str, Any]) -> None:
    whole = rods_sampler(mixture(), latents(), eps=EPS2, rho=0.1, **options)
    assert len({record.flagged for record in whole.records}) > 1
    for b in range(6):
        alone = rods_sampler(mixture(), latents()[b : b + 1], eps=EPS2, rho=0.1, **options)
        torch.testing.assert_close(alone.images[0], whole.images[b], rtol=0, atol=1e-11)
        assert alone.records[0].flagged == whole.records[b].flagged
        assert alone.records[0].forward == whole.records[b].forward


# -- probes at every k-th step ----------------------------------------------------------------------------------------


def run(correct: Any, denoiser: Any = None) -> Any:
    t = golden("rods/mixture")["t_steps"]
    return trajectory(denoiser or mixture(), t[0] * latents(), t, correct=correct)


def test_between_probes_the_last_flags_and_direction_stand() -> None:
    correct = within((0.1, 0.5), every(3, gate(h_index(0.1), EPS2, cas(0.1)), cas(0.1)))
    kept, states = None, set()
    for step in run(correct):
        if not 4 <= step.i < 20:
            assert step.probe is None
            assert not step.flagged.any()
            continue
        if (step.i - 4) % 3 == 0:
            H = curvature_index(mixture(), step.x, step.sigma, rho=0.1)
            torch.testing.assert_close(step.score, H, rtol=1e-9, atol=1e-12)
            assert torch.equal(step.flagged, step.score >= EPS2)
            kept = Probe(step.i, unit(Point(bind(mixture(), 6), step.x, step.sigma).g), step.flagged)
        else:
            assert step.score is None
            assert torch.equal(step.flagged, kept.flagged)
            assert torch.equal(step.d_used[~step.flagged], step.d[~step.flagged])
        assert step.probe.i == kept.i
        torch.testing.assert_close(step.probe.u, kept.u, rtol=0, atol=1e-12)
        probe = step.x + 0.1 * kept.u
        d = (probe - mixture()(probe, step.sigma)) / step.sigma
        torch.testing.assert_close(step.d_used[step.flagged], d[step.flagged], rtol=1e-9, atol=1e-12)
        states.add(int(step.flagged.sum()))
    assert len(states) > 1


def test_one_evaluation_at_the_worst_point_takes_the_same_steps() -> None:
    probed, correct = gate(h_index(0.1), EPS2, cas(0.1)), cas(0.1)
    dear = list(run(within((0.1, 0.5), every(3, probed, correct))))
    bound = bind(mixture(), 6)
    cheap = list(run(within((0.1, 0.5), every(3, probed, correct, rho=0.1)), bound))
    for a, b in zip(cheap, dear, strict=True):
        torch.testing.assert_close(a.x_next, b.x_next, rtol=0, atol=1e-12)
        assert torch.equal(a.flagged, b.flagged)
        held = a.probe is not None and a.probe.i < a.i
        at = a.x + 0.1 * a.probe.u * a.flagged[:, None, None, None] if held else a.x
        torch.testing.assert_close(a.denoised, mixture()(at, a.sigma), rtol=0, atol=1e-12)
        torch.testing.assert_close(a.d, (at - a.denoised) / a.sigma, rtol=0, atol=1e-9) if not held else None
    assert bound.forward.tolist() == [46] * 6, "two evaluations at six probes of 16 steps, one everywhere else"


def test_sas_between_probes_looks_along_its_own_direction() -> None:
    for step in run(within((0.1, 0.5), every(4, gate(h_index(0.1), 0, sas(0.1)), sas(0.1)))):
        if 4 <= step.i < 20:
            cur = Point(bind(mixture(), 6), step.x, step.sigma)
            torch.testing.assert_close(step.d_used, sas(0.1)(cur.denoise, None, cur).d, rtol=1e-9, atol=1e-12)


def test_two_runs_at_once_do_not_disturb_each_other() -> None:
    """All that is kept between steps is in the steps: one corrector serves two generators that take turns."""
    correct = within((0.1, 0.5), every(3, gate(h_index(0.1), EPS2, cas(0.1)), cas(0.1)))
    other = gaussian(torch.ones(2, 3, 3), 0.3)
    alone = [list(run(correct)), list(run(correct, other))]
    for pair in zip_longest(run(correct), run(correct, other)):
        for step, steps in zip(pair, alone, strict=True):
            assert torch.equal(step.x_next, steps[step.i].x_next)


def test_who_is_asked_when() -> None:
    """`every` begins with the window, goes on within a chain, and with k = 1 is the probed corrector itself."""
    seen: list[int] = []

    def probed(denoise: BoundDenoiser, prev: Step | None, cur: Point) -> Correction:
        seen.append(cur.i)
        return Correction(0.9 * cur.d)

    assert every(1, probed, cas(1)) is probed
    held = within((0.1, 0.5), every(5, probed, cas(0)))
    for correct in (held, chain(held, cas(0)), chain(cas(0), held)):
        seen.clear()
        list(run(correct))
        assert seen == [4, 9, 14, 19]


def test_rows_of_a_step_have_their_probe() -> None:
    steps = list(run(within((0.1, 0.5), every(3, gate(h_index(0.1), EPS2, cas(0.1)), cas(0.1)))))
    index = torch.tensor([5, 2])
    part = steps[5].rows(index)
    assert part.probe.i == steps[5].probe.i == 4
    assert torch.equal(part.probe.u, steps[5].probe.u[index])
    assert torch.equal(part.probe.flagged, steps[5].probe.flagged[index])
    assert steps[0].rows(index).probe is None
