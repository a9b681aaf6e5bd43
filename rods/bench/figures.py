"""The report's figures from rows and result files: detection curves, prices, and curves of a calibration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rods.bench.results import Results
from rods.bench.rows import RETAINED, Row, common, step_aurocs
from rods.bench.svg import Axis, Series, around, chart
from rods.eval.detection import Curve, detection_curve
from rods.eval.labels import Label

F64 = NDArray[np.float64]
MAX_CORNERS = 400  # of a drawn curve
MAX_DOTS = 4000


def curves(base: Results, scores: Sequence[Results]) -> list[tuple[str, Curve]]:
    """The detection curve of each score against the baseline's sure labels; none where a kind is absent."""
    found = []
    for run in scores:
        mine, theirs = common(base, run)
        labels = base.labels[mine]
        sure, bad = labels != Label.AMBIGUOUS, labels == Label.BAD
        if run.scores is not None and bad.any() and not bad[sure].all():
            found.append((run.recipe["method"], detection_curve(run.scores[theirs][sure], bad[sure])))
    return found


def thinned(x: F64, y: F64) -> tuple[list[float], list[float]]:
    """A curve of at most MAX_CORNERS corners, ends included."""
    keep = np.unique(np.linspace(0, len(x) - 1, min(len(x), MAX_CORNERS)).round().astype(int))
    return x[keep].tolist(), y[keep].tolist()


def roc_figure(found: Sequence[tuple[str, Curve]]) -> str:
    series = [Series(name, *thinned(c.false_alarms, c.recall)) for name, c in found]
    x, y = (Axis(label, 0.0, 1.0, percent=True) for label in ("false alarms among surely well images", "recall"))
    return chart("ROC: who is surely bad, by score", series, x, y, diagonal=True)


def precision_figure(found: Sequence[tuple[str, Curve]]) -> str:
    series = [Series(name, *thinned(c.recall[1:], c.precision[1:])) for name, c in found]
    x, y = (Axis(label, 0.0, 1.0, percent=True) for label in ("recall", "precision"))
    return chart("Precision and recall", series, x, y)


def step_figure(base: Results, scores: Sequence[Results]) -> str:
    """AUROC of a score read at one step, over the noise level; blank without such scores."""
    series = []
    for run in scores:
        points = [(t, a) for t, a in step_aurocs(run, base) if t > 0 and not np.isnan(a)]
        if points:
            series.append(Series(run.recipe["method"], [t for t, _ in points], [a for _, a in points]))
    if not series:
        return ""
    levels = [t for s in series for t in s.x]
    chance = Series("chance", [min(levels), max(levels)], [0.5, 0.5], dashed=True)
    y = around("AUROC at this step alone", [0.4, 0.6, *(a for s in series for a in s.y)])
    return chart("Where along the run a score tells", [*series, chance], around("noise level", levels, log=True), y)


GROUPS = (
    ("baselines", ("euler", "heun", "euler-200", "churn", "churn-euler")),
    ("controls", ("overshoot", "sigma-offset", "random")),
    ("RODS", ("rods-",)),
    ("restart", ("restart",)),
)


def group(name: str) -> str:
    """Which colour a method has."""
    for title, starts in GROUPS:
        if any(name.split()[0] == s or (s.endswith(("-", "restart")) and name.startswith(s)) for s in starts):
            return title
    return "rivals"


def scattered(
    rows: Sequence[Row], x: Sequence[float], y: Sequence[float], ends: Sequence[tuple[float, float]]
) -> list[Series]:
    """A series of named points per group of methods."""
    found = []
    for title in ("baselines", "controls", "RODS", "restart", "rivals"):
        index = [i for i, row in enumerate(rows) if group(row.name) == title]
        low, high = [ends[i][0] for i in index], [ends[i][1] for i in index]
        names = [rows[i].name for i in index]
        found.append(Series(title, [x[i] for i in index], [y[i] for i in index], names, low, high))
    return found  # empty ones too: a group keeps its colour


def frontier_figure(rows: Sequence[Row]) -> str:
    """Hallucinated share against passes: samplers; scores and restarts as filters too, their passes per kept sample.

    In the mean a filter costs what drawing again until a sample is accepted costs.
    """
    own = [row for row in rows if not row.is_score]
    bad = [row.outcomes.bad_after for row in own]
    series = scattered(own, [cost(r) for r in own], [p.rate for p in bad], [(p.low, p.high) for p in bad])
    kept = [row for row in rows if not np.isnan(row.filtered)]
    names = [row.name if row.is_score else f"{row.name} + filter" for row in kept]
    title = f"filter, {100 * RETAINED:.0f} % kept"
    series.append(Series(title, [cost(r) / RETAINED for r in kept], [r.filtered for r in kept], names))
    y = around("surely bad", [v for p in bad for v in (p.low, p.high)], percent=True, zero=True)
    x = around("passes per sample, F + B", [v for s in series for v in s.x], log=True)
    return chart("Quality against cost", series, x, y)


