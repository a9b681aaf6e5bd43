"""The rivals that change a trajectory: TAG, IQ, the Laplacian and the random control, against closed forms and laws."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import generated
from exact import Counting, close, latents, mixture
from torch import Tensor
from vectors import ROOT

from rods import (
    Point,
    RodsResult,
    SigmaWindow,
    bind,
    euler_sampler,
    gaussian,
    iq,
    iq_sampler,
    laplacian,
    laplacian_sampler,
    lid,
    lid_gradient,
    random_sampler,
    random_shift,
    tag,
    tag_sampler,
)
from rods.evaluation import norms
from rods.pipeline import SAMPLERS
from torch_utils.rng import SeedStreams

CPU = torch.device("cpu")
SEEDS = [11, 3, 7, 29, 5, 2]
S0, T = 0.5, 2.0
IQ: dict[str, Any] = {"strength": 0.1, "threshold": 0, "window": SigmaWindow(0.3, 8), "lid_sigma": 0.7, "draws": 3}


def noise(seeds: list[int] = SEEDS) -> Callable[[Tensor], Tensor]:
    return SeedStreams(seeds, CPU).second().randn_like


def a_point(denoiser: Any) -> Point:
    return Point(bind(denoiser, 6), T * latents().double(), torch.tensor(T, dtype=torch.float64))


def dots(x: Tensor, y: Tensor) -> Tensor:
    return (x * y).flatten(1).sum(dim=1)


def isotropic():  # type: ignore[no-untyped-def]
    return gaussian(torch.zeros(2, 3, 3), S0)


# -- tag --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.2])
def test_tag_scales_what_is_perpendicular_to_the_state(eta: float) -> None:
    cur = a_point(mixture())
    used = tag(eta)(cur.denoise, None, cur).d
    n = cur.x / norms(cur.x).reshape(-1, 1, 1, 1)
    torch.testing.assert_close(dots(used, n), dots(cur.d, n), rtol=1e-10, atol=1e-12)
    radial, whole = dots(cur.d, n) ** 2, dots(cur.d, cur.d)
    assert (whole - radial > 1e-3 * whole).all()
    torch.testing.assert_close(dots(used, used), radial + eta**2 * (whole - radial))


def test_tag_changes_nothing_at_eta_1_nor_where_all_is_radial() -> None:
    plain = euler_sampler(mixture(), latents(), num_steps=10)
    assert torch.equal(tag_sampler(mixture(), latents(), eta=1, num_steps=10), plain)
    assert torch.equal(tag_sampler(mixture(), latents(), eta=1.2, window=(0.5, 0.5), num_steps=10), plain)
    assert not close(tag_sampler(mixture(), latents(), eta=1.2, num_steps=10), plain, tol=1e-3)
    radial = euler_sampler(isotropic(), latents(), num_steps=10)
    assert close(tag_sampler(isotropic(), latents(), eta=1.2, num_steps=10), radial, tol=1e-12)
    still = Point(bind(mixture(), 6), torch.zeros(6, 2, 3, 3, dtype=torch.float64), torch.tensor(T))
    assert torch.equal(
        tag(1.5)(still.denoise, None, still).d, still.d * 1.5
    )  # no radius: all of it is along the sphere


# -- the random control -----------------------------------------------------------------------------------------------


def test_a_random_shift_moves_the_denoised_image_by_rho() -> None:
    cur = a_point(mixture())
    shift = T * (random_shift(0.7, noise())(cur.denoise, None, cur).d - cur.d)
    torch.testing.assert_close(norms(shift), torch.full([6], 0.7, dtype=torch.float64))
    index = torch.tensor([4, 1])
    rows = cur.rows(index)
    part = T * (random_shift(0.7, noise())(rows.denoise, None, rows).d - rows.d)
    torch.testing.assert_close(part, shift[index], rtol=1e-9, atol=1e-12)
    assert dots(shift, cur.d).abs().max() < 0.9 * (norms(shift) * norms(cur.d)).min()


def test_random_at_rho_0_is_euler() -> None:
    plain = euler_sampler(mixture(), latents(), num_steps=10)
    assert torch.equal(random_sampler(mixture(), latents(), rho=0, num_steps=10), plain)
    assert not torch.equal(random_sampler(mixture(), latents(), rho=0.1, num_steps=10, randn_like=noise()), plain)


# -- iq ---------------------------------------------------------------------------------------------------------------


def iq_run(denoiser: Any = None, x: Tensor | None = None, **options: Any) -> RodsResult:
    given = {"randn_like": noise(), "num_steps": 10, **IQ, **options}
    return iq_sampler(denoiser or mixture(), latents() if x is None else x, **given)


def test_the_gradient_is_that_of_lid() -> None:
    draw = noise()
    x = latents().double()
    e = torch.stack([draw(x) for _ in range(3)])
    score, gradient = lid_gradient(mixture(), x, 0.7, noise=e)
    torch.testing.assert_close(score, lid(mixture(), x, 0.7, noise=e))
    step = draw(x)
    ahead, behind = (lid(mixture(), x + h * step, 0.7, noise=e) for h in (1e-6, -1e-6))
    torch.testing.assert_close(dots(gradient, step), (ahead - behind) / 2e-6, rtol=1e-5, atol=1e-7)


def test_iq_on_a_gaussian_is_known() -> None:
    """There E LID is (1 - a)^2 ||x0||^2 / t^2 + const: its gradient is along x0-hat, which becomes shorter."""
    cur = a_point(isotropic())
    axes = math.sqrt(18) * torch.eye(18, dtype=torch.float64).reshape(18, 1, 2, 3, 3).expand(-1, 6, -1, -1, -1)
    draws = iter(torch.cat([axes, -axes]))
    done = iq(0.1, 0, sigma=0.7, draws=36, randn_like=lambda x: next(draws))(cur.denoise, None, cur)
    D = cur.denoised
    moved = D - 0.1 * norms(D - cur.x).reshape(-1, 1, 1, 1) * D / norms(D).reshape(-1, 1, 1, 1)
    torch.testing.assert_close(cur.x - T * done.d, moved, rtol=1e-9, atol=1e-12)
    assert done.score is not None
    a = S0**2 / (S0**2 + 0.7**2)
    torch.testing.assert_close(done.score, (1 - a) ** 2 * dots(D, D) / 0.7**2 + a**2 * 18)


def test_iq_lowers_the_score_by_a_step_of_known_length() -> None:
    cur = a_point(mixture())
    done = iq(1e-3, 0, sigma=0.7, draws=3, randn_like=noise())(cur.denoise, None, cur)
    moved = cur.x - T * done.d
    torch.testing.assert_close(norms(moved - cur.denoised), 1e-3 * norms(cur.x - cur.denoised))
    draw = noise()
    e = torch.stack([draw(cur.x) for _ in range(3)])
    assert (lid(mixture(), moved, 0.7, noise=e) < lid(mixture(), cur.denoised, 0.7, noise=e)).all()


def test_iq_without_strength_or_above_every_score_is_euler() -> None:
    plain = euler_sampler(mixture(), latents(), num_steps=10)
    for options in ({"strength": 0}, {"threshold": math.inf}, {"window": SigmaWindow(90, 99)}):
        assert torch.equal(iq_run(**options).images, plain)
    assert all(record.scores and not record.flagged for record in iq_run(threshold=math.inf).records)


def test_iq_knows_no_mates_and_counts_its_passes() -> None:
    counting = Counting(mixture())
    scores = sorted(record.scores[0] for record in iq_run(threshold=math.inf).records)
    together = iq_run(counting, threshold=scores[2])
    assert len({record.flagged for record in together.records}) > 1
    for record in together.records:
        inside = len(record.probed)
        assert 0 < inside == len(record.scores) == len(record.sigma)
        assert (record.H, record.H_scaled) == ((), ())
        assert record.flagged == tuple(i for i, s in zip(record.probed, record.scores, strict=True) if s > scores[2])
        assert (record.forward, record.backward) == (10 + 3 * inside, 3 * inside)
    assert counting.forward == sum(record.forward for record in together.records)
    assert counting.backward == sum(record.backward for record in together.records)
    for b in range(6):
        alone = iq_run(x=latents()[b, None], threshold=scores[2], randn_like=noise([SEEDS[b]]))
        torch.testing.assert_close(alone.images[0], together.images[b], rtol=0, atol=1e-12)


# -- laplacian --------------------------------------------------------------------------------------------------------


def signs(n: int) -> Tensor:
    """A Hadamard matrix [n, n]: its rows are n vectors z of +-1 with sum z z^T = n I; n a power of 2."""
    return torch.ones(1, 1, dtype=torch.float64) if n == 1 else torch.kron(signs(n // 2), SYLVESTER)


SYLVESTER = torch.tensor([[1, 1], [1, -1]], dtype=torch.float64)


def test_the_laplacian_of_a_known_field() -> None:
    """d_j = x_j ||x||^2 has Laplacian(d)_j = (2 n + 4) x_j; second differences of a cubic are exact."""
    n, strength = 16, 0.01

    def cubic(x: Tensor, sigma: Tensor) -> Tensor:
        return x - sigma * x * dots(x, x).reshape(-1, 1, 1, 1)

    x = torch.randn(3, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    probes = iter(signs(n).reshape(n, 1, 1, 4, 4).expand(-1, 3, -1, -1, -1))
    denoise = bind(cubic, 3)
    cur = Point(denoise, x, torch.tensor(T, dtype=torch.float64))
    done = laplacian(strength, probes=n, h=0.1, randn_like=lambda x: next(probes))(denoise, None, cur)
    torch.testing.assert_close(done.d, cur.d - strength * T**2 * (2 * n + 4) * x, rtol=1e-9, atol=1e-9)
    assert denoise.forward.tolist() == [1 + 2 * n] * 3


def test_laplacian_without_strength_or_curvature_is_euler() -> None:
    plain = euler_sampler(mixture(), latents(), num_steps=10)
    assert torch.equal(laplacian_sampler(mixture(), latents(), strength=0, num_steps=10), plain)
    linear = euler_sampler(isotropic(), latents(), num_steps=10)
    assert close(laplacian_sampler(isotropic(), latents(), strength=0.3, num_steps=10), linear, tol=1e-9)
    options: dict[str, Any] = {"strength": 0.05, "window": (0, 1), "probes": 2, "num_steps": 10}
    together = laplacian_sampler(mixture(), latents(), randn_like=noise(), **options)
    assert not close(together, plain, tol=1e-3)
    for b in range(6):
        alone = laplacian_sampler(mixture(), latents()[b, None], randn_like=noise([SEEDS[b]]), **options)
        torch.testing.assert_close(alone[0], together[b], rtol=0, atol=1e-9)  # second differences amplify rounding


# -- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: tag(-1), "eta: -1 is not a scale"),
        (lambda: tag(math.nan), "eta: nan is not a scale"),
        (lambda: random_shift(math.inf, torch.randn_like), "rho: inf is not a radius"),
        (lambda: laplacian_sampler(mixture(), latents(), strength=math.nan), "strength: nan is not a scale"),
        (lambda: laplacian_sampler(mixture(), latents(), strength=1, probes=0), "probes: 0 is too few"),
        (
            lambda: laplacian_sampler(mixture(), latents(), strength=1, probe_radius=0),
            "probe_radius: 0 is not a length",
        ),
        (lambda: iq_run(strength=-1), "strength: -1 is not a length"),
        (lambda: iq_run(strength=math.inf), "strength: inf is not a length"),
        (lambda: iq_run(threshold=math.nan), "threshold: nan is not a score"),
        (lambda: iq_run(draws=0), "draws: 0 is too few"),
        (lambda: iq_run(lid_sigma=0), "lid_sigma: 0 is not a noise level"),
    ],
)
def test_bad_arguments_are_one_clear_line(call: Callable[[], Any], said: str) -> None:
    with pytest.raises(ValueError, match=said) as error:
        call()
    assert "\n" not in str(error.value)


# -- the page ---------------------------------------------------------------------------------------------------------

PAGE = (ROOT / "docs" / "rivals.md").read_text()
COMMANDS = re.findall(r"`generate\.py (--sampler=[^`]+)`", PAGE)


@pytest.mark.parametrize("options", COMMANDS)
def test_the_commands_of_the_page_run(options: str, tmp_path: Path) -> None:
    generated(tmp_path, "--seeds=0", *shlex.split(options), steps=4)


def test_the_page_names_every_sampler() -> None:
    named = {command.split()[0].removeprefix("--sampler=") for command in COMMANDS}
    assert named == set(SAMPLERS)
