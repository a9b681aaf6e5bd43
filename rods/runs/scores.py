"""The scores of a run's images that its records hold already, by the name of what measured them."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf
from pathlib import Path
from typing import Any

from dnnlib.run_folder import OPTIONS_NAME, SAMPLES_NAME
from rods.runs.folder import read_identity, read_lines
from rods.runs.records import largest_score

CURVATURE = "h-index"


def image_scores(run: Path) -> dict[str, dict[str, float]]:
    """Score name -> image name -> the score of the image that the run has; empty for what is not a run.

    The name is the detector's text in options.json, such as `lid:sigma=1.2,draws=4`, with the noise level where a
    restart scored in flight; `h-index` for H. Of steps, a score is the largest; of a restart, that of the image that
    was kept. What JSON could not hold is inf.
    Raises UserError: records that cannot be read.
    """
    identity = read_identity(run / OPTIONS_NAME) or {}
    names = {key: _detector(identity, key) for key in ("detector", "filter", "accept")}
    if identity.get("score_at"):
        names["detector"] += f", in flight at {identity['score_at']:g}"
    found: dict[str, dict[str, float]] = {}
    for line in read_lines(run / SAMPLES_NAME):
        for key, value in _measured(line).items():
            found.setdefault(names.get(key, key), {})[line["name"]] = value
    return found


def _detector(identity: Mapping[str, Any], key: str) -> str:
    """The detector that an option of the run names; the option itself where it names none."""
    text = str(identity.get(key) or key)
    return text.rpartition("<")[0] or text


def _measured(line: Mapping[str, Any]) -> dict[str, float]:
    """What a record says of its image, by the option that asked for it; the curvature index by its own name."""
    found = {}
    if line.get("H"):
        found[CURVATURE] = largest_score(dict(line))
    if line.get("scores"):
        found["detector"] = max(map(_number, line["scores"]))
    for key, option in (("restart", "detector"), ("tries", "accept")):
        if line.get(key):
            found[option] = _number(line[key]["scores"][line[key]["kept"]])
    if "filter_score" in line:
        found["filter"] = _number(line["filter_score"])
    return found


def _number(score: float | None) -> float:
    return inf if score is None else float(score)
