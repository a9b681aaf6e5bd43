"""From seeds to images: random streams, chunks, classes, and sampler configs that survive being written down."""

from __future__ import annotations

import json
import math
from itertools import cycle
from typing import Any

import pytest
import torch
from exact import golden, mixture
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rods.pipeline import (
    MAX_STEPS,
    REQUIRED,
    SAMPLERS,
    SamplerConfig,
    check_class,
    cut_chunks,
    format_window,
    parse_window,
    sample_chunk,
    sampler_options,
)
from torch import Tensor

from rods import euler_sampler, gaussian, restart_sampler, rods_sampler
from rods.correctors import SigmaWindow
from torch_utils.rng import SeedStreams

CPU = torch.device("cpu")
patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # the machine may be busy
NEEDED: dict[str, dict[str, Any]] = {
    "edm": {}, "euler": {}, "ablation": {}, "rods-cas": {"eps": 0.1, "rho": 1.0}, "rods-sas": {"eps": 0.1, "rho": 1.0},
    "overshoot": {"rho": 1.0}, "sigma-offset": {"kappa": 0.1}, "restart": {"threshold": 20.0, "sigma_r": 2.0},
    "iq": {"strength": 0.1, "threshold": 0.0, "window": (0.1, 0.5)}, "tag": {"eta": 1.1}, "random": {"rho": 1.0},
    "laplacian": {"strength": 0.1},
}  # fmt: skip


# -- random numbers ---------------------------------------------------------------------------------------------------


def test_streams_are_the_reference() -> None:
    """Latents, then a class, then float64 noise; seeds beyond 2^32 wrap."""
    z = golden("samplers/rng")
    streams = SeedStreams(z["seeds"].tolist(), CPU)
    assert len(streams) == 6
    assert torch.equal(streams.randn([1, 4, 4]), z["latents"])
    assert torch.equal(streams.randint(10), z["labels"])
    assert torch.equal(streams.randn_like(z["churn1"]), z["churn1"])


def test_a_stream_does_not_know_its_mates() -> None:
    together, alone = SeedStreams([5, 1, 2], CPU), SeedStreams([1], CPU)
    assert torch.equal(together.randn([3, 8, 8])[1:2], alone.randn([3, 8, 8]))
    assert torch.equal(together.randint(1000)[1:2], alone.randint(1000))


@pytest.mark.parametrize("rows", [1, 4])
def test_a_seed_that_feeds_a_batch_draws_it_at_once(rows: int) -> None:
    streams = SeedStreams([7, 9], CPU, rows_per_seed=rows)
    g = torch.Generator().manual_seed(9)
    size = [rows] if rows > 1 else []
    assert torch.equal(streams.randn([1, 4, 4])[rows:], torch.randn(rows, 1, 4, 4, generator=g))
    assert torch.equal(streams.randint(10)[rows:], torch.randint(10, size, generator=g).reshape(rows))
    x = torch.zeros(2 * rows, 1, 4, 4, dtype=torch.float64)
    assert torch.equal(streams.randn_like(x)[rows:], torch.randn(rows, 1, 4, 4, generator=g, dtype=torch.float64))


# -- chunks and classes -----------------------------------------------------------------------------------------------


@patient
@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=40, unique=True), st.integers(1, 9))
def test_chunks_hold_every_seed_once_in_order(seeds: list[int], batch: int) -> None:
    chunks = cut_chunks(seeds, batch=batch)
    assert [seed for chunk in chunks for seed in chunk.seeds] == seeds
    assert [chunk.index for chunk in chunks] == list(range(len(chunks)))
    assert all(len(chunk.seeds) == batch for chunk in chunks[:-1])
    assert [seed for chunk in chunks for seed, row in chunk.row_seeds() if row == 0] == seeds
    whole = cut_chunks(seeds, batch=batch, per_batch=True)
    assert [chunk.row_seeds() for chunk in whole] == [[(seed, row) for row in range(batch)] for seed in seeds]


def test_an_empty_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="batch: 0 is too small"):
        cut_chunks([1], batch=0)


