"""Drawing images again until a score is below a limit, and dropping those above one: of finished images, or in flight.

In flight a run stops at a noise level and D(x_t) is scored. Images that fail are given up there: of the tries of a seed
the best one alone goes on to its end, and of a filter only what passes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf, isnan
from typing import Protocol

import torch
from torch import Tensor

from dnnlib.errors import counted
from rods.base_samplers import Sampler
from rods.config import to_text
from rods.detectors import Detector
from rods.runs.chunk import Chunk, ChunkResult, ChunkRun, check_detector
from rods.types import AnyDenoiser, SampleRecord, TriesRecord
from torch_utils.rng import LARGEST_REDRAWN, MOST_TRIES, redrawn


class Begin(Protocol):
    """Begins a run: a `ChunkRun` with its network, sampler and everything else bound."""

    def __call__(
        self, chunk: Chunk, *, class_index: int | Sequence[int | None] | None = None, detectors: Sequence[Detector] = ()
    ) -> ChunkRun: ...


def check_level(level: float) -> None:
    """ValueError unless it is a noise level, or 0 for the finished image."""
    if not 0 <= level < inf:
        raise ValueError(f"level: {level} is not a noise level; give a finite number > 0 after @, or leave it out")


def check_scores(detector: Detector, level: float, sampler: Sampler, net: AnyDenoiser) -> None:
    """ValueError where the detector cannot score this sampler's images at that level: by the steps above it alone."""
    check_detector(detector, sampler)
    levels = sampler.levels(net)
    if not level < levels[0]:
        raise ValueError(f"{level:g} is not a noise level of this run; after @ give one below {levels[0]:g}")
    detector.check(net, levels)
    read = sum(detector.min_sigma <= t <= detector.max_sigma for t in levels if t > level)
    if level and detector.needs != "image" and read < detector.least_steps:
        raise ValueError(
            f"{to_text(detector)} reads {counted(detector.least_steps, 'step')} or more, and {read} of its range come "
            f"before @{level:g}; lower the level, or widen the range"
        )


# -- drawn again ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Accept:
    """An image is accepted if its score is below `below`; else it is drawn again, `max_tries` images in all.

    `level` > 0: D(x_t) is scored, when the run is at that noise level or below it for the first time.
    """

    detector: Detector
    below: float
    max_tries: int = 4
    level: float = 0

    def __post_init__(self) -> None:
        if isnan(self.below):
            raise ValueError("accept: nan is not a limit; give a number")
        if not 1 <= self.max_tries <= MOST_TRIES:
            raise ValueError(f"max_tries: {self.max_tries} must be 1 to {MOST_TRIES}")
        check_level(self.level)

    def check_chunks(self, chunks: Sequence[Chunk]) -> None:
        """ValueError for chunks whose images cannot be drawn again, each by itself."""
        if any(chunk.rows_per_seed > 1 for chunk in chunks):
            raise ValueError("accept: a seed that draws a batch cannot draw one image again; give --seeding=per-image")
        if too_large := [seed for chunk in chunks for seed in chunk.seeds if seed >= LARGEST_REDRAWN]:
            raise ValueError(
                f"seeds: {too_large[0]} cannot be redrawn; with --accept, give seeds below {LARGEST_REDRAWN:,}"
            )

    def describe(self) -> str:
        """As on the command line: score<limit, or score<limit@level."""
        limit = f"{to_text(self.detector)}<{self.below!r}".removesuffix(".0")
        return f"{limit}@{self.level!r}" if self.level else limit


@dataclass(frozen=True)
class Try:
    """One image of a seed, stopped where it is judged."""

    run: int
    row: int  # of the run's chunk
    score: float

    @property
    def rank(self) -> tuple[bool, float]:
        """Lower is better; a score that is not a number is the worst of all."""
        return isnan(self.score), self.score


def sample_accepted(
    begin: Begin,
    chunk: Chunk,
    accept: Accept,
    *,
    class_index: int | None = None,
    detectors: Sequence[Detector] = (),
) -> ChunkResult:
    """Sample a chunk, and again the images whose score is not below the limit, with the seeds of `redrawn`.

    Each image is decided by itself: those that are accepted are left alone, the others are sampled again together, with
    the class of the first try. Where none is accepted the lowest score is kept, the earliest of equals. A try's image
    is that of its derived seed, which `tries` records, and `scores` are of the kept images, by `detectors`.
    Cost: that of the sampler and of all scores for every try; in flight, of tries that are not kept the steps down to
    the level and the accept's score. Raises ValueError as `ChunkRun` does and for seeds that cannot be redrawn.
    """
    accept.check_chunks([chunk])
    runs, tries = _drawn(begin, chunk, accept, class_index, detectors)
    classes = list(runs[0].classes)
    best = [min(mine, key=lambda one: one.rank) for mine in tries]
    kept: dict[int, Kept] = {}
    spent: list[list[tuple[int, int]]] = []  # [run][row of its chunk]: F and B
    for k, run in enumerate(runs):
        own = [b for b, one in enumerate(best) if one.run == k]
        rows: Sequence[int] = [best[b].row for b in own]
        if accept.level and own:
            run.keep(rows)
            run.run_to(0)
            rows = range(len(own))
        done = _each_of(run.result()) if own or not accept.level else []
        kept |= {b: done[row] for b, row in zip(own, rows, strict=True)}
        spent.append(run.spent())
    for b, mine in enumerate(tries):
        cost = [spent[one.run][one.row] for one in mine]
        tried = _tries_record(chunk.seeds[b], mine, best[b], accept, cost)
        forward, backward = (sum(column) for column in zip(*cost, strict=True))
        kept[b] = replace(kept[b], record=replace(kept[b].record, forward=forward, backward=backward, tries=tried))
    return _joined(chunk, classes, [kept[b] for b in range(len(tries))])


