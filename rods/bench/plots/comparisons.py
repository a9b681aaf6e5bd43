"""Samplers side by side on the same seeds: figures 3 to 5 and 8 to 10 of the paper."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rods.bench.paper import Correction, Study
from rods.bench.plots.drawing import DPI, MEANING, figure, mosaic, save, says, show
from rods.bench.plots.pictures import CAS, EULER, Pictures
from rods.eval.correction import PairedOutcomes, Proportion, proportion_interval
from rods.eval.detection import Confusion, confusion
from rods.eval.labels import Label

Labels = Sequence[Label | None]
SIDE_BY_SIDE = (EULER, "heun", "rods-sas", CAS)
SOLVERS = (EULER, "euler-200", "heun", "churn", CAS)
ASCENT = (CAS, *(f"{CAS} ascent_steps={k}" for k in (5, 10)))
TITLES = {
    EULER: "Euler-40", "heun": "Heun-40", "euler-200": "Euler-200", "churn": "Heun-40\nwith churn",
    "rods-sas": "RODS-SAS", CAS: "RODS-CAS", **{m: f"CAS, {m.rpartition('=')[2]} steps" for m in ASCENT[1:]},
}  # fmt: skip
COLUMNS = 9
EXAMPLES = 6  # rows of figures 9 and 10
PAPER_ASCENT = {"afhqv2": "3 of 184", "ffhq": "4 of 222"}  # pictures on which people saw a difference


def side_by_side(p: Pictures, out: Path, *, name: str) -> tuple[Path, list[str]]:
    """Figures 3 to 5: pictures of each sampler, and the confusion matrix of the curvature index."""
    labels = {m: p.labels(m) for m in SIDE_BY_SIDE}
    H, threshold = p.indices(), p.threshold()
    shown = telling(labels[EULER], labels[CAS], H)
    images = {m: p.images(m) for m in SIDE_BY_SIDE}
    sheet = mosaic(
        [[images[m][i] for i in shown] for m in SIDE_BY_SIDE], [[labels[m][i] for i in shown] for m in SIDE_BY_SIDE]
    )
    counts = detector(H, labels[EULER], threshold.eps)
    lines = [
        f"{p.name}, {p.protocol.num} images each, RODS-CAS {settings(p, CAS)}",
        f"At risk: H >= {threshold.eps:.3g} ({threshold.source})",
        *detector_lines(counts, p.study),
        *outcome_lines(p, SIDE_BY_SIDE),
    ]
    wide = sheet.shape[1] / DPI + 1.1
    fig, axes = figure(1, 3, width=wide + 8.6, height=sheet.shape[0] / DPI + 1.3, widths=(wide, 4.0, 4.6))
    whats = [f"{n}\n{what(labels[EULER][i], labels[CAS][i])}" for i, n in ((i, label_of(p, i)) for i in shown)]
    show(axes[0, 0], sheet, row_names=[TITLES[m] for m in SIDE_BY_SIDE], column_names=whats)
    if counts is None:
        says(axes[0, 1], ["No labels: label the pictures by hand", "(scripts/label.py), then give --answers"])
    else:
        draw_confusion(axes[0, 1], counts, p.study)
    says(axes[0, 2], outcome_lines(p, SIDE_BY_SIDE))
    fig.suptitle(f"{lines[0]}\n{lines[1]}. {MEANING}", fontsize=10)
    numbers = {
        **p.describe(),
        "eps": threshold.eps,
        "confusion": None if counts is None else vars(counts),
        "methods": {m: outcome_numbers(p, m) for m in SIDE_BY_SIDE},
        "paper": {"study": p.study.title, **vars(p.study.detection)},
    }
    return save(fig, out / f"{name}.png", numbers=numbers), lines


def ascent(p: Pictures, out: Path, *, name: str) -> tuple[Path, list[str]]:
    """Figure 8: one, five and ten ascent steps; pictures as they are on the whole, and those that differ most."""
    images = {m: p.images(m) for m in (EULER, *ASCENT)}
    labels = {m: p.labels(m) for m in (EULER, *ASCENT)}
    moved = rms(images[ASCENT[0]], images[EULER])
    apart = np.maximum(*(rms(images[m], images[ASCENT[0]]) for m in ASCENT[1:]))  # [N]
    changed = [i for i in range(len(apart)) if len({labels[m][i] for m in ASCENT}) > 1]
    order = np.argsort(apart)
    half = len(order) // 2
    halves = order[max(0, half - 2) : half + 2], order[-4:][::-1]
    columns = (EULER, *ASCENT)
    lines = [
        f"{p.name}, {p.protocol.num} images each, RODS-CAS {settings(p, CAS)}",
        f"Root mean square change of a pixel, of 255: 1 step against Euler {np.median(moved):.1f} (median); "
        f"5 or 10 steps against 1 step {np.median(apart):.1f}, at most {apart.max():.1f}",
        f"Other label with 5 or 10 steps than with 1: {len(changed)} of {len(apart)}"
        if p.label_source()
        else "No labels: label the pictures by hand (scripts/label.py), then give --answers",
        "Paper, by eye: " + "; ".join(f"{n} pictures differ on {study}" for study, n in PAPER_ASCENT.items()),
    ]
    sheets = [mosaic([[images[m][i] for m in columns] for i in h], [[labels[m][i] for m in columns] for i in h])
              for h in halves]  # fmt: skip
    wide = sheets[0].shape[1] / DPI + 0.9
    fig, axes = figure(1, 2, width=2 * wide, height=sheets[0].shape[0] / DPI + 1.4)
    for ax, sheet, which, heading in zip(axes[0], sheets, halves, ("as usual", "differ most"), strict=True):
        show(
            ax,
            sheet,
            row_names=[label_of(p, i) for i in which],
            column_names=[TITLES[EULER], "CAS, 1 step", *(TITLES[m] for m in ASCENT[1:])],
        )
        ax.set_xlabel(f"{heading} (1 step against 5 and 10)", fontsize=9)
    fig.suptitle("\n".join(lines[:3]) + f"\n{MEANING}", fontsize=9)
    numbers = {
        **p.describe(),
        "rms_one_step_against_euler": moved.round(3).tolist(),
        "rms_more_steps_against_one": apart.round(3).tolist(),
        "other_label": [p.names()[i] for i in changed],
        "paper": PAPER_ASCENT,
    }
    return save(fig, out / f"{name}.png", numbers=numbers), lines


def solvers_fail(p: Pictures, out: Path, *, name: str) -> tuple[Path, list[str]]:
    """Figure 9: what RODS-CAS repaired and no finer or higher-order solver did."""

    def fits(labels: dict[str, Label | None]) -> bool:
        others = [labels[m] for m in SOLVERS[1:-1]]
        return labels[EULER] is Label.BAD and labels[CAS] is Label.WELL and Label.WELL not in others

    return examples(p, out, fits, name=name, heading="Repaired by RODS-CAS and by no other solver")


def solvers_break(p: Pictures, out: Path, *, name: str) -> tuple[Path, list[str]]:
    """Figure 10: what a finer or higher-order solver newly broke and RODS-CAS did not."""

    def fits(labels: dict[str, Label | None]) -> bool:
        others = [labels[m] for m in SOLVERS[1:-1]]
        return labels[EULER] is Label.WELL and labels[CAS] is Label.WELL and Label.BAD in others

    return examples(p, out, fits, name=name, heading="Newly broken by another solver and not by RODS-CAS")


def examples(
    p: Pictures, out: Path, fits: Callable[[dict[str, Label | None]], bool], *, name: str, heading: str
) -> tuple[Path, list[str]]:
    """Rows of pictures whose labels fit, a column per solver; and all outcomes beside the paper's Table 2."""
    labels = {m: p.labels(m) for m in SOLVERS}
    found = [i for i in range(p.protocol.num) if fits({m: labels[m][i] for m in SOLVERS})]
    opposite = [i for i in range(p.protocol.num) if fits({**{m: labels[m][i] for m in SOLVERS}, **swapped(labels, i)})]
    lines = [
        f"{heading}: {len(found)} of {p.protocol.num}" if p.label_source() else "No labels: give --answers",
        f"The same of Heun-40 in the place of RODS-CAS: {len(opposite)}",
        *outcome_lines(p, SOLVERS),
    ]
    images = {m: p.images(m) for m in SOLVERS}
    shown = found[:EXAMPLES]
    tiles = [[images[m][i] for m in SOLVERS] for i in shown]
    sheet = mosaic(tiles or [[images[m][0] for m in SOLVERS]], [[labels[m][i] for m in SOLVERS] for i in shown or [0]])
    wide = sheet.shape[1] / DPI + 0.9
    fig, axes = figure(1, 2, width=wide + 5.0, height=max(3.0, sheet.shape[0] / DPI + 1.2), widths=(wide, 5.0))
    if shown:
        show(axes[0, 0], sheet, row_names=[label_of(p, i) for i in shown], column_names=[TITLES[m] for m in SOLVERS])
    else:
        says(axes[0, 0], ["There is no such picture among these."])
    says(axes[0, 1], lines[2:])
    fig.suptitle(f"{p.name}. {lines[0]}\n{lines[1]}. {MEANING}", fontsize=10)
    numbers = {
        **p.describe(),
        "found": [p.names()[i] for i in found],
        "heun_in_place_of_cas": [p.names()[i] for i in opposite],
        "methods": {m: outcome_numbers(p, m) for m in SOLVERS},
        "paper": {m: vars(c) for m, c in p.study.correction.items()},
    }
    return save(fig, out / f"{name}.png", numbers=numbers), lines


