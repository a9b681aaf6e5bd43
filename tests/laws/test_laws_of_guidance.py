"""What holds of every registered sampler on a guided denoiser: it is the sampler of the combined D, and counts both."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from exact import SEEDS, Counting, isotropic, latents, mixture
from registries import VARIANTS, a_sampler, sampled
from torch import Tensor

from rods import Edm, Euler, Guided, bind, guided
from rods.config import SAMPLERS
from rods.wrappers import from_edm_diffusers, from_flow

EACH = [*SAMPLERS, *VARIANTS]
W = 1.6
TOLERANCE = {"laplacian": 1e-9, "rods-cas, probes": 1e-10}  # as in test_laws_of_samplers.py


def both(interval: tuple[float, float] | None = None) -> tuple[Guided, Counting, Counting]:
    """The mixture guided by a wider, single Gaussian, each counted by itself."""
    main, guide = Counting(), Counting(isotropic(1.0))
    return guided(main, guide, W, interval), main, guide


def combined(x: Tensor, sigma: Tensor) -> Tensor:
    D, G = mixture()(x, sigma), isotropic(1.0)(x, sigma)
    return G + W * (D - G)


@pytest.mark.parametrize("name", EACH)
def test_it_is_the_sampler_of_the_combined_denoiser(name: str) -> None:
    """Bit for bit, with twice its evaluations; the combination acts."""
    net, main, guide = both()
    done, known = sampled(a_sampler(name), net=net), sampled(a_sampler(name), net=Counting(combined))
    assert torch.equal(done.images, known.images)
    assert not torch.allclose(done.images, sampled(a_sampler(name)).images, atol=1e-3)
    for record, plain in zip(done.records, known.records, strict=True):
        assert (record.flagged, record.H) == (plain.flagged, plain.H)
        assert (record.forward, record.backward) == (2 * plain.forward, 2 * plain.backward)
    assert main.forward == guide.forward > 0
    assert main.forward + guide.forward == sum(record.forward for record in done.records)
    assert main.backward + guide.backward == sum(record.backward for record in done.records)


@pytest.mark.parametrize("name", EACH)
def test_outside_the_interval_the_guide_is_not_evaluated(name: str) -> None:
    net, main, guide = both((0.3, 3))
    asked: list[float] = []

    def remembering(x: Tensor, sigma: Tensor) -> Tensor:
        asked.append(float(sigma))
        return isotropic(1.0)(x, sigma)

    guide.denoiser = remembering
    records = sampled(a_sampler(name), net=net).records
    assert asked
    assert all(0.3 <= t <= 3 for t in asked)
    assert 0 < guide.forward < main.forward
    assert main.forward + guide.forward == sum(record.forward for record in records)
    assert main.backward + guide.backward == sum(record.backward for record in records)


@pytest.mark.parametrize("name", EACH)
def test_a_guided_sample_depends_on_its_seed_alone(name: str) -> None:
    sampler = a_sampler(name)
    together = sampled(sampler, net=both((0.3, 3))[0])
    for order in ([5, 0, 3, 1, 4, 2], [2, 4], [1]):
        part = sampled(sampler, [SEEDS[b] for b in order], net=both((0.3, 3))[0])
        torch.testing.assert_close(part.images, together.images[order], rtol=0, atol=TOLERANCE.get(name, 1e-12))
        counts = [(r.forward, r.backward) for r in part.records]
        assert counts == [(together.records[b].forward, together.records[b].backward) for b in order]


@pytest.mark.parametrize("name", EACH)
def test_strength_1_is_the_main_network_and_0_the_guide(name: str) -> None:
    main, guide = Counting(), Counting(isotropic(1.0))
    done = sampled(a_sampler(name), net=guided(main, guide, 1))
    assert torch.equal(done.images, sampled(a_sampler(name)).images)
    assert guide.forward == 0
    alone = sampled(a_sampler(name), net=Counting(isotropic(1.0)))
    assert torch.equal(sampled(a_sampler(name), net=guided(main, guide, 0)).images, alone.images)


# -- other coordinates ------------------------------------------------------------------------------------------------


def as_flow(x: Tensor, t: Tensor) -> Tensor:
    """v = (z - D) / t of the mixture at z = (1 - t) x0 + t n."""
    t = t[0]
    return (x - mixture()(x / (1 - t), t / (1 - t))) / t


def as_edm(prediction: str, x: Tensor, c_noise: Tensor) -> Tensor:
    """F of the mixture's D, with sigma_data .7."""
    sigma = (4 * c_noise[0]).exp()
    var = sigma**2 + 0.49
    full = x * var.sqrt()
    F = (mixture()(full, sigma) - 0.49 / var * full) * var.sqrt() / (0.7 * sigma)
    return F if prediction == "epsilon" else -F


def denoisers(kind: str) -> Any:
    shape = {"img_channels": 2, "img_resolution": 3, "dtype": torch.float64}
    if kind == "flow":
        return from_flow(as_flow, **shape)
    model = lambda x, t: as_edm(kind, x, t)  # noqa: E731
    return from_edm_diffusers(model, prediction=kind, sigma_data=0.7, **shape)


@pytest.mark.parametrize("kind", ["flow", "epsilon", "v_prediction"])
@pytest.mark.parametrize("name", EACH)
def test_in_other_coordinates_it_is_the_same_sampler(name: str, kind: str) -> None:
    done, known = sampled(a_sampler(name), net=denoisers(kind)), sampled(a_sampler(name))
    torch.testing.assert_close(done.images, known.images, rtol=0, atol=2e-7 if name == "laplacian" else 1e-9)
    for record, plain in zip(done.records, known.records, strict=True):
        assert record.flagged == plain.flagged
        assert pytest.approx(plain.H, rel=1e-7, abs=1e-7) == record.H


def test_an_euler_step_of_the_flow_is_one_of_edm() -> None:
    """The flow's own integrator, z + (t' - t) v, on a grid of its own."""
    ts = torch.linspace(0.99, 0, 13, dtype=torch.float64)
    z = ts[0] * latents().double()
    for t, t_next in pairwise(ts):
        z = z + (t_next - t) * as_flow(z, t.expand(len(z)))
    sigmas = ts / (1 - ts)
    D = bind(denoisers("flow"), len(z))
    steps = list(Euler().along(D, sigmas[0] * latents().double(), sigmas))
    torch.testing.assert_close(steps[-1].x_next, z, rtol=0, atol=1e-12)


# -- order of convergence ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("sampler", "order"), [(Euler, 1), (Edm, 2)])
def test_the_order_of_convergence_is_unchanged(sampler: type[Euler] | type[Edm], order: int) -> None:
    """Of two Gaussians at zero, guided: dx/dt = a(t) x, whose solution is known."""
    s, g, w, lo, hi = 0.5, 1.0, 1.5, 0.1, 20.0
    net = guided(isotropic(s), isotropic(g), w)
    # d = t x (w / (s^2 + t^2) + (1 - w) / (g^2 + t^2)), whose integral is a sum of logarithms.
    factor = ((s**2 + lo**2) / (s**2 + hi**2)) ** (w / 2) * ((g**2 + lo**2) / (g**2 + hi**2)) ** ((1 - w) / 2)
    x = hi * latents().double()
    errors = []
    for N in (64, 128):
        grid = sampler(num_steps=N + 1, sigma_min=lo, sigma_max=hi).steps(net, latents())
        end = list(grid)[N - 1].x_next  # at sigma_min; the last step goes to 0
        errors.append(float((end - factor * x).abs().max()))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.15)
