"""Draws the paper's figures and prints its tables with any network; `python scripts/figures.py --help`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that it runs without installing the project

from dnnlib.cli import Command, Group
from rods.bench.paper import METHODS, TABLE_1_METHODS
from rods.bench.paper_commands import format_option, quality_options, run_options, table_1, table_2
from rods.bench.plots.commands import EXACT, PLANS, RUN_OPTIONS, about, draw, draw_all, out_option, threads_option


@click.group(cls=Group)
def main() -> None:
    """The paper's figures and tables, one command each: `figures.py NAME --help`."""


def exact(name: str) -> click.Command:
    """The command of a figure of exact densities."""

    @click.command(name, cls=Command, help=EXACT[name].__doc__)
    @out_option
    def command(out: Path) -> None:
        click.echo(EXACT[name](out))

    return command


def drawn(name: str) -> click.Command:
    """The command of a figure of samples."""

    @click.command(name, cls=Command, help=about(name))
    def command(**opts: Any) -> None:
        draw(name, opts)

    for option in RUN_OPTIONS:
        command = option(command)
    return command


for figure in (*map(exact, EXACT), *map(drawn, PLANS)):
    main.add_command(figure)


@main.command("all", cls=Command)
@threads_option
@out_option
def everything(threads: int | None, out: Path) -> None:
    """Every figure, from the embedded networks."""
    draw_all(threads=threads, out=out)


@main.command(cls=Command)
@run_options
@quality_options
@format_option
@click.option("--samplers", default=",".join(TABLE_1_METHODS), show_default=True, help=f"Some of {','.join(METHODS)}.")
def table1(**opts: Any) -> None:
    """Table 1: distance to real images, variance and diversity of Euler's, Heun's and RODS-CAS's images."""
    click.echo(table_1(opts))


@main.command(cls=Command)
@run_options
@format_option
@click.option("--samplers", default=",".join(METHODS), show_default=True, help=f"Some of {','.join(METHODS)}.")
@click.option("--answers", metavar="SAMPLER=FILE", multiple=True,
              help="Answers of scripts/label.py on Euler's images against this sampler's, once for each sampler "
                   "[default: the labeller of the network's task].")  # fmt: skip
@click.option("--times/--no-times", default=True, show_default=True, help="Time a batch of each sampler.")
def table2(**opts: Any) -> None:
    """Table 2: hallucinated, corrected and newly hallucinated images, and seconds a batch."""
    click.echo(table_2(opts))


if __name__ == "__main__":
    main()
