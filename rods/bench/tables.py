"""Comparisons as tables of text. Arrows in the headings say whether lower or higher is better."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rods.bench.compare import FALSE_ALARMS, RETAINED, Comparison, Distances, Reference
from rods.eval.bootstrap import Estimate
from rods.eval.correction import Proportion


@dataclass(frozen=True)
class Table:
    """Text cells under headings; the first column names the row."""

    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def markdown(self) -> str:
        """Columns line up."""
        cells = [self.headings, *self.rows]
        widths = [max(len(line[i]) for line in cells) for i in range(len(self.headings))]
        lines = ["| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |" for line in cells]
        return "\n".join([lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *lines[1:]])


def outcome_table(rows: Sequence[Comparison]) -> Table:
    """What each method did to the baseline's images and what it cost; the baseline, the first row, repairs nothing."""
    lines = []
    for row in rows:
        o = row.outcomes
        changes = (
            ("", "", "", "")
            if row is rows[0]
            else (
                share(o.repaired, counts=True),
                share(o.broken, counts=True),
                estimate(row.relative_reduction, as_percent=True),
                f"{o.mcnemar_p:.2g}",
            )
        )
        lines.append(
            (
                row.name,
                share(o.hallucinated_after),
                share(row.another_class) if row.another_class else "",
                f"{100 * o.uncertain_after.rate:.1f} %",
                *changes,
                estimate(row.variance_kept),
                f"{row.redrawn.drawn / row.redrawn.kept:.2f}" if row.redrawn else "",
                nfe(row),
                f"{row.nfe / rows[0].nfe:.2f}x",
                number(row.time_ratio, "{:.2f}x"),
            )
        )
    headings = (
        "sampler",
        "hallucination rate ↓ (95 %)",
        "of them of another class ↓",
        "uncertain",
        "repaired ↑, of the hallucinated",
        "newly broken ↓, of the valid",
        "relative reduction ↑ (95 %)",
        "McNemar p",
        "total variance (1: Euler's)",
        "drawn, per seed",
        "NFE ↓ (F+B)",
        "NFE ratio ↓",
        "time ratio ↓",
    )
    return without_empty_columns(headings, lines)


def redrawn_table(rows: Sequence[Comparison]) -> Table:
    """What each row that draws again has drawn, accepted and spent: all tries of a seed count."""
    lines = []
    for row in rows:
        if (r := row.redrawn) is None:
            continue
        spent, full = r.given_up or (math.nan, math.nan)
        lines.append(
            (
                row.name,
                _short_limit(r.limit),
                str(r.kept),
                f"{r.drawn / r.kept:.2f}",
                str(r.others),
                str(r.accepted),
                f"{r.nfe / r.kept:.1f}",
                number(r.nfe / r.accepted if r.accepted else math.nan, "{:.1f}"),
                share(r.hallucinated),
                number(spent / r.kept, "{:.1f}"),
                number((r.nfe - spent + full) / r.kept, "{:.1f}"),
            )
        )
    headings = (
        "sampler",
        "limit",
        "kept",
        "drawn, per seed",
        "of other seeds, of the kept",
        "accepted",
        "NFE ↓ a kept image",
        "NFE ↓ an accepted image",
        "hallucination rate ↓ of the accepted (95 %)",
        "NFE a kept image, of what was given up in flight",
        "NFE a kept image, had all been finished",
    )
    return without_empty_columns(headings, lines)


def redrawn_parts(rows: Sequence[Comparison]) -> list[str]:
    """Markdown of the rows that draw again, and what their other columns mean; nothing where there are none."""
    table = redrawn_table(rows)
    if not table.rows:
        return []
    names = ", ".join(line[0] for line in table.rows)
    return [
        f"**What was drawn again** ({names}). An image that does not pass the limit makes room for a draw of another "
        "seed; where none passes, the best stays. Repaired and newly broken compare the images that stand for a seed, "
        "before and after: those drawn again are other images, not mended ones.",
        table.markdown(),
    ]


