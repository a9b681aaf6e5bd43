"""What holds of every registered sampler: independent rows, the stated cost, nothing changed that is not flagged."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from exact import SEEDS, Counting, Watch, latents, mixture
from registries import STEPS, VARIANTS, WINDOW, a_sampler, sampled

from rods import Edm, Euler, Sampler, SampleRecord
from rods.config import SAMPLERS, changed, name_of, options
from rods.schedules import in_window

EACH = [*SAMPLERS, *VARIANTS]
# Second differences with h = .1 amplify rounding by 1 / h^2; a finite difference of the score by 1 / .01, a backward
# pass has none of it.
TOLERANCE = {"laplacian": 1e-9, "rods-cas, probes": 1e-10}
PLAIN = ("edm", "euler", "ablation")


@pytest.mark.parametrize("name", EACH)
def test_a_sample_depends_on_its_seed_alone(name: str) -> None:
    """Neither on the order of the seeds nor on the batch; equal chunks give equal bits."""
    sampler = a_sampler(name)
    together = sampled(sampler)
    assert torch.equal(sampled(sampler).images, together.images)
    for order in ([5, 0, 3, 1, 4, 2], [2, 4], [1]):
        part = sampled(sampler, [SEEDS[b] for b in order])
        torch.testing.assert_close(part.images, together.images[order], rtol=0, atol=TOLERANCE.get(name, 1e-12))
        for record, b in zip(part.records, order, strict=True):
            known = together.records[b]
            assert (record.flagged, record.forward, record.backward) == (known.flagged, known.forward, known.backward)
            assert pytest.approx(known.H, rel=1e-6, abs=1e-9) == record.H
            assert record.scores == pytest.approx(known.scores, rel=1e-6)
            assert (record.restart is None) == (known.restart is None)
            if record.restart and known.restart:
                assert record.restart.kept == known.restart.kept
                assert record.restart.scores == pytest.approx(known.restart.scores, rel=1e-6)


@pytest.mark.parametrize("name", EACH)
def test_an_empty_batch_gives_an_empty_batch_and_asks_no_network(name: str) -> None:
    def ask(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        raise AssertionError

    done = a_sampler(name).sample(ask, latents()[:0])
    assert (done.images.shape, done.images.dtype, done.records) == (latents()[:0].shape, torch.float64, ())


# -- what it costs ----------------------------------------------------------------------------------------------------


def rods_cost(sampler: Any, record: SampleRecord, inside: int) -> tuple[int, int]:
    """The probe is F + B more in each step of the window, and CAS steps along it; SAS looks once more where flagged."""
    sas = name_of(sampler) == "rods-sas"
    return STEPS + inside + sas * len(record.flagged), 2 * inside


def restart_cost(sampler: Any, record: SampleRecord, inside: int) -> tuple[int, int]:
    assert record.restart is not None
    went = len(record.restart.scores) - 1
    below = 1 + sum(t < sampler.sigma_r for t in sampler.levels(mixture()))
    return STEPS + 4 + went * (below + 4), 0  # LID by four draws


COST: dict[str, Callable[[Any, SampleRecord, int], tuple[int, int]]] = {
    "edm": lambda sampler, record, inside: (2 * STEPS - 1, 0),
    "euler": lambda sampler, record, inside: (STEPS, 0),
    "ablation": lambda sampler, record, inside: (2 * STEPS - 1, 0),
    "rods-cas": rods_cost,
    "rods-sas": rods_cost,
    "restart": restart_cost,
    "overshoot": lambda sampler, record, inside: (STEPS, 0),
    "sigma-offset": lambda sampler, record, inside: (STEPS, 0),
    "sg-prev": lambda sampler, record, inside: (STEPS, 0),
    "tag": lambda sampler, record, inside: (STEPS, 0),
    "random": lambda sampler, record, inside: (STEPS, 0),
    "laplacian": lambda sampler, record, inside: (STEPS + 2 * inside, 0),
    "iq": lambda sampler, record, inside: (STEPS + 4 * inside, 4 * inside),
    "iq-through": lambda sampler, record, inside: (STEPS + 33 * inside, 33 * inside),
    "asced": lambda sampler, record, inside: (STEPS, 0),
}
"""F and B of one sample, as each class states them; `inside` is the number of steps in the window."""


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_cost_is_the_stated_one(name: str) -> None:
    assert name in COST, f"{name}: enter what it costs in COST"
    sampler = a_sampler(name)
    window = getattr(sampler, "window", WINDOW)
    levels = sampler.levels(mixture())
    inside = sum(in_window(window, i=i, num_steps=STEPS, sigma=t) for i, t in enumerate(levels))
    assert 0 < inside < STEPS
    for record in sampled(sampler).records:
        assert (record.forward, record.backward) == COST[name](sampler, record, inside)


@pytest.mark.parametrize("name", EACH)
def test_records_tell_the_evaluations_that_were_made(name: str) -> None:
    count = Counting()
    records = sampled(a_sampler(name), net=count).records
    assert count.forward == sum(record.forward for record in records) > 0
    assert count.backward == sum(record.backward for record in records)


# -- what is not corrected --------------------------------------------------------------------------------------------

NOWHERE = {"window": (0.3, 0.3)}
NEUTRAL: dict[str, list[dict[str, Any]]] = {
    "rods-cas": [{"eps": math.inf}, {"eps": 0, "rho": 0}, {"eps": 0, "rho": 0, "detect": False}, NOWHERE,
                 {"eps": math.inf, "solver": "heun"}, {"eps": math.inf, "gradient": "difference", "probe_every": 3}],
    "rods-sas": [{"eps": math.inf}, {"eps": 0, "rho": 0}, NOWHERE, {"eps": 0, "rho": 0, "solver": "heun"}],
    "restart": [{"threshold": math.inf}, {"threshold": math.inf, "solver": "heun"},
                {"threshold": math.inf, "score_at": 0.5}, {"threshold": math.inf, "acceptance": "ratio"}],
    "overshoot": [{"rho": 0}, NOWHERE],
    "sigma-offset": [{"kappa": 0}, NOWHERE],
    "sg-prev": [{"strength": 0}, NOWHERE],
    "tag": [{"eta": 1}, NOWHERE],
    "random": [{"rho": 0}, NOWHERE],
    "laplacian": [{"strength": 0}, NOWHERE],
    "iq": [{"strength": 0}, {"threshold": math.inf}, NOWHERE],
    "iq-through": [{"strength": 0}, {"threshold": math.inf}, NOWHERE],
    "asced": [{"deviations": math.inf}, NOWHERE],
}  # fmt: skip
"""Options with which a sampler is its base sampler, bit for bit."""


def base(sampler: Sampler) -> Sampler:
    kind = Edm if sampler.base_solver == "heun" else Euler
    return kind(num_steps=sampler.num_steps, sigma_min=sampler.sigma_min, sigma_max=sampler.sigma_max)


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name not in PLAIN])
def test_without_a_correction_it_is_the_base_sampler_bit_for_bit(name: str) -> None:
    assert name in NEUTRAL, f"{name}: enter with which options it changes nothing in NEUTRAL"
    acting = sampled(a_sampler(name)).images
    for given in NEUTRAL[name]:
        sampler = changed(a_sampler(name), given)
        plain = sampled(base(sampler)).images
        assert torch.equal(sampled(sampler).images, plain), given
        if sampler.base_solver == "euler":
            assert not torch.equal(acting, plain), "else this says nothing"


@pytest.mark.parametrize("name", EACH)
def test_rows_that_are_not_flagged_are_untouched_bit_for_bit(name: str) -> None:
    """In every step, and a sample that is flagged in none is that of the base sampler."""
    sampler, watch = a_sampler(name), Watch()
    done = sampled(sampler, observers=[watch])
    if not sampler.restarts:
        assert torch.equal(watch.steps[-1].x_next, done.images)
    touched = torch.zeros(len(SEEDS), dtype=torch.bool)
    for step in watch.steps:
        quiet = ~step.flagged
        assert torch.equal(step.d_used[quiet], step.d[quiet])
        rows = torch.arange(len(SEEDS)) if step.rows is None else step.rows
        touched[rows] |= step.flagged if step.rows is None else torch.ones(len(rows), dtype=torch.bool)
    if name in PLAIN or name in VARIANTS:
        return
    plain = sampled(base(sampler)).images
    for b in range(len(SEEDS)):
        assert touched[b] or torch.equal(done.images[b], plain[b])


# -- what every sampler takes and gives -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SAMPLERS)
def test_images_are_detached_float64_and_a_plain_function_is_a_denoiser(name: str) -> None:
    sampler = a_sampler(name)
    z = latents().float().requires_grad_(True)
    torch.manual_seed(0)
    images = sampler.sample(mixture(), z).images
    torch.manual_seed(0)
    again = sampler.sample(lambda x, sigma: mixture()(x, sigma), z).images
    assert (images.dtype, images.shape, images.requires_grad) == (torch.float64, z.shape, False)
    assert torch.equal(images, again)


@pytest.mark.parametrize("name", SAMPLERS)
def test_its_noise_levels_are_those_of_its_steps(name: str) -> None:
    sampler, watch = a_sampler(name), Watch()
    sampled(sampler, observers=[watch])
    assert [float(step.sigma) for step in watch.steps if step.rows is None][:STEPS] == sampler.levels(mixture())
    assert {step.num_steps for step in watch.steps if step.rows is None} == {STEPS}


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_wrong_grid_is_refused_before_the_run(name: str) -> None:
    class Narrow:
        sigma_min, sigma_max = 1.0, 2.0

        def __call__(self, x: Any, sigma: Any) -> Any:
            raise AssertionError("the network is not called")

    with pytest.raises(ValueError, match=r"^num_steps: "):
        changed(a_sampler(name), {"num_steps": 0})
    for given in ({"sigma_min": 3.0}, {"sigma_min": 0.0, "sigma_max": 0.5}):
        with pytest.raises(ValueError, match=r"^(sigma_min, sigma_max|score_at|sigma_r): "):
            changed(a_sampler(name), given).check(Narrow())


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_nan_of_the_network_reaches_its_image_and_no_other(name: str) -> None:
    class Broken(Counting):
        def __call__(self, x: Any, sigma: Any) -> Any:
            bad = (x - self.first).flatten(1).abs().sum(dim=1) < 1e-9 if self.calls == 0 else self.is_bad(x)
            self.calls += 1
            return torch.where(bad.reshape(-1, 1, 1, 1), math.nan, mixture()(x, sigma))

        def is_bad(self, x: Any) -> Any:
            return x.isnan().flatten(1).any(dim=1)

    net, clean = Broken(), sampled(a_sampler(name)).images
    net.first = first_state(a_sampler(name), row=1)
    images = sampled(a_sampler(name), net=net).images
    assert images[1].isnan().all()
    others = [0, 2, 3, 4, 5]
    torch.testing.assert_close(images[others], clean[others], rtol=0, atol=TOLERANCE.get(name, 1e-12))


def first_state(sampler: Sampler, *, row: int) -> torch.Tensor:
    watch = Watch()
    sampled(sampler, observers=[watch])
    return watch.steps[0].x[row]


def test_every_sampler_states_its_options() -> None:
    for name in SAMPLERS:
        assert {"num_steps", "sigma_min", "sigma_max", "time_rho"} <= set(options(name))
