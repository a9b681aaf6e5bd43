"""The paper's Figures 3 to 14 on any network: what each shows, the runs that it needs, and how it is drawn."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from textwrap import fill

import numpy as np

from dnnlib.util import atomic_write
from rods.bench.paper import CAS, EULER, INDEX, Experiment, Usual
from rods.bench.paper_parts import (
    COLUMNS,
    NO_LABELS,
    Drawn,
    batch_tile,
    change,
    outcome_lines,
    outcome_numbers,
    rms,
    rounded,
    seed_of,
    sheet_and_text,
    telling,
)
from rods.bench.paper_tables import counted, detection
from rods.bench.plots.drawing import DPI, figure, save, sheet, show, write_lines
from rods.bench.tasks.real_data import as_samples
from rods.eval.bootstrap import bootstrap
from rods.eval.detection import auroc, detection_curve
from rods.eval.labels import Label
from rods.labels.label_set import PAPER
from rods.runs.images import U8, read_png
from rods.runs.trajectories import tiles_of

SIDE_BY_SIDE = (EULER, "heun", "rods-sas", CAS)
SOLVERS = (EULER, "euler-200", "heun", "churn", CAS)
ASCENT = (CAS, f"{CAS} ascent_steps=5", f"{CAS} ascent_steps=10")
WHOLE = f"{INDEX} window=0,1"  # H at every step
STEPS = (0, 8, 12, 16, 20, 24, 28, 32, 36)  # of 40, in figures 13 and 14
EXAMPLES = 6  # rows of figures 9 and 10
PAPER_ASCENT = "Paper, by eye: 3 of 184 images differ on AFHQv2, 4 of 222 on FFHQ."
PAPER_ROC = (0.2, 0.8)  # FFHQ at eps .09: false alarms "below 20 %", recall "close to 80 %"


@dataclass(frozen=True)
class Plan:
    """A figure: what draws it, the runs that it needs, and of what."""

    draw: Callable[[Experiment], Drawn]
    methods: tuple[str, ...]
    usual: Usual

    def needs(self, e: Experiment) -> list[str]:
        """The runs; H of Euler's own run only where the corrected run does not have the detector's."""
        return [m for m in self.methods if m != INDEX or e.index_run == INDEX]


def draw(name: str, e: Experiment, out: Path) -> tuple[Path, Sequence[str]]:
    """Writes `out`/NAME.png from the experiment's runs, its numbers as NAME.json; returns the path and what it says."""
    drawn = PLANS[name].draw(e)
    path = save(drawn.figure, out / f"{name}.png")
    with atomic_write(path.with_suffix(".json")) as temporary:
        temporary.write_text(json.dumps({**e.describe(), **drawn.numbers, "lines": drawn.lines}, indent=2) + "\n")
    return path, drawn.lines


def side_by_side(e: Experiment) -> Drawn:
    """Figures 3 to 5: images of each sampler, what each repaired and broke, and what the curvature index found."""
    labels = {m: e.labels(m) for m in SIDE_BY_SIDE}
    shown = telling(labels[EULER], labels[CAS], e.scores(CAS))
    found = detection(e, labels[EULER])
    d = e.study.detection
    lines = [
        f"{e.name}, {e.num} images each; RODS with {e.rods_settings()}",
        f"Flagged (H >= {found.eps:.3g}, {found.source}): {counted(found.hallucinated)} hallucinated, "
        f"{counted(found.valid)} valid images",
        f"Paper, {e.study.title}: {d.detected} of {d.hallucinated} hallucinated images flagged",
        *outcome_lines(e, SIDE_BY_SIDE),
    ]
    names = [f"{seed_of(e, i)}\n{change(labels[EULER][i], labels[CAS][i])}" for i in shown]
    fig = sheet_and_text(e, SIDE_BY_SIDE, shown, lines[3:], image_names=names, title=lines[:3])
    return Drawn(fig, lines, {"detection": asdict(found), "methods": outcome_numbers(e, SIDE_BY_SIDE)})


