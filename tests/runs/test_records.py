"""Records of images as JSON lines, and what a run says of them at its end."""

from __future__ import annotations

import json
import math
from typing import Any

from exact import SEEDS
from registries import a_sampler, sampled

from rods import Lid
from rods.runs.records import finite, is_at_risk, record_lines, restart_summary, risk_summary
from rods.runs.select import Filter

NAMES = [f"{seed:06d}.png" for seed in SEEDS]


def lines_of(sampler: str, filter: Filter | None = None, **options: Any) -> list[dict[str, Any]]:
    done = sampled(a_sampler(sampler, **options), SEEDS, *([filter.detector] if filter else []))
    return record_lines(done, NAMES, filter, [True] * len(SEEDS))


def test_a_line_is_json_and_has_what_its_sampler_measures() -> None:
    always = {"name", "seed", "class", "probed", "sigma", "H", "H_scaled", "flagged", "forward", "backward"}
    for sampler, extra in (("edm", set()), ("rods-cas", set()), ("restart", {"restart"}), ("iq", {"scores"})):
        for line, seed in zip(lines_of(sampler), SEEDS, strict=True):
            assert json.loads(json.dumps(line, allow_nan=False))["seed"] == seed
            assert set(line) == always | extra
            assert bool(line["H"]) == (sampler == "rods-cas")
    assert finite([1.0, math.inf, math.nan]) == [1.0, None, None]


def test_a_filter_says_who_is_dropped() -> None:
    scores = [line["filter_score"] for line in lines_of("euler", Filter(Lid(), math.inf))]
    limit = sorted(scores)[2]
    for line, score in zip(lines_of("euler", Filter(Lid(), limit, rejected=True)), scores, strict=True):
        assert line["dropped"] == (score > limit)
        assert line.get("file") == (f"rejected/{line['name']}" if line["dropped"] else None)


def test_the_summary_of_the_risk() -> None:
    lines = [{"H": [0.0, float(i)], "flagged": [1] if i >= 8 else []} for i in range(11)]
    assert risk_summary(lines, 8.0, 8.0) == "3 of 11 at risk (H >= 8 at some step); H is in samples.jsonl"
    assert risk_summary(lines, 0.0, 9.0).startswith("Every image corrected. 2 of 11 at risk (H >= 9")
    for eps, head in ((0.0, "Every image corrected. "), (math.inf, "Nothing corrected. ")):
        assert risk_summary(lines, eps, math.inf).startswith(f"{head}The largest H of an image")
    assert "50% 5, 90% 9, 95% 9" in risk_summary(lines, math.inf, math.inf)
    assert "50% inf" in risk_summary([{"H": [1.0, None], "flagged": []}], math.inf, math.inf)  # H beyond all numbers


def test_the_summary_of_restarts() -> None:
    lines = lines_of("restart")
    restarted = [line["restart"] for line in lines if len(line["restart"]["scores"]) > 1]
    said = restart_summary(lines, 0.9)
    assert said.startswith(f"{len(restarted)} of 6 restarted (score > 0.9), {sum(r['kept'] > 0 for r in restarted)} ")
    assert [is_at_risk(line, math.inf) for line in lines] == [len(line["restart"]["scores"]) > 1 for line in lines]
    watched = lines_of("restart", threshold=math.inf)
    assert restart_summary(watched, math.inf).startswith("Nothing restarted. Scores, at their quantiles: 50% ")
