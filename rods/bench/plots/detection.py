"""What the curvature index sees: its ROC (figure 6) and the steps at which it speaks (figure 7)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from rods.bench.plots.comparisons import settings
from rods.bench.plots.drawing import DPI, figure, mosaic, save, says, show
from rods.bench.plots.pictures import CAS, EULER, INDEX, Pictures
from rods.eval.bootstrap import bootstrap
from rods.eval.detection import auroc, detection_curve, recall_at_false_alarms
from rods.eval.labels import Label

WHOLE = f"{INDEX} window=0,1"  # measured at every step
BATCH = 9  # of the paper's pictures
PAPER_POINT = (0.2, 0.8)  # FFHQ at eps .09: "close to 80 %" found, "below 20 %" false alarms


def roc(p: Pictures, out: Path, *, name: str) -> tuple[Path, list[str]]:
    """Figure 6: found against false alarms at every threshold of the largest H of an image."""
    labels, H, threshold = p.labels(EULER), p.indices(), p.threshold()
    sure = [i for i, label in enumerate(labels) if label in (Label.WELL, Label.BAD)]
    bad, scores = np.array([labels[i] is Label.BAD for i in sure], dtype=bool), H[sure]
    fig, axes = figure(1, 1, width=5.2, height=5.0)
    ax, numbers = axes[0, 0], {**p.describe(), "eps": threshold.eps, "paper": PAPER_POINT}
    if not bad.any() or bad.all():
        says(ax, ["No bad and no well pictures to tell apart:", "label some by hand, then give --answers"])
        lines = [f"{p.name}: {int(bad.sum())} bad and {int((~bad).sum())} well pictures; a curve needs both"]
        return save(fig, out / f"{name}.png", numbers=numbers), lines
    curve = detection_curve(scores, bad)
    area = bootstrap(lambda i: auroc(scores[i], bad[i]), len(scores))
    at = int(np.flatnonzero(curve.thresholds >= threshold.eps)[-1])
    ax.plot([0, 1], [0, 1], "--", color="0.7", linewidth=1, label="chance")
    ax.plot(curve.false_alarms, curve.recall, color="tab:blue", linewidth=1.6, label="largest H of an image")
    ax.plot(curve.false_alarms[at], curve.recall[at], "o", color="tab:orange",
            label=f"H >= {threshold.eps:.3g} ({threshold.source})")  # fmt: skip
    ax.fill_between([0, PAPER_POINT[0]], PAPER_POINT[1] - 0.02, PAPER_POINT[1] + 0.02, color="tab:green", alpha=0.35,
                    linewidth=0, label="paper, FFHQ, eps .09: about 80 % under 20 %")  # fmt: skip
    ax.set(xlabel="false alarms among well pictures", ylabel="found of the bad pictures", xlim=(-0.02, 1.02),
           ylim=(-0.02, 1.02), aspect="equal")  # fmt: skip
    ax.legend(fontsize=8, loc="lower right")
    lines = [
        f"{p.name}: AUROC {area.value:.2f} ({area.low:.2f} to {area.high:.2f}), {bad.sum()} bad and "
        f"{(~bad).sum()} well pictures, {settings(p, CAS)}",
        f"At eps {threshold.eps:.3g}: {curve.recall[at]:.0%} found, {curve.false_alarms[at]:.0%} false alarms; "
        f"{recall_at_false_alarms(scores, bad):.0%} found at 5 % false alarms",
        "Paper, FFHQ, eps .09: about 80 % found at under 20 % false alarms",
    ]
    ax.set_title(lines[0].replace(" pictures, ", " pictures\n"), fontsize=9)
    numbers |= {
        "auroc": vars(area), "bad": int(bad.sum()), "well": int((~bad).sum()),
        "false_alarms": curve.false_alarms.round(5).tolist(), "found": curve.recall.round(5).tolist(),
        "at_eps": [float(curve.false_alarms[at]), float(curve.recall[at])],
    }  # fmt: skip
    return save(fig, out / f"{name}.png", numbers=numbers), lines


def critical_steps(p: Pictures, out: Path, *, name: str) -> tuple[Path, list[str]]:
    """Figure 7: batches, and for every step whether the index of any picture of the batch exceeds the threshold."""
    records, images, labels = p.records(WHOLE), p.images(WHOLE), p.labels(EULER)
    H = np.array([[np.inf if h is None else h for h in r["H"]] for r in records])  # [N, probed steps]
    steps, threshold = records[0]["probed"], p.threshold()
    batches = [range(k, min(k + BATCH, len(images))) for k in range(0, len(images), BATCH)][:3]
    tile = 56
    side = mosaic([[images[0]] * 3] * 3, [[None] * 3] * 3, tile=tile).shape[0] / DPI
    fig, axes = figure(len(batches), 3, width=side + 9.0, height=len(batches) * (side + 0.35) + 0.7,
                       widths=(side, 4.5, 4.5))  # fmt: skip
    critical = []
    for row, batch in zip(axes, batches, strict=True):
        tiles = [[images[i] for i in batch[k : k + 3]] for k in range(0, len(batch), 3)]
        frames = [[labels[i] for i in batch[k : k + 3]] for k in range(0, len(batch), 3)]
        show(row[0], mosaic(tiles, frames, tile=tile))
        is_critical = np.asarray((H[list(batch)] >= threshold.eps).any(axis=0))
        critical.append([s for s, c in zip(steps, is_critical, strict=True) if c])
        draw_bars(row[1], steps, is_critical, p.num_steps)
        row[2].plot(steps, H[list(batch)].T, linewidth=0.9, alpha=0.8)
        row[2].axhline(threshold.eps, color="0.2", linestyle="--", linewidth=0.9)
        row[2].set(yscale="log", ylabel="H")
    for ax in axes[-1, 1:]:
        ax.set_xlabel("step")
    lo, hi = np.quantile(np.concatenate(critical), [0.1, 0.9]) if any(critical) else (np.nan, np.nan)
    lines = [
        f"{p.name}: critical steps (H >= {threshold.eps:.3g}, {threshold.source}), {len(batches)} batches of {BATCH}",
        f"80 % of them are steps {lo:.0f} to {hi:.0f} of {p.num_steps}; paper: in the middle of the run "
        "(it corrects in steps 4 to 20 of 40)",
    ]
    fig.suptitle("\n".join(lines), fontsize=10)
    numbers = {**p.describe(), "eps": threshold.eps, "steps": steps, "critical": critical,
               "sigma": records[0]["sigma"], "H_median": np.median(H, axis=0).tolist()}  # fmt: skip
    return save(fig, out / f"{name}.png", numbers=numbers), lines


def draw_bars(ax: Any, steps: list[int], is_critical: np.ndarray, num_steps: int) -> None:
    """Value 1 at critical steps; shaded where the paper corrects hands."""
    ax.axvspan(0.1 * num_steps, 0.5 * num_steps, color="0.92", linewidth=0)
    ax.bar(steps, is_critical.astype(float), width=0.8, color="tab:red")
    ax.set(ylim=(0, 1.1), xlim=(-1, num_steps), yticks=[0, 1], ylabel="critical")