def ascent(e: Experiment) -> Drawn:
    """Figure 8: one, five and ten ascent steps; images that differ as usual, and those that differ most."""
    images, labels = {m: e.images(m) for m in (EULER, *ASCENT)}, {m: e.labels(m) for m in ASCENT}
    moved = rms(images[CAS], images[EULER])
    apart = np.maximum(*(rms(images[m], images[CAS]) for m in ASCENT[1:]))  # [N]
    other = [i for i in range(e.num) if len({labels[m][i] for m in ASCENT}) > 1]
    order = np.argsort(apart)
    half = len(order) // 2
    shown = [*order[max(0, half - 2) : half + 2], *order[-4:][::-1]]
    lines = [
        f"{e.name}, {e.num} images each; RODS with {e.rods_settings()}",
        f"Root mean square change of a pixel, of 255: 1 step against Euler {np.median(moved):.1f} (median), 5 or 10 "
        f"steps against 1 step {np.median(apart):.1f}, at most {apart.max():.1f}",
        f"{len(other)} of {e.num} images have another label with 5 or 10 steps than with 1",
        PAPER_ASCENT,
    ]
    names = [f"{seed_of(e, i)}\n{apart[i]:.1f}" for i in shown]
    fig = sheet_and_text(e, (EULER, *ASCENT), shown, [], image_names=names, title=lines)
    return Drawn(fig, lines, {"one_step_against_euler": rounded(moved), "more_steps_against_one": rounded(apart)})


def solvers_fail(e: Experiment) -> Drawn:
    """Figure 9: images that RODS-CAS repaired and no finer or higher-order solver did."""
    return examples(
        e, "Repaired by RODS-CAS and by no other solver", Label.HALLUCINATED, lambda others: Label.VALID not in others
    )


def solvers_break(e: Experiment) -> Drawn:
    """Figure 10: images that a finer or higher-order solver newly broke and RODS-CAS did not."""
    return examples(
        e, "Broken by another solver and not by RODS-CAS", Label.VALID, lambda others: Label.HALLUCINATED in others
    )


def examples(e: Experiment, heading: str, before: Label, fits: Callable[[Sequence[Label | None]], bool]) -> Drawn:
    """Images that were `before` with Euler, are valid with CAS, and whose labels with the other solvers fit.

    The same with Heun and CAS in each other's place says what chance alone would find.
    """
    labels = {m: e.labels(m) for m in SOLVERS}

    def found(by: str) -> list[int]:
        others = [m for m in SOLVERS[1:] if m != by]
        return [
            i
            for i in range(e.num)
            if labels[EULER][i] is before and labels[by][i] is Label.VALID and fits([labels[m][i] for m in others])
        ]

    own, swapped = found(CAS), found("heun")
    lines = [f"{heading}: {len(own)} of {e.num} images of {e.name}" if e.label_source() else NO_LABELS,
             f"The same of Heun in the place of RODS-CAS: {len(swapped)}", *outcome_lines(e, SOLVERS)]  # fmt: skip
    shown = own[:EXAMPLES] or [0]
    fig = sheet_and_text(
        e,
        SOLVERS,
        shown,
        lines[2:],
        image_names=[seed_of(e, i) for i in shown] if own else ["no such image"],
        title=lines[:2],
    )
    numbers = {"found": [e.names()[i] for i in own], "heun_in_place_of_cas": [e.names()[i] for i in swapped]}
    return Drawn(fig, lines, {**numbers, "methods": outcome_numbers(e, SOLVERS)})