def _short_limit(text: str) -> str:
    """`score<16.392741790817162@0.131` to four digits."""
    score, _, rest = text.rpartition("<")
    limit, at, level = rest.partition("@")
    try:
        return f"{score}<{float(limit):.4g}{at}{level}"
    except ValueError:  # options.json was changed
        return text


def without_empty_columns(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> Table:
    keep = [i for i in range(len(headings)) if any(line[i] for line in lines)]
    return Table(tuple(headings[i] for i in keep), tuple(tuple(line[i] for i in keep) for line in lines))


def quality_table(rows: Sequence[Comparison], real: Reference, *, features: str) -> Table:
    """Distances to held-out real data; the last line is what as many real samples score against the same reference."""

    def cells(d: Distances) -> tuple[str, ...]:
        return (
            number(d.frechet, "{:.4g}"),
            number(d.kid, "{:.3g}"),
            number(d.mode_distance, "{:.3f}"),
            number(d.std_ratio, "{:.2f}"),
        )

    lines = [(row.name, *cells(row.distances), f"{100 * row.changed:.0f} %") for row in rows if row.distances]
    lines.append((f"(real data, {len(real.features)} others)", *cells(real.floor), ""))
    headings = (
        "sampler",
        f"FD-{features} ↓",
        f"KID-{features} ↓",
        "mode shares, total variation ↓",
        "within-mode std (1: real data's)",
        "images changed",
    )
    return without_empty_columns(headings, lines)


def detection_table(rows: Sequence[Comparison], baseline: Comparison) -> Table:
    """How well each score ranks the baseline's images, and what dropping those with the highest scores would leave."""
    lines = []
    for row in rows:
        d = row.detection
        if d is None or not d.hallucinated or not d.valid:
            continue
        lines.append(
            (
                row.name,
                estimate(d.auroc),
                estimate(d.average_precision),
                f"{100 * d.at_false_alarms:.0f} %",
                f"{100 * d.at_retention:.0f} %",
                f"{100 * row.filtered:.1f} %",
                f"{row.forward - baseline.forward:.0f}+{row.backward - baseline.backward:.0f}",
            )
        )
    retained = f"{100 * RETAINED:.0f} %"
    headings = (
        "score",
        "AUROC ↑ (95 %)",
        "average precision ↑ (95 %)",
        f"recall ↑ at {100 * FALSE_ALARMS:.0f} % false alarms",
        f"recall ↑ at {retained} retention",
        f"hallucination rate ↓ of the kept {retained}",
        "extra NFE ↓ (F+B)",
    )
    return Table(headings, tuple(lines))


def nfe(row: Comparison) -> str:
    """F+B per image: one decimal where images differ."""
    return "+".join(f"{p:.0f}" if p == round(p) else f"{p:.1f}" for p in (row.forward, row.backward))


def share(p: Proportion, *, counts: bool = False) -> str:
    """`9.0 % (7.1-11.2)`, with k/n before it where asked."""
    if not p.n:
        return "none"
    text = f"{percent(p.rate)} % ({percent(p.low)}-{percent(p.high)})"
    return f"{p.k}/{p.n}: {text}" if counts else text


def percent(rate: float) -> str:
    """One decimal; below .1 % one digit, so that a million samples show."""
    value = 100 * rate
    return f"{value:.1f}" if value >= 0.1 or value == 0 else f"{float(f'{value:.1g}'):g}"


def estimate(e: Estimate, *, as_percent: bool = False) -> str:
    """`.72 (.66-.78)` or `43 % (31-54)`."""
    if math.isnan(e.value):
        return ""
    if as_percent:
        return f"{100 * e.value:.0f} % ({100 * e.low:.0f} to {100 * e.high:.0f})"
    return f"{e.value:.3f}" + ("" if math.isnan(e.low) else f" ({e.low:.3f}-{e.high:.3f})")


def number(value: float, form: str) -> str:
    """Blank where there is none."""
    return "" if math.isnan(value) else form.format(value)