def swapped(labels: dict[str, list[Label | None]], i: int) -> dict[str, Label | None]:
    """The labels of image i with Heun and CAS in each other's place: what chance and choice alone would find."""
    return {CAS: labels["heun"][i], "heun": labels[CAS][i]}


# -- numbers ----------------------------------------------------------------------------------------------------------


def telling(before: Labels, after: Labels, H: NDArray[np.float64]) -> list[int]:
    """Which images to show: repaired, newly broken, still bad, still well, by the largest H within each."""
    groups: list[list[int]] = [[], [], [], []]
    kinds = {(Label.BAD, Label.WELL): 0, (Label.WELL, Label.BAD): 1, (Label.BAD, Label.BAD): 2}
    for i in np.argsort(-H, kind="stable").tolist():
        pair = before[i], after[i]
        groups[kinds.get(pair, 3)].append(i)  # type: ignore[arg-type]
    shown = groups[0][:3] + groups[1][:2] + groups[2][:3]
    return [*shown, *groups[3][: COLUMNS - len(shown)]]


def what(before: Label | None, after: Label | None) -> str:
    """What a correction did to an image."""
    names = {
        (Label.BAD, Label.WELL): "repaired",
        (Label.WELL, Label.BAD): "broken",
        (Label.BAD, Label.BAD): "still bad",
        (Label.WELL, Label.WELL): "still well",
    }
    if before is None or after is None:
        return ""
    return names.get((before, after), "unsure")


