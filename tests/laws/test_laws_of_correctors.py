"""What holds of every registered corrector: radii are kept, rows independent, chains cost the same in any order."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import pytest
import torch
from exact import SEEDS, Counting, mixture, second_stream, state
from hypothesis import given, settings
from hypothesis import strategies as st
from registries import a_corrector, a_sampler, draws_behind_gates, sampled
from torch import Tensor

from rods import Chain, Corrected, Corrector, CurvatureIndex, Every, Gate, Within, bind, trajectory
from rods.config import CORRECTORS, SAMPLERS
from rods.correctors import NamedCorrector
from rods.denoiser import norms
from rods.schedules import edm_grid

OF_RADIUS = [name for name in CORRECTORS if "rho" in CORRECTORS[name].__dataclass_fields__]  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", OF_RADIUS)
@settings(max_examples=20, deadline=None)
@given(rho=st.floats(1e-3, 30), sigma=st.floats(0.05, 50))
def test_what_has_a_radius_looks_or_moves_that_far(name: str, rho: float, sigma: float) -> None:
    """Either every point where the network is asked lies at distance rho, or the denoised image moves by rho."""
    asked: list[Tensor] = []

    def remembering(x: Tensor, level: Tensor) -> Tensor:
        asked.append(x.detach())
        return mixture()(x, level)

    cur = state(remembering, sigma, randn_like=second_stream())
    _ = cur.d
    done = a_corrector(name, rho=rho)(cur, None)
    points = [x for x in asked if not torch.equal(x, cur.x)]
    lengths = [norms(x - cur.x) for x in points] or [norms(cur.sigma * (done.d - cur.d))]
    for length in lengths:
        assert ((length / rho - 1).abs() < 1e-9 * (1 + norms(cur.x) / rho)).all()


@pytest.mark.parametrize("name", [n for n in CORRECTORS if "ascent_steps" in CORRECTORS[n].__dataclass_fields__])  # type: ignore[attr-defined]
def test_more_ascent_steps_stay_on_the_sphere(name: str) -> None:
    asked: list[Tensor] = []

    def remembering(x: Tensor, level: Tensor) -> Tensor:
        asked.append(x.detach())
        return mixture()(x, level)

    cur = state(remembering)
    a_corrector(name, rho=0.7, ascent_steps=5)(cur, None)
    assert len(asked) == 6
    for x in asked[1:]:
        assert ((norms(x - cur.x) / 0.7 - 1).abs() < 1e-9).all()


@pytest.mark.parametrize("name", CORRECTORS)
def test_some_rows_are_corrected_as_in_the_whole_batch(name: str) -> None:
    index = torch.tensor([4, 1])
    whole, part = (state(mixture(), randn_like=second_stream()) for _ in range(2))
    correct = a_corrector(name)
    expected = correct(whole, None).d[index]
    torch.testing.assert_close(correct(part.select(index), None).d, expected, rtol=1e-9, atol=1e-9)


# -- chains -----------------------------------------------------------------------------------------------------------


def links() -> dict[str, Corrector]:
    """Each corrector, and gates and windows around CAS."""
    found = {name: a_corrector(name) for name in CORRECTORS}
    gate = Gate(CurvatureIndex(0.3), 0, a_corrector("cas"))
    return {
        **found,
        "cas 3": a_corrector("cas", ascent_steps=3),
        "gate": gate,
        "within": Within((0.5, 1), gate),
        "every": Every(2, gate),
    }


def spent(correct: Corrector) -> tuple[list[int], list[int]]:
    """F and B of each sample over three steps."""
    denoise = bind(Counting(), 6, randn_like=second_stream())
    x = 3 * torch.randn(6, 2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for _ in trajectory(denoise, x, edm_grid(4, sigma_min=0.3, sigma_max=3), correct=correct):
        pass
    return denoise.forward.tolist(), denoise.backward.tolist()


@pytest.mark.parametrize(("a", "b"), list(combinations(links(), 2)))
def test_a_chain_costs_the_same_in_any_order(a: str, b: str) -> None:
    first, second = links()[a], links()[b]
    assert spent(Chain(first, second)) == spent(Chain(second, first))


@pytest.mark.parametrize("name", links())
def test_a_chain_of_one_is_its_corrector(name: str) -> None:
    correct = links()[name]
    ends = []
    for c in (correct, Chain(correct)):
        denoise = bind(mixture(), 6, randn_like=second_stream())
        x = 3 * torch.randn(6, 2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        ends.append(list(trajectory(denoise, x, edm_grid(4, sigma_min=0.3, sigma_max=3), correct=c))[-1])
    assert torch.equal(ends[0].x_next, ends[1].x_next)
    assert torch.equal(ends[0].flagged, ends[1].flagged)


# -- inside a restart, and as samplers --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CORRECTORS)
def test_it_works_inside_a_restart_unless_it_draws(name: str) -> None:
    if draws_behind_gates(name):
        with pytest.raises(ValueError, match=r"^inside: "):
            a_sampler("restart", inside=a_corrector(name))
        return
    sampler: Any = a_sampler("restart", inside=a_corrector(name))
    plain, done = sampled(a_sampler("restart")), sampled(sampler)
    changed = [not torch.equal(a, b) for a, b in zip(plain.images, done.images, strict=True)]
    assert any(changed)
    for has_changed, record in zip(changed, plain.records, strict=True):
        assert record.restart is not None
        assert len(record.restart.scores) > 1 or not has_changed
    part = sampled(sampler, [SEEDS[b] for b in (4, 1)])
    torch.testing.assert_close(part.images, done.images[[4, 1]], rtol=0, atol=1e-12)


def test_a_named_corrector_is_a_sampler() -> None:
    for name, kind in CORRECTORS.items():
        assert (name in SAMPLERS) == issubclass(kind, NamedCorrector)
        if name in SAMPLERS:
            assert isinstance(a_sampler(name), Corrected)