def _drawn(
    begin: Begin, chunk: Chunk, accept: Accept, class_index: int | None, detectors: Sequence[Detector]
) -> tuple[list[ChunkRun], list[list[Try]]]:
    """The runs, stopped where they are judged, and the tries of each seed: the first run has all seeds."""
    runs = [begin(chunk, class_index=class_index, detectors=[accept.detector, *detectors])]
    tries: list[list[Try]] = [[] for _ in chunk.seeds]
    waiting = list(range(len(tries)))
    while True:
        runs[-1].run_to(accept.level)
        for row, (b, score) in enumerate(zip(waiting, runs[-1].judge(), strict=True)):
            tries[b].append(Try(len(runs) - 1, row, score))
        waiting = [b for b in waiting if not tries[b][-1].score < accept.below]
        if not waiting or len(runs) == accept.max_tries:
            return runs, tries
        seeds = tuple(redrawn(chunk.seeds[b], len(runs)) for b in waiting)
        classes = [runs[0].classes[b] for b in waiting]
        again = Chunk(chunk.index, seeds)
        runs.append(begin(again, class_index=classes, detectors=[accept.detector, *detectors]))


@dataclass(frozen=True, eq=False)
class Kept:
    """What is kept of a seed."""

    image: Tensor  # [C, H, W]
    record: SampleRecord
    scores: tuple[float, ...]  # by the detectors that judge the kept images


def _each_of(done: ChunkResult) -> list[Kept]:
    """Each image of a finished run by itself."""
    by_image = zip(*done.scores, strict=True) if done.scores else [()] * len(done.images)
    return [Kept(*one) for one in zip(done.images, done.records, by_image, strict=True)]


def _joined(chunk: Chunk, classes: list[int | None], kept: Sequence[Kept]) -> ChunkResult:
    scores = tuple(zip(*(one.scores for one in kept), strict=True))
    images, records = torch.stack([one.image for one in kept]), tuple(one.record for one in kept)
    return ChunkResult(chunk, images, classes, records, scores)


def _tries_record(
    seed: int, tries: Sequence[Try], kept: Try, accept: Accept, cost: Sequence[tuple[int, int]]
) -> TriesRecord:
    found = TriesRecord(
        tuple(one.score for one in tries),
        tuple(redrawn(seed, one.run) for one in tries),
        kept.run,
        accepted=kept.score < accept.below,
    )
    if not accept.level:
        return found
    return replace(found, level=accept.level, forward=tuple(f for f, _ in cost), backward=tuple(b for _, b in cost))


# -- dropped ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Filter:
    """Images that score above the threshold are dropped: not written, or written to the folder `rejected`.

    `level` > 0: D(x_t) is scored at that noise level, and what is dropped is given up there.
    """

    detector: Detector
    threshold: float
    rejected: bool = False
    level: float = 0

    def __post_init__(self) -> None:
        check_level(self.level)

    def drops(self, risk: float) -> bool:
        """Whether an image of this score is dropped; one whose score is not a number is, where any may be."""
        return self.threshold < inf and not risk <= self.threshold

    def describe(self) -> str:
        """As the records have it."""
        return f"{to_text(self.detector)}<={self.threshold!r}" + (f"@{self.level!r}" if self.level else "")


def sample_filtered(begin: Begin, chunk: Chunk, chosen: Filter, *, class_index: int | None = None) -> ChunkResult:
    """Sample a chunk, and give up in flight what the filter drops; the image of that is its D(x_t).

    Cost: that of the sampler, down to the level alone for dropped images, and of the filter's score.
    """
    run = begin(chunk, class_index=class_index, detectors=[chosen.detector])
    run.run_to(chosen.level)
    scores, classes, images, records = run.judge(), list(run.classes), list(run.image), list(run.records())
    passed = [b for b, score in enumerate(scores) if not chosen.drops(score)]
    run.keep(passed)
    if passed:
        run.run_to(0)
        done = run.result()
        for b, image, record in zip(passed, done.images, done.records, strict=True):
            images[b], records[b] = image, record
    return ChunkResult(chunk, torch.stack(images), classes, tuple(records), (tuple(scores),))