def detector(H: NDArray[np.float64], labels: Labels, eps: float) -> Confusion | None:
    """The index against the sure labels; None where there are none."""
    sure = [i for i, label in enumerate(labels) if label in (Label.WELL, Label.BAD)]
    if not sure:
        return None
    return confusion(H[sure], np.array([labels[i] is Label.BAD for i in sure]), eps)


def detector_lines(counts: Confusion | None, study: Study) -> list[str]:
    """Found and false alarms, ours and the paper's."""
    d = study.detection
    paper = f"paper, {study.title}: {d.detected} of {d.hallucinated} found"
    if counts is None:
        return [paper]
    found = proportion_interval(counts.risk_bad, counts.risk_bad + counts.safe_bad)
    alarms = proportion_interval(counts.risk_good, counts.risk_good + counts.safe_good)
    return [f"Found of the bad {_share(found)}, false alarms {_share(alarms)}", paper]


def draw_confusion(ax: Any, counts: Confusion, study: Study) -> None:
    """The matrix with its counts, the paper's where its text has them."""
    table = np.array([[counts.risk_bad, counts.safe_bad], [counts.risk_good, counts.safe_good]])
    shares = table / table.sum(axis=1, keepdims=True).clip(min=1)
    ax.imshow(shares, cmap="Blues", vmin=0, vmax=1.4)
    d = study.detection
    paper = [[f"paper: {d.detected} of {d.hallucinated}", f"paper: {d.hallucinated - d.detected} of {d.hallucinated}"]]
    paper.append(["", ""])  # its text does not give them
    for r in range(2):
        for c in range(2):
            own = f"{table[r, c]}  ({shares[r, c]:.0%})"
            ax.text(c, r, f"{own}\n{paper[r][c]}".strip(), ha="center", va="center", fontsize=10)
    ax.set(xticks=[0, 1], yticks=[0, 1])
    ax.set_xticklabels(["at risk", "not at risk"])
    ax.set_yticklabels(["bad", "well"], rotation=90, va="center")
    ax.set_title(f"The index H, beside the paper's on {study.title}", fontsize=9)


