"""The benchmark's report as Markdown with figures: what each task and network showed, from values in memory."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dnnlib.errors import counted
from dnnlib.util import atomic_write
from rods.bench import bars
from rods.bench.compare import (
    Comparison,
    compare,
    confusion_at_threshold,
    features_name,
    score_curve,
    step_aurocs,
)
from rods.bench.labelled import LabelledRun
from rods.bench.methods import BASELINE
from rods.bench.plots import benchmark as charts
from rods.bench.plots.drawing import REMEDY, has_matplotlib
from rods.bench.qualitative import changed_seeds, control, png, sheet_of_changes, stacked, tone_line
from rods.bench.stored import Section
from rods.bench.tables import Table, detection_table, outcome_table, quality_table, redrawn_parts, share
from rods.bench.task import AuditLine

CLOUDS = (BASELINE, "heun", "rods-cas", "restart")  # the methods whose points are drawn
INTRODUCTION = """Every number below is computed from labelled run folders, which name the sampler, its options, the
seeds, the network's SHA-256, the versions and the machine; `docs/how-to/benchmark.md` explains the protocol. All
methods of a task start from the same seeds. **Hallucination rate**: the share of images that are hallucinated at
every reading of the labeller; **uncertain**: the readings differ; the others are **valid**. **Repaired**: of the
baseline's hallucinated images, those that became valid; **newly broken**: of its valid ones, those that became
hallucinated. **Relative reduction**: 1 - hallucination rate after / before. ↑ marks columns in which higher is
better, ↓ those in which lower is. Intervals of shares are exact (Clopper and Pearson), all others bootstrap over
seeds (of the total variance of images, over chunks of seeds), 95 %. NFE: network evaluations per image, F forward and
B vector-Jacobian products. Time: the median over chunks of the ratio to Euler's time for the same chunk in the same
run."""
NO_FIGURES = f"The charts are left out: matplotlib is not installed; {REMEDY}."
LABEL_WORDS = {"surely bad": "hallucinated", "surely well": "valid", "ambiguous": "uncertain"}  # of audit files


@dataclass(frozen=True)
class Figure:
    """An image file of the report."""

    name: str
    content: bytes
    caption: str


Part = str | Table | Figure  # a Markdown paragraph, a table or a figure


def write_report(parts: Sequence[Part], dest: Path) -> Path:
    """Writes report.md and its figures below `dest`/figures; returns the former."""
    (dest / "figures").mkdir(parents=True, exist_ok=True)
    for part in parts:
        if isinstance(part, Figure):
            with atomic_write(dest / "figures" / part.name) as temporary:
                temporary.write_bytes(part.content)
    with atomic_write(dest / "report.md") as temporary:
        temporary.write_text(markdown(parts), encoding="utf-8")
    return dest / "report.md"


def markdown(parts: Sequence[Part]) -> str:
    """The report's text."""

    def text(part: Part) -> str:
        if isinstance(part, Figure):
            return f"![{part.caption}](figures/{part.name})"
        return part.markdown() if isinstance(part, Table) else part

    return "\n\n".join(map(text, parts)) + "\n"


def report_parts(sections: Sequence[Section]) -> list[Part]:
    """The whole report; without charts, and with a line that says so, where matplotlib is not installed."""
    parts: list[Part] = ["# The hallucination benchmark: results", INTRODUCTION.replace("\n", " ")]
    if not has_matplotlib():
        parts.append(NO_FIGURES)
    for section in sections:
        parts += section_parts(section, draw=has_matplotlib())
    return parts


def section_parts(section: Section, *, draw: bool) -> list[Part]:
    """One task and network; charts only where `draw`."""
    task, name, runs = section.task, section.name, section.runs
    base = runs[BASELINE]
    rows = [compare(base, run, real=section.real) for run in runs.values()]
    samplers, scores = [r for r in rows if not r.is_score], [r for r in rows if r.is_score]
    parts: list[Part] = [
        f"## {task.title} ({name})",
        f"Network `{section.network}`, sha256 `{base.options['network_sha256'][:16]}`; {seeds_line(base)}.",
        *audit_parts(section),
        f"**What each sampler did to Euler's images of the same seeds, and its cost** ({base_counts(samplers[0])}):",
        outcome_table(samplers),
        *redrawn_parts(samplers),
        "\n".join(verdict(samplers)),
        "**Distance of each sampler's images to held-out real data:**",
        quality_table(samplers, section.real, features=features_name(task)),
    ]
    if draw:
        parts.append(Figure(f"{name}-frontier.png", charts.frontier_chart(rows), "hallucination rate against NFE"))
        parts.append(Figure(f"{name}-broken.png", charts.broken_chart(rows), "repaired against newly broken"))
        caption = "relative reduction against total variance"
        parts.append(Figure(f"{name}-diversity.png", charts.diversity_chart(rows), caption))
    parts += detection_parts(name, rows, scores, runs, draw=draw)
    parts += pair_parts(section) if task.is_picture else []
    parts += point_parts(name, runs) if draw and not task.is_picture else []
    parts += calibration_parts(section) if draw else []
    parts += [f"### Recipes of {name}", "**Every option behind each row:**", recipe_table(list(runs.values()))]
    return [*parts, "\n".join(f"- {line}" for line in machine_lines(list(runs.values())))]


