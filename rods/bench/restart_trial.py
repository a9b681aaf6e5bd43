"""A trial of gated restarts: one run with a low threshold, from which runs with higher ones are replayed.

An image's makes and their scores do not depend on the threshold, which only says when to stop: a run with a higher
threshold makes the first of them. So one run tells the cost and the outcome of every threshold above its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import sqrt
from statistics import stdev

import torch
from torch import Tensor

from rods.bench.gate_fit import features
from rods.gate import ActivationDetector
from rods.restart import Restart
from rods.runs.chunk import Chunk, drawn_labels, sample_chunk
from rods.runs.guidance import forwards
from rods.types import Denoiser, Step
from torch_utils.rng import SeedStreams

NORMAL_95 = 1.96  # standard errors on each side


@dataclass(frozen=True)
class Forecast:
    """What a restart is expected to do, from a trial."""

    sigma_r: float
    threshold: float
    restarted: float  # share of the images that go back
    nfe: float  # F an image
    nfe_within: float  # half the width of a 95 % interval around it, for the trial's seeds are few
    above: float  # share of the images above the threshold at the end
    off_support: float | None  # share above the limit of a gate of other images, which chose nothing, at the end
    off_support_before: float | None  # the same without a restart; None: there was no such gate


@dataclass(frozen=True)
class Trial:
    """Restarts of the trial's seeds from one noise level, with the threshold `lowest`."""

    sigma_r: float
    lowest: float
    base: float  # F of an image that is not restarted
    per_round: float  # F that a restart adds
    scores: tuple[tuple[float, ...], ...]  # of each image's makes, in their order
    second: tuple[tuple[float, ...], ...]  # the same by a gate of other images; empty without one

    def forecast(self, threshold: float, limit: float | None) -> Forecast:
        """What this threshold, at least `lowest`, would have done; `limit` is of the second gate, None without one."""
        if threshold < self.lowest:
            raise ValueError(f"threshold: {threshold} is below the trial's, {self.lowest}")
        n = len(self.scores)
        replays = [replayed(scores, threshold) for scores in self.scores]
        before, after = None, None
        if limit is not None:
            before = sum(s[0] > limit for s in self.second) / n
            after = sum(s[kept] > limit for s, (kept, _) in zip(self.second, replays, strict=True)) / n
        return Forecast(
            self.sigma_r,
            threshold,
            restarted=sum(rounds > 0 for _, rounds in replays) / n,
            nfe=self.base + self.per_round * sum(rounds for _, rounds in replays) / n,
            nfe_within=NORMAL_95 * self.per_round * stdev(rounds for _, rounds in replays) / sqrt(n),
            above=sum(s[kept] > threshold for s, (kept, _) in zip(self.scores, replays, strict=True)) / n,
            off_support=after,
            off_support_before=before,
        )

    def within(self, most: float) -> float:
        """The lowest threshold, at least `lowest`, with which an image costs at most `most` F; inf where none does."""
        candidates = sorted({self.lowest, *(s for scores in self.scores for s in scores if s > self.lowest)})
        low, high = 0, len(candidates)  # the cost falls as the threshold rises
        while low < high:
            middle = (low + high) // 2
            rounds = sum(replayed(scores, candidates[middle])[1] for scores in self.scores)
            if self.base + self.per_round * rounds / len(self.scores) <= most:
                high = middle
            else:
                low = middle + 1
        return candidates[low] if low < len(candidates) else float("inf")


def replayed(scores: Sequence[float], threshold: float) -> tuple[int, int]:
    """Which of an image's makes is kept, and how often it is restarted, with this threshold."""
    kept = 0
    for k in range(1, len(scores)):
        if not scores[kept] > threshold:
            return kept, k - 1
        if scores[k] < scores[kept]:
            kept = k
    return kept, len(scores) - 1


@dataclass(frozen=True)
class ChunkTrial:
    """Restarts of one chunk's seeds."""

    scores: tuple[tuple[float, ...], ...]  # of each image's makes, in their order
    second: tuple[tuple[float, ...], ...]  # the same by a gate of other images; empty without one
    spent: int  # F of all restarts


def try_chunk(
    net: Denoiser, restart: Restart, second: ActivationDetector | None, chunk: Chunk, device: torch.device
) -> ChunkTrial:
    """Restarts of a chunk's seeds, on Euler. Cost: those, and a F of every image made, for the second gate."""
    base = base_evaluations(net, restart)
    opinions = [SecondOpinion(net, drawn_labels(net, chunk, device), second, chunk.seeds)] if second else []
    done = sample_chunk(net, chunk, restart, device=device, observers=opinions)
    scores, spent = [], 0
    for record in done.records:
        assert record.restart is not None, "a restart keeps records"
        scores.append(tuple(record.restart.scores))
        spent += record.forward - base
    return ChunkTrial(tuple(scores), tuple(tuple(row) for opinion in opinions for row in opinion.scores), spent)


def base_evaluations(net: Denoiser, restart: Restart) -> int:
    """F of an image that is not restarted."""
    return forwards(net, restart.levels(net)) + restart.detector.num_draws


def joined(net: Denoiser, restart: Restart, parts: Sequence[ChunkTrial]) -> Trial:
    """The trial of all chunks."""
    scores = tuple(row for part in parts for row in part.scores)
    rounds, spent = sum(len(row) - 1 for row in scores), sum(part.spent for part in parts)
    second = tuple(row for part in parts for row in part.second)
    per_round = spent / rounds if rounds else 0.0
    return Trial(restart.sigma_r, restart.threshold, base_evaluations(net, restart), per_round, scores, second)


@dataclass
class SecondOpinion:
    """Sees the steps of a gated restart of a whole batch, and scores what is scored there by another gate."""

    denoiser: Denoiser
    class_labels: Tensor | None  # [B, label_dim] of the run
    gate: ActivationDetector
    seeds: Sequence[int]
    scores: list[list[float]] = field(default_factory=list)  # of each row's makes

    def add(self, step: Step) -> None:
        if step.verdict is None:
            return
        rows = list(range(len(self.seeds))) if step.rows is None else step.rows.tolist()
        image = step.x_next if step.sigma_next == 0 else step.denoised
        noise = SeedStreams([self.seeds[row] for row in rows], image.device).third().randn_like(image)[None]
        labels = None if self.class_labels is None else self.class_labels[rows]
        found = self.gate.of(features(self.denoiser, image, self.gate.sigma, self.gate.blocks, noise, labels))
        self.scores = self.scores or [[] for _ in self.seeds]
        for row, score in zip(rows, found.tolist(), strict=True):
            self.scores[row].append(score)