def outcome_numbers(p: Pictures, method: str) -> dict[str, Any]:
    """A method's rates and passes, as JSON."""
    records = p.records(method)
    passes = {key: sum(record[key] for record in records) / len(records) for key in ("forward", "backward")}
    outcomes = p.outcomes(method)
    if outcomes is None:
        return passes
    rates = {"bad": outcomes.bad_after, "repaired": outcomes.repaired, "broken": outcomes.broken}
    return {**passes, **{key: vars(rate) for key, rate in rates.items()}}


def outcome_lines(p: Pictures, methods: Sequence[str]) -> list[str]:
    """A table of the methods' rates, with the paper's where it printed any."""
    lines = [f"{'':<13}{'bad':>12}{'repaired':>11}{'broken':>9}{'F + B':>11}"]
    for method in methods:
        records, outcomes = p.records(method), p.outcomes(method)
        passes = "+".join(f"{sum(r[key] for r in records) / len(records):.0f}" for key in ("forward", "backward"))
        title = TITLES[method].replace("\n", " ").removesuffix(" with churn") + ("+churn" if method == "churn" else "")
        lines.append(f"{title:<13}{_outcome(outcomes, method)}{passes:>11}")
    if p.study.correction:
        lines += ["", f"paper, {p.study.title} (seconds a batch)"]
        lines += [f"{TITLES[m]:<13}{_printed(c)}" for m, c in p.study.correction.items()]
    elif p.study.detection.better is not None:
        d = p.study.detection
        lines += ["", f"paper, {p.study.title}: {d.better} better, {d.worse} worse of {d.images}"]
    return lines


def _outcome(outcomes: PairedOutcomes | None, method: str) -> str:
    if outcomes is None:
        return f"{'no labels':>32}"
    bad = f"{outcomes.bad_after.k}/{outcomes.n} {100 * outcomes.bad_after.rate:.0f}%"
    if method == EULER:
        return f"{bad:>12}{'':>20}"
    repaired, broken = (f"{x.k}/{x.n}" for x in (outcomes.repaired, outcomes.broken))
    return f"{bad:>12}{repaired:>11}{broken:>9}"


def _printed(c: Correction) -> str:
    if c.corrected is None:
        return f"{c.hallucinated:>11}%{'':>20}{c.seconds:>11}"
    return f"{c.hallucinated:>11}%{c.corrected:>10}%{c.broken:>8}%{c.seconds:>11}"


def _share(x: Proportion) -> str:
    return f"{x.k} of {x.n} ({100 * x.low:.0f} to {100 * x.high:.0f} %)" if x.n else "none"


def label_of(p: Pictures, i: int) -> str:
    """The seed of an image, and its row where a seed draws a batch."""
    seed, _, row = p.names()[i].removesuffix(".png").partition("_")
    return f"{int(seed)}" + (f".{int(row)}" if row else "")


def settings(p: Pictures, method: str) -> str:
    options = p.config(method).describe()
    return f"rho {options['rho']:g}, window {options['window']}, eps {float(options['eps']):g}"


def rms(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Root mean square difference of the pixels of each pair of images [N]."""
    difference = a.astype(np.float64) - b
    return np.asarray(np.sqrt((difference**2).mean(axis=(1, 2, 3))))