def test_classes_are_checked() -> None:
    check_class(None, 0)
    check_class(3, 4)
    for index, label_dim, says in ((0, 0, "unconditional"), (4, 4, "0 to 3"), (-1, 4, "0 to 3")):
        with pytest.raises(ValueError, match=f"class: {index} .*{says}"):
            check_class(index, label_dim)


class Shifted:
    """A denoiser of 4 classes: D(x; sigma, c) is the mean of class c, whatever x is; it notes its calls."""

    img_channels, img_resolution, label_dim = 2, 3, 4
    means = torch.arange(4, dtype=torch.float64)

    def __init__(self) -> None:
        self.dtypes: list[torch.dtype] = []
        self.labels: list[Tensor] = []

    def __call__(self, x: Tensor, sigma: Tensor, class_labels: Tensor) -> Tensor:
        self.labels.append(class_labels)
        self.dtypes.append((torch.ones(2, 2) @ torch.ones(2, 2)).dtype)
        return torch.ones_like(x) * (class_labels.double() @ self.means).reshape(-1, 1, 1, 1)


def test_a_class_is_drawn_for_each_seed_or_given() -> None:
    (chunk,) = cut_chunks([0, 1, 5, 123456789], batch=4)
    config = SamplerConfig("euler", {"num_steps": 3})
    net = Shifted()
    drawn = sample_chunk(net, chunk, config, device=CPU)
    streams = SeedStreams(chunk.seeds, CPU)
    streams.randn([2, 3, 3])
    assert drawn.classes == streams.randint(4).tolist()
    assert torch.equal(drawn.images[:, 0, 0, 0], torch.tensor(drawn.classes, dtype=torch.float64))
    assert all(torch.equal(labels, torch.eye(4)[drawn.classes]) for labels in net.labels)

    given = sample_chunk(Shifted(), chunk, config, device=CPU, class_index=2)
    assert given.classes == [2] * 4
    assert (given.images == 2).all()
    with pytest.raises(ValueError, match="class: 4 is out of range"):
        sample_chunk(Shifted(), chunk, config, device=CPU, class_index=4)


def test_a_lower_precision_runs_inside_the_network_alone() -> None:
    (chunk,) = cut_chunks([0], batch=1)
    config = SamplerConfig("euler", {"num_steps": 2})
    for dtype in (torch.float32, torch.bfloat16):
        net = Shifted()
        images = sample_chunk(net, chunk, config, device=CPU, dtype=dtype).images
        assert set(net.dtypes) == {dtype}
        assert images.dtype == torch.float64


def test_random_numbers_may_come_from_the_cpu() -> None:
    (chunk,) = cut_chunks([3, 4], batch=2)
    config = SamplerConfig("edm", {"num_steps": 3, "S_churn": 10})
    images = [sample_chunk(Shifted(), chunk, config, device=CPU, rng_on_cpu=b).images for b in (False, True)]
    assert torch.equal(*images)


# -- configs ----------------------------------------------------------------------------------------------------------


def test_every_sampler_has_its_options() -> None:
    assert set(NEEDED) == set(SAMPLERS)
    for sampler, needed in NEEDED.items():
        options = sampler_options(sampler)
        assert {name for name, default in options.items() if default is REQUIRED} == set(needed)
        assert not {"randn_like", "method"} & set(options)
    assert "sas_sign" not in sampler_options("rods-cas")
    assert "ascent_steps" not in sampler_options("rods-sas")


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_runs_and_says_what_it_spent(sampler: str) -> None:
    D = mixture()
    x = golden("samplers/mixture")["latents"]
    noise = cycle(golden("samplers/mixture")["noise"])
    config = SamplerConfig(sampler, {**NEEDED[sampler], "num_steps": 4})
    result = config.run(D, x, randn_like=lambda x: next(noise).to(x))
    assert result.images.shape == x.shape
    assert result.images.dtype == torch.float64
    assert len(result.records) == len(x)
    heun = sampler in ("edm", "ablation")
    assert all(record.forward >= (7 if heun else 4) for record in result.records)
    assert all(bool(record.H) == sampler.startswith("rods") for record in result.records)
    assert all(bool(record.scores) == (sampler == "iq") for record in result.records)
    assert all((record.restart is not None) == (sampler == "restart") for record in result.records)


