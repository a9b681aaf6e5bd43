"""Options that select images: a filter drops some, and a limit has them drawn again, finished or in flight."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import inf, isnan
from typing import Any, TypeVar

import click

from dnnlib.cli import with_options
from dnnlib.errors import UserError
from rods.base_samplers import Sampler
from rods.config import to_text
from rods.detectors import Detector
from rods.gate import ActivationDetector
from rods.presets import RESTART_SCORES, Preset
from rods.restart import Restart
from rods.runs.accept import Accept, Filter, check_scores
from rods.runs.chunk import Chunk
from rods.runs.options import ValueText, detector_option, preset_quantile, respell
from rods.schema import digits
from rods.types import AnyDenoiser

F = TypeVar("F", bound=Callable[..., Any])
ACCEPT_OPTIONS = ("accept", "max_tries")


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
                    check_scores(chosen.detector, chosen.level, sampler, net)
            except ValueError as e:
                raise UserError(f"{option}: {str(e).removeprefix('detector: ')}") from None


def selection(opts: Mapping[str, Any], preset: Preset | None) -> Selection:
    """The selection that the options ask for. UserError, naming the option, for what is missing or does not fit."""
    return Selection(accept_option(opts, preset), _filter(opts, preset))


def accept_option(opts: Mapping[str, Any], preset: Preset | None) -> Accept | None:
    """The limit that --accept and --max-tries set; None: none. UserError, naming the option, for what is wrong."""
    if opts["accept"] is None:
        if opts["max_tries"] is not None:
            raise UserError("--max-tries is for --accept; give a limit, such as --accept='lid<12'")
        return None
    text, is_limit, rest = opts["accept"].rpartition("<")
    if not is_limit:
        raise UserError(f"--accept={opts['accept']} has no limit; write score<value, such as --accept='lid<12'")
    if not text.strip():
        raise UserError(f"--accept={opts['accept']} names no score; write score<value, such as --accept='lid<12'")
    detector = detector_option(text, preset, option="--accept")
    below, level = split_level(rest, option="--accept")
    try:
        limit = float(below.removesuffix("%"))
    except ValueError:
        raise UserError(
            f"--accept: {below!r} is not a limit; give a number or a percentage, such as --accept='lid<12'"
        ) from None
    if below.endswith("%"):
        limit = _percentage(detector, limit, level, preset)
    try:
        return Accept(detector, limit, 4 if opts["max_tries"] is None else opts["max_tries"], level)
    except ValueError as e:
        raise UserError(respell(str(e))) from None


def split_level(text: str, *, option: str) -> tuple[str, float]:
    """What stands before @, and the noise level after it; 0, the finished image, where there is none. UserError."""
    before, at, after = text.partition("@")
    try:
        level = float(after) if at else 0.0
    except ValueError:
        level = 0.0
    if at and not 0 < level < inf:
        raise UserError(f"{option}: @{after} is not a noise level; give a finite number > 0, such as @.5")
    return before, level


def _percentage(detector: Detector, percent: float, level: float, preset: Preset | None) -> float:
    """The score below which so many of a hundred of the preset's calibration samples are. Raises UserError."""
    if not 0 <= percent <= 100:
        raise UserError(f"--accept: {percent:g}% is not a percentage; give 0% to 100%")
    scores, asked = to_text(detector), f"--accept: {percent:g}%"
    restart = preset.samplers.get("restart") if preset else None
    if preset and isinstance(restart, Restart) and restart.detector == detector:
        is_known = scores in preset.quantiles and not level  # of finished images
        if restart.score_at == level and not is_known:
            return preset_quantile(preset, RESTART_SCORES, percent / 100, asked=asked)
        if not level and not is_known and RESTART_SCORES in preset.quantiles:
            raise UserError(
                f"{asked} of {scores}: preset {preset.name} knows the scores that its restart reads in flight; write "
                f"--accept='{scores}<{digits(percent)}%@{digits(restart.score_at)}'"
            )
    if level and preset:
        has = "no restart"
        if isinstance(restart, Restart) and restart.score_at:
            has = f"the restart's own, {to_text(restart.detector)} at @{digits(restart.score_at)}"
        raise UserError(
            f"{asked} of {scores} at @{level:g}: preset {preset.name} knows scores in flight of {has}; give a number, "
            "or fit a gate there (scripts/fit_gate.py --score-at)"
        )
    return preset_quantile(preset, scores, percent / 100, asked=asked)


def _filter(opts: Mapping[str, Any], preset: Preset | None) -> Filter | None:
    threshold = opts["filter_threshold"]
    if opts["filter"] is None:
        for option, is_given in (("filter-threshold", threshold is not None), ("rejected", opts["rejected"])):
            if is_given:
                raise UserError(f"--{option} is for --filter; give a detector, such as --filter=lid")
        return None
    text, level = split_level(opts["filter"], option="--filter")
    detector = detector_option(text, preset, option="--filter")
    if threshold is None:
        raise UserError("--filter needs --filter-threshold=x (inf: only record the scores)")
    if isnan(threshold):
        raise UserError("--filter-threshold: nan is not a score; give a number (inf: only record the scores)")
    if level and opts["accept"]:
        raise UserError(f"--filter=...@{level:g} gives images up, and --accept draws them again; leave one of them out")
    return Filter(detector, threshold, opts["rejected"], level)


SELECTION_OPTIONS = (
    click.option(
        "--filter",
        metavar="NAME[:OPTION=VALUE,...][@LEVEL]",
        type=ValueText(Detector),
        help="Drop images by a score, named as for --detector, such as tvf or h-index:rho=4,lo=.5,hi=2; in flight, at "
        "a noise level after @, such as lid@.5: dropped images are given up there.",
    ),
    click.option(
        "--filter-threshold", type=float, help="filter: drop images that score higher; inf only records the scores."
    ),
    click.option(
        "--rejected",
        is_flag=True,
        help="filter: write dropped images (in flight: D(x_t)) to OUTDIR/rejected [default: nowhere].",
    ),
    click.option(
        "--accept",
        metavar="NAME[:OPTION=VALUE,...]<LIMIT[@LEVEL]",
        help="Draw an image again, from a derived seed, unless its score, named as for --detector, is below a limit, "
        "such as 'lid<12', or 'lid<50%' of the preset's calibration samples; the best of all tries is kept. In flight, "
        "such as 'density-ratio<18@.5': D(x_t) is scored at that noise level, and what fails is given up there.",
    ),
    click.option(
        "--max-tries", type=click.IntRange(1, 16), help="accept: images that are drawn at most per seed [default: 4]."
    ),
)


def add_selection_options(command: F) -> F:
    """Decorator: every option of this module, None (--rejected: False) where it is not given."""
    return with_options(command, SELECTION_OPTIONS)
