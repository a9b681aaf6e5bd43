"""The benchmark's rows as tables, in Markdown for a terminal or a page, and in HTML."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from rods.bench.rows import FALSE_ALARMS, RETAINED, Distances, Reference, Row
from rods.eval.bootstrap import Estimate
from rods.eval.correction import Proportion

BAR_BROKEN = 0.01  # judged by the upper end of the interval


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

    def text(self) -> str:
        """Columns line up, two spaces between; for a terminal."""
        cells = [self.headings, *self.rows]
        widths = [max(len(line[i]) for line in cells) for i in range(len(self.headings))]
        return "\n".join("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in cells)

    def html(self) -> str:
        head = "".join(f"<th>{escape(h)}</th>" for h in self.headings)
        body = "".join(
            "<tr>" + f"<th>{escape(row[0])}</th>" + "".join(f"<td>{escape(c)}</td>" for c in row[1:]) + "</tr>"
            for row in self.rows
        )
        return f"<div class=wide><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def outcome_table(rows: Sequence[Row]) -> Table:
    """What each method did to the baseline's images and what it cost; repairs of the baseline itself are left blank."""
    lines = []
    for row in rows:
        o = row.outcomes
        changes = (
            ("", "", "", "")
            if row is rows[0]
            else (
                share(o.repaired, counts=True),
                share(o.broken, counts=True),
                estimate(row.cut, as_percent=True),
                f"{o.mcnemar_p:.2g}",
            )
        )
        lines.append(
            (
                row.name,
                share(o.bad_after),
                f"{100 * o.ambiguous_after.rate:.1f} %",
                *changes,
                estimate(row.variance_kept),
                passes(row),
                f"{(row.forward + row.backward) / (rows[0].forward + rows[0].backward):.2f}x",
                number(row.time_ratio, "{:.2f}x"),
            )
        )
    return Table(
        (
            "sampler",
            "surely bad (95 %)",
            "unsure",
            "repaired",
            "newly broken",
            "cut (95 %)",
            "McNemar p",
            "variance kept",
            "F+B",
            "passes",
            "time",
        ),
        tuple(lines),
    )


def quality_table(rows: Sequence[Row], real: Reference, *, features: str) -> Table:
    """Distances to held-out real data; the last line is what as many real samples score against the same reference."""

    def cells(d: Distances) -> tuple[str, ...]:
        return (
            number(d.frechet, "{:.4g}"),
            number(d.kid, "{:.3g}"),
            number(d.modes, "{:.3f}"),
            number(d.spread, "{:.2f}"),
        )

    lines = [(row.name, *cells(row.distances), f"{100 * row.changed:.0f} %") for row in rows if row.distances]
    lines.append((f"(real data, {len(real.features)} others)", *cells(real.floor), ""))
    headings = (
        "sampler",
        f"FD-{features}",
        f"KID-{features}",
        "total variation of kinds",
        "spread in kinds",
        "changed",
    )
    keep = [i for i in range(len(headings)) if any(line[i] for line in lines)]
    return Table(tuple(headings[i] for i in keep), tuple(tuple(line[i] for i in keep) for line in lines))


def detection_table(rows: Sequence[Row], baseline: Row) -> Table:
    """How well each score ranks the baseline's images, and what dropping the worst would leave."""
    lines = []
    for row in rows:
        d = row.detection
        if d is None or not d.bad or not d.good:
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
    return Table(
        (
            "score",
            "AUROC (95 %)",
            "average precision (95 %)",
            f"recall at {100 * FALSE_ALARMS:.0f} % false alarms",
            f"recall at {retained} retention",
            f"surely bad among the kept {retained}",
            "extra F+B",
        ),
        tuple(lines),
    )


def passes(row: Row) -> str:
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
