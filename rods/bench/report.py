"""The benchmark's report: from the result files of every task and network to one document."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import adaptive_avg_pool2d

from dnnlib.errors import UserError
from rods.bench import figures
from rods.bench.document import Block, Figure, Heading, Text
from rods.bench.looks import pair_blocks, point_blocks
from rods.bench.methods import BASELINE, METHODS
from rods.bench.results import POOLED, Results, read_results
from rods.bench.rows import Reference, Row, common, compare, features_name, reference
from rods.bench.run import Place
from rods.bench.tables import BAR_BROKEN, Table, detection_table, outcome_table, quality_table, share
from rods.bench.task import AuditLine, Task
from rods.eval.detection import confusion
from rods.eval.labels import Label
from rods.readout import shortened

F64 = NDArray[np.float64]
REAL_PICTURES, REAL_POINTS = 4096, 50_000  # held-out real samples that distances are taken to
MIN_VARIANCE, MIN_HEALTHY, MAX_PASSES, MAX_MODES_LOST = 0.97, 400, 1.5, 0.03
AUDIT_NAME = "audit.json"
INTRODUCTION = """Every number below is computed from the result files, which name the sampler, its options, the seeds,
the network's SHA-256, the versions and the machine; `docs/benchmark.md` explains the protocol and its limits. All
methods of a task start from the same seeds. **Surely bad**: a hallucination at every reading of the labeller;
**unsure**: the readings differ. **Repaired**: of the baseline's surely bad samples, those that became surely well;
**newly broken**: of its surely well ones, those that became surely bad. **Cut**: 1 - surely bad after / before.
Intervals of shares are exact (Clopper and Pearson), all others bootstrap over seeds (of the total variance of pictures,
over chunks of seeds), 95 %. F and B: passes forward and back to the input, per sample. Time: the median over chunks of
the ratio to Euler's time for the same chunk in the same run."""


def report_blocks(tasks: Mapping[str, Task], out: Path, presets: Path) -> list[Block]:
    """The whole document. Raises UserError: no results below `out`."""
    blocks: list[Block] = [Heading("The hallucination benchmark: results", 1), Text(INTRODUCTION.replace("\n", " "))]
    found = [
        (task, folder)
        for task in tasks.values()
        for folder in sorted((out / task.name).glob("*"))
        if (folder / f"{BASELINE}.jsonl").is_file()
    ]
    if not found:
        raise UserError(f"--out={out} holds no results of {', '.join(tasks)}; make some with scripts/bench.py run")
    real: dict[str, Reference] = {}
    for task, folder in found:
        if task.name not in real:
            real[task.name] = reference(task, features_of(task), REAL_PICTURES if task.is_picture else REAL_POINTS)
        blocks += task_blocks(task, Place(out, task.name, folder.name), real[task.name], presets)
    return blocks


def features_of(task: Task) -> Any:
    """What turns samples [N, C, H, W] into the features of result files [N, d]."""
    if not task.is_picture:
        return lambda x: x.reshape(len(x), -1)

    def pooled(x: F64) -> F64:
        unit = torch.from_numpy((x.clip(-1, 1) + 1) / 2)
        means: F64 = adaptive_avg_pool2d(unit, POOLED).flatten(1).numpy()
        return np.rint(255 * means) / 255

    return pooled


def read_all(place: Place) -> dict[str, Results]:
    """The result files of a task and network by method, in the order of the table of methods."""
    found = [read_results(path) for path in sorted(place.folder.glob("*.jsonl"))]
    order = {name: i for i, name in enumerate(METHODS)}
    ranked = sorted(found, key=lambda r: order.get(str(r.recipe["method"]).split()[0], len(order)))
    return {r.recipe["method"]: r for r in ranked}


