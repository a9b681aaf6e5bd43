"""What --accept costs and gains at the end and in flight, for several gates and limits, from one pool of tries.

Every try of a seed is run to its end once, scored by each gate at its level and finished, and labelled by the task's
program: what `generate.py --accept` does under a limit follows from that (`row`). The pool goes on where it was.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dnnlib.util import atomic_write
from rods.base_samplers import Euler
from rods.bench.pooled import values_of
from rods.bench.task import Task, load_network
from rods.denoiser import bind
from rods.detectors import Detector
from rods.eval.correction import proportion_interval
from rods.eval.labels import Label
from rods.restart import draws_of
from rods.runs.chunk import Chunk, sample_chunk
from rods.runs.images import to_uint8
from rods.types import AnyDenoiser, Step
from torch_utils.rng import SeedStreams, redrawn

END = 0.0
CPU = torch.device("cpu")


@dataclass
class InFlight:
    """Sees the steps of a run and scores D(x_t) by each gate at its level, as `--accept` does."""

    denoiser: AnyDenoiser
    gates: Mapping[float, Detector]  # by level
    seeds: Sequence[int]
    found: dict[float, list[float]] = field(default_factory=dict)  # by level [B]

    def add(self, step: Step) -> None:
        for level, gate in self.gates.items():
            if level != END and level not in self.found and step.sigma_next <= level:
                self.found[level] = scores_of(self.denoiser, gate, step.denoised, self.seeds)


def scores_of(denoiser: AnyDenoiser, gate: Detector, image: Tensor, seeds: Sequence[int]) -> list[float]:
    """The scores [B] of images [B, C, H, W], with the draws that `--accept` takes for these seeds."""
    denoise = bind(denoiser, len(image), randn_like=SeedStreams(seeds, CPU).third().randn_like)
    scores: list[float] = gate.score(denoise, image, noise=draws_of(denoise, image, gate.num_draws)).tolist()
    return scores


class Pool:
    """Tries by (seed, number), each with its label and its scores by level, in a file of JSON lines."""

    def __init__(
        self, path: Path, task: Task, gates: Mapping[float, Detector], limits: Mapping[float, float], tries: int
    ) -> None:
        """`gates` and `limits` are by noise level, END for finished images. ValueError for tries of other gates."""
        self.path, self.gates, self.limits, self.num_tries, self.task = path, gates, limits, tries, task
        self.network = load_network(task, None).denoiser
        digests = {str(level): getattr(gate, "digest", repr(gate)) for level, gate in gates.items()}
        self.about: dict[str, Any] = {"task": task.name, "gates": digests}
        lines: list[dict[str, Any]] = [self.about]
        if path.exists():
            lines = [json.loads(line) for line in path.read_text().splitlines()]
        about, *lines = lines
        if about != self.about:
            raise ValueError(f"{path} holds tries of another task, or scored by other gates; name another folder")
        self.tries = {(line["seed"], line["try"]): line for line in lines}
        self.sampler = Euler(num_steps=task.num_steps)

    def add(self, chunk: Chunk) -> None:
        """Tries of a chunk's seeds, until one is below every limit, or as many as may be drawn."""
        waiting = list(chunk.seeds)
        for k in range(self.num_tries):
            waiting = [seed for seed in waiting if not self.passed(seed, k)]
            if todo := [seed for seed in waiting if (seed, k) not in self.tries]:
                self.sample(todo, k)

    def passed(self, seed: int, tries: int) -> bool:
        """Whether, under every limit, one of the first tries is below it."""
        scores = [self.tries[seed, k]["scores"] for k in range(tries)]
        return all(any(mine[str(level)] < limit for mine in scores) for level, limit in self.limits.items())

    def sample(self, seeds: Sequence[int], k: int) -> None:
        own = tuple(redrawn(seed, k) for seed in seeds)
        flight = InFlight(self.network, self.gates, own)
        done = sample_chunk(self.network, Chunk(0, own), self.sampler, device=CPU, observers=[flight])
        flight.found[END] = scores_of(self.network, self.gates[END], done.images, own)
        labels = self.task.label(values_of(to_uint8(done.images.numpy())))
        for i, seed in enumerate(seeds):
            scores = {str(level): found[i] for level, found in flight.found.items()}
            self.tries[seed, k] = {"seed": seed, "try": k, "label": int(labels[i]), "scores": scores}
        with atomic_write(self.path) as temporary:
            temporary.write_text("".join(json.dumps(line) + "\n" for line in [self.about, *self.tries.values()]))


@dataclass(frozen=True)
class Row:
    """What `--accept=score<limit@level` makes of the pool's seeds."""

    labels: NDArray[np.int8]  # of the kept images
    accepted: NDArray[np.bool_]  # [n] bool
    forward: NDArray[np.int64]  # [n] F of all tries of a seed
    drawn: int

    def text(self, name: str) -> str:
        """A line of the table."""
        n, bad = len(self.labels), int((self.labels[self.accepted] == Label.HALLUCINATED).sum())
        share = proportion_interval(bad, int(self.accepted.sum()))
        all_bad = (self.labels == Label.HALLUCINATED).mean()
        return (
            f"| {name} | {n} | {self.drawn / n:.2f} | {int(self.accepted.sum())} | {self.forward.mean():.1f} | "
            f"{self.forward.sum() / max(self.accepted.sum(), 1):.1f} | "
            f"{100 * share.rate:.1f} % ({100 * share.low:.1f}-{100 * share.high:.1f}) | {100 * all_bad:.1f} % |"
        )


def row(pool: Pool, seeds: Sequence[int], level: float, limit: float) -> Row:
    """Each seed by itself: tries until one is below the limit; else the lowest score is kept."""
    levels = pool.sampler.levels(pool.network)
    whole = len(levels) + 1
    head = whole if level == END else sum(t > level for t in levels) + 1
    labels, accepted, forward, drawn = [], [], [], 0
    for seed in seeds:
        scores: list[float] = []
        for k in range(pool.num_tries):
            scores.append(pool.tries[seed, k]["scores"][str(level)])
            if scores[-1] < limit:
                break
        kept = int(np.argmin(scores))
        labels.append(pool.tries[seed, kept]["label"])
        accepted.append(scores[kept] < limit)
        forward.append((len(scores) - 1) * head + whole)
        drawn += len(scores)
    return Row(np.array(labels, np.int8), np.array(accepted, np.bool_), np.array(forward, np.int64), drawn)


def table(pool: Pool) -> list[str]:
    """A row for no limit and for each limit, of the seeds whose tries are all there."""
    seeds = [seed for seed, k in pool.tries if k == 0 and complete(pool, seed)]
    first = np.array([pool.tries[seed, 0]["label"] for seed in seeds])
    steps = len(pool.sampler.levels(pool.network))
    none = Row(first, np.ones(len(seeds), bool), np.full(len(seeds), steps), len(seeds))
    columns = ("limit", "seeds", "drawn, per seed", "accepted", "F a kept image", "F an accepted one",
               "hallucinated of accepted", "of all")  # fmt: skip
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|", none.text("no limit")]
    for level, limit in sorted(pool.limits.items()):
        where = "at the end" if level == END else f"@{level:g}"
        lines.append(row(pool, seeds, level, limit).text(f"{where}, score < {limit:.4g}"))
    return lines


def complete(pool: Pool, seed: int) -> bool:
    """Whether all tries of a seed that its limits ask for are there."""
    there = 0
    while (seed, there) in pool.tries:
        there += 1
    return there == pool.num_tries or pool.passed(seed, there)
