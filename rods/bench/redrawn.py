"""What drawing again came to in a run with a limit (`--accept`): how often, its cost, and what it saved in flight."""

from __future__ import annotations

from dataclasses import dataclass

from rods.bench.labelled import LabelledRun
from rods.eval.correction import Proportion, proportion_interval
from rods.eval.labels import Label
from rods.runs.records import tries_nfe


@dataclass(frozen=True)
class Redrawn:
    """Of all seeds of a run, each of which keeps one image."""

    limit: str  # score<limit, with @ and the noise level in flight
    kept: int
    others: int  # of the kept: draws of derived seeds
    drawn: int
    accepted: int  # of the kept: those that pass the limit
    hallucinated: Proportion  # of the accepted
    nfe: float  # F + B of all that was drawn
    given_up: tuple[int, float] | None  # NFE of what was given up in flight, and of full runs of it; None: finished


def redrawn_of(run: LabelledRun) -> Redrawn | None:
    """What a run's records say; None where nothing was to be drawn again."""
    if not run.has_tries:
        return None
    tries = [line["tries"] for line in run.samples]
    bad = [int(label) for label, t in zip(run.labels, tries, strict=True) if t["accepted"]]
    return Redrawn(
        limit=str(run.options.get("accept", "")),
        kept=len(tries),
        others=int(run.redrawn.sum()),
        drawn=sum(len(t["seeds"]) for t in tries),
        accepted=len(bad),
        hallucinated=proportion_interval(bad.count(Label.HALLUCINATED), len(bad)),
        nfe=float(run.nfe.sum()),
        given_up=tries_nfe(run.samples) if "forward" in tries[0] else None,
    )
