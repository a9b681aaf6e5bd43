"""What a method did, to be looked at: pairs of pictures that changed their label, or clouds of points."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rods.bench import figures
from rods.bench.document import Block, Figure, Heading, Text
from rods.bench.methods import BASELINE
from rods.bench.pairs import Pair, pair_sheet
from rods.bench.results import Results
from rods.bench.rows import common
from rods.bench.run import Place
from rods.bench.task import Task
from rods.bench.tasks.tone_control import tone_control
from rods.eval.correction import PairedOutcomes
from rods.eval.labels import Label

U8 = NDArray[np.uint8]
MOST_PAIRS, SHOWN_SHARE = 24, 4  # of a sheet; every fourth changed pair is shown
PALETTE = 64  # colours of a sheet, which keeps the page small
CLOUDS = (BASELINE, "heun", "rods-cas", "restart")


def load_pictures(place: Place, run: Results) -> dict[int, U8] | None:
    """The pictures [C, H, W] of a run by seed; None where the folder of pictures does not have all of them."""
    found: dict[int, U8] = {}
    start = 0
    for chunk in run.chunks:
        path = place.pictures(run.path.name, (int(chunk["chunk"]), int(chunk["n"])))
        if not path.is_file():
            return None
        seeds = run.seeds[start : start + chunk["n"]].tolist()
        found.update(zip(seeds, np.load(path, allow_pickle=False), strict=True))
        start += chunk["n"]
    return found


def pair_blocks(task: Task, place: Place, name: str, runs: Mapping[str, Results]) -> list[Block]:
    """For each method: a quarter of the pairs that it repaired or broke, and the control of tone."""
    base = runs[BASELINE]
    before = load_pictures(place, base)
    blocks: list[Block] = [Heading(f"Repaired and newly broken pictures of {name}", 3)]
    if before is None:
        return [*blocks, Text("The pictures are not on this machine: they are kept beside the results, not committed.")]
    for method, run in runs.items():
        after = load_pictures(place, run) if method != BASELINE and not run.recipe["is_score"] else None
        if after is None:
            continue
        changed = changed_seeds(base, run)
        if not changed:
            continue
        shown = changed[::SHOWN_SHARE][:MOST_PAIRS]
        pairs = [describe(task, seed, what, before[seed], after[seed]) for seed, what in shown]
        heading = f"{method}: {len(shown)} of the {len(changed)} that changed (Euler | {method} | what changed)"
        blocks.append(Figure(f"{name}-pairs-{run.path.stem}.png", png(pairs, heading), heading))
        seeds = [seed for seed in before if seed in after]
        blocks.append(Text(tone_line(task, method, stacked(before, seeds), stacked(after, seeds))))
    return blocks


def stacked(pictures: Mapping[int, U8], seeds: Sequence[int]) -> U8:
    return np.stack([pictures[seed] for seed in seeds])  # [N, C, H, W]


def changed_seeds(base: Results, run: Results) -> list[tuple[int, str]]:
    """The seeds that were repaired or broken, in the order of the file."""
    mine, theirs = common(base, run)
    names = {(Label.BAD, Label.WELL): "repaired", (Label.WELL, Label.BAD): "NEWLY BROKEN"}
    pairs = zip(base.seeds[mine].tolist(), base.labels[mine].tolist(), run.labels[theirs].tolist(), strict=True)
    return [(seed, names[was, is_now]) for seed, was, is_now in pairs if (was, is_now) in names]


def describe(task: Task, seed: int, what: str, before: U8, after: U8) -> Pair:
    title = f"seed {seed}: {what}"
    if task.faults is None:
        return Pair(before, after, title, "", what != "repaired")
    was, became = (fault or "well" for fault in task.faults(as_samples(np.stack([before, after]))))
    return Pair(before, after, title, f"{was} -> {became}", what != "repaired")


def png(pairs: Sequence[Pair], heading: str) -> bytes:
    """A sheet of pairs; those that were broken have a red frame."""
    data = io.BytesIO()
    pair_sheet(pairs, heading=heading).quantize(PALETTE).save(data, format="PNG", optimize=True)
    return data.getvalue()


def control(task: Task, before: U8, after: U8) -> PairedOutcomes | None:
    """The control of tone on pictures [N, C, H, W]; None for pictures in colour, for which there is none."""
    if before.shape[1] != 1:
        return None
    return tone_control(before, like=after, label=lambda x: task.label(as_samples(x)))


def as_samples(x: NDArray[Any]) -> NDArray[np.float64]:
    """Pictures as a sampler returns them [N, 1, H, W], from uint8 or from floats [N, H, W]."""
    unit = x / 127.5 - 1 if x.dtype == np.uint8 else x
    return np.asarray(unit if unit.ndim == 4 else unit[:, None], dtype=np.float64)


def tone_line(task: Task, method: str, before: U8, after: U8) -> str:
    outcomes = control(task, before, after)
    if outcomes is None:
        return f"Tone control of {method}: there is none for pictures in colour."
    return (
        f"Tone control (Euler's pictures with {method}'s mean background, contrast and sharpness): "
        f"{outcomes.repaired.k} repaired, {outcomes.broken.k} broken; that is the labeller's doing, not the sampler's."
    )


def point_blocks(task: Task, place: Place, name: str, runs: Mapping[str, Results]) -> list[Block]:
    """Clouds of points, by label."""
    shown = [(m, run) for m, run in runs.items() if m.split()[0] in CLOUDS]
    return [
        Heading(f"Where the points of {name} lie", 3),
        *(Figure(f"{name}-{run.path.stem}.svg", figures.points_figure(m, run), f"points of {m}") for m, run in shown),
    ]