def test_a_config_is_its_sampler() -> None:
    D, x = mixture(), golden("samplers/mixture")["latents"]
    options: dict[str, Any] = {"eps": 0.05, "rho": 0.5, "window": (0.0, 1.0), "num_steps": 6}
    cas = SamplerConfig("rods-cas", {**options, "ascent_steps": 2}).run(D, x)
    sas = SamplerConfig("rods-sas", {**options, "sas_sign": "downhill"}).run(D, x)
    assert torch.equal(cas.images, rods_sampler(D, x, method="cas", ascent_steps=2, **options).images)
    assert torch.equal(sas.images, rods_sampler(D, x, method="sas", sas_sign="downhill", **options).images)
    assert torch.equal(SamplerConfig("euler", {}).run(D, x).images, euler_sampler(D, x))


def test_restarts_draw_from_the_second_stream() -> None:
    (chunk,) = cut_chunks([3, 4], batch=2)
    config = SamplerConfig("restart", {"threshold": 0, "sigma_r": 2.0, "num_steps": 4})
    D = gaussian(torch.zeros(1, 2, 2), 0.5)
    done = sample_chunk(D, chunk, config, device=CPU)
    streams = SeedStreams([3, 4], CPU)
    latents, second = streams.randn([1, 2, 2]), streams.second()
    by_hand = restart_sampler(D, latents, threshold=0, sigma_r=2.0, num_steps=4, randn_like=second.randn_like)
    assert torch.equal(done.images, by_hand.images)
    assert done.records == by_hand.records
    assert any(record.restart and record.restart.kept for record in done.records)


levels = st.floats(0, 100, allow_nan=False)
windows = st.one_of(
    st.tuples(st.floats(0, 1), st.floats(0, 1)).map(lambda w: (min(w), max(w))),
    st.tuples(levels, st.one_of(levels, st.just(math.inf))).map(lambda w: SigmaWindow(min(w), max(w))),
)
numbers = st.one_of(st.integers(0, 100), st.floats(0, allow_nan=False))
values: dict[str, st.SearchStrategy[Any]] = {
    "eps": numbers, "rho": numbers, "kappa": numbers, "window": windows, "num_steps": st.integers(1, MAX_STEPS),
    "sigma_min": numbers, "sigma_max": numbers, "time_rho": numbers, "solver": st.sampled_from(["euler", "heun"]),
    "ascent_steps": st.integers(1, 9), "sas_sign": st.sampled_from(["uphill", "downhill"]), "detect": st.booleans(),
    "gradient": st.sampled_from(["backward", "difference"]), "probe_every": st.integers(1, 9),
    "strength": numbers, "eta": numbers, "probes": st.integers(1, 9), "probe_radius": numbers,
    "threshold": numbers, "sigma_r": numbers, "rounds": st.integers(1, 9), "margin": numbers,
    "detector": st.sampled_from(["lid", "tvf"]), "lid_sigma": numbers, "draws": st.integers(1, 9), "tvf_sigma": numbers,
    "S_churn": numbers, "S_min": numbers, "S_max": numbers, "S_noise": numbers, "alpha": numbers,
}  # fmt: skip


@patient
@given(st.data(), st.sampled_from(sorted(SAMPLERS)))
def test_a_config_survives_being_written_as_json(data: st.DataObject, sampler: str) -> None:
    names = sorted(set(values) & set(sampler_options(sampler)))
    chosen = data.draw(st.sets(st.sampled_from(names))) | set(NEEDED[sampler])
    config = SamplerConfig(sampler, {name: data.draw(values[name], name) for name in sorted(chosen)})
    text = json.dumps(config.describe(), allow_nan=False)
    assert SamplerConfig.parse(json.loads(text)) == config


@patient
@given(windows)
def test_windows_survive_being_written(window: Any) -> None:
    assert parse_window(format_window(window)) == window


