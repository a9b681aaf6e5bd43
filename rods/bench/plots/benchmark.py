"""The charts of the benchmark's report: detection curves, prices of methods, clouds of points, a calibration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rods.bench.compare import RETAINED, Comparison
from rods.bench.plots.drawing import COLOURS, figure, png
from rods.eval.detection import Curve
from rods.eval.labels import Label

if TYPE_CHECKING:
    from matplotlib.figure import Figure

F64 = NDArray[np.float64]
MAX_DOTS = 4000
GROUPS: dict[str, tuple[str, ...]] = {  # by what the methods' names begin with
    "baselines": ("euler", "heun", "euler-200", "churn", "churn-euler"),
    "controls": ("overshoot", "sigma-offset", "random"),
    "RODS": ("rods-",),
    "restart": ("restart",),
    "rivals": ("",),
}


def chart(title: str, x: str, y: str, *, percent: str = "", log: str = "") -> tuple[Figure, Any]:
    """An empty chart; `percent` and `log` name the axes that hold fractions, and those with a logarithmic scale."""
    from matplotlib.ticker import LogFormatter

    fig, axes = figure(1, 1, width=7.2, height=4.2)
    ax = axes[0, 0]
    ax.set(xlabel=x, ylabel=y)
    ax.set_title(title, loc="left", fontsize=10)
    ax.grid(color="0.9", linewidth=0.6)
    for name, axis in (("x", ax.xaxis), ("y", ax.yaxis)):
        if name in log:
            ax.set(**{f"{name}scale": "log"})
            axis.set_major_formatter(LogFormatter())
            axis.set_minor_formatter(LogFormatter(minor_thresholds=(1.2, 0.4)))
        if name in percent:
            axis.set_major_formatter(lambda value, _: f"{100 * value:.3g} %")
    return fig, ax


def finished(fig: Figure, ax: Any) -> bytes:
    """The chart as a PNG, with a legend where anything has a name, and with names of points that do not overlap."""
    if ax.get_legend_handles_labels()[1]:
        fig.legend(fontsize=7, frameon=False, loc="outside right upper")
    if ax.texts:
        fig.draw_without_rendering()
    taken: list[Any] = []
    for text in ax.texts:
        for k in range(24):
            text.set_position((5, (k + 1) // 2 * (6 if k % 2 else -6)))
            box = text.get_window_extent()
            if box.y0 > ax.bbox.y0 and not any(box.overlaps(other) for other in taken):
                break
        taken.append(box)
    return png(fig)


def roc_chart(curves: Mapping[str, Curve]) -> bytes:
    """Recall of hallucinated images over false alarms among valid ones, a curve per score."""
    fig, ax = chart("ROC of each score", "false alarms, of the valid images", "recall", percent="xy")
    ax.plot([0, 1], [0, 1], "--", color="0.7", linewidth=1)
    for name, curve in curves.items():
        ax.plot(curve.false_alarms, curve.recall, label=name, linewidth=1.4)
    return finished(fig, ax)


def precision_chart(curves: Mapping[str, Curve]) -> bytes:
    fig, ax = chart("Precision and recall of each score", "recall", "precision", percent="xy")
    for name, curve in curves.items():
        ax.plot(curve.recall[1:], curve.precision[1:], label=name, linewidth=1.4)
    ax.set(xlim=(0, 1), ylim=(0, 1))
    return finished(fig, ax)


def step_chart(aurocs: Mapping[str, Sequence[tuple[float, float]]]) -> bytes:
    """AUROC of a score read at one step alone over the noise level, a line per score of (noise level, AUROC)."""
    fig, ax = chart("Where along the run a score tells", "noise level", "AUROC at this step alone", log="x")
    ax.axhline(0.5, color="0.7", linestyle="--", linewidth=1, label="chance")
    for name, points in aurocs.items():
        ax.plot(*zip(*[(t, a) for t, a in points if t > 0], strict=True), label=name, linewidth=1.4)
    return finished(fig, ax)


def group(name: str) -> str:
    """Which colour a method has."""

    def belongs(start: str) -> bool:
        return name.startswith(start) if start in ("rods-", "restart", "") else name.split()[0] == start

    return next(title for title, starts in GROUPS.items() if any(map(belongs, starts)))


def scatter(
    ax: Any, rows: Sequence[Comparison], x: Sequence[float], y: Sequence[float], ends: Sequence[tuple[float, float]]
) -> None:
    """A named point with its interval per method, a colour per group of methods."""
    for k, title in enumerate(GROUPS):
        index = [i for i, row in enumerate(rows) if group(row.name) == title]
        if index:
            low_high = np.array([[y[i] - ends[i][0], ends[i][1] - y[i]] for i in index]).T.clip(min=0)
            at = [x[i] for i in index], [y[i] for i in index]
            ax.errorbar(*at, yerr=low_high, fmt="o", color=f"C{k}", markersize=4, elinewidth=0.8, label=title)
    name_points(ax, [row.name for row in rows], x, y)


def name_points(ax: Any, names: Sequence[str], x: Sequence[float], y: Sequence[float]) -> None:
    for name, px, py in zip(names, x, y, strict=True):
        text = name if len(name) < 32 else f"{name[:30]}..."
        ax.annotate(text, (px, py), xytext=(5, 0), textcoords="offset points", fontsize=6, va="center")


def frontier_chart(rows: Sequence[Comparison]) -> bytes:
    """Hallucination rate over NFE: samplers, and scores and restarts as filters with their NFE per kept image.

    In the mean a filter costs what drawing again until an image is accepted costs.
    """
    own = [row for row in rows if not row.is_score]
    bad = [row.outcomes.hallucinated_after for row in own]
    fig, ax = chart("Quality against cost", "NFE per image, F + B", "hallucination rate", percent="y", log="x")
    scatter(ax, own, [r.nfe for r in own], [p.rate for p in bad], [(p.low, p.high) for p in bad])
    kept = [row for row in rows if not np.isnan(row.filtered)]
    x, y = [row.nfe / RETAINED for row in kept], [row.filtered for row in kept]
    if kept:
        ax.plot(x, y, "s", color="0.4", markersize=4, label=f"filter, {100 * RETAINED:.0f} % kept")
        name_points(ax, [row.name if row.is_score else "" for row in kept], x, y)
    ax.set_ylim(bottom=0)
    return finished(fig, ax)


def diversity_chart(rows: Sequence[Comparison]) -> bytes:
    """What a lower hallucination rate costs in total variance."""
    own = [row for row in rows[1:] if not row.is_score and not np.isnan(row.relative_reduction.value)]
    kept = [row.variance_kept for row in own]
    fig, ax = chart("The price in diversity", "relative reduction of the hallucination rate", "total variance",
                    percent="x")  # fmt: skip
    ax.axhline(1, color="0.7", linewidth=0.8)
    scatter(
        ax, own, [r.relative_reduction.value for r in own], [v.value for v in kept], [(v.low, v.high) for v in kept]
    )
    return finished(fig, ax)


def broken_chart(rows: Sequence[Comparison]) -> bytes:
    """Repaired against newly broken."""
    own = [row for row in rows[1:] if not row.is_score]
    repaired, broken = [row.outcomes.repaired.rate for row in own], [row.outcomes.broken for row in own]
    fig, ax = chart(
        "Repaired and newly broken", "repaired, of the hallucinated", "newly broken, of the valid", percent="xy"
    )
    scatter(ax, own, repaired, [p.rate for p in broken], [(p.low, p.high) for p in broken])
    ax.set_ylim(bottom=0)
    return finished(fig, ax)


def points_chart(title: str, x: F64, labels: NDArray[np.int8]) -> bytes:
    """The first points of the plane [N, 2] in the colours of their labels [N]."""
    fig, ax = chart(title, "", "")
    x, labels = x[:MAX_DOTS], labels[:MAX_DOTS]
    for label, name in ((Label.VALID, "valid"), (Label.HALLUCINATED, "hallucinated"), (Label.UNCERTAIN, "uncertain")):
        colour = [c / 255 for c in COLOURS[label]]
        ax.plot(*x[labels == label].T, ".", color=colour, markersize=2, label=name)
    ax.set_aspect("equal")
    return finished(fig, ax)


def calibration_charts(tried: Sequence[Mapping[str, Any]]) -> dict[str, bytes]:
    """Repaired minus newly broken over the radius, a line per window, for each family of settings that has radii."""
    found = {}
    for family in dict.fromkeys(t["family"] for t in tried):
        own = sorted(
            (t for t in tried if t["family"] == family and t["config"].get("rho")), key=lambda t: t["config"]["rho"]
        )
        if not own:
            continue
        fig, ax = chart(f"Calibration of {family}", "radius rho", "repaired minus newly broken, of the hallucinated",
                        percent="y", log="x")  # fmt: skip
        for window in dict.fromkeys(t["config"]["window"] for t in own):
            line = [t for t in own if t["config"]["window"] == window]
            net = [(t["repaired"]["k"] - t["broken"]["k"]) / max(t["repaired"]["n"], 1) for t in line]
            ax.plot(
                [t["config"]["rho"] for t in line], net, "o-", markersize=3, linewidth=1.2, label=f"window {window}"
            )
        found[family] = finished(fig, ax)
    return found


def critical_step_charts(found: Mapping[str, Any]) -> dict[str, bytes]:
    """Where H is large, where it tells hallucinated from valid, and which steps decide, over the noise level."""
    steps = [s for s in found["steps"] if s["sigma"] > 0]
    t = [s["sigma"] for s in steps]

    def drawn(title: str, y: str, lines: Mapping[str, str], *, percent: str = "", log: str = "x") -> bytes:
        fig, ax = chart(title, "noise level", y, percent=percent, log=log)
        for key, name in lines.items():
            ax.plot(t, [np.nan if s[key] is None else s[key] for s in steps], linewidth=1.4, label=name)
        if y == "AUROC":
            ax.axhline(0.5, color="0.7", linestyle="--", linewidth=1, label="chance")
        return finished(fig, ax)

    flagged = f"H >= eps ({found['eps']:g})"
    return {
        "H": drawn("Where H is large (medians)", "", {"H": "H", "H_scaled": "H t^3 / rho"}, log="xy"),
        "auroc": drawn("Where H tells hallucinated from valid", "AUROC", {"auroc": "H at this step"}),
        "critical": drawn("Which steps decide", "share of samples",
                          {"largest": "its H is the largest of the run", "flagged": flagged}, percent="y"),
    }  # fmt: skip
