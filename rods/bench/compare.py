"""Samplers side by side on the same seeds: labels, what changed, what it cost."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from rods.detectors import curvature_index
from rods.eval.correction import PairedOutcomes, paired_outcomes
from rods.pipeline import SamplerConfig, cut_chunks, sample_chunk
from rods.runs.images import to_uint8
from rods.types import AnyDenoiser, SampleRecord

Labeller = Callable[[NDArray[np.uint8]], NDArray[np.int8]]


@dataclass
class Sampled:
    """What one sampler made of all seeds."""

    config: SamplerConfig
    images: NDArray[np.uint8] = field(default_factory=lambda: np.zeros([0, 1, 1, 1], np.uint8))  # [N, C, H, W]
    records: list[SampleRecord] = field(default_factory=list)  # [N]
    seconds: list[float] = field(default_factory=list)  # per chunk

    def max_scores(self) -> NDArray[np.float64]:
        """The largest curvature index of each sample over its probed steps [N]."""
        return np.array([max(record.H) for record in self.records])

    def flagged(self) -> NDArray[np.bool_]:
        """Whether any step of the sample was corrected [N]."""
        return np.array([bool(record.flagged) for record in self.records])


def sample_all(
    denoiser: AnyDenoiser, configs: Mapping[str, SamplerConfig], seeds: Sequence[int], *, batch: int
) -> dict[str, Sampled]:
    """Sample all seeds with every config on the CPU, with progress on standard error.

    The configs take turns chunk by chunk, so that a drift of the machine's speed hits all alike; nothing is timed
    before the network has run once, forward and backward.
    """
    curvature_index(denoiser, warm_up_state(denoiser, min(batch, len(seeds))), 1.0, rho=1.0)
    runs = {name: Sampled(config) for name, config in configs.items()}
    seldom = 0.1 if sys.stderr.isatty() else 30  # seconds between two lines of progress
    with tqdm(total=len(seeds) * len(configs), unit="img", mininterval=seldom) as progress:
        for chunk in cut_chunks(seeds, batch=batch):
            for run in runs.values():
                start = time.perf_counter()
                result = sample_chunk(denoiser, chunk, run.config, device=torch.device("cpu"))
                run.seconds.append(time.perf_counter() - start)
                images = to_uint8(result.images.numpy())
                run.images = np.concatenate([run.images, images]) if len(run.images) else images
                run.records.extend(result.records)
                progress.update(len(images))
    return runs


def warm_up_state(denoiser: AnyDenoiser, batch: int) -> torch.Tensor:
    """Any state [B, C, H, W] of the network's shape."""
    side: int = denoiser.img_resolution  # type: ignore[attr-defined]
    return torch.ones(batch, denoiser.img_channels, side, side)  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Row:
    """One sampler against the baseline. Ratios are to the baseline."""

    name: str
    outcomes: PairedOutcomes
    variance_kept: float  # total variance over the set, summed over pixels
    forward: float  # passes per image
    backward: float
    time_ratio: float  # median over the chunks

    def cells(self) -> list[str]:
        o = self.outcomes
        bad = f"{o.bad_after.rate:.1%} ({100 * o.bad_after.low:.1f}-{100 * o.bad_after.high:.1f})"
        changes = [f"{p.k}/{p.n} ({p.rate:.1%})" for p in (o.repaired, o.broken)]
        return [
            self.name,
            bad,
            f"{o.ambiguous_after.rate:.1%}",
            *changes,
            f"{self.variance_kept:.3f}",
            f"{self.forward:.0f}+{self.backward:.0f}",
            f"{self.time_ratio:.2f}x",
        ]


HEADINGS = ("sampler", "surely bad (95 %)", "unsure", "repaired", "newly broken", "variance kept", "F+B", "time")


def compare(runs: Mapping[str, Sampled], label: Labeller, *, baseline: str) -> list[Row]:
    """A row per sampler, the baseline first as it is."""
    base = runs[baseline]
    before = label(base.images)
    rows = []
    for name, run in runs.items():
        forward, backward = np.mean([[r.forward, r.backward] for r in run.records], axis=0)
        rows.append(
            Row(
                name,
                paired_outcomes(before, before if run is base else label(run.images)),
                variance_kept=_total_variance(run.images) / _total_variance(base.images),
                forward=float(forward),
                backward=float(backward),
                time_ratio=statistics.median(a / b for a, b in zip(run.seconds, base.seconds, strict=True)),
            )
        )
    return rows


def format_table(rows: Sequence[Row], *, baseline: str) -> str:
    """The rows as a Markdown table; repairs and breaks of the baseline itself are left blank."""
    cells = [list(HEADINGS)]
    for row in rows:
        line = row.cells()
        if row.name == baseline:
            line[3] = line[4] = ""
        cells.append(line)
    widths = [max(len(line[i]) for line in cells) for i in range(len(HEADINGS))]
    lines = ["| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) + " |" for line in cells]
    return "\n".join([lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *lines[1:]])


def _total_variance(images: NDArray[np.uint8]) -> float:
    return float(images.astype(np.float64).var(axis=0).sum())
