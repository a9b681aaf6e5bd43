"""Audits the labellers of the benchmark's tasks, and draws the pictures of docs/tasks.md."""

import sys
from pathlib import Path

import click
import PIL.Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a plain checkout, installed or not

from dnnlib.cli import Command
from rods.bench.task_pictures import PICTURES
from rods.bench.tasks import TASKS
from rods.runs.images import save_png


@click.command(cls=Command)
@click.option("--task", type=click.Choice(list(TASKS)), required=True)
@click.option("--picture", type=click.Path(dir_okay=False, path_type=Path), help="Draw this PNG instead of auditing.")
def main(task: str, picture: Path | None) -> int:
    """Print the audit of a task's labeller as a Markdown table; the exit code is 1 if it misses a bar."""
    if picture is not None:
        if task not in PICTURES:
            raise click.UsageError(f"--picture: {task} has no picture, use one of {', '.join(PICTURES)}")
        picture.parent.mkdir(parents=True, exist_ok=True)
        save_png(PICTURES[task]().quantize(64, dither=PIL.Image.Dither.NONE), picture)
        return 0
    lines = TASKS[task]().audit()
    click.echo("| pictures | label | of them | share (95 %) | bar | |\n|---|---|---|---|---|---|")
    for line in lines:
        p = line.share
        bar = "" if line.bar is None else f"{'at least' if line.must_reach else 'at most'} {100 * line.bar:g} %"
        verdict = "" if line.bar is None else "passes" if line.passes else "MISSES"
        share = f"{_percent(p.rate)} % ({_percent(p.low)}-{_percent(p.high)})"
        click.echo(f"| {line.what} | {line.label} | {p.k} of {p.n} | {share} | {bar} | {verdict} |")
    return 0 if all(line.passes for line in lines) else 1


def _percent(share: float) -> str:
    return f"{100 * share:.2f}" if share == 0 or share >= 1e-4 else f"{100 * share:.1g}"


if __name__ == "__main__":
    main()
