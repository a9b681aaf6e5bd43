"""What becomes of finished images: a filter drops them, and a limit has them drawn again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf, isnan
from typing import Any, TypeVar

import click
import torch

from dnnlib.cli import with_options
from dnnlib.errors import UserError
from rods.base_samplers import Sampler
from rods.config import to_text
from rods.detectors import Detector
from rods.gate import ActivationDetector
from rods.micro_batches import MicroBatches
from rods.presets import Preset
from rods.runs.chunk import Chunk, ChunkResult, check_detector, sample_chunk
from rods.runs.options import ValueText, detector_option, preset_quantile, respell
from rods.types import AnyDenoiser, TriesRecord
from torch_utils.rng import LARGEST_REDRAWN, MOST_TRIES, redrawn

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Accept:
    """An image is accepted if its score is below `below`; else it is drawn again, `max_tries` images in all."""

    detector: Detector
    below: float
    max_tries: int = 4

    def __post_init__(self) -> None:
        if isnan(self.below):
            raise ValueError("accept: nan is not a limit; give a number")
        if not 1 <= self.max_tries <= MOST_TRIES:
            raise ValueError(f"max_tries: {self.max_tries} must be 1 to {MOST_TRIES}")

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
        return f"{to_text(self.detector)}<{self.below!r}".removesuffix(".0")


def sample_accepted(
    denoiser: AnyDenoiser,
    chunk: Chunk,
    sampler: Sampler,
    accept: Accept,
    *,
    device: torch.device,
    class_index: int | None = None,
    rng_on_cpu: bool = False,
    dtype: torch.dtype = torch.float32,
    detectors: Sequence[Detector] = (),
    micro_batches: MicroBatches | None = None,
) -> ChunkResult:
    """`sample_chunk`, and again for the images whose score is not below the limit, with the seeds of `redrawn`.

    Each image is decided by itself: those that are accepted are left alone, the others are sampled again together, with
    the class of the first try. Where none is accepted the lowest score is kept, the earliest of equals; an image whose
    score is not a number is the worst of all. A try's image is that of its derived seed, which `tries` records, and
    `scores` are those of the kept images. Cost: that of `sample_chunk` for every image drawn.
    Raises ValueError as `sample_chunk` does and for seeds that cannot be redrawn.
    """
    accept.check_chunks([chunk])
    all_detectors = [accept.detector, *detectors]

    def sample(seeds: Sequence[int], classes: Sequence[int | None] | int | None) -> ChunkResult:
        return sample_chunk(
            denoiser,
            Chunk(chunk.index, tuple(seeds)),
            sampler,
            device=device,
            class_index=classes,
            rng_on_cpu=rng_on_cpu,
            dtype=dtype,
            detectors=all_detectors,
            micro_batches=micro_batches,
        )

    first = sample(chunk.seeds, class_index)
    images, records, risks = first.images, list(first.records), [list(risk) for risk in first.scores]
    risk = risks[0]  # [B]
    scores, seeds = [[s] for s in risk], [[seed] for seed in chunk.seeds]
    kept = [0] * len(images)
    for attempt in range(1, accept.max_tries):
        rows = [b for b, s in enumerate(risk) if not s < accept.below]
        if not rows:
            break
        again = sample([redrawn(chunk.seeds[b], attempt) for b in rows], [first.classes[b] for b in rows])
        for i, (b, new) in enumerate(zip(rows, again.scores[0], strict=True)):
            scores[b].append(new)
            seeds[b].append(again.chunk.seeds[i])
            old, better = records[b], new < risk[b] or (isnan(risk[b]) and not isnan(new))
            spent = old.forward + again.records[i].forward, old.backward + again.records[i].backward
            if better:
                kept[b], images[b] = attempt, again.images[i]
                for values, redone in zip(risks, again.scores, strict=True):
                    values[b] = redone[i]
            records[b] = replace(again.records[i] if better else old, forward=spent[0], backward=spent[1])
    for b, s in enumerate(risk):
        tries = TriesRecord(tuple(scores[b]), tuple(seeds[b]), kept[b], accepted=s < accept.below)
        records[b] = replace(records[b], tries=tries)
    return ChunkResult(chunk, images, first.classes, tuple(records), tuple(map(tuple, risks[1:])))


@dataclass(frozen=True)
class Filter:
    """Images that score above the threshold are dropped: not written, or written to the folder `rejected`."""

    detector: Detector
    threshold: float
    rejected: bool = False

    def drops(self, risk: float) -> bool:
        """Whether an image of this score is dropped; one whose score is not a number is, where any may be."""
        return self.threshold < inf and not risk <= self.threshold

    def describe(self) -> str:
        return f"{to_text(self.detector)}<={self.threshold!r}"


@dataclass(frozen=True)
class Selection:
    """What decides which images stay, if anything does."""

    accept: Accept | None = None
    filter: Filter | None = None

    def detectors(self) -> list[Detector]:
        """The filter's: what `sample_chunk` has to bring the scores of."""
        return [self.filter.detector] if self.filter else []

    def identity(self) -> dict[str, Any]:
        """What of it decides the files of a folder; empty where nothing is selected."""
        found: dict[str, Any] = {}
        if self.filter:
            found |= {"filter": self.filter.describe(), "rejected": self.filter.rejected}
        if self.accept:
            found |= {"accept": self.accept.describe(), "max_tries": self.accept.max_tries}
        for option, chosen in (("filter", self.filter), ("accept", self.accept)):
            if chosen and isinstance(chosen.detector, ActivationDetector):
                found[f"{option}_sha256"] = chosen.detector.digest
        return found

    def check(self, sampler: Sampler, chunks: Sequence[Chunk], net: AnyDenoiser) -> None:
        """UserError where seeds cannot be drawn again, or the detectors and the sampler do not go together."""
        try:
            if self.accept:
                self.accept.check_chunks(chunks)
        except ValueError as e:
            raise UserError(respell(str(e))) from None
        for option, chosen in (("--filter", self.filter), ("--accept", self.accept)):
            try:
                if chosen is not None:
                    check_detector(chosen.detector, sampler)
                    chosen.detector.check(net, sampler.levels(net))
            except ValueError as e:
                raise UserError(f"{option}: {str(e).removeprefix('detector: ')}") from None


