"""What scripts/figures.py draws: fig2 to fig14 and theorems, each with its runs and defaults."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import click
import torch

from dnnlib.cli import SeedList
from dnnlib.errors import UserError
from rods.bench.paper import BATCH, STUDIES, Study, study_of
from rods.bench.paper_commands import parse_answers
from rods.bench.paper_quality import task_of
from rods.bench.paper_runs import Protocol as Seeding
from rods.bench.plots import theory
from rods.bench.plots.comparisons import (
    ASCENT,
    SIDE_BY_SIDE,
    SOLVERS,
    ascent,
    side_by_side,
    solvers_break,
    solvers_fail,
)
from rods.bench.plots.detection import WHOLE, critical_steps, roc
from rods.bench.plots.drawing import require_matplotlib
from rods.bench.plots.galleries import by_label
from rods.bench.plots.pictures import CAS, EULER, INDEX, Pictures
from rods.bench.plots.trajectories import METHODS as SHOWN
from rods.bench.plots.trajectories import STEPS, trajectories
from rods.presets import PAPER_PRESETS
from rods.runs.presets import find_preset
from torch_utils import distributed
from training.checkpoint import load_snapshot
from training.model_zoo import MODELS

OWN_BATCH = 32  # of networks without a protocol in the paper


class Draw(Protocol):
    def __call__(self, p: Pictures, out: Path, *, name: str) -> tuple[Path, list[str]]: ...


@dataclass(frozen=True)
class Plan:
    """A figure: what draws it, the runs that it needs, and what it is drawn with where nothing else is asked for."""

    draw: Draw
    methods: tuple[str, ...]  # h-index only where the corrected run does not have the index
    study: str  # of the paper
    network: str  # of ours
    images: int  # of ours
    batches: int | None = None  # of the paper; None: all of its seeds
    trajectory: tuple[int, ...] = ()


PLANS: dict[str, Plan] = {
    "fig3": Plan(side_by_side, (*SIDE_BY_SIDE, INDEX), "afhqv2", "shapes-64", 24),
    "fig4": Plan(side_by_side, (*SIDE_BY_SIDE, INDEX), "ffhq", "mnist-32", 32),
    "fig5": Plan(side_by_side, (*SIDE_BY_SIDE, INDEX), "11k-hands", "hands-32", 48),
    "fig6": Plan(roc, (EULER, CAS, INDEX), "ffhq", "hands-32", 48),
    "fig7": Plan(critical_steps, (EULER, CAS, INDEX, WHOLE), "11k-hands", "hands-32", 27, batches=3),
    "fig8": Plan(ascent, (EULER, *ASCENT), "afhqv2", "hands-32", 16, batches=21),
    "fig9": Plan(solvers_fail, SOLVERS, "11k-hands", "hands-32", 48),
    "fig10": Plan(solvers_break, SOLVERS, "11k-hands", "hands-32", 48),
    "fig11": Plan(by_label, (EULER,), "ffhq", "shapes-64", 24),
    "fig12": Plan(by_label, (EULER,), "11k-hands", "hands-32", 48),
    "fig13": Plan(trajectories, SHOWN, "afhqv2", "shapes-64", 9, batches=1, trajectory=STEPS),
    "fig14": Plan(trajectories, SHOWN, "ffhq", "hands-32", 9, batches=1, trajectory=STEPS),
}
EXACT: dict[str, Callable[[Path], Path]] = {"fig2": theory.fig2, "theorems": theory.theorems}

out_option = click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default="out/figures",
    show_default=True,
    help="Where pictures, numbers and, below samples/, the images are kept; a second run goes on from there.",
)
threads_option = click.option("--threads", type=click.IntRange(1, 1024), help="CPU threads [default: all cores].")
RUN_OPTIONS = (
    click.option("--network", metavar="FILE|URL", help="Network [default: one of models/]."),
    click.option("--preset", metavar="NAME|FILE", help="Settings of RODS [default: by the network's name]."),
    click.option(
        "--seeds",
        type=SeedList(),
        help="Seeds [default: the paper's for its networks, a seed per batch of 9; few for others, a seed per image].",
    ),
    click.option("--batch", type=click.IntRange(1, 100_000), help="Images in a batch [default: 9 or 32, see --seeds]."),
    click.option("--per-batch/--per-image", default=None, help="A seed per batch, or per image [see --seeds]."),
    click.option("--eps", type=click.FloatRange(min=0), help="H at which an image is at risk [default: preset's]."),
    click.option(
        "--answers",
        metavar="SAMPLER=FILE",
        multiple=True,
        help="Answers of scripts/label.py on Euler's images against this sampler's, such as rods-cas=answers.jsonl "
        "[default: the labeller of the network's task].",
    ),
    threads_option,
    click.option(
        "--device", type=click.Choice(["auto", "cpu", "cuda", "mps"]), default="auto", show_default=True,
        help="Where to run.",
    ),
    out_option,
)  # fmt: skip


def open_pictures(plan: Plan, opts: dict[str, Any]) -> Pictures:
    """The runs that a figure needs, checked; nothing sampled yet. Raises UserError as generate.py does."""
    device = distributed.pick_device(opts["device"])
    torch.set_num_threads(opts["threads"] or distributed.usable_cores())
    torch.set_flush_denormal(True)
    snapshot = load_snapshot(opts["network"] or MODELS / f"{plan.network}.safetensors", device=device)
    preset = find_preset(opts["preset"], network=snapshot.name, folder=MODELS)
    is_paper = preset is not None and preset.name in PAPER_PRESETS
    study = study_of(snapshot.name) if is_paper else STUDIES[plan.study]
    seeds = opts["seeds"] or default_seeds(plan, study, is_paper=is_paper)
    per_batch = is_paper if opts.get("per_batch") is None else opts["per_batch"]
    seeding = Seeding(tuple(seeds), opts["batch"] or (BATCH if is_paper else OWN_BATCH), device, not per_batch)
    answers = parse_answers(opts["answers"], [*(m for m in plan.methods if m not in (CAS, INDEX)), CAS])
    pictures = Pictures(
        opts["out"] / "samples" / snapshot.name, snapshot, preset, seeding, study,
        task=task_of(snapshot.name), answers=answers, eps=opts["eps"], trajectory=plan.trajectory,
    )  # fmt: skip
    pictures.check(needed(plan, pictures))
    return pictures


def needed(plan: Plan, pictures: Pictures) -> list[str]:
    """The runs of a figure on these pictures."""
    return [m for m in plan.methods if m != INDEX or pictures.index_run == INDEX]


def default_seeds(plan: Plan, study: Study, *, is_paper: bool) -> Sequence[int]:
    """The paper's for its networks, as many as the figure shows; ours for others."""
    return study.seeds[: plan.batches] if is_paper else range(plan.images)