def task_blocks(task: Task, place: Place, real: Reference, presets: Path) -> list[Block]:
    """One task and network."""
    runs = read_all(place)
    base = runs[BASELINE]
    rows = [compare(base, run, real=real) for run in runs.values()]
    samplers, scores = [r for r in rows if not r.is_score], [r for r in rows if r.is_score]
    name = f"{place.task}-{place.network}" if place.task != place.network else place.task
    blocks: list[Block] = [
        Heading(f"{task.title} ({name})", 2),
        Text(f"Network `{place.network}`, sha256 `{base.recipe['network_sha256'][:16]}`; {seeds_line(base)}."),
        *audit_blocks(place),
        outcome_table(samplers),
        Text("\n".join(verdict(samplers))),
        quality_table(samplers, real, features=features_name(task)),
        Figure(f"{name}-frontier.svg", figures.frontier_figure(rows), "surely bad against passes"),
        Figure(f"{name}-broken.svg", figures.broken_figure(rows), "repaired against newly broken"),
        Figure(f"{name}-diversity.svg", figures.diversity_figure(rows), "cut against variance kept"),
        *detection_blocks(name, rows, scores, runs),
        *(pair_blocks if task.is_picture else point_blocks)(task, place, name, runs),
        *calibration_blocks(name, presets / f"{place.network}.calibration.jsonl"),
        Heading(f"Recipes of {name}", 3),
        recipe_table(list(runs.values())),
        Text("\n".join(f"- {line}" for line in machine_lines(list(runs.values())))),
    ]
    return [b for b in blocks if not isinstance(b, Figure) or b.content]


def seeds_line(run: Results) -> str:
    return f"{len(run)} seeds, {run.seeds.min()} to {run.seeds.max()}"


def audit_blocks(place: Place) -> list[Block]:
    """The labeller's audit, where `scripts/bench.py audit` has written it."""
    path = place.out / place.task / AUDIT_NAME
    if not path.is_file():
        return [Text(f"The labeller's audit is not there: `python scripts/bench.py audit --task={place.task}`.")]
    lines = json.loads(path.read_text())["lines"]
    cells = tuple((line["what"], line["label"], line["share"], line["bar"]) for line in lines)
    return [Text("The labeller on pictures whose truth is known:"), Table(("pictures", "label", "share", "bar"), cells)]


def audit_record(lines: Sequence[AuditLine]) -> dict[str, Any]:
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


def verdict(rows: Sequence[Row]) -> list[str]:
    """Which rows clear the bars, in words."""
    base = rows[0]
    cost = base.forward + base.backward
    good = [
        row
        for row in rows[1:]
        if row.outcomes.broken.high < BAR_BROKEN
        and row.variance_kept.value >= MIN_VARIANCE
        and row.forward + row.backward <= MAX_PASSES * cost
        and row.cut.low > 0
        and modes_lost(row, base) <= MAX_MODES_LOST
    ]
    names = ", ".join(f"{row.name} (cut {100 * row.cut.value:.0f} %{spread_text(row)})" for row in good) or "no method"
    lines = [
        f"- Newly broken below {100 * BAR_BROKEN:g} % by the upper end of its interval, at least {MIN_VARIANCE:g} of "
        f"the variance kept, at most {MAX_PASSES} times Euler's passes, the shares of the kinds at most "
        f"{MAX_MODES_LOST:g} farther from real data than Euler's (total variation), and a cut whose interval lies "
        f"above 0: {names}."
    ]
    healthy = base.outcomes.broken.n
    if healthy < MIN_HEALTHY:
        lines.append(
            f"- Only {healthy} healthy baseline samples: with none broken the upper end would be "
            f"{100 * (1 - 0.025 ** (1 / max(healthy, 1))):.1f} %. {MIN_HEALTHY} are asked for."
        )
    strange = [f"{row.name} ({row.not_finite})" for row in rows if row.not_finite]
    if strange:
        lines.append(f"- Samples that are no numbers, counted as surely bad: {', '.join(strange)}.")
    short = [f"{row.name} ({row.n})" for row in rows if row.n < base.n]
    if short:
        lines.append(f"- Compared on fewer seeds than the baseline has ({base.n}): {', '.join(short)}.")
    return lines


