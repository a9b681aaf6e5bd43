"""Within, Gate, Every and Chain, and detectors and correctors of one's own in them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from exact import Counting, golden, latents, mixture, state
from torch import Tensor

from rods import (
    Cas,
    Chain,
    Correction,
    Corrector,
    CurvatureIndex,
    Every,
    Gate,
    Lid,
    Sas,
    State,
    Step,
    StepDetector,
    Within,
    bind,
    curvature_index,
    rods_sampler,
    trajectory,
)
from rods.denoiser import unit
from rods.schedules import edm_grid
from rods.types import Probe

EPS2 = float(golden("rods/mixture")["eps_gate2"])
PROBED = Gate(CurvatureIndex(0.1), EPS2, Cas(0.1))


def run(correct: Any, denoiser: Any = None) -> Any:
    t = golden("rods/mixture")["t_steps"]
    return trajectory(denoiser or mixture(), t[0] * latents(), t, correct=correct)


# -- of one's own -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class EveryKth(StepDetector):
    """Score 1 for rows whose index in the batch is a multiple of k."""

    k: int
    reads_gradient = False

    def measure(self, cur: State, *, noise: Tensor | None = None) -> Tensor:
        assert len(cur.x) == len(cur.denoise.index)
        return (cur.denoise.index % self.k == 0).double()


@dataclass(frozen=True)
class Less(Corrector):
    """A fifth of the direction; notes when it was asked, and checks the step before."""

    asked: list[int] = field(default_factory=list, compare=False)

    def __call__(self, cur: State, prev: Step | None) -> Correction:
        assert prev is None or (prev.i == cur.i - 1 and torch.equal(prev.x_next, cur.x))
        self.asked.append(cur.i)
        return Correction(0.2 * cur.d)


def test_detectors_and_correctors_of_ones_own_plug_in() -> None:
    t = edm_grid(6, sigma_min=0.01, sigma_max=10)
    even, third, less = EveryKth(k=2), EveryKth(k=3), Less()
    for step in trajectory(mixture(), 10 * latents(), t, correct=Gate(even, 1, Gate(third, 1, less))):
        assert step.flagged.tolist() == [True, False, False, False, False, False]  # even, and a third
        assert step.score is not None
        assert step.score.tolist() == [1, 0, 1, 0, 1, 0]
        assert torch.equal(step.d_used[1:], step.d[1:])
        torch.testing.assert_close(step.d_used[0], 0.2 * step.d[0])
    for step in trajectory(mixture(), 10 * latents(), t, correct=Chain(Gate(even, 1, less), less)):
        assert step.flagged.all()
        scale = torch.tensor([0.04, 0.2] * 3, dtype=torch.float64).reshape(-1, 1, 1, 1)
        torch.testing.assert_close(step.d_used, scale * step.d)
    for step in trajectory(mixture(), 10 * latents(), t, correct=Chain(Within((0, 0.5), less), Gate(even, 1, less))):
        assert step.flagged.tolist() == ([True] * 6 if step.i < 2.5 else [True, False] * 3)


def test_a_gate_needs_a_detector_of_steps_and_a_threshold() -> None:
    for make, option in (
        (lambda: Gate(Lid(), 1, Cas(1)), "detector"),
        (lambda: Gate(EveryKth(k=2), -1, Cas(1)), "eps"),
        (lambda: Every(0, Cas(1)), "probe_every"),
        (lambda: Within((0.5, 0.1), Cas(1)), "window"),
    ):
        with pytest.raises(ValueError, match=f"^{option}: "):
            make()


# -- probes at every k-th step ----------------------------------------------------------------------------------------


def test_between_probes_the_last_flags_and_direction_stand() -> None:
    kept, counts = None, set()
    for step in run(Within((0.1, 0.5), Every(3, PROBED))):
        if not 4 <= step.i < 20:
            assert step.probe is None
            assert not step.flagged.any()
            continue
        if (step.i - 4) % 3 == 0:
            H = curvature_index(mixture(), step.x, step.sigma, rho=0.1)
            torch.testing.assert_close(step.score, H, rtol=1e-9, atol=1e-12)
            assert torch.equal(step.flagged, step.score >= EPS2)
            kept = Probe(step.i, unit(state(mixture(), float(step.sigma), x=step.x).g), step.flagged)
        else:
            assert step.score is None
            assert torch.equal(step.flagged, kept.flagged)
            assert torch.equal(step.d_used[~step.flagged], step.d[~step.flagged])
        assert step.probe.i == kept.i
        torch.testing.assert_close(step.probe.u, kept.u, rtol=0, atol=1e-12)
        probe = step.x + 0.1 * kept.u
        d = (probe - mixture()(probe, step.sigma)) / step.sigma
        torch.testing.assert_close(step.d_used[step.flagged], d[step.flagged], rtol=1e-9, atol=1e-12)
        counts.add(int(step.flagged.sum()))
    assert len(counts) > 1


def test_between_probes_cas_is_one_evaluation_at_the_worst_point() -> None:
    bound = bind(mixture(), 6)
    for step in run(Within((0.1, 0.5), Every(3, PROBED)), bound):
        held = step.probe is not None and step.probe.i < step.i
        at = step.x + 0.1 * step.probe.u * step.flagged[:, None, None, None] if held else step.x
        torch.testing.assert_close(step.at, at, rtol=0, atol=1e-12)
        torch.testing.assert_close(step.denoised, mixture()(step.at, step.sigma), rtol=0, atol=1e-12)
        torch.testing.assert_close(step.d, (step.at - step.denoised) / step.sigma, rtol=0, atol=1e-9)
    assert bound.forward.tolist() == [46] * 6, "two evaluations at six probes of 16 steps, one everywhere else"


def test_sas_between_probes_looks_along_its_own_direction() -> None:
    for step in run(Within((0.1, 0.5), Every(4, Gate(CurvatureIndex(0.1), 0, Sas(0.1))))):
        if 4 <= step.i < 20:
            cur = state(mixture(), float(step.sigma), x=step.x)
            torch.testing.assert_close(step.d_used, Sas(0.1)(cur, None).d, rtol=1e-9, atol=1e-12)


def test_who_is_asked_when() -> None:
    """`Every` begins with the window, goes on within a chain, and with k = 1 is its corrector."""
    less = Less()
    held = Within((0.1, 0.5), Every(5, Gate(EveryKth(k=7), 2, Cas(0))))
    assert [step.i for step in run(held) if step.score is not None] == [4, 9, 14, 19]
    for correct in (Chain(held, less), Chain(less, held)):
        assert [step.i for step in run(correct) if step.score is not None] == [4, 9, 14, 19]
    less.asked.clear()
    list(run(Within((0.1, 0.5), Every(1, less))))
    assert less.asked == list(range(4, 20))


def test_rows_of_a_step_have_their_probe() -> None:
    steps = list(run(Within((0.1, 0.5), Every(3, PROBED))))
    index = torch.tensor([5, 2])
    part = steps[5].select(index)
    assert part.probe.i == steps[5].probe.i == 4
    assert torch.equal(part.probe.u, steps[5].probe.u[index])
    assert torch.equal(part.probe.flagged, steps[5].probe.flagged[index])
    assert steps[0].select(index).probe is None


# -- what the cheaper forms of RODS cost ------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["cas", "sas"])
def test_between_probes_only_flagged_rows_of_sas_cost_more(method: Any) -> None:
    result = rods_sampler(mixture(), latents(), method=method, eps=EPS2, rho=0.1, probe_every=4, gradient="difference")
    assert len({record.flagged for record in result.records}) > 1
    for record in result.records:
        assert record.probed == (4, 8, 12, 16)
        assert record.forward == 40 + 3 * 4 + (len(record.flagged) if method == "sas" else 0)


def test_a_gate_costs_nothing_where_it_flags_none() -> None:
    count = Counting(mixture())
    sigmas = edm_grid(6, sigma_min=0.01, sigma_max=10)
    end = list(trajectory(count, 10 * latents(), sigmas, correct=Gate(EveryKth(k=7), 2, Cas(0.3))))[-1].x_next
    assert (count.forward, count.backward) == (30, 0)
    assert torch.equal(end, list(trajectory(mixture(), 10 * latents(), sigmas))[-1].x_next)