def roc(e: Experiment) -> Drawn:
    """Figure 6: recall of hallucinated images over false alarms, at every threshold of the largest H of an image."""
    labels, H = e.labels(EULER), e.scores(e.index_run)
    sure = np.array([label in (Label.VALID, Label.HALLUCINATED) for label in labels])
    bad, scores = np.array([label is Label.HALLUCINATED for label in labels])[sure], H[sure]
    fig, axes = figure(1, 1, width=5.2, height=5.0)
    ax = axes[0, 0]
    counts = {"hallucinated": int(bad.sum()), "valid": int((~bad).sum())}
    if not bad.any() or bad.all():
        lines = [f"{e.name}: {bad.sum()} hallucinated and {(~bad).sum()} valid images; a curve needs both. {NO_LABELS}"]
        write_lines(ax, [fill(lines[0], 60)])
        return Drawn(fig, lines, counts)
    curve, (eps, source) = detection_curve(scores, bad), e.threshold(e.index_run)
    area = bootstrap(lambda i: auroc(scores[i], bad[i]), len(scores))
    at = float((scores[~bad] >= eps).mean()), float((scores[bad] >= eps).mean())
    ax.plot([0, 1], [0, 1], "--", color="0.7", linewidth=1, label="chance")
    ax.plot(curve.false_alarms, curve.recall, color="tab:blue", label="largest H of an image")
    ax.plot(*at, "o", color="tab:orange", label=f"H >= {eps:.3g} ({source})")
    ax.plot(*PAPER_ROC, "P", color="tab:green", label="paper, FFHQ, eps .09: at most here, about so much")
    ax.set(xlabel="false alarms, of the valid images", ylabel="recall of the hallucinated images", aspect="equal")
    ax.legend(fontsize=8, loc="lower right")
    lines = [
        f"{e.name}: AUROC {area.value:.2f} ({area.low:.2f} to {area.high:.2f}), {bad.sum()} hallucinated and "
        f"{(~bad).sum()} valid images; RODS with {e.rods_settings()}",
        f"At H >= {eps:.3g} recall is {at[1]:.0%} and false alarms are {at[0]:.0%}",
    ]
    ax.set_title(fill(lines[0], 70), fontsize=8)
    return Drawn(fig, lines, {**counts, "auroc": asdict(area), "eps": eps, "at_eps": at})


def critical_steps(e: Experiment) -> Drawn:
    """Figure 7: batches of images, and the steps at which the index of any of them exceeds the threshold."""
    records, images, labels = e.records(WHOLE), e.images(WHOLE), e.labels(EULER)
    H = np.array([[np.inf if h is None else h for h in r["H"]] for r in records])  # [N, probed steps]
    steps, (eps, source) = np.array(records[0]["probed"]), e.threshold(e.index_run)
    batches = [list(range(k, min(k + COLUMNS, e.num))) for k in range(0, e.num, COLUMNS)][:3]
    fig, axes = figure(len(batches), 3, width=12, height=2.4 * len(batches) + 0.6, widths=(1, 2, 2))
    critical: list[list[int]] = []
    for row, batch in zip(axes, batches, strict=True):
        threes = [batch[k : k + 3] for k in range(0, len(batch), 3)]
        tiles, frames = (
            [[images[i] for i in three] for three in threes],
            [[labels[i] for i in three] for three in threes],
        )
        show(row[0], sheet(tiles, frames, min_tile=56))
        is_critical = (H[batch] >= eps).any(axis=0)
        critical.append(steps[is_critical].tolist())
        row[1].axvspan(
            0.1 * e.num_steps, 0.5 * e.num_steps, color="0.92", linewidth=0
        )  # where the paper corrects hands
        row[1].bar(steps, is_critical.astype(float), color="tab:red")
        row[1].set(ylim=(0, 1.1), xlim=(-1, e.num_steps), yticks=[0, 1], ylabel="critical", xlabel="step")
        row[2].plot(steps, H[batch].T, linewidth=0.9)
        row[2].axhline(eps, color="0.2", linestyle="--", linewidth=0.9)
        row[2].set(yscale="log", ylabel="H", xlabel="step")
    low, high = np.quantile(np.concatenate(critical), [0.1, 0.9]) if any(critical) else (np.nan, np.nan)
    lines = [
        f"{e.name}: critical steps (H >= {eps:.3g}, {source}) of {len(batches)} batches; 80 % of them are steps "
        f"{low:.0f} to {high:.0f} of {e.num_steps}",
        "Paper: in the middle of the run; it corrects in steps 4 to 20 of 40",
    ]
    fig.suptitle("\n".join(lines), fontsize=9)
    return Drawn(fig, lines, {"eps": eps, "steps": steps.tolist(), "critical": critical})


def by_label(e: Experiment) -> Drawn:
    """Figures 11 and 12: Euler's images by what is wrong with them, as people or the task's labeller say."""
    said = faults(e)
    found: dict[str, list[int]] = {}
    for i, fault in enumerate(said):
        if fault is not None:
            found.setdefault(fault, []).append(i)
    known = PAPER[e.study.kind]
    order = sorted(found, key=lambda f: (known.index(f) if f in known else len(known), -len(found[f]), f))[:8]
    lines = [f"{e.name}, Euler, {e.num} images by label ({e.label_source() or 'no labels'})"]
    lines += [f"{fault}: {len(found[fault])}" for fault in order] or [NO_LABELS]
    images = e.images(EULER)
    tiles = [[images[i] for i in found[f][:8]] for f in order] or [[images[0]]]
    pixels = sheet(tiles, min_tile=80)
    fig, axes = figure(1, 1, width=pixels.shape[1] / DPI + 2.6, height=pixels.shape[0] / DPI + 0.7)
    show(axes[0, 0], pixels, row_names=[fill(line, width=18) for line in lines[1:]])
    fig.suptitle(lines[0], fontsize=10)
    return Drawn(fig, lines, {"images_by_label": {f: [e.names()[i] for i in found[f]] for f in order}})


