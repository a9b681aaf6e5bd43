"""What holds of every sampler and detector in flight: what goes on is unchanged, the rest is paid to its level only."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from exact import CPU, SEEDS, Counting, mixture
from registries import VARIANTS, a_detector, a_sampler, sampled
from torch import Tensor

from rods import Detector, Lid, Restart, Sampler, Steps, bind
from rods.config import DETECTORS, SAMPLERS
from rods.micro_batches import MicroBatches
from rods.restart import draws_of
from rods.runs.accept import Accept, Filter, check_scores, sample_accepted, sample_filtered
from rods.runs.chunk import Chunk, ChunkResult, ChunkRun
from torch_utils.rng import SeedStreams, redrawn

EACH = [*SAMPLERS, *VARIANTS]
LID = Lid(sigma=0.7, draws=2)
TOLERANCE = {"laplacian": 1e-8, "rods-cas, probes": 1e-9}
LEVEL = 0.8  # above the level at which a restart in flight is scored


def begin(sampler: Sampler, net: Any = None) -> Any:
    return partial(ChunkRun, net or Counting(), sampler=sampler, device=CPU)


def accepted(
    sampler: Sampler, below: float, *, level: float = LEVEL, seeds: list[int] = SEEDS, tries: int = 3,
    detector: Detector = LID, net: Any = None, filters: Any = (),
) -> ChunkResult:  # fmt: skip
    accept = Accept(detector, below, tries, level)
    return sample_accepted(begin(sampler, net), Chunk(0, tuple(seeds)), accept, detectors=filters)


def first_scores(sampler: Sampler, level: float, detector: Detector = LID) -> list[float]:
    done = accepted(sampler, math.inf, level=level, tries=1, detector=detector)
    return [record.tries.scores[0] for record in done.records if record.tries]


def middle(values: list[float]) -> float:
    ordered = sorted(values)
    return (ordered[2] + ordered[3]) / 2


@pytest.mark.parametrize("level", [LEVEL, 0.2])
@pytest.mark.parametrize("name", EACH)
def test_what_goes_on_is_the_run_of_its_seed_and_what_does_not_is_paid_to_the_level(name: str, level: float) -> None:
    sampler, net = a_sampler(name), Counting()
    done = accepted(sampler, middle(first_scores(sampler, level)), level=level, net=net, filters=[Lid(sigma=0.4)])
    assert net.forward == sum(record.forward for record in done.records)
    assert net.backward == sum(record.backward for record in done.records)
    all_kept = [record.tries.kept for record in done.records if record.tries]
    assert len(set(all_kept)) > 1, "a case in which first tries and later ones are kept"
    for b, record in enumerate(done.records):
        tries = record.tries
        assert tries is not None
        assert tries.seeds == tuple(redrawn(SEEDS[b], k) for k in range(len(tries.seeds)))
        assert tries.scores[tries.kept] == min(tries.scores)
        assert (tries.level, len(tries.seeds)) == (level, 3 if not tries.accepted else tries.kept + 1)
        assert (sum(tries.forward), sum(tries.backward)) == (record.forward, record.backward)
        whole = sampled(sampler, [tries.seeds[tries.kept]], Lid(sigma=0.4))
        torch.testing.assert_close(done.images[b], whole.images[0], rtol=0, atol=TOLERANCE.get(name, 1e-10))
        assert done.scores[0][b] == pytest.approx(whole.scores[0][0], rel=1e-6)
        alone = whole.records[0]
        assert tries.forward[tries.kept] == alone.forward + LID.draws
        assert (record.flagged, record.probed) == (alone.flagged, alone.probed)
        assert pytest.approx(alone.H, rel=1e-6, abs=1e-9) == record.H
        assert (record.restart is None) == (alone.restart is None)
        if record.restart and alone.restart:
            assert record.restart.kept == alone.restart.kept
            assert record.restart.scores == pytest.approx(alone.restart.scores, rel=1e-6)
        for k, spent in enumerate(tries.forward):
            if k != tries.kept:
                assert spent == to_level(sampler, level, tries.seeds[k])


def to_level(sampler: Sampler, level: float, seed: int) -> int:
    """F of a run that is stopped by hand at the level and judged there."""
    count = Counting()
    streams = SeedStreams([seed], CPU)
    latents = streams.randn([2, 3, 3])
    noise = streams if sampler.stream == "first" else streams.second()
    for step in sampler.steps(bind(count, 1, randn_like=noise.randn_like), latents):
        if step.rows is None and step.sigma_next <= level:
            break
    return count.forward + LID.draws


@pytest.mark.parametrize("name", EACH)
def test_where_everything_passes_no_bit_changes(name: str) -> None:
    sampler = a_sampler(name)
    plain, done = sampled(sampler), accepted(sampler, math.inf)
    assert torch.equal(done.images, plain.images)
    for record, known in zip(done.records, plain.records, strict=True):
        assert (record.forward, record.backward) == (known.forward + LID.draws, known.backward)


@pytest.mark.parametrize("name", EACH)
def test_a_decision_depends_on_the_seed_alone(name: str) -> None:
    sampler = a_sampler(name)
    limit = middle(first_scores(sampler, LEVEL))
    together = accepted(sampler, limit)
    for order in ([5, 0, 3, 1, 4, 2], [2, 4], [1]):
        part = accepted(sampler, limit, seeds=[SEEDS[b] for b in order])
        torch.testing.assert_close(part.images, together.images[order], rtol=0, atol=TOLERANCE.get(name, 1e-10))
        for record, b in zip(part.records, order, strict=True):
            mine, known = record.tries, together.records[b].tries
            assert mine is not None
            assert known is not None
            assert (mine.seeds, mine.kept, mine.forward) == (known.seeds, known.kept, known.forward)


@pytest.mark.parametrize("name", EACH)
def test_a_filter_gives_up_what_it_drops(name: str) -> None:
    sampler, net = a_sampler(name), Counting()
    limit = middle(first_scores(sampler, LEVEL))
    plain = sampled(sampler)
    done = sample_filtered(begin(sampler, net), Chunk(0, tuple(SEEDS)), Filter(LID, limit, level=LEVEL))
    assert net.forward == sum(record.forward for record in done.records)
    dropped = [score > limit for score in done.scores[0]]
    assert sum(dropped) == 3
    for b, gone in enumerate(dropped):
        known = plain.records[b].forward + LID.draws
        if gone:
            assert done.records[b].forward == to_level(sampler, LEVEL, SEEDS[b]) < known
        else:
            assert done.records[b].forward == known
            torch.testing.assert_close(done.images[b], plain.images[b], rtol=0, atol=TOLERANCE.get(name, 1e-10))
    nothing = sample_filtered(begin(sampler), Chunk(0, tuple(SEEDS)), Filter(LID, -1.0, level=LEVEL))
    assert [record.forward for record in nothing.records] == [to_level(sampler, LEVEL, seed) for seed in SEEDS]


def test_micro_batches_and_backward_passes_in_parts_change_nothing() -> None:
    sampler = a_sampler("rods-cas")
    limit, parts = middle(first_scores(sampler, LEVEL)), MicroBatches(probe_batch=2)
    parts.limits["forward"] = 4
    together, accept = accepted(sampler, limit), Accept(LID, limit, 3, LEVEL)
    split = sample_accepted(partial(begin(sampler), micro_batches=parts), Chunk(0, tuple(SEEDS)), accept)
    torch.testing.assert_close(split.images, together.images, rtol=0, atol=1e-12)
    for one, other in zip(split.records, together.records, strict=True):
        assert (one.forward, one.backward) == (other.forward, other.backward)
        assert one.tries is not None
        assert other.tries is not None
        assert (one.tries.kept, one.tries.seeds) == (other.tries.kept, other.tries.seeds)


# -- detectors --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DETECTORS)
def test_a_score_in_flight_is_of_the_steps_so_far(name: str) -> None:
    detector, sampler, level = a_detector(name), a_sampler("euler"), 0.2
    streams = SeedStreams(SEEDS, CPU)
    denoise = bind(mixture(), 6, randn_like=SeedStreams(SEEDS, CPU).third().randn_like)
    latents = streams.randn([2, 3, 3])
    follower = detector.follow(denoise, draws_of(denoise, latents.double(), detector.num_draws))
    for step in sampler.steps(mixture(), latents):
        follower.add(step)
        if step.sigma_next <= level:
            break
    known = follower.score(step.denoised).tolist()
    assert len(set(known)) == 6
    assert first_scores(sampler, level, detector) == pytest.approx(known, rel=1e-12)


@pytest.mark.parametrize("name", DETECTORS)
def test_a_follower_of_the_rows_that_go_on_scores_them_as_before(name: str) -> None:
    detector, sampler = a_detector(name), a_sampler("euler")
    denoise = bind(mixture(), 6)
    steps = list(sampler.steps(mixture(), SeedStreams(SEEDS, CPU).randn([2, 3, 3])))
    noise = draws_of(denoise, steps[0].x, detector.num_draws)
    index = torch.tensor([4, 1])
    for at in (0, 5, len(steps)):
        whole, part = detector.follow(denoise, noise), detector.follow(denoise, noise)
        for i, step in enumerate(steps):
            part = part.select(index) if i == at else part
            whole.add(step)
            part.add(step if i < at else step.select(index))
        part = part.select(index) if at == len(steps) else part
        image = steps[-1].x_next
        torch.testing.assert_close(part.score(image[index]), whole.score(image)[index], rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("name", DETECTORS)
def test_what_is_not_known_at_a_level_is_refused(name: str) -> None:
    detector, euler = a_detector(name), a_sampler("euler")
    check_scores(detector, LEVEL if name != "tvf" else 0.2, euler, mixture())
    if name == "tvf":  # one step has no variance
        with pytest.raises(ValueError, match=r"reads 2 steps or more, and 1 of its range come before @0.8; lower"):
            check_scores(detector, LEVEL, euler, mixture())
    with pytest.raises(ValueError, match=r"^80 is not a noise level of this run"):
        check_scores(detector, 80.0, euler, mixture())
    if 0 < detector.max_sigma < math.inf:
        with pytest.raises(ValueError, match=r"and 0 of its range come before @20; lower the level"):
            check_scores(detector, 20.0, euler, mixture())
    if detector.needs != "image":
        with pytest.raises(ValueError, match=r"^detector: .* reads a run's steps"):
            check_scores(detector, LEVEL, a_sampler("restart"), mixture())


# -- samplers that restart, or know nothing of it ---------------------------------------------------------------------


def test_a_restart_is_given_up_before_it_restarts_or_after_it() -> None:
    """Above the level at which it is scored, an image is given up before any restart; below it, after all of them."""
    sampler = a_sampler("restart, in flight", threshold=-math.inf, rounds=1, margin=0)
    assert isinstance(sampler, Restart)
    for level, rounds in ((3.0, 0), (sampler.score_at, 0), (0.2, 1)):
        done = accepted(sampler, -math.inf, level=level, tries=2)
        below = 1 + sum(sampler.score_at < t < sampler.sigma_r for t in sampler.levels(mixture()))
        to_score = sum(t > level for t in sampler.levels(mixture()))
        own = 4 if level <= sampler.score_at else 0  # the restart's own score, LID by four draws
        for record in done.records:
            assert record.tries is not None
            (given_up,) = (f for k, f in enumerate(record.tries.forward) if k != record.tries.kept)
            assert given_up == to_score + LID.draws + own + rounds * (below + 4)


def test_a_sampler_that_lets_no_rows_go_says_so() -> None:
    class Stubborn(type(a_sampler("euler"))):  # type: ignore[misc]
        def along(self, denoise: Any, x: Tensor, sigmas: Tensor) -> Steps:
            for step in super().along(denoise, x, sigmas):
                yield replace(step)

    sampler = Stubborn(num_steps=10)
    with pytest.raises(ValueError, match=r"^sampler: it does not let rows go"):
        accepted(sampler, middle(first_scores(sampler, LEVEL)))