def cost(row: Row) -> float:
    """F + B per sample."""
    return row.forward + row.backward


def diversity_figure(rows: Sequence[Row]) -> str:
    """What a cut costs in variance."""
    own = [row for row in rows[1:] if not row.is_score and not np.isnan(row.cut.value)]
    cut, kept = [row.cut.value for row in own], [row.variance_kept for row in own]
    series = scattered(own, cut, [v.value for v in kept], [(v.low, v.high) for v in kept])
    x = around("cut of surely bad images", [0.0, *cut], percent=True)
    y = around("variance kept", [1.0, *(v for e in kept for v in (e.low, e.high))])
    return chart("The price in diversity", series, x, y)


def broken_figure(rows: Sequence[Row]) -> str:
    """Repaired against newly broken."""
    own = [row for row in rows[1:] if not row.is_score]
    repaired, broken = [row.outcomes.repaired.rate for row in own], [row.outcomes.broken for row in own]
    series = scattered(own, repaired, [p.rate for p in broken], [(p.low, p.high) for p in broken])
    x = around("repaired, of the surely bad", [0.0, *repaired], percent=True)
    y = around(
        "newly broken, of the surely well", [v for p in broken for v in (p.low, p.high)], percent=True, zero=True
    )
    return chart("Repaired and newly broken", series, x, y)


def points_figure(title: str, run: Results) -> str:
    """Points of the plane by label: the first of the file."""
    x, labels = run.features[:MAX_DOTS], run.labels[:MAX_DOTS]
    names = {Label.WELL: "surely well", Label.BAD: "surely bad", Label.AMBIGUOUS: "unsure"}
    series = [
        Series(text, x[labels == label, 0].tolist(), x[labels == label, 1].tolist(), dots=True)
        for label, text in names.items()
    ]
    return chart(title, series, around("", x[:, 0].tolist()), around("", x[:, 1].tolist()))


def calibration_figures(tried: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Repaired and newly broken over the radius, a line per window, for each family of settings that has radii."""
    found = {}
    for family in dict.fromkeys(t["family"] for t in tried):
        own = [t for t in tried if t["family"] == family and t["config"].get("rho")]
        windows = list(dict.fromkeys(t["config"]["window"] for t in own))
        series = []
        for window in windows:
            line = sorted((t for t in own if t["config"]["window"] == window), key=lambda t: t["config"]["rho"])
            net = [(t["repaired"]["k"] - t["broken"]["k"]) / max(t["repaired"]["n"], 1) for t in line]
            series.append(Series(window, [t["config"]["rho"] for t in line], net))
        if series:
            x = around("radius rho", [v for s in series for v in s.x], log=True)
            y = around("repaired minus broken, of the surely bad", [v for s in series for v in s.y], percent=True)
            found[family] = chart(f"Calibration of {family}", series, x, y)
    return found


def critical_figures(found: Mapping[str, Any]) -> dict[str, str]:
    """Where H is large, where it tells, and which steps decide, over the noise level."""
    steps = [s for s in found["steps"] if s["sigma"] > 0]
    t = [s["sigma"] for s in steps]
    x = around("noise level", t, log=True)
    sizes = [Series("H", t, [s["H"] for s in steps]), Series("H t^3 / rho", t, [s["H_scaled"] for s in steps])]
    positive = [v for one in sizes for v in one.y if v > 0]
    told = Series("AUROC of H at this step", t, [np.nan if s["auroc"] is None else s["auroc"] for s in steps])
    shares = [
        Series("its H is the largest of the run", t, [s["largest"] for s in steps]),
        Series(f"flagged (eps {found['eps']:g})", t, [np.nan if s["flagged"] is None else s["flagged"] for s in steps]),
    ]
    chance = Series("chance", [min(t), max(t)], [0.5, 0.5], dashed=True)
    every = [v for one in shares for v in one.y]
    return {
        "H": chart("Where H is large (medians)", sizes, x, around("", positive, log=True)),
        "auroc": chart("Where H tells bad from good", [told, chance], x, around("AUROC", [0.4, 0.6, *told.y])),
        "critical": chart("Which steps decide", shares, x, around("share of samples", every, percent=True, zero=True)),
    }
