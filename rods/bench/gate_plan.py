"""What fitting a gate would do, in network evaluations and time, for the dry run of scripts/fit_gate.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rods.bench.gate_fit import Level
from rods.bench.gate_run import U8, Measuring
from rods.bench.labelled_images import LabelledImages
from rods.detectors import Lid
from rods.guidance import Guidance
from rods.presets import Preset
from rods.runs.estimate import blank, evaluate
from rods.runs.gates import gate_suffix
from rods.runs.guidance import forwards
from rods.runs.presets import beside_preset
from torch_utils.machine import largest_measured, must_fit
from training.logging import duration

ROUNDS = 3  # of a restart


@dataclass(frozen=True)
class Inputs:
    """What a fit starts from, loaded and checked."""

    m: Measuring
    old: Preset | None  # what --dest holds
    guidance: Guidance | None  # of all samples
    real: tuple[U8, Tensor | None] | None  # images and their class labels; None without any
    labelled: LabelledImages | None
    blocks: tuple[str, ...]
    levels: list[Level]

    @property
    def needs_lid(self) -> bool:
        return self.real is None and self.labelled is None

    @property
    def draws(self) -> int:
        """F of a score."""
        return Lid().num_draws if self.needs_lid else 1

    @property
    def scores_each(self) -> int:
        """F of all scores of an image that the trial makes: the gate's, and the second gate's where there is one."""
        return self.draws + (self.real is not None)


@dataclass(frozen=True)
class Part:
    """A stage of a fit."""

    what: str
    images: int
    each: float  # F an image
    done: int = 0  # images that are there already

    @property
    def evaluations(self) -> float:
        return (self.images - self.done) * self.each


def samples_part(m: Measuring, name: str, samples: int, each: float) -> Part:
    """The network's own samples; those whose measurements an earlier fit has kept are not made again."""
    done = sum(len(chunk.seeds) for chunk in m.chunks(samples) if samples and m.part(name, chunk).is_file())
    return Part(f"sample {samples:,} images into {m.run_folder}", samples, each, done)


def trial_part(m: Measuring, back: Sequence[float], seeds: int, draws: int) -> Part:
    """Restarts from each noise level. `draws` is F of all gates that look at an image that was made."""
    return Part(f"try restarts from {', '.join(f'{t:g}' for t in back)}", len(back) * seeds, m.euler_cost + draws)


def going_back(m: Measuring, back: Sequence[float], seeds: int, draws: int, score_at: float) -> float:
    """F at most for what a trial sends back: every image, every round."""
    levels = m.sampler.levels(m.net)
    below = [forwards(m.net, [t for t in levels if score_at < t < sigma_r]) + 1 for sigma_r in back]
    return ROUNDS * seeds * sum(n + draws for n in below)


def parts_of(inputs: Inputs, back: Sequence[float], samples: int, seeds: int) -> list[Part]:
    """The stages of a fit with a trial of so many seeds from each noise level of `back`."""
    m, levels, steps = inputs.m, len(inputs.levels), inputs.m.euler_cost
    parts = []
    if inputs.needs_lid:
        parts.append(samples_part(m, m.scores_name(Lid()), samples, steps + Lid().num_draws))
    elif inputs.real is not None and samples:
        parts.append(samples_part(m, f"features{m.other_levels(inputs.levels)}", samples, steps + levels))
    if inputs.real is not None:
        parts.append(Part(f"read {len(inputs.real[0]):,} real images", len(inputs.real[0]), 2 * levels))
    if (labelled := inputs.labelled) is not None:
        parts.append(Part(f"read {labelled.source}, {labelled.counts()}", len(labelled.images), 2 * levels))
    parts.append(trial_part(m, back, seeds, inputs.scores_each))
    return parts


def plan(inputs: Inputs, back: Sequence[float], samples: int, seeds: int, dest: Path, *, ranks: int) -> list[str]:
    """A line for each part, one on the time, one on what is written. A batch is timed; nothing is written."""
    m, parts = inputs.m, parts_of(inputs, back, samples, seeds)
    lowest = 0.0 if inputs.needs_lid else min(level.score_at for level in inputs.levels)
    most_back = going_back(m, back, seeds, inputs.scores_each, lowest)
    job = m.job(m.chunks(m.batch))
    with torch.no_grad(), must_fit(f"--batch={m.batch} does not fit in the memory of {m.device}; use less"):
        rows, seconds = largest_measured(lambda n: evaluate(job, blank(job, n)), m.batch, m.device)
    lines = []
    for part in parts:
        there = f" (there already: {part.done:,})" if part.done else ""
        lines.append(f"Would {part.what}{there}: {part.evaluations:,.0f} F")
    spent, each = sum(part.evaluations for part in parts), seconds / rows / ranks
    kinds = [*(["density-ratio"] if inputs.real is not None else []), *(["readout"] if inputs.labelled else [])]
    gates = " or ".join(beside_preset(dest, gate_suffix(kind)).name for kind in kinds)
    return [
        *lines,
        f"Time: about {duration(spent * each)} for {spent:,.0f} F"
        + (f" on {ranks} ranks" if ranks > 1 else "")
        + f", and at most {duration(most_back * each)} more for what the trial sends back (with {rows} of {m.batch} "
        f"images at once an F took {seconds / rows:.2g} s an image)",
        f"Would write {dest}{', ' if gates else ''}{gates} and {beside_preset(dest, '.gate.jsonl').name} beside it, "
        f"and keep what is measured in {m.folder}. Nothing was written",
    ]