def selection(opts: Mapping[str, Any], preset: Preset | None) -> Selection:
    """The selection that the options ask for. UserError, naming the option, for what is missing or does not fit."""
    return Selection(_accept(opts, preset), _filter(opts, preset))


def _accept(opts: Mapping[str, Any], preset: Preset | None) -> Accept | None:
    if opts["accept"] is None:
        if opts["max_tries"] is not None:
            raise UserError("--max-tries is for --accept; give a limit, such as --accept='lid<12'")
        return None
    text, is_limit, below = opts["accept"].rpartition("<")
    if not is_limit:
        raise UserError(f"--accept={opts['accept']} has no limit; write score<value, such as --accept='lid<12'")
    detector = detector_option(text, preset, option="--accept")
    try:
        limit = float(below.removesuffix("%"))
    except ValueError:
        raise UserError(
            f"--accept: {below!r} is not a limit; give a number or a percentage, such as --accept='lid<12'"
        ) from None
    if below.endswith("%"):
        limit = _percentage(detector, limit, preset)
    try:
        return Accept(detector, limit, opts["max_tries"] or 4)
    except ValueError as e:
        raise UserError(respell(str(e))) from None


def _percentage(detector: Detector, percent: float, preset: Preset | None) -> float:
    """The score below which so many of a hundred of the preset's calibration samples are. Raises UserError."""
    if not 0 <= percent <= 100:
        raise UserError(f"--accept: {percent:g}% is not a percentage; give 0% to 100%")
    return preset_quantile(preset, to_text(detector), percent / 100, asked=f"--accept: {percent:g}%")


def _filter(opts: Mapping[str, Any], preset: Preset | None) -> Filter | None:
    threshold = opts["filter_threshold"]
    if opts["filter"] is None:
        for option, is_given in (("filter-threshold", threshold is not None), ("rejected", opts["rejected"])):
            if is_given:
                raise UserError(f"--{option} is for --filter; give a detector, such as --filter=lid")
        return None
    detector = detector_option(opts["filter"], preset, option="--filter")
    if threshold is None:
        raise UserError("--filter needs --filter-threshold=x (inf: only record the scores)")
    if isnan(threshold):
        raise UserError("--filter-threshold: nan is not a score; give a number (inf: only record the scores)")
    return Filter(detector, threshold, opts["rejected"])


SELECTION_OPTIONS = (
    click.option(
        "--filter",
        type=ValueText(Detector),
        help="Drop finished images by a score, named as for --detector, such as tvf or h-index:rho=4,lo=.5,hi=2.",
    ),
    click.option(
        "--filter-threshold", type=float, help="filter: drop images that score higher; inf only records the scores."
    ),
    click.option(
        "--rejected", is_flag=True, help="filter: write dropped images to OUTDIR/rejected [default: nowhere]."
    ),
    click.option(
        "--accept",
        metavar="NAME[:OPTION=VALUE,...]<LIMIT",
        help="Draw an image again, from a derived seed, unless its score, named as for --detector, is below a limit, "
        "such as 'lid<12', or 'lid<50%' of the preset's calibration samples; the best of all tries is kept.",
    ),
    click.option(
        "--max-tries", type=click.IntRange(1, 16), help="accept: images that are drawn at most per seed [default: 4]."
    ),
)


def add_selection_options(command: F) -> F:
    """Decorator: every option of this module, None (--rejected: False) where it is not given."""
    return with_options(command, SELECTION_OPTIONS)
