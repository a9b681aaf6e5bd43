"""Draws the paper's figures and prints its Tables 1 and 2 with any network; `python scripts/figures.py --help`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that it runs without installing the project

from dnnlib.cli import Command, Destination, Group, SeedList, with_options
from dnnlib.errors import UserError
from dnnlib.util import atomic_write
from rods.bench.paper import CAS, EULER, INDEX, Experiment, Usual, open_experiment
from rods.bench.paper_figures import PLANS, draw
from rods.bench.paper_tables import PaperTable, batch_seconds, correction_table, quality_table, reference_for
from rods.bench.paper_values import STUDIES
from rods.bench.plots import theory
from rods.bench.plots.drawing import require_matplotlib
from rods.eval.dreamsim import dreamsim_extractor
from rods.eval.extractors import NAMES, default_extractor, open_extractor
from rods.eval.metrics import parse_metrics
from torch_utils import distributed
from training.model_zoo import MODELS

EXACT: dict[str, Callable[[Path], Path]] = {"fig2": theory.fig2, "theorems": theory.theorems}
TABLE_1, TABLE_2 = (EULER, "heun", CAS), (EULER, "heun", "euler-200", CAS)
TABLES = Usual("11k-hands", "hands-32", 128)

out_option = click.option(
    "--out",
    type=Destination(file_okay=False),
    default="out/figures",
    show_default=True,
    help="Where figures, numbers and, below samples/, the images are kept; a second run goes on from there.",
)
threads_option = click.option("--threads", type=click.IntRange(1, 1024), help="CPU threads [default: all cores].")
RUN_OPTIONS = (
    click.option("--network", metavar="FILE|URL", help="Network [default: one of models/]."),
    click.option("--preset", metavar="NAME|FILE", help="Settings of RODS [default: by the network's name]."),
    click.option("--seeds", type=SeedList(), help="Seeds [default: the paper's for its networks, few for others]."),
    click.option("--batch", type=click.IntRange(1, 100_000),
                 help="Images in a batch [default: 9 for the paper's networks, 32 for others]."),
    click.option("--per-batch/--per-image", default=None,
                 help="A seed per batch or per image [default: per batch for the paper's networks]."),
    click.option("--eps", type=click.FloatRange(min=0), help="H from which an image is flagged [default: preset's]."),
    click.option("--answers", metavar="SAMPLER=FILE", multiple=True,
                 help="Answers of scripts/label.py on Euler's images against this sampler's, such as "
                      "rods-cas=answers.jsonl [default: the labeller of the network's task]."),
    threads_option,
    click.option("--device", type=click.Choice(["auto", "cpu", "cuda", "mps"]), default="auto", show_default=True,
                 help="Where to run."),
    out_option,
)  # fmt: skip
QUALITY_OPTIONS = (
    click.option("--ref", metavar="NPZ|URL",
                 help="Reference statistics [default: real data of the network's task; needed for other networks]."),
    click.option("--num", type=click.IntRange(2), default=1000, show_default=True,
                 help="Images measured, the first of each run."),
    click.option("--metrics", default="fid,inception-var,cosine", show_default=True, help="As fid.py's; dreamsim too."),
    click.option("--detector", metavar="NAME|FILE|URL",
                 help=f"{', '.join(NAMES)}, or a file of the Inception [default: inception, else efficientnet-lite0]."),
)  # fmt: skip

TIME_OPTIONS = (
    click.option("--times/--no-times", default=True, show_default=True, help="Time a batch of each sampler."),
)


@click.group(cls=Group)
def main() -> None:
    """The paper's figures and tables, one command each: `figures.py NAME --help`."""


def say(line: str) -> None:
    """Progress, on stderr."""
    click.echo(line, err=True)


def opened(opts: dict[str, Any], methods: Sequence[str], usual: Usual) -> Experiment:
    """The usual experiment, with what the common options ask for."""
    torch.set_num_threads(opts["threads"] or distributed.own_cores())
    torch.set_flush_denormal(True)
    asked = {name: opts[name] for name in ("batch", "per_batch", "eps") if opts[name] is not None}
    if opts["seeds"]:
        asked["seeds"] = tuple(opts["seeds"])
    answers = parse_answers(opts["answers"], methods)
    e = open_experiment(
        opts["network"] or MODELS / f"{usual.network}.safetensors", usual, preset=opts["preset"], out=opts["out"],
        device=distributed.pick_device(opts["device"]),
    )  # fmt: skip
    return replace(e, answers=answers, **asked)


def parse_answers(given: Sequence[str], methods: Sequence[str]) -> dict[str, Path]:
    """`rods-cas=answers.jsonl` -> {method: file}. Raises UserError: another form, no such file, another method."""
    others = [m for m in dict.fromkeys([*methods, CAS]) if m not in (EULER, INDEX)]
    found = {}
    for text in given:
        method, equals, path = text.partition("=")
        if not equals or method not in others:
            raise UserError(f"--answers={text}: write SAMPLER=FILE with one of {', '.join(others)}")
        if not Path(path).is_file():
            raise UserError(f"--answers={text}: there is no file {path}; scripts/label.py serve makes it")
        found[method] = Path(path)
    return found


