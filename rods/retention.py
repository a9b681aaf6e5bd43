"""From a share of images to keep to a threshold, by the scores of calibration seeds: never by those of the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, isfinite
from typing import Any

from rods.image_scores import Score
from rods.pipeline import SamplerConfig
from rods.score_text import format_score, parse_score

KEEP = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.92, 0.94, 0.95, 0.96, 0.97, 0.98, 0.99)
"""The shares that a table holds, as far as its seeds can tell them."""


@dataclass(frozen=True)
class Retention:
    """Thresholds of a score at shares kept, measured on one sampler's images of calibration seeds.

    `keep` rises, and `threshold` with it. In a preset: {"score": "lid:sigma=1.2,draws=4", "sampler": {"sampler":
    "euler", "num_steps": 40}, "seeds": "96 seeds from 10000", "keep": [...], "threshold": [...]}; options that a score
    or a sampler does not name have their defaults.
    """

    score: Score
    config: SamplerConfig
    seeds: str
    keep: tuple[float, ...]
    threshold: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.keep or len(self.keep) != len(self.threshold):
            raise ValueError("keep, threshold: a table needs as many thresholds as shares, and one of them at least")
        shares, values = list(self.keep), list(self.threshold)
        if not all(map(isfinite, shares + values)) or not all(0 < share <= 1 for share in shares):
            raise ValueError("keep, threshold: a table needs shares above 0 and up to 1, and finite thresholds")
        if shares != sorted(set(shares)) or values != sorted(values):
            raise ValueError("keep, threshold: both must rise")

    def threshold_at(self, keep: float) -> float:
        """The threshold that keeps this share, between two of the table by a straight line.

        Raises ValueError for a share that the table does not reach.
        """
        if not self.keep[0] <= keep <= self.keep[-1]:
            raise ValueError(
                f"keep: {keep} is not within what {self.seeds} tell, {self.keep[0]:g} to {self.keep[-1]:g}; choose "
                "another share, or calibrate on more seeds"
            )
        i = next(i for i, share in enumerate(self.keep) if share >= keep)
        if self.keep[i] == keep:
            return self.threshold[i]
        part = (keep - self.keep[i - 1]) / (self.keep[i] - self.keep[i - 1])
        return self.threshold[i - 1] + part * (self.threshold[i] - self.threshold[i - 1])

    def describe(self) -> dict[str, Any]:
        """As JSON; `retention_of_json` reads it back."""
        return {
            "score": format_score(self.score),
            "sampler": self.config.describe(),
            "seeds": self.seeds,
            "keep": list(self.keep),
            "threshold": list(self.threshold),
        }


def retention(scores: Sequence[float], *, score: Score, config: SamplerConfig, seeds: str) -> Retention:
    """The table of calibration scores [n]: at each share of `KEEP`, the least threshold that keeps as much.

    Shares that leave fewer than two images are left out: n scores cannot tell them. Raises ValueError for scores that
    are not finite, or fewer than 10.
    """
    if len(scores) < 10 or not all(map(isfinite, scores)):
        raise ValueError(f"scores: {len(scores)} of them, or one that is not finite; give 10 or more finite scores")
    ordered, n = sorted(map(float, scores)), len(scores)
    keep = tuple(share for share in KEEP if (1 - share) * n >= 2 - 1e-9)
    return Retention(score, config, seeds, keep, tuple(ordered[ceil(share * n - 1e-9) - 1] for share in keep))


def retention_of_json(data: Any, *, named: Mapping[str, Score] | None = None) -> Retention:
    """A table from a preset, whose scores by name are `named`.

    Raises ValueError: not of that form, or a score or sampler that is none.
    """
    expected = {"score", "sampler", "seeds", "keep", "threshold"}
    if not isinstance(data, Mapping) or set(data) != expected or not isinstance(data["sampler"], Mapping):
        raise ValueError(f"a table of retention needs exactly the keys {', '.join(sorted(expected))}")
    if not isinstance(data["score"], str) or not isinstance(data["seeds"], str) or "sampler" not in data["sampler"]:
        raise ValueError("a table of retention names its score, its sampler and its seeds")
    for name in ("keep", "threshold"):
        if not isinstance(data[name], list) or not all(type(v) in (int, float) for v in data[name]):
            raise ValueError(f"{name}: a table of retention needs numbers")
    return Retention(
        parse_score(data["score"], named=named),
        SamplerConfig.parse(data["sampler"]),
        data["seeds"],
        tuple(map(float, data["keep"])),
        tuple(map(float, data["threshold"])),
    )