def about(name: str) -> str:
    """What a figure shows, and what it is drawn with by default."""
    plan = PLANS[name]
    return (
        f"{plan.draw.__doc__}\n\nThe paper's is of {STUDIES[plan.study].title}. Without --network: {plan.network}, "
        f"{plan.images} images."
    )


def draw(name: str, opts: dict[str, Any]) -> None:
    """Sample what is missing, draw, and print the numbers."""
    require_matplotlib()
    plan, start = PLANS[name], time.monotonic()
    pictures = open_pictures(plan, opts)
    pictures.sample(needed(plan, pictures), say=lambda line: click.echo(f"{name}: {line}", err=True))
    path, lines = plan.draw(pictures, opts["out"], name=name)
    click.echo("\n".join([f"{path} ({time.monotonic() - start:.0f} s)", *(f"  {line}" for line in lines)]))
    if not pictures.label_source():
        click.echo(f"  images to label: {pictures.path(EULER)}, and against {pictures.path(CAS)}")


def draw_all(*, threads: int | None, out: Path) -> None:
    """Every figure, from the embedded networks. Raises UserError at the end where some could not be drawn."""
    for make in EXACT.values():
        click.echo(make(out))
    opts = dict.fromkeys(("network", "preset", "seeds", "batch", "eps")) | {"answers": (), "device": "cpu"}
    failed = []
    for name in PLANS:
        try:
            draw(name, {**opts, "threads": threads, "out": out})
        except UserError as e:
            failed.append(name)
            click.echo(f"{name}: {e}", err=True)
    if failed:
        raise UserError(f"{', '.join(failed)} could not be drawn; the lines above say why")
