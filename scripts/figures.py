"""Draws the paper's figures and tables with this project's networks; `python scripts/figures.py --help`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import click

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that it runs without installing the project

from dnnlib.cli import Command
from rods.bench.plots import theory

FIGURES: dict[str, Callable[[Path], Path]] = {"fig2": theory.fig2, "theorems": theory.theorems}


@click.command(cls=Command)
@click.argument("names", nargs=-1, required=True, type=click.Choice([*FIGURES, "all"]))
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default="out/figures", show_default=True)
def main(names: tuple[str, ...], out: Path) -> None:
    """Draw figures by name."""
    for name in FIGURES if "all" in names else names:
        click.echo(FIGURES[name](out))


if __name__ == "__main__":
    main()
