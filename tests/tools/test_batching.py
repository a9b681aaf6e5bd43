"""The simulation of mixed batches, by costs for which the answer is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from commands import said

from tools.batching import WORK, Work, by_chunks, main, mixed, on_h200


@pytest.mark.parametrize("work", WORK, ids=lambda work: work.name)
def test_where_a_row_costs_the_same_in_any_batch_nothing_is_gained(work: Work) -> None:
    tries = work.tries(50, np.random.default_rng(1))
    rows = sum(work.head + (t - 1) * work.again + work.tail for t in tries.tolist())
    for batch in (1, 7, 64):
        for joined in (True, False):
            assert by_chunks(work, tries, batch, float, joined=joined) == rows
        assert mixed(work, tries, batch, float) == rows


@pytest.mark.parametrize("work", WORK, ids=lambda work: work.name)
def test_where_only_calls_cost_the_longest_image_is_the_bound(work: Work) -> None:
    def call(rows: int) -> float:
        return 1.0

    tries = work.tries(50, np.random.default_rng(1))
    longest = work.head + (int(tries.max()) - 1) * work.again + work.tail
    assert mixed(work, tries, 50, call) == by_chunks(work, tries, 50, call, joined=True) == longest
    assert mixed(work, tries, 1, call) == by_chunks(work, tries, 1, call, joined=False)
    for batch in (5, 20):
        assert mixed(work, tries, batch, call) <= by_chunks(work, tries, batch, call, joined=True)


def test_tries_fail_as_often_as_is_said() -> None:
    tries = Work("", 1, 1, 0, 0.5, 3, joined=True).tries(4000, np.random.default_rng(0))
    shares = [float((tries == k).mean()) for k in (1, 2, 3)]
    assert shares == pytest.approx([0.5, 0.25, 0.25], abs=0.03)


def test_the_cost_is_what_was_measured() -> None:
    cost = on_h200("default")
    assert cost(64) == pytest.approx(64 / 1187)
    assert cost(64) < cost(96) < cost(128)
    assert cost(512) == 2 * cost(256)


def test_both_tables() -> None:
    assert "| accept @.47 | 64 |" in said(main, "--images=64")
    measured = said(main, "--images=16", "--measure")
    rates = [line.split("|")[3] for line in measured.splitlines() if line.startswith("| restart")]
    assert len(rates) == 3
    assert all(0 < float(rate) < math.inf for rate in rates)