def seeds_line(run: LabelledRun) -> str:
    return f"{counted(len(run), 'seed')}, {run.seeds.min()} to {run.seeds.max()}"


def base_counts(base: Comparison) -> str:
    """How many images of the baseline have which label."""
    o = base.outcomes
    bad, valid = o.hallucinated_before.k, o.broken.n
    return f"{bad} hallucinated, {valid} valid, {base.n - bad - valid} uncertain"


def audit_parts(section: Section) -> list[Part]:
    """The labeller's audit, where there is one."""
    if not section.audit:
        return [f"The labeller's audit is not there: `python scripts/bench.py audit --task={section.task.name}`."]
    cells = tuple(
        (line["what"], LABEL_WORDS.get(line["label"], line["label"]), line["share"], line["bar"])
        for line in section.audit
    )
    table = Table(("images", "label", "share with this label (95 %)", "bar"), cells)
    return [
        "**The labeller on images whose truth is known** (the share must reach the bar on planted errors, and must not "
        "exceed it on real data):",
        table,
    ]


def audit_record(lines: Sequence[AuditLine]) -> dict[str, list[dict[str, str]]]:
    """An audit as the report reads it."""
    return {
        "lines": [
            {
                "what": line.what,
                "label": line.label,
                "share": share(line.share, counts=True),
                "bar": "" if line.bar is None else f"{100 * line.bar:g} %",
            }
            for line in lines
        ]
    }


def verdict(rows: Sequence[Comparison]) -> list[str]:
    """Which rows clear the bars, in words."""
    base = rows[0]
    good = [
        f"{row.name} ({100 * row.relative_reduction.value:.0f} %{std_text(row)})"
        for row in rows[1:]
        if bars.clears_bars(row, base)
    ]
    lines = [
        f"- The bars are: newly broken below {100 * bars.MAX_BROKEN:g} % by the upper end of its interval, at least "
        f"{bars.MIN_VARIANCE:g} of Euler's total variance, at most {bars.MAX_NFE_RATIO:g} times its NFE, shares of the "
        f"modes at most {bars.MAX_MODE_DISTANCE_GAIN:g} farther from real data than its (total variation), and a "
        f"relative reduction whose interval lies above 0. Samplers that clear all of them, with their relative "
        f"reduction: {', '.join(good) or 'none'}."
    ]
    valid = base.outcomes.broken.n
    if valid < bars.MIN_VALID:
        lines.append(
            f"- Euler has only {valid} valid images: with none broken the upper end would be "
            f"{100 * (1 - 0.025 ** (1 / max(valid, 1))):.1f} %. {bars.MIN_VALID} are asked for."
        )
    strange = [f"{row.name} ({row.not_finite})" for row in rows if row.not_finite]
    if strange:
        lines.append(f"- Images with pixels that are not finite, counted as hallucinated: {', '.join(strange)}.")
    short = [f"{row.name} ({row.n})" for row in rows if row.n < base.n]
    if short:
        lines.append(f"- Compared on fewer seeds than Euler has ({base.n}): {', '.join(short)}.")
    return lines


def std_text(row: Comparison) -> str:
    """What the bars do not ask for and a reader should see."""
    known = row.distances is not None and not math.isnan(row.distances.std_ratio)
    return f", within-mode std {row.distances.std_ratio:.2f}" if row.distances is not None and known else ""


def detection_parts(
    name: str, rows: Sequence[Comparison], scores: Sequence[Comparison], runs: Mapping[str, LabelledRun], *, draw: bool
) -> list[Part]:
    """Scores as detectors of the baseline's hallucinated images, and what thresholds say."""
    base = runs[BASELINE]
    curves = {row.name: curve for row in scores if (curve := score_curve(base, runs[row.name])) is not None}
    if not curves:
        return []
    parts: list[Part] = [
        f"### Detection on {name}",
        "**How well each score finds Euler's hallucinated images among its valid ones** (uncertain ones left out):",
        detection_table(scores, rows[0]),
    ]
    if draw:
        parts.append(Figure(f"{name}-roc.png", charts.roc_chart(curves), "ROC"))
        parts.append(Figure(f"{name}-precision.png", charts.precision_chart(curves), "precision and recall"))
        steps = {row.name: told for row in scores if (told := positive_steps(runs[row.name], base))}
        if steps:
            parts.append(Figure(f"{name}-steps.png", charts.step_chart(steps), "AUROC per step"))
    return [*parts, *confusion_parts(base, runs)]


