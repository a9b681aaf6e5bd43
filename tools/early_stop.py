"""What --accept costs and gains at the end and in flight, for several gates and limits, from one pool of tries.

python tools/early_stop.py --preset=models/hands-32-gate.preset.json --preset=out/at-.47.preset.json --end-limit=12 \
    --seeds=0-1023 --out=out/pool

Every try of a seed is run to its end once, scored by each preset's gate at its level and finished, and labelled by the
task's program: what `generate.py --accept` does under a limit follows from that. The same command goes on where it was.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a plain checkout, installed or not

from dnnlib.cli import Command, SeedList
from rods.base_samplers import Euler
from rods.bench.task import load_network
from rods.bench.tasks import TASKS
from rods.denoiser import bind
from rods.detectors import Detector
from rods.eval.correction import proportion_interval
from rods.eval.labels import Label
from rods.presets import RESTART_SCORES, Preset
from rods.restart import Restart
from rods.runs.chunk import Chunk, cut_chunks, sample_chunk
from rods.runs.images import to_uint8
from rods.runs.presets import read_preset
from rods.types import AnyDenoiser, Step
from torch_utils.rng import SeedStreams, redrawn

END = 0.0
CPU = torch.device("cpu")


@dataclass
class InFlight:
    """Sees the steps of a run and scores D(x_t) by each gate at its level, as `--accept` does."""

    denoiser: AnyDenoiser
    gates: dict[float, Detector]
    seeds: Sequence[int]
    found: dict[float, list[float]]

    def add(self, step: Step) -> None:
        for level, gate in self.gates.items():
            if level != END and level not in self.found and step.sigma_next <= level:
                self.found[level] = scores_of(self.denoiser, gate, step.denoised, self.seeds)


def scores_of(denoiser: AnyDenoiser, gate: Detector, image: Tensor, seeds: Sequence[int]) -> list[float]:
    third = SeedStreams(seeds, CPU).third()
    noise = torch.stack([third.randn_like(image) for _ in range(gate.num_draws)])
    scores: list[float] = gate.score(bind(denoiser, len(image)), image, noise=noise).tolist()
    return scores


def restart_of(preset: Preset) -> Restart:
    restart = preset.samplers["restart"]
    assert isinstance(restart, Restart)
    return restart


@click.command(cls=Command, context_settings={"show_default": True})
@click.option(
    "--task", "task_name", type=click.Choice(list(TASKS)), default="hands-32", help="Whose images and labels."
)
@click.option("--preset", "presets", multiple=True, required=True, type=click.Path(exists=True, path_type=Path),
              help="Its gate scores at its restart's level; the first one's finished images, too.")  # fmt: skip
@click.option("--share", type=click.FloatRange(0, 1), default=0.5, help="Of calibration samples below the limit.")
@click.option("--end-limit", type=float, required=True, help="The limit of finished images.")
@click.option("--tries", type=click.IntRange(1, 16), default=4, help="Images that are drawn at most per seed.")
@click.option("--seeds", type=SeedList(), default="0-1023", help="Seeds.")
@click.option("--batch", type=click.IntRange(1), default=64, help="Images per chunk.")
@click.option("--table", is_flag=True, help="Sample nothing: the table of what is there.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Where the pool is kept.")
def main(**opts: Any) -> None:
    """Compare accepting at the end with accepting in flight."""
    torch.set_num_threads(1)
    found = [read_preset(path) for path in opts["presets"]]
    gates = {END: restart_of(found[0]).detector, **{restart_of(p).score_at: restart_of(p).detector for p in found}}
    limits = {END: opts["end_limit"]}
    limits |= {restart_of(p).score_at: p.quantile(RESTART_SCORES, opts["share"]) for p in found}
    opts["out"].mkdir(parents=True, exist_ok=True)
    pool = Pool(opts["out"] / "pool.jsonl", opts["task_name"], gates, limits, opts["tries"])
    if not opts["table"]:
        for chunk in cut_chunks(opts["seeds"], batch=opts["batch"]):
            pool.add(chunk)
    for line in table(pool):
        click.echo(line)


class Pool:
    """Tries by (seed, number), each with its label and its scores by level, in a file of JSON lines."""

    def __init__(
        self, path: Path, task: str, gates: dict[float, Detector], limits: dict[float, float], tries: int
    ) -> None:
        self.path, self.gates, self.limits, self.num_tries = path, gates, limits, tries
        self.task = TASKS[task]()
        self.network = load_network(self.task, None).denoiser
        lines = path.read_text().splitlines() if path.exists() else []
        self.tries = {(line["seed"], line["try"]): line for line in map(json.loads, lines)}
        self.sampler = Euler(num_steps=self.task.num_steps)

    def add(self, chunk: Chunk) -> None:
        """Tries of a chunk's seeds, until one is below every limit, or as many as may be drawn."""
        for k in range(self.num_tries):
            waiting = [seed for seed in chunk.seeds if not self.passed(seed, k)]
            if todo := [seed for seed in waiting if (seed, k) not in self.tries]:
                self.sample(todo, k)

    def passed(self, seed: int, tries: int) -> bool:
        """Whether, under every limit, one of the first tries is below it."""
        scores = [self.tries[seed, k]["scores"] for k in range(tries)]
        return all(any(mine[str(level)] < limit for mine in scores) for level, limit in self.limits.items())

    def sample(self, seeds: Sequence[int], k: int) -> None:
        own = tuple(redrawn(seed, k) for seed in seeds)
        flight = InFlight(self.network, self.gates, own, {})
        done = sample_chunk(self.network, Chunk(0, own), self.sampler, device=CPU, observers=[flight])
        flight.found[END] = scores_of(self.network, self.gates[END], done.images, own)
        pixels = torch.from_numpy(to_uint8(done.images.numpy())).double().numpy() / 127.5 - 1
        labels = self.task.label(pixels)
        with self.path.open("a") as file:
            for i, seed in enumerate(seeds):
                line = {"seed": seed, "try": k, "label": int(labels[i]),
                        "scores": {str(level): scores[i] for level, scores in flight.found.items()}}  # fmt: skip
                self.tries[seed, k] = line
                file.write(json.dumps(line) + "\n")


@dataclass(frozen=True)
class Row:
    """What `--accept=score<limit@level` makes of the pool's seeds."""

    labels: np.ndarray  # of the kept images
    accepted: np.ndarray  # [n] bool
    forward: np.ndarray  # [n] F of all tries of a seed
    drawn: int

    def text(self, name: str) -> str:
        n, bad = len(self.labels), int((self.labels[self.accepted] == Label.HALLUCINATED).sum())
        share = proportion_interval(bad, int(self.accepted.sum()))
        all_bad = (self.labels == Label.HALLUCINATED).mean()
        return (
            f"| {name} | {n} | {self.drawn / n:.2f} | {int(self.accepted.sum())} | {self.forward.mean():.1f} | "
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
    return Row(np.array(labels), np.array(accepted), np.array(forward), drawn)


def table(pool: Pool) -> list[str]:
    seeds = [seed for seed, k in pool.tries if k == 0 and complete(pool, seed)]
    first = np.array([pool.tries[seed, 0]["label"] for seed in seeds])
    steps = len(pool.sampler.levels(pool.network))
    none = Row(first, np.ones(len(seeds), bool), np.full(len(seeds), steps), len(seeds))
    lines = ["| accepted | seeds | drawn, per seed | accepted | F a kept image | hallucinated of accepted | of all |",
             "|---|---|---|---|---|---|---|", none.text("no limit")]  # fmt: skip
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


if __name__ == "__main__":
    main()