def faults(e: Experiment) -> list[str | None]:
    """What is said of each of Euler's images; None where nothing is."""
    if e.answers:
        told = e.answers_to_euler()
        return [told.get(name) for name in e.names()]
    if e.task is None or e.task.faults is None:
        return [None] * e.num
    return [fault or PAPER[e.study.kind][0] for fault in e.task.faults(as_samples(e.images(EULER)))]


def trajectories(e: Experiment) -> Drawn:
    """Figures 13 and 14: x_t and D(x_t) of the first images under each method, from noise to the image."""
    rows: list[list[U8 | None]] = []
    names = []
    for m in (EULER, "heun", CAS):
        strips = [tiles_of(read_png(e.path(m) / r["trajectory"]["file"])) for r in e.records(m)[:COLUMNS]]
        for kind, what in enumerate(("x_t", "D(x_t)")):
            batches = [[strip[kind][k] for strip in strips] for k in range(len(STEPS) + 1)]
            rows.append([batch_tile(tiles) for tiles in batches])
            names.append(f"{m}\n{what}")
    levels = e.records(EULER)[0]["trajectory"]["sigma"]
    columns = [*(f"step {k}\nt = {t:.3g}" for k, t in zip(STEPS, levels, strict=True)), "image"]
    pixels = sheet(rows)
    scale = min(1, 1300 / pixels.shape[1])
    fig, axes = figure(1, 1, width=scale * pixels.shape[1] / DPI + 1, height=scale * pixels.shape[0] / DPI + 0.8)
    show(axes[0, 0], pixels, row_names=names, column_names=columns)
    moved = rms(e.images(CAS)[:COLUMNS], e.images(EULER)[:COLUMNS])
    lines = [
        f"{e.name}, {len(moved)} images; RODS with {e.rods_settings()}; x_t is drawn as x / sqrt(1 + t^2)",
        f"CAS moved the images by {np.median(moved):.1f} of 255 (median; root mean square), at most {moved.max():.1f}",
    ]
    fig.suptitle("\n".join(lines), fontsize=9)
    return Drawn(fig, lines, {"steps": STEPS, "sigma": levels, "cas_against_euler": rounded(moved)})


HANDS = Usual("11k-hands", "hands-32", 48)
PLANS: dict[str, Plan] = {
    "fig3": Plan(side_by_side, SIDE_BY_SIDE, Usual("afhqv2", "shapes-64", 24)),
    "fig4": Plan(side_by_side, SIDE_BY_SIDE, Usual("ffhq", "mnist-32", 32)),
    "fig5": Plan(side_by_side, SIDE_BY_SIDE, HANDS),
    "fig6": Plan(roc, (EULER, CAS, INDEX), Usual("ffhq", "hands-32", 48)),
    "fig7": Plan(critical_steps, (EULER, CAS, INDEX, WHOLE), Usual("11k-hands", "hands-32", 27, batches=3)),
    "fig8": Plan(ascent, (EULER, *ASCENT), Usual("afhqv2", "hands-32", 16, batches=21)),
    "fig9": Plan(solvers_fail, SOLVERS, HANDS),
    "fig10": Plan(solvers_break, SOLVERS, HANDS),
    "fig11": Plan(by_label, (EULER,), Usual("ffhq", "shapes-64", 24)),
    "fig12": Plan(by_label, (EULER,), HANDS),
    "fig13": Plan(trajectories, (EULER, "heun", CAS), Usual("afhqv2", "shapes-64", 9, batches=1, trajectory=STEPS)),
    "fig14": Plan(trajectories, (EULER, "heun", CAS), Usual("ffhq", "hands-32", 9, batches=1, trajectory=STEPS)),
}
