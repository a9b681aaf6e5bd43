"""How a run's time and memory grow: with batch, steps, resolution, flagged share, seeds and ranks."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from rods.bench.speed import in_a_fresh_process, interleaved, peak_of_this_process
from rods.pipeline import SamplerConfig, cut_chunks
from rods.runs.outputs import OutputFolder
from rods.runs.sampling import Job, run_chunks
from training.precond import EDMPrecond

ROOT = Path(__file__).resolve().parents[2]
BATCHES, STEPS, RESOLUTIONS, SHARES, SEEDS = (1, 4, 16), (5, 10, 20), (16, 32, 64), (0.0, 0.5, 1.0), (500, 1000, 2000)


@dataclass(frozen=True)
class Point:
    """One setting of a series."""

    value: float
    images: int
    seconds: tuple[float, ...]  # of each round
    note: str = ""

    @property
    def rate(self) -> float:
        """Images per second, by the median round."""
        return self.images / median(self.seconds)


@dataclass(frozen=True)
class Series:
    """One quantity varied; settings of one round were timed one after the other."""

    name: str
    points: tuple[Point, ...]

    def describe(self) -> dict[str, Any]:
        """As JSON can hold it."""
        rows = [{**asdict(p), "images_per_s": p.rate, "ratio": self.ratio(p)} for p in self.points]
        return {"name": self.name, "points": rows}

    def ratio(self, point: Point) -> float:
        """The time per image beside that of the first setting: the median of the rounds' ratios."""
        first = self.points[0]
        pairs = zip(point.seconds, first.seconds, strict=True)
        return median(t / point.images / (s / first.images) for t, s in pairs)


def series(
    name: str, runs: Mapping[float, Callable[[], object]], images: Sequence[int], *, repeats: int, notes: Sequence[str]
) -> Series:
    """Times the settings in turn, after one round that is not timed."""
    for run in runs.values():
        run()
    times = interleaved({str(v): run for v, run in runs.items()}, repeats=repeats)
    points = zip(runs, images, times.values(), notes, strict=True)
    return Series(name, tuple(Point(v, n, tuple(t), note) for v, n, t, note in points))


def latents(net: Any, batch: int, resolution: int | None = None) -> Tensor:
    """Unit normal [batch, C, R, R]."""
    side = resolution or net.img_resolution
    return torch.randn(batch, net.img_channels, side, side, generator=torch.Generator().manual_seed(0))


def by_batch(net: Any, *, steps: int, repeats: int) -> Series:
    """Euler on more images at once."""
    config = SamplerConfig("euler", {"num_steps": steps})
    runs = {float(b): partial(config.run, net, latents(net, b)) for b in BATCHES}
    return series("batch", runs, BATCHES, repeats=repeats, notes=[""] * len(BATCHES))


def by_steps(net: Any, *, batch: int, repeats: int) -> Series:
    """Euler with more steps."""
    x = latents(net, batch)
    runs = {float(n): partial(SamplerConfig("euler", {"num_steps": n}).run, net, x) for n in STEPS}
    return series("steps", runs, [batch] * len(STEPS), repeats=repeats, notes=[""] * len(STEPS))


def by_resolution(net: Any, *, batch: int, steps: int, repeats: int) -> Series:
    """Euler on larger images by the same layers; convolutions do not mind what size they were trained on."""
    config = SamplerConfig("euler", {"num_steps": steps})
    sides = [r for r in RESOLUTIONS if r % 8 == 0]
    runs = {float(r): partial(config.run, net, latents(net, batch, r)) for r in sides}
    return series("resolution", runs, [batch] * len(sides), repeats=repeats, notes=[""] * len(sides))


def by_flagged(net: Any, *, batch: int, steps: int, rho: float, repeats: int) -> Series:
    """SAS with detection, whose correction costs one F more for flagged samples alone.

    Thresholds are quantiles of H on these latents; the note is the share of probes that were flagged.
    """
    x = latents(net, batch)
    window = {"num_steps": steps, "rho": rho, "window": (0.2, 0.8)}
    watched = SamplerConfig("rods-sas", {**window, "eps": float("inf")}).run(net, x)
    H = torch.tensor([h for record in watched.records for h in record.H], dtype=torch.float64)
    runs, notes = {}, []
    for share in SHARES:
        eps = 0.0 if share == 1 else float("inf") if share == 0 else float(torch.quantile(H, 1 - share))
        config = SamplerConfig("rods-sas", {**window, "eps": eps})
        flagged = sum(len(record.flagged) for record in config.run(net, x).records)
        notes.append(f"{flagged / len(H):.0%} of the probes flagged")
        runs[share] = partial(config.run, net, x)
    return series("flagged share", runs, [batch] * len(SHARES), repeats=repeats, notes=notes)


def by_seeds(seeds: Sequence[int] = SEEDS) -> Series:
    """Whole runs into a folder, of more and more seeds, each in a process of its own: time, and peak memory as note.

    The network is a very small one, so that what is not the network shows.
    """
    points = []
    for n in seeds:
        took, peak = in_a_fresh_process(_stream, n)
        points.append(Point(float(n), n, (took,), f"{peak:.0f} MiB at most"))
    return Series("seeds", tuple(points))


def _stream(n: int) -> tuple[float, float]:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    tiny: dict[str, Any] = {"model_channels": 4, "channel_mult": [1], "num_blocks": 1, "attn_resolutions": []}
    net = EDMPrecond(8, 1, model_type="SongUNet", **tiny).eval().requires_grad_(False)
    config, chunks = SamplerConfig("euler", {"num_steps": 2}), cut_chunks(range(n), batch=64)
    job = Job(net, "", config, chunks, 64, torch.device("cpu"), None, "float32", "device", 1, subdirs=True)
    with tempfile.TemporaryDirectory() as folder:
        out = OutputFolder(Path(folder) / "out", identity=job.identity())
        with out.open({}):
            start = time.perf_counter()
            run_chunks(job, out, show_progress=False)
            took = time.perf_counter() - start
    return took, peak_of_this_process()


def by_ranks(network: str, *, steps: int, batch: int) -> Series:
    """generate.py on one and on two processes of one thread: the seconds that more seeds add, start-up left out."""
    points = []
    for ranks in (1, 2):
        few, many = 2 * batch, 6 * batch
        short, long = (_seconds_of_ranks(ranks, network, n, steps, batch) for n in (few, many))
        points.append(Point(float(ranks), many - few, (max(long - short, 1e-9),)))
    return Series("ranks", tuple(points))


def _seconds_of_ranks(ranks: int, network: str, seeds: int, steps: int, batch: int) -> float:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    with tempfile.TemporaryDirectory() as folder:
        options = [f"--network={network}", f"--outdir={folder}/out", "--sampler=euler", f"--steps={steps}"]
        options += [f"--seeds=0-{seeds - 1}", f"--batch={batch}", "--threads=1", "--device=cpu", "--preset=none"]
        start = time.perf_counter()
        subprocess.run([*launch, str(ROOT / "generate.py"), *options], check=True, capture_output=True)
        return time.perf_counter() - start


def table(found: Sequence[Series]) -> str:
    """All series as text: images per second, and the time per image beside the first setting's."""
    lines = [f"{'varied':<16}{'value':>8}{'images/s':>11}{'time/image':>12}"]
    for s in found:
        for p in s.points:
            lines.append(f"{s.name:<16}{p.value:>8g}{p.rate:>11.2f}{s.ratio(p):>11.2f}x  {p.note}".rstrip())
    return "\n".join(lines)
