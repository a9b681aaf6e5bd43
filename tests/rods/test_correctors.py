"""Correctors against closed forms: CAS, SAS, the controls, TAG, IQ and the Laplacian."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from exact import Axes, Stepped, close, dots, isotropic, latents, mixture, normal, second_stream, state
from torch import Tensor

from rods import (
    Cas,
    Corrected,
    Iq,
    IqThrough,
    Laplacian,
    Lid,
    Overshoot,
    RandomShift,
    Sas,
    SgPrev,
    SigmaOffset,
    SigmaWindow,
    Tag,
    bind,
    euler_sampler,
)
from rods.denoiser import norms, unit
from rods.schedules import edm_grid
from rods.trajectory import Corrector

S0, T = 0.5, 2.0


def direction(correct: Corrector, cur: Any) -> Tensor:
    return correct(cur, None).d


def lid(denoiser: Any, x: Tensor, sigma: float, *, noise: Tensor) -> Tensor:
    return Lid(sigma, len(noise)).score(bind(denoiser, len(x)), x, noise=noise)


# -- RODS -------------------------------------------------------------------------------------------------------------


def test_cas_climbs_the_score_norm() -> None:
    """n at the probe is above n at x, and more ascent steps do not lead lower."""
    heights = []
    for steps in (1, 2, 10):
        cur = state(mixture())
        heights.append(norms(direction(Cas(0.5, steps), cur)))
        assert (heights[-1] > norms(cur.d)).all()
    assert (heights[2] >= heights[0] * (1 - 1e-9)).all()
    cur = state(mixture())
    two = 0.5 * unit(cur.uphill(0.5).x - cur.x + 0.5 * unit(cur.uphill(0.5).g))  # the formula, K = 2
    assert torch.equal(direction(Cas(0.5, 2), cur), cur.moved(two).d)


@pytest.mark.parametrize(("sign", "signed"), [("uphill", 1), ("downhill", -1)])
def test_sas_by_its_formula(sign: Any, signed: int) -> None:
    cur = state(mixture())
    x = cur.x + signed * 0.5 * cur.d / norms(cur.d).reshape(-1, 1, 1, 1)
    expected = (x - mixture()(x, cur.sigma)) / cur.sigma
    torch.testing.assert_close(direction(Sas(0.5, sign), cur), expected, rtol=1e-9, atol=1e-12)


# -- the controls -----------------------------------------------------------------------------------------------------


def test_overshoot_by_its_formula() -> None:
    cur = state(mixture())
    moved = direction(Overshoot(0.5), cur)
    lengths = norms(cur.sigma * moved) - norms(cur.sigma * cur.d)
    torch.testing.assert_close(lengths, torch.full_like(lengths, 0.5), rtol=1e-9, atol=0)  # t d grows by rho
    torch.testing.assert_close(unit(moved), unit(cur.d), rtol=0, atol=1e-12)
    at_rest = state(lambda x, sigma: x * 1.0)
    assert torch.equal(direction(Overshoot(0.5), at_rest), torch.zeros_like(at_rest.x))


def test_a_random_shift_belongs_to_its_row() -> None:
    cur = state(mixture(), T, randn_like=second_stream())
    shift = T * (direction(RandomShift(0.7), cur) - cur.d)
    again = state(mixture(), T, randn_like=second_stream())
    index = torch.tensor([4, 1])
    part = again.select(index)
    torch.testing.assert_close(T * (direction(RandomShift(0.7), part) - part.d), shift[index], rtol=1e-9, atol=1e-12)
    assert dots(shift, cur.d).abs().max() < 0.9 * (norms(shift) * norms(cur.d)).min()


def test_sigma_offset_changes_what_the_network_is_told_in_the_window() -> None:
    D = Stepped()
    Corrected(correct=SigmaOffset(0.4), window=(0, 0.5), num_steps=10).sample(D, latents())
    grid = D.round_sigma(edm_grid(10, sigma_min=0.02, sigma_max=40))
    told = torch.where(torch.arange(10) < 5, D.round_sigma((grid * 1.4).clamp(max=40)), grid)
    assert torch.equal(torch.stack(D.asked), told)
    assert told[0] == grid[0]  # 1.4 sigma_max is beyond the network's range
    assert (told[1:5] > 1.3 * grid[1:5]).all()


# -- self-guidance ----------------------------------------------------------------------------------------------------


def test_the_step_before_stands_for_a_worse_network() -> None:
    """D + w (D - D of the step before), from the second step on: the recursion by hand, and an image that it moves."""
    w, sampler = 0.5, Corrected(correct=SgPrev(0.5), window=(0, 1), num_steps=10)
    x, before = 80 * latents().double(), None
    sigmas = [*sampler.levels(mixture()), 0.0]
    for t, t_next in pairwise(sigmas):
        D = mixture()(x, t)
        used = D if before is None else D + w * (D - before)
        x, before = used + t_next / t * (x - used), D
    found = sampler.sample(mixture(), latents()).images
    torch.testing.assert_close(found, x, rtol=0, atol=1e-10)
    assert (found - euler_sampler(mixture(), latents(), num_steps=10)).abs().max() > 0.01


def test_on_a_gaussian_the_step_before_is_a_known_recursion() -> None:
    """D = a(t) x: both the state and what SG-prev makes of it are multiples of the latents."""
    w, sampler = 1.5, Corrected(correct=SgPrev(1.5), window=(0, 1), num_steps=10)
    scale, before = 80.0, None
    for t, t_next in pairwise([*sampler.levels(isotropic()), 0.0]):
        D = S0**2 / (S0**2 + t**2) * scale
        used = D if before is None else D + w * (D - before)
        scale, before = used + t_next / t * (scale - used), D
    found = sampler.sample(isotropic(), latents()).images
    torch.testing.assert_close(found, scale * latents().double(), rtol=1e-11, atol=1e-13)


# -- TAG --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.2])
def test_tag_scales_what_is_perpendicular_to_the_state(eta: float) -> None:
    cur = state(mixture(), T)
    used = direction(Tag(eta), cur)
    n = cur.x / norms(cur.x).reshape(-1, 1, 1, 1)
    torch.testing.assert_close(dots(used, n), dots(cur.d, n), rtol=1e-10, atol=1e-12)
    radial, whole = dots(cur.d, n) ** 2, dots(cur.d, cur.d)
    assert (whole - radial > 1e-3 * whole).all()
    torch.testing.assert_close(dots(used, used), radial + eta**2 * (whole - radial))


def test_tag_changes_nothing_where_all_is_radial() -> None:
    radial = euler_sampler(isotropic(), latents(), num_steps=10)
    found = Corrected(correct=Tag(1.2), window=(0, 1), num_steps=10).sample(isotropic(), latents()).images
    assert close(found, radial, tol=1e-12)
    still = state(mixture(), T, x=torch.zeros(6, 2, 3, 3, dtype=torch.float64))
    assert torch.equal(direction(Tag(1.5), still), still.d * 1.5)  # no radius: all of it is along the sphere


# -- IQ ---------------------------------------------------------------------------------------------------------------


def iq(threshold: float, randn_like: Any = None, x: Tensor | None = None, denoiser: Any = None) -> Any:
    sampler = Corrected(correct=Iq(0.1, threshold, 0.7, 3), window=SigmaWindow(0.3, 8), num_steps=10)
    draw = randn_like or second_stream()
    return sampler.sample(denoiser or mixture(), latents() if x is None else x, randn_like=draw)


def test_iq_on_a_gaussian_is_known() -> None:
    """There E LID is (1 - a)^2 ||x0||^2 / t^2 + const: its gradient is along x0-hat, which becomes shorter."""
    axes = math.sqrt(18) * torch.eye(18, dtype=torch.float64).reshape(18, 1, 2, 3, 3).expand(-1, 6, -1, -1, -1)
    draws = iter(torch.cat([axes, -axes]))
    cur = state(isotropic(), T, randn_like=lambda x: next(draws))
    done = Iq(0.1, 0, 0.7, 36)(cur, None)
    moved = cur.D - 0.1 * norms(cur.D - cur.x).reshape(-1, 1, 1, 1) * cur.D / norms(cur.D).reshape(-1, 1, 1, 1)
    torch.testing.assert_close(cur.x - T * done.d, moved, rtol=1e-9, atol=1e-12)
    assert done.score is not None
    a = S0**2 / (S0**2 + 0.7**2)
    torch.testing.assert_close(done.score, (1 - a) ** 2 * dots(cur.D, cur.D) / 0.7**2 + a**2 * 18)


def test_iq_lowers_the_score_by_a_step_of_known_length() -> None:
    cur = state(mixture(), T, randn_like=second_stream())
    moved = cur.x - T * direction(Iq(1e-3, 0, 0.7, 3), cur)
    torch.testing.assert_close(norms(moved - cur.D), 1e-3 * norms(cur.x - cur.D))
    draw = second_stream()
    e = torch.stack([draw(cur.x) for _ in range(3)])
    assert (lid(mixture(), moved, 0.7, noise=e) < lid(mixture(), cur.D, 0.7, noise=e)).all()


def test_iq_records_its_scores_and_moves_what_is_above_its_threshold() -> None:
    watched = iq(math.inf)
    assert all(record.scores and not record.flagged for record in watched.records)
    threshold = sorted(record.scores[0] for record in watched.records)[2]
    together = iq(threshold)
    assert len({record.flagged for record in together.records}) > 1
    for record in together.records:
        assert 0 < len(record.probed) == len(record.scores) == len(record.sigma)
        assert (record.H, record.H_scaled) == ((), ())
        assert record.flagged == tuple(i for i, s in zip(record.probed, record.scores, strict=True) if s > threshold)


def e_of_lid(cur: Any, x: Tensor, noise: Tensor) -> Tensor:
    """E(x) = LID(D(x; t)) with the same draws  [B]."""
    return lid(mixture(), mixture()(x, cur.sigma), 0.7, noise=noise)


def test_through_d_it_is_the_gradient_of_the_score_by_the_state() -> None:
    """Central differences of E(x) = LID(D(x; t)) along any direction; at D itself they are others."""
    cur = state(mixture(), T)
    noise, h = normal(3, 6, 2, 3, 3, seed=1), 1e-4
    score, gradient = IqThrough(0.1, 0, 0.7, 3).score_and_gradient(cur, noise)
    torch.testing.assert_close(score, e_of_lid(cur, cur.x, noise), rtol=1e-12, atol=0)
    for seed in range(3):
        u = normal(6, 2, 3, 3, seed=seed + 5)
        slope = (e_of_lid(cur, cur.x + h * u, noise) - e_of_lid(cur, cur.x - h * u, noise)) / (2 * h)
        torch.testing.assert_close(dots(gradient, u), slope, rtol=1e-5, atol=1e-7)
    at_D = Iq(0.1, 0, 0.7, 3).score_and_gradient(cur, noise)[1]
    cosine = dots(at_D, gradient) / norms(at_D) / norms(gradient)
    assert (cosine < 0.999).any()


def test_through_a_linear_d_the_gradient_is_multiplied_by_its_matrix() -> None:
    """N(0, diag(lam)): J = lam / (lam + t^2), so that directions in which data do not vary are not moved."""
    lam = torch.linspace(0, 2, 18, dtype=torch.float64).reshape(2, 3, 3)
    cur, noise = state(Axes(lam), T), normal(3, 6, 2, 3, 3, seed=1)
    at_D = Iq(0.1, 0, 0.7, 3).score_and_gradient(cur, noise)[1]
    gradient = IqThrough(0.1, 0, 0.7, 3).score_and_gradient(cur, noise)[1]
    torch.testing.assert_close(gradient, lam / (lam + T**2) * at_D, rtol=1e-10, atol=1e-14)
    assert (gradient[:, 0, 0, 0] == 0).all()
    same = [direction(kind(0.1, 0, 0.7, 3), state(isotropic(), T, randn_like=second_stream()))
            for kind in (Iq, IqThrough)]  # fmt: skip
    torch.testing.assert_close(*same)


def test_the_threshold_grows_with_the_noise_level() -> None:
    cur = state(mixture(), T, randn_like=second_stream())
    done = IqThrough(0.1, 3, 0.7, 3, growth=1.5)(cur, None)
    assert done.score is not None
    middle = float(done.score.sort().values[2:4].mean())
    again = IqThrough(0.1, middle / T**1.5, 0.7, 3, growth=1.5)(state(mixture(), T, randn_like=second_stream()), None)
    assert again.flagged is not None
    assert torch.equal(again.flagged, done.score > middle)
    assert int(again.flagged.sum()) == 3
    assert (norms(again.d - cur.d) > 0).equal(again.flagged)


# -- the Laplacian ----------------------------------------------------------------------------------------------------


def signs(n: int) -> Tensor:
    """A Hadamard matrix [n, n]: its rows are n vectors z of +-1 with sum z z^T = n I; n a power of 2."""
    sylvester = torch.tensor([[1, 1], [1, -1]], dtype=torch.float64)
    return torch.ones(1, 1, dtype=torch.float64) if n == 1 else torch.kron(signs(n // 2), sylvester)


def test_the_laplacian_of_a_known_field() -> None:
    """d_j = x_j ||x||^2 has Laplacian(d)_j = (2 n + 4) x_j; second differences of a cubic are exact."""
    n, strength = 16, 0.01

    def cubic(x: Tensor, sigma: Tensor) -> Tensor:
        return x - sigma * x * dots(x, x).reshape(-1, 1, 1, 1)

    x = torch.randn(3, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    probes = iter(signs(n).reshape(n, 1, 1, 4, 4).expand(-1, 3, -1, -1, -1))
    cur = state(cubic, T, x=x, randn_like=lambda x: next(probes))
    done = Laplacian(strength, n, 0.1)(cur, None)
    torch.testing.assert_close(done.d, cur.d - strength * T**2 * (2 * n + 4) * x, rtol=1e-9, atol=1e-9)


def test_the_laplacian_of_a_linear_field_is_none() -> None:
    plain = euler_sampler(isotropic(), latents(), num_steps=10)
    sampler = Corrected(correct=Laplacian(0.3), window=(0.1, 0.5), num_steps=10)
    assert close(sampler.sample(isotropic(), latents()).images, plain, tol=1e-9)


# -- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "option"),
    [
        (lambda: Cas(-1), "rho"),
        (lambda: Cas(1, 0), "ascent_steps"),
        (lambda: Sas(1, "up"), "sas_sign"),  # type: ignore[arg-type]
        (lambda: Overshoot(-1), "rho"),
        (lambda: SigmaOffset(-1), "kappa"),
        (lambda: Tag(math.nan), "eta"),
        (lambda: SgPrev(math.inf), "strength"),
        (lambda: RandomShift(math.inf), "rho"),
        (lambda: Laplacian(math.nan), "strength"),
        (lambda: Laplacian(1, probes=0), "probes"),
        (lambda: Laplacian(1, probe_radius=0), "probe_radius"),
        (lambda: Iq(-1, 0), "strength"),
        (lambda: Iq(1, math.nan), "threshold"),
        (lambda: Iq(1, 1, draws=0), "draws"),
        (lambda: Iq(1, 1, lid_sigma=0), "lid_sigma"),
        (lambda: IqThrough(1, 1, growth=math.inf), "growth"),
        (lambda: Corrected(correct=Tag(1), window=(0.5, 0.1)), "window"),
    ],
)
def test_bad_options_are_one_line_that_names_the_option(make: Callable[[], Any], option: str) -> None:
    with pytest.raises(ValueError, match=f"^{option}: ") as error:
        make()
    assert "\n" not in str(error.value)
