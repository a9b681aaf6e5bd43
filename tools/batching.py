"""What rows at different noise levels in one batch would buy: selective sampling simulated by the cost of a batch.

python tools/batching.py                       # by the cost of a batch on an H200 (docs/lab/2026-11-26-gpu-h200.json)
python tools/batching.py --measure             # by that of the embedded network on this CPU, one thread

Today a chunk's images go together from step to step, and what restarts, or is drawn again, makes smaller batches. With
a noise level for each row, a finished row's place would go to the next image that waits: `mixed`. Both are simulated
with the same images, whose fates are drawn with given probabilities; only evaluations of the network cost.
"""

from __future__ import annotations

import heapq
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a plain checkout, installed or not

from dnnlib.cli import Command
from training.checkpoint import load_denoiser

ROOT = Path(__file__).resolve().parents[1]
H200 = ROOT / "docs" / "lab" / "2026-11-26-gpu-h200.json"
Cost = Callable[[int], float]
"""Seconds of an evaluation of so many rows."""


@dataclass(frozen=True)
class Work:
    """Evaluations of an image: a head, then further tries of it while it fails, then a tail of what is kept."""

    name: str
    head: int  # down to the score, and the score
    again: int  # of another try
    tail: int
    fails: float  # the probability that a try fails
    most: int  # tries in all
    joined: bool  # whether the tails of all tries of a chunk go together

    def tries(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """How many tries each of n images takes."""
        failed = rng.random((n, self.most - 1)) < self.fails
        taken: np.ndarray = 1 + failed.cumprod(axis=1).sum(axis=1)
        return taken


WORK = (
    Work("restart @.131", 32, 17, 9, 0.45, 4, joined=True),
    Work("accept, finished", 41, 41, 0, 0.5, 4, joined=True),
    Work("accept @.47", 27, 27, 14, 0.5, 4, joined=False),
    Work("accept @1.07", 25, 25, 16, 0.5, 4, joined=False),
)
"""40 Euler steps on hands-32: see docs/lab/2026-11-27-early-stop.md for the probabilities."""


def by_chunks(work: Work, tries: np.ndarray, batch: int, cost: Cost, *, joined: bool) -> float:
    """Seconds as it is: a chunk's images together; those that fail once more together, and so on."""
    seconds = 0.0
    for start in range(0, len(tries), batch):
        mine = tries[start : start + batch]
        seconds += work.head * cost(len(mine))
        for k in range(1, work.most):
            if rows := int((mine > k).sum()):
                seconds += work.again * cost(rows)
        ends = [len(mine)] if joined else [int((mine == k).sum()) for k in range(1, work.most + 1)]
        seconds += sum(work.tail * cost(rows) for rows in ends if rows)
    return seconds


def mixed(work: Work, tries: np.ndarray, batch: int, cost: Cost) -> float:
    """Seconds with a noise level for each row: a finished image's place goes to the next one that waits."""
    left = [work.head + (int(t) - 1) * work.again + work.tail for t in tries]
    ends = left[:batch]  # evaluations after which each place is free
    heapq.heapify(ends)
    for length in left[batch:]:
        heapq.heapreplace(ends, ends[0] + length)
    seconds, now = 0.0, 0
    for rows, end in zip(range(len(ends), 0, -1), sorted(ends), strict=True):
        seconds += (end - now) * cost(rows)
        now = end
    return seconds


def between(rows: Sequence[int], seconds: Sequence[float]) -> Cost:
    """The cost that was measured, and between these numbers of rows a straight line; beyond, in proportion."""
    return lambda b: float(np.interp(b, rows, seconds)) if b <= rows[-1] else b * seconds[-1] / rows[-1]


def on_h200(precision: str) -> Cost:
    """FFHQ's network (62.8 M) as gpu_check.py measured it; precision "bf16, CUDA graphs" was replayed, not launched."""
    runs = json.loads(H200.read_text())["runs"]
    section = runs[1]["sections"]["profile"] if "graphs" in precision else runs[0]["sections"]["ffhq"]
    found = section["results"]
    rates = found[f"{precision}, forward images/s"] if "graphs" in precision else found[precision]["forward images/s"]
    rows = sorted(map(int, rates))
    return between(rows, [b / rates[str(b)] for b in rows])


def on_this_cpu(rows: Sequence[int] = (1, 2, 4, 8, 16, 32, 64)) -> Cost:
    """Process time of hands-32 on one thread, the least of seven, for the machine may be shared."""
    torch.set_num_threads(1)
    net, seconds = load_denoiser(ROOT / "models" / "hands-32.safetensors"), []
    for b in rows:
        x, spent = torch.randn(b, 1, 32, 32, dtype=torch.float64), []
        for _ in range(7):
            start = time.process_time()
            with torch.no_grad():
                net(x, torch.ones([], dtype=torch.float64))
            spent.append(time.process_time() - start)
        seconds.append(min(spent))
    click.echo("ms a row: " + ", ".join(f"{b}: {1000 * s / b:.2f}" for b, s in zip(rows, seconds, strict=True)))
    return between(rows, seconds)


def table(name: str, cost: Cost, batches: Sequence[int], images: int) -> list[str]:
    """Images a second of each kind of work, as it is and as it could be."""
    rng = np.random.default_rng(0)
    lines = [f"{name}, {images} images, images/s",
             "| work | batch | as it is | tails joined | mixed | gain | as it is, batch x 4 |",
             "|---|---|---|---|---|---|---|"]  # fmt: skip
    for work in WORK:
        tries = work.tries(images, rng)
        for batch in batches:
            now = by_chunks(work, tries, batch, cost, joined=work.joined)
            joined = by_chunks(work, tries, batch, cost, joined=True)
            best = mixed(work, tries, batch, cost)
            larger = by_chunks(work, tries, 4 * batch, cost, joined=work.joined)
            rates = " | ".join(f"{images / s:.3g}" for s in (now, joined, best))
            lines.append(f"| {work.name} | {batch} | {rates} | {now / best:.2f}x | {images / larger:.3g} |")
    return lines


@click.command(cls=Command, context_settings={"show_default": True})
@click.option("--measure", is_flag=True, help="Measure the embedded network on this CPU.")
@click.option("--images", type=click.IntRange(1), default=1024, help="Images of a rank.")
def main(measure: bool, images: int) -> None:
    """Simulate selective sampling as it is and with rows of different noise levels in one batch."""
    if measure:
        found = [table("hands-32 on this CPU, one thread", on_this_cpu(), (8, 32, 64), images)]
    else:
        found = [table(f"FFHQ's network on an H200, {precision}", on_h200(precision), (16, 64, 256), images)
                 for precision in ("default", "bf16, CUDA graphs")]  # fmt: skip
    for lines in found:
        click.echo("\n".join([*lines, ""]))


if __name__ == "__main__":
    main()
