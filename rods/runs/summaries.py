"""What a sampling run says at its end, a line each: risks, restarts, what was drawn again or dropped."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Any

from rods.readout import shortened
from rods.runs.sampling import largest_score, was_restarted
from rods.runs.selection import Selection


def risk_summary(lines: Sequence[dict[str, Any]], eps: float, threshold: float) -> str:
    """One line on the curvature indices of some images: how many reached `threshold`; quantiles where there is none."""
    largest = [largest_score(line) for line in lines]
    done = {0.0: "Every image corrected. ", inf: "Nothing corrected. "}.get(eps, "")
    if threshold < inf:
        risky = sum(h >= threshold for h in largest)
        return f"{done}{risky} of {len(lines)} at risk (H >= {threshold:g} at some step); H is in samples.jsonl"
    return f"{done}The largest H of an image, at its quantiles: {_quantiles(largest)}; H is in samples.jsonl"


def restart_summary(lines: Sequence[dict[str, Any]], threshold: float) -> str:
    """One line on restarted images; the quantiles of the scores where nothing can be restarted."""
    if threshold < inf:
        restarted = [line["restart"] for line in lines if was_restarted(line)]
        replaced = sum(restart["kept"] > 0 for restart in restarted)
        return (
            f"{len(restarted)} of {len(lines)} restarted (score > {threshold:g}), {replaced} replaced by a better one; "
            "scores are in samples.jsonl"
        )
    scores = [inf if line["restart"]["scores"][0] is None else line["restart"]["scores"][0] for line in lines]
    return f"Nothing restarted. Scores, at their quantiles: {_quantiles(scores)}; scores are in samples.jsonl"


def selection_summary(lines: Sequence[dict[str, Any]], chosen: Selection) -> list[str]:
    """A line on images that were drawn again, and one on those that were dropped, where there is such a choice."""
    said = []
    if chosen.accept:
        tries = [line["tries"] for line in lines]
        again = sum(len(t["seeds"]) > 1 for t in tries)
        above, drawn = sum(not t["accepted"] for t in tries), sum(len(t["seeds"]) for t in tries)
        said.append(
            f"{again} of {len(lines)} drawn again (not {shortened(chosen.accept.describe())}), "
            f"{drawn} images drawn in all; {above} were never accepted, the best try is kept"
        )
    if chosen.filter:
        dropped = sum(line.get("dropped", False) for line in lines)
        scores = [inf if line["filter_score"] is None else line["filter_score"] for line in lines]
        said.append(
            f"{dropped} of {len(lines)} dropped (not {shortened(chosen.filter.describe())}). "
            f"Scores, at their quantiles: {_quantiles(scores)}; scores are in samples.jsonl"
        )
    return said


def _quantiles(values: Sequence[float]) -> str:
    ordered = sorted(values)
    return ", ".join(f"{q:.0%} {ordered[int(q * (len(ordered) - 1))]:.3g}" for q in (0.5, 0.9, 0.95))