def spread_text(row: Row) -> str:
    """What the bars do not ask for and a reader should see: the spread inside kinds, 1 = that of real data."""
    known = row.distances is not None and not math.isnan(row.distances.spread)
    return f", spread in kinds {row.distances.spread:.2f}" if row.distances is not None and known else ""


def modes_lost(row: Row, base: Row) -> float:
    """By how much the shares of the kinds are farther from real data than the baseline's; 0 for tasks without kinds."""
    if row.distances is None or base.distances is None or math.isnan(base.distances.modes):
        return 0.0
    return row.distances.modes - base.distances.modes


def detection_blocks(name: str, rows: Sequence[Row], scores: Sequence[Row], runs: Mapping[str, Results]) -> list[Block]:
    """Scores as detectors of the baseline's surely bad samples, and what calibrated thresholds say."""
    base = runs[BASELINE]
    own = [runs[row.name] for row in scores]
    found = figures.curves(base, own)
    if not found:
        return []
    return [
        Heading(f"Detection on {name}", 3),
        Text("Surely bad against surely well samples of the baseline; unsure ones are left out of these numbers."),
        detection_table(scores, rows[0]),
        Figure(f"{name}-roc.svg", figures.roc_figure(found), "ROC"),
        Figure(f"{name}-precision.svg", figures.precision_figure(found), "precision and recall"),
        Figure(f"{name}-steps.svg", figures.step_figure(base, own), "AUROC per step"),
        *confusion_blocks(base, runs),
    ]


def confusion_blocks(base: Results, runs: Mapping[str, Results]) -> list[Block]:
    """At the threshold that each method ran with: who was held at risk, and who was bad."""
    lines = []
    for name, run in runs.items():
        threshold = run.recipe.get("threshold", run.recipe.get("eps"))
        if run.scores is None or not isinstance(threshold, int | float) or not 0 < threshold < math.inf:
            continue
        mine, theirs = common(base, run)
        labels = base.labels[mine]
        c = confusion(run.scores[theirs], labels == Label.BAD, float(threshold))
        lines.append((name, f"{threshold:g}", *map(str, (c.risk_bad, c.risk_good, c.safe_bad, c.safe_good))))
    headings = ("method", "threshold", "at risk, bad", "at risk, others", "not, bad", "not, others")
    return [Text("Confusion at the calibrated threshold:"), Table(headings, tuple(lines))] if lines else []


def calibration_blocks(name: str, path: Path) -> list[Block]:
    """Every setting that the calibration tried, as curves, where its file lies beside the preset."""
    if not path.is_file():
        return []
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    tried = [line for line in lines if "family" in line]
    drawn = figures.calibration_figures(tried)
    for line in lines:
        drawn |= figures.critical_figures(line["critical"]) if "critical" in line else {}
    return [
        Heading(f"Calibration of {name}", 3),
        Text(f"{len(tried)} settings on calibration seeds, which no other number of this page uses (`{path.name}`)."),
        *(
            Figure(f"{name}-calibration-{'-'.join(kind.split())}.svg", svg, f"calibration: {kind}")
            for kind, svg in drawn.items()
        ),
    ]


def recipe_table(runs: Sequence[Results]) -> Table:
    """Each method's full configuration."""
    shown = ("task", "network", "network_sha256", "method", "is_score", "sampler", "batch", "dtype")
    lines = []
    for run in runs:
        options = ", ".join(f"{k}={shortened(str(v))}" for k, v in run.recipe.items() if k not in shown)
        lines.append((run.recipe["method"], run.recipe["sampler"], options, str(len(run)), str(run.recipe["batch"])))
    return Table(("method", "sampler", "options", "n", "batch"), tuple(lines))


def machine_lines(runs: Sequence[Results]) -> list[str]:
    """The machines and versions behind the files, each once."""
    keys = ("version", "torch", "threads", "python", "machine")
    lines = [
        ", ".join(f"{k} {about.get(k)}" for k in keys) + f" ({about['started'][:10]})" for r in runs for about in r.runs
    ]
    return list(dict.fromkeys(lines))