def positive_steps(run: LabelledRun, base: LabelledRun) -> list[tuple[float, float]]:
    """(noise level, AUROC) where both are known."""
    return [(t, a) for t, a in step_aurocs(run, base) if t > 0 and not math.isnan(a)]


def confusion_parts(base: LabelledRun, runs: Mapping[str, LabelledRun]) -> list[Part]:
    """At the threshold that each method ran with: what was flagged, and what was hallucinated."""
    lines = []
    for name, run in runs.items():
        if (found := confusion_at_threshold(base, run)) is not None:
            threshold, c = found
            lines.append((name, f"{threshold:g}", *map(str, (c.tp, c.fp, c.fn, c.tn))))
    headings = (
        "method",
        "threshold",
        "flagged, hallucinated ↑",
        "flagged, others ↓",
        "not flagged, hallucinated ↓",
        "not flagged, others ↑",
    )
    if not lines:
        return []
    return ["**Euler's images by flag and label, at the calibrated threshold:**", Table(headings, tuple(lines))]


def pair_parts(section: Section) -> list[Part]:
    """For each method: a quarter of the pairs that it repaired or broke, and the control of tone.

    None of methods that draw again: their images are others.
    """
    runs, images = section.runs, section.images
    parts: list[Part] = [f"### Repaired and newly broken images of {section.name}"]
    if BASELINE not in images:
        return [*parts, "The images are not on this machine: they are kept beside the results, not committed."]
    before = images[BASELINE]
    for method, run in runs.items():
        changed = changed_seeds(runs[BASELINE], run)
        if method == BASELINE or run.is_score or run.redrawn.any() or method not in images or not changed:
            continue
        after = images[method]
        heading, sheet = sheet_of_changes(section.task, method, changed, before, after)
        parts.append(Figure(f"{section.name}-pairs-{run.path.name}.png", png(sheet), heading))
        seeds = [seed for seed in before if seed in after]
        outcomes = control(section.task, stacked(before, seeds), stacked(after, seeds))
        parts.append(tone_line(method, outcomes))
    return parts


def point_parts(name: str, runs: Mapping[str, LabelledRun]) -> list[Part]:
    """Clouds of points, by label."""
    shown = {m: run for m, run in runs.items() if m.split()[0] in CLOUDS}
    return [
        f"### Where the points of {name} lie",
        *(
            Figure(f"{name}-{run.path.name}.png", charts.points_chart(m, run.features, run.labels), f"points of {m}")
            for m, run in shown.items()
        ),
    ]


def calibration_parts(section: Section) -> list[Part]:
    """Every setting that the calibration tried, as curves."""
    if not section.calibration:
        return []
    name, tried = section.name, [line for line in section.calibration if "family" in line]
    drawn = charts.calibration_charts(tried)
    for line in section.calibration:
        drawn |= charts.critical_step_charts(line["critical"]) if "critical" in line else {}
    return [
        f"### Calibration of {name}",
        f"{len(tried)} settings on calibration seeds, which no other number of this page uses "
        f"(`{section.network}.calibration.jsonl`).",
        *(
            Figure(f"{name}-calibration-{'-'.join(kind.split())}.png", content, f"calibration: {kind}")
            for kind, content in drawn.items()
        ),
    ]


def recipe_table(runs: Sequence[LabelledRun]) -> Table:
    """Each method's full configuration."""
    shown = ("network_sha256", "sampler", "batch", "dtype", "class", "device", "rng", "rows_per_seed", "subdirs")
    lines = []
    for run in runs:
        about = run.options
        options = ", ".join(f"{k}={v}" for k, v in about.items() if k not in shown and v is not None)
        lines.append((run.name, str(about["sampler"]), options, str(len(run)), str(about["batch"])))
    return Table(("method", "sampler", "options", "images", "batch"), tuple(lines))


def machine_lines(runs: Sequence[LabelledRun]) -> list[str]:
    """The machines and versions behind the files, each once."""
    keys = ("version", "torch", "threads", "python", "machine")
    lines = [
        ", ".join(f"{k} {about.get(k)}" for k in keys) + f" ({about['started'][:10]})"
        for r in runs
        for about in r.machines
    ]
    return list(dict.fromkeys(lines))
