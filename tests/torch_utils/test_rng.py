"""Random numbers per seed: the reference streams, second and third streams, and seeds of other tries."""

from __future__ import annotations

import pytest
import torch
from exact import CPU, golden
from hypothesis import given
from hypothesis import strategies as st

from torch_utils.rng import LARGEST_REDRAWN, MOST_TRIES, SECOND, THIRD, SeedStreams, redrawn

seeds = st.integers(0, LARGEST_REDRAWN - 1)


def test_streams_are_the_reference() -> None:
    """Latents, then a class, then float64 noise; seeds beyond 2^32 wrap."""
    z = golden("samplers/rng")
    streams = SeedStreams(z["seeds"].tolist(), CPU)
    assert len(streams) == 6
    assert torch.equal(streams.randn([1, 4, 4]), z["latents"])
    assert torch.equal(streams.randint(10), z["labels"])
    assert torch.equal(streams.randn_like(z["churn1"]), z["churn1"])


def test_keys_tell_all_rows_apart_and_belong_to_the_seed() -> None:
    assert SeedStreams([5, 1, 2], CPU).keys().tolist() == [5, 1, 2]
    whole, second = (SeedStreams(some, CPU, rows_per_seed=3).keys() for some in ([5, 2**32 - 1], [2**32 - 1]))
    assert len(set(whole.tolist())) == 6
    assert torch.equal(whole[3:], second)


def test_a_stream_is_independent_of_the_batch() -> None:
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


@pytest.mark.parametrize(("other", "flips"), [(SeedStreams.second, SECOND), (SeedStreams.third, THIRD)])
def test_the_other_streams_are_their_seeds_own(other, flips: int) -> None:  # type: ignore[no-untyped-def]
    streams, untouched = (SeedStreams([5, 1, 2**32 + 7], CPU) for _ in range(2))
    drawn = other(streams).randn([2, 3])
    assert torch.equal(streams.randn([2, 3]), untouched.randn([2, 3]))
    for row, seed in enumerate([5, 1, 7]):
        assert torch.equal(drawn[row], torch.randn(2, 3, generator=torch.Generator().manual_seed(seed ^ flips)))
    assert torch.equal(drawn[1:2], other(SeedStreams([1], CPU)).randn([2, 3]))
    assert len(other(SeedStreams([5], CPU, rows_per_seed=4))) == 4


def test_small_seeds_have_large_second_seeds() -> None:
    """So no two streams of a run with seeds below 2^28 are the same."""
    assert min(seed ^ SECOND for seed in (0, 2**28 - 1, *(2**k for k in range(28)))) >= 2**30


@given(seeds, seeds)
def test_no_two_tries_or_streams_of_any_seeds_agree(a: int, b: int) -> None:
    streams = [{redrawn(s, t) ^ flips for t in range(MOST_TRIES) for flips in (0, SECOND, THIRD)} for s in (a, b)]
    assert all(len(found) == 3 * MOST_TRIES for found in streams)
    assert a == b or not streams[0] & streams[1]
    assert max(streams[0]) < 1 << 32
    assert redrawn(a, 0) == a


def test_what_cannot_be_redrawn() -> None:
    with pytest.raises(ValueError, match=r"^seeds: "):
        redrawn(LARGEST_REDRAWN, 1)
    with pytest.raises(ValueError, match=r"^max_tries: "):
        redrawn(0, MOST_TRIES)