def test_windows_are_written_short() -> None:
    assert format_window((0.1, 0.5)) == "0.1,0.5"
    assert format_window((0, 1)) == "0,1"
    assert format_window(SigmaWindow(1.5, math.inf)) == "sigma:1.5,inf"
    assert parse_window(" .1, .5") == (0.1, 0.5)
    for text in ("", "1", "1,2,3", "a,b", "sigma:", "sigma:5", "steps:1,2"):
        with pytest.raises(ValueError, match=r"window: .* is no window"):
            parse_window(text)
    with pytest.raises(ValueError, match="is not a range"):
        parse_window("sigma:5,1")


@pytest.mark.parametrize(
    ("sampler", "options", "says"),
    [
        ("ddim", {}, "sampler: unknown sampler 'ddim'; use one of edm, euler"),
        ("edm", {"rho": 1}, "rho: edm has no such option; it has num_steps"),
        ("rods-cas", {"rho": 1}, "eps: rods-cas needs a value"),
        ("rods-cas", {"eps": 1}, "rho: rods-cas needs a value"),
        ("rods-cas", {"eps": 1, "rho": 1, "sas_sign": "uphill"}, "sas_sign: rods-cas has no such option"),
        ("rods-cas", {"eps": "0.1", "rho": 1}, "eps: '0.1' will not do; give a number"),
        ("rods-cas", {"eps": True, "rho": 1}, "eps: True will not do; give a number"),
        ("rods-cas", {"eps": 10**400, "rho": 1}, "eps: 1000.* will not do; give a number"),
        ("rods-cas", {"eps": None, "rho": 1}, "eps: None will not do; give a number"),
        ("rods-cas", {"eps": 1, "rho": 1, "window": [0.1, 0.5]}, r"window: \[0.1, 0.5\] will not do; give lo,hi"),
        ("rods-cas", {"eps": 1, "rho": 1, "window": (0.1, "x")}, "window: .* will not do; give lo,hi"),
        ("rods-cas", {"eps": 1, "rho": 1, "detect": 1}, "detect: 1 will not do; give true or false"),
        ("rods-sas", {"eps": 1, "rho": 1, "sas_sign": "up"}, "sas_sign: 'up' will not do; give uphill or downhill"),
        ("ablation", {"solver": ["heun"]}, "solver: .* will not do; give euler or heun"),
        ("ablation", {"sigma_min": "low"}, "sigma_min: 'low' will not do; give a number"),
        ("edm", {"num_steps": 18.0}, "num_steps: 18.0 will not do; give a whole number"),
        ("edm", {"num_steps": MAX_STEPS + 1}, "num_steps: 100001 is too many; give 100000 or fewer"),
    ],
)
def test_a_wrong_config_says_what_is_wrong(sampler: str, options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=f"^{says}"):
        SamplerConfig(sampler, options)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"rho": -1.0}, "rho: -1.0 is not a radius"),
        ({"eps": math.nan}, "eps: nan is not a threshold"),
        ({"window": (0.5, 0.1)}, "window: .* is not a range"),
        ({"sigma_min": 90.0}, "sigma_min, sigma_max: 90.0, 80 is no range"),
        ({"time_rho": 1e-3}, "time_rho: 0.001 gives no noise levels; use 7 or so"),
    ],
)
def test_a_rehearsal_finds_what_the_run_would(options: dict[str, Any], says: str) -> None:
    config = SamplerConfig("rods-cas", {"eps": 0.1, "rho": 1.0, **options})
    with pytest.raises(ValueError, match=says):
        config.rehearse(mixture())


def test_a_rehearsal_is_short_and_knows_the_networks_range() -> None:
    class Narrow:
        sigma_min, sigma_max = 1.0, 2.0

        def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
            raise AssertionError("the network is not called")

    long = {"num_steps": MAX_STEPS, "ascent_steps": 10**9}
    SamplerConfig("rods-cas", {"eps": 0, "rho": 1, "window": (0.0, 1.0), **long}).rehearse(Narrow())
    with pytest.raises(ValueError, match="clipped to the network's range"):
        SamplerConfig("euler", {"sigma_min": 3.0}).rehearse(Narrow())