def drawn(name: str, opts: dict[str, Any]) -> None:
    """Samples what is missing, draws, and prints what the figure says."""
    require_matplotlib()
    plan = PLANS[name]
    e = opened(opts, plan.methods, plan.usual)
    methods = list(dict.fromkeys([*plan.needs(e), *e.answers]))
    e.check(methods)
    e.sample(methods, say=lambda line: say(f"{name}: {line}"))
    path, lines = draw(name, e, opts["out"])
    click.echo("\n".join([f"{path}", *(f"  {line}" for line in lines)]))
    if not e.label_source():
        click.echo(f"  images to label: {e.path(EULER)}, and against {e.path(CAS)}")


def figure_command(name: str) -> click.Command:
    """The command of a figure of samples."""
    plan = PLANS[name]
    title, usual = STUDIES[plan.usual.study].title, plan.usual
    defaults = f"The paper's is of {title}. Without --network: {usual.network}, {usual.images} images."

    def command(**opts: Any) -> None:
        drawn(name, opts)

    made = click.command(name, cls=Command, help=f"{plan.draw.__doc__}\n\n{defaults}")
    return made(with_options(command, RUN_OPTIONS))


def exact_command(name: str) -> click.Command:
    """The command of a figure of exact densities."""

    @click.command(name, cls=Command, help=EXACT[name].__doc__)
    @out_option
    def command(out: Path) -> None:
        click.echo(EXACT[name](out))

    return command


for one in (*map(exact_command, EXACT), *map(figure_command, PLANS)):
    main.add_command(one)


@main.command("all", cls=Command)
@threads_option
@out_option
def everything(threads: int | None, out: Path) -> None:
    """Every figure, from the embedded networks."""
    for make in EXACT.values():
        click.echo(make(out))
    opts = dict.fromkeys(("network", "preset", "seeds", "batch", "per_batch", "eps"))
    failed = []
    for name in PLANS:
        try:
            drawn(name, {**opts, "answers": (), "device": "cpu", "threads": threads, "out": out})
        except UserError as e:
            failed.append(name)
            say(f"{name}: {e}")
    if failed:
        raise UserError(f"{', '.join(failed)} could not be drawn; the lines above say why")


def table_options(samplers: Sequence[str], more: Sequence[Callable[..., Any]]) -> Callable[..., Any]:
    """A decorator: the options of a table, those of its own last."""
    own = click.option("--samplers", default=",".join(samplers), show_default=True, help="The rows of the table.")
    return lambda command: with_options(command, (*RUN_OPTIONS, own, *more))


def table_experiment(opts: dict[str, Any]) -> tuple[Experiment, list[str]]:
    """(experiment, methods) of a table, checked; nothing sampled yet. Raises UserError: Euler is not among them."""
    methods = opts["samplers"].split(",")
    if EULER not in methods:
        raise UserError(f"--samplers={opts['samplers']}: {EULER} is missing; all others are compared with it")
    e = opened(opts, methods, TABLES)
    e.check(methods)
    return e, methods


def finished(table: PaperTable, path: Path) -> None:
    """Prints a table and writes its numbers."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(table.numbers, indent=1) + "\n")
    click.echo(table.markdown())


@main.command(cls=Command)
@table_options(TABLE_1, QUALITY_OPTIONS)
def table1(**opts: Any) -> None:
    """Table 1: distance to real images, variance and diversity of Euler's, Heun's and RODS-CAS's images."""
    e, methods = table_experiment(opts)
    metrics = parse_metrics(opts["metrics"])
    name = opts["detector"]
    extractor = open_extractor(name, device=e.device) if name else default_extractor(device=e.device, say=say)
    extractors = [extractor, *([dreamsim_extractor(device=e.device)] if "dreamsim" in metrics else [])]
    reference = reference_for(e, extractor, opts["ref"])
    e.sample(methods, say=say)
    finished(
        quality_table(e, methods, extractors, reference, metrics=metrics, num=opts["num"]), opts["out"] / "table1.json"
    )


@main.command(cls=Command)
@table_options(TABLE_2, TIME_OPTIONS)
def table2(**opts: Any) -> None:
    """Table 2: hallucinated, repaired and newly broken images, and seconds a batch."""
    e, methods = table_experiment(opts)
    if e.label_source() is None:
        raise UserError(
            f"--answers is needed: nothing labels the images of {e.name} by machine. Label by hand with "
            "scripts/label.py serve, then give --answers=rods-cas=FILE"
        )
    e.sample(methods, say=say)
    seconds = batch_seconds(e, methods) if opts["times"] else {}
    finished(correction_table(e, methods, seconds), opts["out"] / "table2.json")


if __name__ == "__main__":
    main()
