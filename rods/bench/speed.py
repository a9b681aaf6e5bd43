"""What each sampler costs beside plain Euler: time as ratios taken in one run, network passes, peak memory."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import mean, median
from typing import Any, TypeVar

import torch
from torch import Tensor

from rods.pipeline import SamplerConfig
from rods.types import AnyDenoiser

T = TypeVar("T")
BASELINE = "euler"
MIB = 2**20


def variants(*, num_steps: int, rho: float) -> dict[str, SamplerConfig]:
    """The samplers compared, by name; RODS corrects every sample (eps 0), the dearest case of a gated run."""
    every_sample: dict[str, float | bool | str] = {"eps": 0.0, "rho": rho}
    chosen: dict[str, tuple[str, dict[str, float | bool | str]]] = {
        BASELINE: ("euler", {}),
        "heun": ("edm", {}),
        "overshoot": ("overshoot", {"rho": rho}),
        "rods-cas": ("rods-cas", every_sample),
        "rods-cas, no detection": ("rods-cas", {**every_sample, "detect": False}),
        "rods-cas, difference": ("rods-cas", {**every_sample, "gradient": "difference"}),
        "rods-cas, every 4th": ("rods-cas", {**every_sample, "probe_every": 4}),
        "rods-cas, every 4th, no detection": ("rods-cas", {**every_sample, "probe_every": 4, "detect": False}),
        "rods-sas": ("rods-sas", every_sample),
        "rods-sas, no detection": ("rods-sas", {**every_sample, "detect": False}),
    }
    return {name: SamplerConfig(s, {"num_steps": num_steps, **options}) for name, (s, options) in chosen.items()}


@dataclass(frozen=True)
class Row:
    """The cost of one sampler. Times of one repeat were taken one after the other, so that their ratio is fair."""

    name: str
    seconds: tuple[float, ...]  # per repeat, for the whole batch
    ratios: tuple[float, ...]  # to the baseline's time in the same repeat
    forward: float  # F per image
    backward: float  # B per image
    peak_mib: float  # peak resident memory of a process that does nothing else

    @property
    def ratio(self) -> float:
        """The median over the repeats."""
        return median(self.ratios)

    def describe(self) -> dict[str, Any]:
        """The row as JSON can hold it."""
        return {**asdict(self), "ratio": self.ratio}


def measure(denoiser: AnyDenoiser, latents: Tensor, configs: Mapping[str, SamplerConfig], *, repeats: int) -> list[Row]:
    """Runs all samplers in turn, `repeats` times after one untimed round; `BASELINE` must be among them.

    `latents` [B, C, H, W] are unit normal. Memory is that of a run in a process of its own, which gets `denoiser` and
    `latents` by pickle. Cost: repeats + 2 runs of every sampler. Raises ValueError: repeats < 1.
    """
    if repeats < 1:
        raise ValueError(f"repeats: {repeats} is too few; give 1 or more")
    runs = {name: partial(config.run, denoiser, latents) for name, config in configs.items()}
    warm = {name: run() for name, run in runs.items()}
    times = interleaved(runs, repeats=repeats)
    return [
        Row(
            name,
            tuple(times[name]),
            tuple(t / base for t, base in zip(times[name], times[BASELINE], strict=True)),
            mean(record.forward for record in warm[name].records),
            mean(record.backward for record in warm[name].records),
            peak_mib(denoiser, latents, config),
        )
        for name, config in configs.items()
    ]


def interleaved(
    runs: Mapping[str, Callable[[], object]], *, repeats: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds per run: a b c a b c ..., so that what else the machine does falls on all of them alike."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            start = clock()
            run()
            times[name].append(clock() - start)
    return times


def peak_mib(denoiser: AnyDenoiser, latents: Tensor, config: SamplerConfig) -> float:
    """Peak resident memory in MiB of a fresh process that samples once; what torch itself takes is in it."""
    return in_a_fresh_process(_peak_of_a_run, denoiser, latents, config, torch.get_num_threads())


def in_a_fresh_process(function: Callable[..., T], *arguments: Any) -> T:
    """What `function` returns in a process that has only imported torch before."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["torch"])
    with context.Pool(1) as pool:
        result = pool.apply(function, arguments)
        pool.close()
        pool.join()
    return result


def _peak_of_a_run(denoiser: AnyDenoiser, latents: Tensor, config: SamplerConfig, threads: int) -> float:
    torch.set_num_threads(threads)
    config.run(denoiser, latents)
    return peak_of_this_process()


def peak_of_this_process() -> float:
    """Its peak resident memory so far, in MiB."""
    status = Path("/proc/self/status")
    if status.is_file():  # Linux: ru_maxrss would begin with the parent's size at the fork
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024 / MIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / MIB


def table(rows: list[Row], *, batch: int) -> str:
    """The rows as text: time as a ratio (median, least to greatest), seconds per image, passes, memory."""
    head = f"{'sampler':<24}{'time':>7}{'range':>15}{'s/image':>10}{'F':>7}{'B':>7}{'peak MiB':>10}"
    lines = [
        f"{r.name:<24}{r.ratio:>6.2f}x{f'{min(r.ratios):.2f}-{max(r.ratios):.2f}':>15}"
        f"{median(r.seconds) / batch:>10.4f}{r.forward:>7.1f}{r.backward:>7.1f}{r.peak_mib:>10.0f}"
        for r in rows
    ]
    return "\n".join([head, *lines])
