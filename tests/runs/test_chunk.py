"""From seeds to images: chunks, classes, precision, streams, and detectors that must suit the sampler."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from exact import CPU, SEEDS, isotropic, mixture
from hypothesis import given, settings
from hypothesis import strategies as st
from registries import a_detector, a_sampler, sampled
from torch import Tensor

from rods import Edm, Euler, Lid, Restart, bind
from rods.restart import draws_of
from rods.runs.chunk import check_class, cut_chunks, sample_chunk
from torch_utils.rng import SeedStreams


@settings(deadline=None)
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
    with pytest.raises(ValueError, match=r"^batch: 0"):
        cut_chunks([1], batch=0)


@pytest.mark.parametrize(("index", "label_dim"), [(0, 0), (4, 4), (-1, 4)])
def test_a_class_that_the_network_does_not_have_is_refused(index: int, label_dim: int) -> None:
    check_class(None, 0)
    check_class(3, 4)
    with pytest.raises(ValueError, match=rf"^class: {index} "):
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
    net = Shifted()
    drawn = sample_chunk(net, chunk, Euler(num_steps=3), device=CPU)
    streams = SeedStreams(chunk.seeds, CPU)
    streams.randn([2, 3, 3])
    assert drawn.classes == streams.randint(4).tolist()
    assert torch.equal(drawn.images[:, 0, 0, 0], torch.tensor(drawn.classes, dtype=torch.float64))
    assert all(torch.equal(labels, torch.eye(4)[drawn.classes]) for labels in net.labels)

    given = sample_chunk(Shifted(), chunk, Euler(num_steps=3), device=CPU, class_index=2)
    assert given.classes == [2] * 4
    assert (given.images == 2).all()
    each = sample_chunk(Shifted(), chunk, Euler(num_steps=3), device=CPU, class_index=[3, None, 0, None])
    assert each.classes == [3, drawn.classes[1], 0, drawn.classes[3]]
    with pytest.raises(ValueError, match=r"^class: 4 "):
        sample_chunk(Shifted(), chunk, Euler(num_steps=3), device=CPU, class_index=4)


def test_a_lower_precision_runs_inside_the_network_alone() -> None:
    (chunk,) = cut_chunks([0], batch=1)
    for dtype in (torch.float32, torch.bfloat16):
        net = Shifted()
        images = sample_chunk(net, chunk, Euler(num_steps=2), device=CPU, dtype=dtype).images
        assert set(net.dtypes) == {dtype}
        assert images.dtype == torch.float64


def test_random_numbers_may_come_from_the_cpu() -> None:
    (chunk,) = cut_chunks([3, 4], batch=2)
    sampler = Edm(num_steps=3, S_churn=10)
    images = [sample_chunk(Shifted(), chunk, sampler, device=CPU, rng_on_cpu=b).images for b in (False, True)]
    assert torch.equal(*images)


# -- streams ----------------------------------------------------------------------------------------------------------


class Known:
    """The isotropic Gaussian as a network that says what it is."""

    img_channels, img_resolution, label_dim = 2, 3, 0

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        return isotropic()(x, sigma)


def test_latents_are_of_the_first_stream_and_a_restarts_noise_of_the_second() -> None:
    sampler = Restart(threshold=0, sigma_r=2.0, num_steps=4)
    done = sampled(sampler, SEEDS, net=Known())
    streams = SeedStreams(SEEDS, CPU)
    latents = streams.randn([2, 3, 3])
    by_hand = sampler.sample(isotropic(), latents, randn_like=streams.second().randn_like)
    assert torch.equal(done.images, by_hand.images)
    assert done.records == by_hand.records
    assert any(record.restart and record.restart.kept for record in done.records)


def test_edms_noise_is_of_the_first_stream_after_the_latents() -> None:
    sampler = Edm(num_steps=4, S_churn=10)
    streams = SeedStreams(SEEDS, CPU)
    by_hand = sampler.sample(isotropic(), streams.randn([2, 3, 3]), randn_like=streams.randn_like)
    assert torch.equal(sampled(sampler, SEEDS, net=Known()).images, by_hand.images)


@pytest.mark.parametrize("sampler", ["euler", "random", "restart"])
def test_scores_draw_from_the_third_stream(sampler: str) -> None:
    """Each detector from its beginning: its score does not depend on the others."""
    detector = Lid(sigma=0.7, draws=3)
    done = sampled(a_sampler(sampler), SEEDS, a_detector("lid"), detector)
    third = bind(mixture(), 6, randn_like=SeedStreams(SEEDS, CPU).third().randn_like)
    known = detector.score(third, done.images, noise=draws_of(third, done.images, 3))
    assert done.scores[1] == tuple(known.tolist())


def test_observers_see_every_step() -> None:
    class Observer:
        def __init__(self) -> None:
            self.seen: list[Any] = []

        def add(self, step: Any) -> None:
            self.seen.append((step.i, step.rows is None))

    first, second = Observer(), Observer()
    sampled(a_sampler("restart", threshold=0, rounds=1), observers=[first, second])
    assert first.seen == second.seen
    assert [i for i, whole in first.seen if whole] == list(range(10))
    assert {whole for _, whole in first.seen} == {True, False}
