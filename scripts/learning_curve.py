"""Draws what training runs logged: training loss and held-out loss by images seen."""

from __future__ import annotations

import sys
from pathlib import Path

import click

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a plain checkout, installed or not

from dnnlib.cli import Command, Destination
from dnnlib.errors import UserError
from rods.bench.plots.learning import learning_curves, read_curve, thinned, write_curve
from rods.runs.folder import Sheet


@click.command(cls=Command, context_settings={"show_default": True})
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", type=Sheet(), default="learning-curve.png", help="The PNG.")
@click.option("--name", "names", multiple=True, help="In the legend; once for each run.  [default: of folder or file]")
@click.option("--curve", type=Destination(dir_okay=False), help="Also write the points, one run's.")
@click.option("--points", type=click.IntRange(min=2), default=100, help="The most that --curve keeps.")
def main(runs: tuple[Path, ...], out: Path, names: tuple[str, ...], curve: Path | None, points: int) -> None:
    """Draw the learning curves of RUNS: run folders, their stats.jsonl, or files of --curve."""
    if names and len(names) != len(runs):
        raise UserError(f"--name: {len(names)} for {len(runs)} runs; give one for each, or none")
    if curve is not None and len(runs) > 1:
        raise UserError(f"--curve={curve} holds one run, and {len(runs)} are named; call this once for each")
    names = names or tuple(_name(run) for run in runs)
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"two runs would be called {twice}; tell them apart by --name")
    curves = {name: read_curve(run) for name, run in zip(names, runs, strict=True)}
    if curve is not None:
        click.echo(write_curve(curve, thinned(curves[names[0]], points)))
    click.echo(learning_curves(curves, out))


def _name(run: Path) -> str:
    """`00000-hands-64` of a run folder and of its stats.jsonl, `hands-64r` of hands-64r.curve.jsonl."""
    run = run.resolve()
    if run.is_dir():
        return run.name
    return run.parent.name if run.name == "stats.jsonl" else run.name.split(".")[0]


if __name__ == "__main__":
    main()
