"""What becomes of finished images: filters that drop, and limits that have them drawn again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf, isnan
from typing import Any, TypeVar

import click

from dnnlib.cli import with_options
from dnnlib.errors import UserError
from rods.accept import Accept
from rods.image_scores import Score
from rods.pipeline import Chunk, SamplerConfig
from rods.presets import Preset
from rods.runs.options import respell
from rods.runs.sampler_options import ScoreText
from rods.score_text import format_score, parse_score
from rods.scoring import Limit
from rods.types import AnyDenoiser

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Filter:
    """Images that score above the threshold are dropped: not written, or written to the folder `rejected`."""

    score: Score
    threshold: float
    rejected: bool = False

    def drops(self, risk: float) -> bool:
        """Whether an image of this score is dropped; one whose score is no number is, where any may be."""
        return self.threshold < inf and not risk <= self.threshold

    def describe(self) -> str:
        return f"{format_score(self.score)}<={self.threshold!r}"


@dataclass(frozen=True)
class Selection:
    """What decides which images stay, if anything does."""

    accept: Accept | None = None
    filter: Filter | None = None

    def limits(self) -> list[Limit]:
        """The filter's score: what `sample_chunk` has to bring back."""
        return [Limit(self.filter.score, self.filter.threshold)] if self.filter else []

    def identity(self) -> dict[str, Any]:
        """What of it decides the files of a folder; empty where nothing is selected."""
        found: dict[str, Any] = {}
        if self.filter:
            found |= {"filter": self.filter.describe(), "rejected": self.filter.rejected}
        if self.accept:
            found |= {"accept": self.accept.describe(), "max_tries": self.accept.max_tries}
        return found

    def check(self, config: SamplerConfig, chunks: Sequence[Chunk], net: AnyDenoiser) -> None:
        """UserError where seeds cannot be drawn again, or the scores and the sampler do not go together."""
        try:
            if self.accept:
                self.accept.check_chunks(chunks)
        except ValueError as e:
            raise UserError(respell(str(e))) from None
        for option, chosen in (("--filter", self.filter), ("--accept", self.accept)):
            try:
                if chosen is not None:
                    config.rehearse(net, limits=[Limit(chosen.score)])
            except ValueError as e:
                raise UserError(f"{option}: {str(e).removeprefix('detector: ')}") from None


def selection(opts: dict[str, Any], preset: Preset | None, config: SamplerConfig, network: str) -> Selection:
    """The selection that the options ask for. UserError, naming the option, for what is missing or does not fit."""
    return Selection(_accept(opts, preset), _filter(opts, preset, config, network))


def _accept(opts: dict[str, Any], preset: Preset | None) -> Accept | None:
    if opts["accept"] is None:
        if opts["max_tries"] is not None:
            raise UserError("--max-tries is for --accept; give a limit, such as --accept='lid<12'")
        return None
    text, is_limit, below = opts["accept"].rpartition("<")
    if not is_limit:
        raise UserError(f"--accept={opts['accept']} has no limit; write score<value, such as --accept='lid<12'")
    try:
        limit = float(below)
    except ValueError:
        raise UserError(f"--accept: {below!r} is no limit; give a number, such as --accept='lid<12'") from None
    score = _score(text, preset, option="--accept")
    try:
        return Accept(score, limit, opts["max_tries"] or 4)
    except ValueError as e:
        raise UserError(respell(str(e))) from None


def _filter(opts: dict[str, Any], preset: Preset | None, config: SamplerConfig, network: str) -> Filter | None:
    keep, threshold = opts["keep"], opts["filter_threshold"]
    if opts["filter"] is None:
        for option, is_given in (
            ("keep", keep),
            ("filter-threshold", threshold),
            ("rejected", opts["rejected"] or None),
        ):
            if is_given is not None:
                raise UserError(f"--{option} is for --filter; give a score, such as --filter=lid")
        return None
    score = _score(opts["filter"], preset, option="--filter")
    if (keep is None) == (threshold is None):
        raise UserError(
            "--filter needs one of --keep=.96, a share for which the preset has the threshold, and "
            "--filter-threshold=x (inf: only record the scores)"
        )
    if threshold is None:
        threshold = _calibrated(score, keep, preset, config, network)
    if isnan(threshold):
        raise UserError("--filter-threshold: nan is not a score; give a number (inf: only record the scores)")
    return Filter(score, threshold, opts["rejected"])


def _calibrated(score: Score, keep: float, preset: Preset | None, config: SamplerConfig, network: str) -> float:
    """The threshold that keeps this share, by the preset."""
    remedy = "calibrate it by scripts/calibrate.py on seeds of its own, or give --filter-threshold=x"
    if preset is None:
        raise UserError(f"--keep={keep}: there is no preset for network {network!r}, so no threshold; {remedy}")
    try:
        return preset.threshold(score, config, keep)
    except ValueError as e:
        raise UserError(f"{respell(str(e))}; {remedy}") from None


def _score(text: str, preset: Preset | None, *, option: str) -> Score:
    try:
        return parse_score(text, named=preset.fitted if preset else None)
    except ValueError as e:
        raise UserError(f"{option}: {e}") from None


SELECTION_OPTIONS = (
    click.option(
        "--filter",
        type=ScoreText(),
        help="Drop finished images by a score, such as tvf, lid or h-index:rho=4,lo=.5,hi=2 (docs/rivals.md).",
    ),
    click.option(
        "--keep",
        type=click.FloatRange(0, 1, min_open=True),
        help="filter: the share of images to keep, by the preset's calibration.",
    ),
    click.option(
        "--filter-threshold", type=float, help="filter: drop images that score higher; inf only records the scores."
    ),
    click.option(
        "--rejected", is_flag=True, help="filter: write dropped images to OUTDIR/rejected [default: nowhere]."
    ),
    click.option(
        "--accept",
        metavar="SCORE<LIMIT",
        help="Draw an image again, from a derived seed, unless its score is below a limit, such as 'lid<12'; the best "
        "of all tries is kept.",
    ),
    click.option(
        "--max-tries", type=click.IntRange(1, 16), help="accept: images that are drawn at most per seed [default: 4]."
    ),
)


def add_selection_options(command: F) -> F:
    """Decorator: every option of this module, None (--rejected: False) where it is not given."""
    return with_options(command, SELECTION_OPTIONS)
