"""Draws the paper's figures and prints its tables with any network; `python scripts/figures.py --help`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import click

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that it runs without installing the project

from dnnlib.cli import Command, Group
from rods.bench.paper_commands import table1, table2
from rods.bench.plots import theory

FIGURES: dict[str, Callable[[Path], Path]] = {"fig2": theory.fig2, "theorems": theory.theorems}


@click.group(cls=Group)
def main() -> None:
    """The paper's figures and tables, one command each: `figures.py NAME --help`."""


def drawing(name: str) -> click.Command:
    """The command that draws a figure without a network."""
    draw = FIGURES[name]

    @click.command(name, cls=Command, help=draw.__doc__)
    @click.option("--out", type=click.Path(file_okay=False, path_type=Path), default="out/figures", show_default=True)
    def command(out: Path) -> None:
        click.echo(draw(out))

    return command


for figure in FIGURES:
    main.add_command(drawing(figure))
main.add_command(table1)
main.add_command(table2)

if __name__ == "__main__":
    main()
