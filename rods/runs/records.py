"""One JSON line per image, and what a run says at its end of its lines: risks, restarts, what was drawn again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from math import inf, isfinite, nan
from typing import Any

from dnnlib.errors import counted
from rods.runs.accept import Filter
from rods.runs.chunk import ChunkResult
from rods.runs.folder import REJECTED
from rods.runs.select import Selection


def record_lines(
    done: ChunkResult, names: Sequence[str], filter: Filter | None, exists: Sequence[bool]
) -> list[dict[str, Any]]:
    """One JSON-ready dict per image; `exists` says which could be made [B]."""
    rows = zip(names, done.chunk.row_seeds(), done.classes, done.records, strict=True)
    lines = []
    for b, (name, (seed, row), class_index, record) in enumerate(rows):
        line = {"name": name, "seed": seed, "class": class_index, **asdict(record)}
        if done.chunk.rows_per_seed > 1:
            line["row"] = row
        for key in ("H", "H_scaled", "scores"):
            line[key] = finite(line[key])
        if not record.scores:
            del line["scores"]
        for key in ("restart", "tries"):
            if line[key] is None:
                del line[key]
            else:
                line[key]["scores"] = finite(line[key]["scores"])
        if record.tries and not record.tries.level:
            for key in ("level", "forward", "backward"):
                del line["tries"][key]
        if filter:
            # The filter's detector is the only one of a run to a folder (`Selection.detectors`).
            line |= filtered(filter, name, done.scores[0][b], exists=exists[b])
        lines.append(line)
    return lines


def filtered(chosen: Filter, name: str, risk: float, *, exists: bool) -> dict[str, Any]:
    """What a filter says of an image: its score, whether it is dropped, and the file that it then goes to, if any.

    An image that could not be made (`exists` is False) is not dropped: there is nothing to drop.
    """
    said: dict[str, Any] = {"filter_score": finite([risk])[0], "dropped": exists and chosen.drops(risk)}
    if said["dropped"] and chosen.rejected:
        said["file"] = f"{REJECTED}/{name}"
    return said


def largest_score(line: dict[str, Any]) -> float:
    """The largest curvature index of an image; -inf where none was measured, inf for one beyond all numbers."""
    return max((inf if h is None else float(h) for h in line["H"]), default=-inf)


def finite(scores: Sequence[float]) -> list[float | None]:
    """Scores as JSON can hold them: None for what is not a number, or has no end."""
    return [score if isfinite(score) else None for score in scores]


def is_at_risk(line: dict[str, Any], threshold: float) -> bool:
    """Whether the largest H of the image reaches `threshold`, or the image was restarted."""
    return (threshold < inf and largest_score(line) >= threshold) or was_restarted(line)


def was_restarted(line: dict[str, Any]) -> bool:
    return len(line.get("restart", {"scores": ()})["scores"]) > 1


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
            f"{again} of {len(lines)} drawn again (not {chosen.accept.describe()}), "
            f"{counted(drawn, 'image')} drawn in all; never accepted, and the best try kept: {above}"
        )
        if chosen.accept.level:
            said.append(_given_up(*tries_nfe(lines), num=drawn - len(lines), level=chosen.accept.level))
    if chosen.filter:
        dropped = sum(line.get("dropped", False) for line in lines)
        scores = [inf if line["filter_score"] is None else line["filter_score"] for line in lines]
        said.append(
            f"{dropped} of {len(lines)} dropped (not {chosen.filter.describe()}). "
            f"Scores, at their quantiles: {_quantiles(scores)}; scores are in samples.jsonl"
        )
        if chosen.filter.level and dropped:
            said.append(_given_up(*filter_nfe(lines), num=dropped, level=chosen.filter.level))
    return said


def tries_nfe(lines: Sequence[Mapping[str, Any]]) -> tuple[int, float]:
    """NFE that images given up in flight have cost, and what full runs of them would have, as that of the kept try."""
    spent = full = 0
    for line in lines:
        tries = line["tries"]
        cost = [forward + backward for forward, backward in zip(tries["forward"], tries["backward"], strict=True)]
        spent += sum(cost) - cost[tries["kept"]]
        full += (len(cost) - 1) * cost[tries["kept"]]
    return spent, full


def filter_nfe(lines: Sequence[dict[str, Any]]) -> tuple[int, float]:
    """The same of images that a filter dropped in flight: a full run as the others' in the mean; nan: no other."""
    nfe = {kept: [x["forward"] + x["backward"] for x in lines if x["dropped"] != kept] for kept in (True, False)}
    full = sum(nfe[True]) / len(nfe[True]) * len(nfe[False]) if nfe[True] else nan
    return sum(nfe[False]), full


def _given_up(spent: int, full: float, *, num: int, level: float) -> str:
    would = f"; run to the end, at the cost of what was kept: {full:,.0f}" if isfinite(full) else ""
    return f"{counted(num, 'image')} given up at noise level {level:g}, for {spent:,} NFE{would}"


def _quantiles(values: Sequence[float]) -> str:
    ordered = sorted(values)
    return ", ".join(f"{q:.0%} {ordered[int(q * (len(ordered) - 1))]:.3g}" for q in (0.5, 0.9, 0.95))
