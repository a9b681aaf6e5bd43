"""Tables 1 and 2 as text, Markdown or JSON, the paper's values beside ours."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rods.bench.paper import Study
from rods.bench.paper_correction import CorrectionRow, DetectionRow
from rods.bench.paper_quality import QualityRow
from rods.bench.tables import Table
from rods.eval.correction import Proportion

FORMATS = ("text", "markdown", "json")
PAPERS = {"fid": "fid", "inception-var": "variance", "dreamsim": "dreamsim"}  # metric -> field of `Quality`
PAPER_NAMES = {"fid": "FID", "inception-var": "Inception-Var", "dreamsim": "DreamSim"}


def quality_table(rows: Sequence[QualityRow]) -> Table:
    """A line per method: every metric measured, and after it the paper's where the paper has it."""
    first = {result.metric: result for result in rows[0].results}
    metrics = [*first, *(m for m in PAPERS if m not in first)]
    headings = ["sampler", "n"]
    for metric in metrics:
        headings += [first[metric].label] if metric in first else []
        headings += [f"paper: {PAPER_NAMES[metric]}"] if metric in PAPERS else []
    lines = []
    for row in rows:
        cells = [row.method, str(row.results[0].n)]
        for metric in metrics:
            result = row.result(metric)
            spread = f" +- {result.sd:.2g}" if result and result.sd is not None else ""
            cells += [f"{result.value:.5g}{spread}"] if result else []
            if metric in PAPERS:
                cells.append(f"{getattr(row.paper, PAPERS[metric]):g}" if row.paper else "")
        lines.append(tuple(cells))
    return Table(tuple(headings), tuple(lines))


def correction_table(rows: Sequence[CorrectionRow]) -> Table:
    """A line per method; shares as counts and percent, those of hallucinated images with their 95 % interval."""
    headings = (
        "sampler", "hallucinated (95 %)", "unsure", "corrected", "newly hallucinated", "better/worse/same/unclear",
        "F+B", "s a batch", "paper: hall. %", "corr. %", "new %", "s",
    )  # fmt: skip
    lines = []
    for row in rows:
        o, paper = row.outcomes, row.paper
        judged = "/".join(map(str, row.verdicts.values())) if row.verdicts and sum(row.verdicts.values()) else ""
        papers = (paper.hallucinated, paper.corrected, paper.broken, paper.seconds) if paper else (None,) * 4
        lines.append(
            (
                row.method,
                f"{counted(row.bad)} ({100 * row.bad.low:.1f}-{100 * row.bad.high:.1f})",
                f"{100 * row.unsure.rate:.1f} %",
                counted(o.repaired) if o else "",
                counted(o.broken) if o else "",
                judged,
                f"{row.passes[0]:.0f}+{row.passes[1]:.0f}",
                "" if row.seconds is None else f"{row.seconds:.2f}",
                *("" if value is None else f"{value:g}" for value in papers),
            )
        )
    return Table(headings, tuple(lines))


def detection_lines(row: DetectionRow | None, study: Study) -> list[str]:
    """What the index found, ours and the paper's."""
    paper = study.detection
    theirs = f"paper, {study.title}: {paper.detected} of {paper.hallucinated} hallucinated found, of {paper.images}"
    if paper.better is not None:
        theirs += f"; CAS better than Euler on {paper.better}, worse on {paper.worse}"
    if row is None:
        return [f"Index: no eps is known for these settings, so nothing is held at risk; {theirs}"]
    ours = f"largest H >= {row.eps:g} on {counted(row.found)} of the hallucinated, {counted(row.false_alarms)} others"
    return [f"Index: {ours}; {theirs}"]


def counted(p: Proportion) -> str:
    """`3/34 (8.8 %)`."""
    return f"{p.k}/{p.n} ({100 * p.rate:.1f} %)" if p.n else "0/0"


def rendered(table: Table, lines: Sequence[str], data: Any, form: str) -> str:
    """The table with the lines below it, as text or Markdown; or the data as JSON."""
    if form == "json":
        return json.dumps(data, indent=1)
    body = table.markdown() if form == "markdown" else table.text()
    return "\n".join([body, "", *(f"- {line}" if form == "markdown" else line for line in lines)])


def quality_json(rows: Sequence[QualityRow]) -> list[dict[str, Any]]:
    return [{"method": r.method, "metrics": [asdict(x) for x in r.results],
             "paper": asdict(r.paper) if r.paper else None} for r in rows]  # fmt: skip


def correction_json(rows: Sequence[CorrectionRow], detection: DetectionRow | None, study: Study) -> dict[str, Any]:
    return {
        "rows": [asdict(row) for row in rows],
        "detection": asdict(detection) if detection else None,
        "paper_detection": asdict(study.detection),
    }
