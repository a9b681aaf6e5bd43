"""Retry: an image that stays at risk is drawn again from a derived seed, and the best of all tries is kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isnan

import torch

from rods.image_scores import Score
from rods.pipeline import Chunk, ChunkResult, SamplerConfig, sample_chunk
from rods.room import Room
from rods.score_text import format_score
from rods.scoring import Limit
from rods.types import AnyDenoiser, TriesRecord
from torch_utils.rng import LARGEST_REDRAWN, MOST_TRIES, redrawn


@dataclass(frozen=True)
class Accept:
    """An image is accepted if its score is below `below`; else it is drawn again, `max_tries` images in all."""

    score: Score
    below: float
    max_tries: int = 4

    def __post_init__(self) -> None:
        if isnan(self.below):
            raise ValueError("accept: nan is no limit; give a number")
        if not 1 <= self.max_tries <= MOST_TRIES:
            raise ValueError(f"max_tries: {self.max_tries} will not do; give 1 to {MOST_TRIES}")

    def check_chunks(self, chunks: Sequence[Chunk]) -> None:
        """ValueError for chunks whose images cannot be drawn again, each by itself."""
        if any(chunk.rows_per_seed > 1 for chunk in chunks):
            raise ValueError("accept: a seed that draws a whole batch cannot draw one image again; use one seed each")
        if too_large := [seed for chunk in chunks for seed in chunk.seeds if seed >= LARGEST_REDRAWN]:
            raise ValueError(
                f"seeds: {too_large[0]} cannot be redrawn; with --accept, give seeds below {LARGEST_REDRAWN:,}"
            )

    def describe(self) -> str:
        """As on the command line."""
        return f"{format_score(self.score)}<{self.below!r}".removesuffix(".0")


def sample_accepted(
    denoiser: AnyDenoiser,
    chunk: Chunk,
    config: SamplerConfig,
    accept: Accept,
    *,
    device: torch.device,
    class_index: int | None = None,
    rng_on_cpu: bool = False,
    dtype: torch.dtype = torch.float32,
    limits: Sequence[Limit] = (),
    room: Room | None = None,
) -> ChunkResult:
    """`sample_chunk`, and again for the images whose score is not below the limit, with the seeds of `redrawn`.

    Each image is decided by itself: those that are accepted are left alone, the others are sampled again together, with
    the class of the first try. Where none is accepted the lowest score is kept, the earliest of equals; an image whose
    score is no number is the worst of all. A try's image is that of its derived seed, which `tries` records, and
    `risks` are those of the kept images. Cost: that of `sample_chunk` for every image drawn.
    Raises ValueError as `sample_chunk` does and for seeds that cannot be redrawn.
    """
    accept.check_chunks([chunk])
    all_limits = [Limit(accept.score, accept.below), *limits]

    def sample(seeds: Sequence[int], classes: Sequence[int | None] | int | None) -> ChunkResult:
        return sample_chunk(
            denoiser,
            Chunk(chunk.index, tuple(seeds)),
            config,
            device=device,
            class_index=classes,
            rng_on_cpu=rng_on_cpu,
            dtype=dtype,
            limits=all_limits,
            room=room,
        )

    first = sample(chunk.seeds, class_index)
    images, records, risks = first.images, list(first.records), [list(risk) for risk in first.risks]
    risk = risks[0]  # [B]
    scores, seeds = [[s] for s in risk], [[seed] for seed in chunk.seeds]
    kept = [0] * len(images)
    for attempt in range(1, accept.max_tries):
        rows = [b for b, s in enumerate(risk) if not s < accept.below]
        if not rows:
            break
        again = sample([redrawn(chunk.seeds[b], attempt) for b in rows], [first.classes[b] for b in rows])
        for i, (b, new) in enumerate(zip(rows, again.risks[0], strict=True)):
            scores[b].append(new)
            seeds[b].append(again.chunk.seeds[i])
            old, better = records[b], new < risk[b] or (isnan(risk[b]) and not isnan(new))
            spent = old.forward + again.records[i].forward, old.backward + again.records[i].backward
            if better:
                kept[b], images[b] = attempt, again.images[i]
                for values, redone in zip(risks, again.risks, strict=True):
                    values[b] = redone[i]
            records[b] = replace(again.records[i] if better else old, forward=spent[0], backward=spent[1])
    for b, s in enumerate(risk):
        tries = TriesRecord(tuple(scores[b]), tuple(seeds[b]), kept[b], accepted=s < accept.below)
        records[b] = replace(records[b], tries=tries)
    return ChunkResult(chunk, images, first.classes, tuple(records), tuple(map(tuple, risks[1:])))
