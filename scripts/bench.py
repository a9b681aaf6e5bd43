"""The hallucination benchmark: run methods on a task, audit a labeller, write the report.

python scripts/bench.py --task=hands-32 --samplers=euler,heun,restart --seeds=0-511 --out=results
python scripts/bench.py audit --task=hands-32 --out=results
python scripts/bench.py report --out=results --dest=docs/benchmark
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a plain checkout, installed or not

from dnnlib.cli import Command, Group, SeedList
from dnnlib.errors import UserError
from dnnlib.util import atomic_write
from rods.bench.document import write_document
from rods.bench.methods import BASELINE, METHODS, Setting, resolve, split_methods
from rods.bench.report import AUDIT_NAME, audit_record, report_blocks
from rods.bench.results import read_results
from rods.bench.rows import compare
from rods.bench.run import Place, run_methods
from rods.bench.tables import detection_table, outcome_table
from rods.bench.task import Task, load_network
from rods.bench.tasks import TASKS
from rods.presets import Preset
from rods.runs.presets import find_preset
from rods.types import Denoiser
from torch_utils.distributed import usable_cores
from training.model_zoo import MODELS

ALL = "all"


class RunByDefault(Group):
    """`bench.py --task=...` is `bench.py run --task=...`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0].startswith("-") and args[0] not in self.get_help_option_names(ctx):
            args = ["run", *args]
        return super().parse_args(ctx, args)


@click.group(cls=RunByDefault)
def main() -> None:
    """The hallucination benchmark. Without a command, `run`."""


def task_option(required: bool = True) -> Any:
    return click.option(
        "--task", "task_name", type=click.Choice(list(TASKS)), required=required, help="What is sampled."
    )


out_option = click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), default=Path("results"), help="Where results are kept."
)
threads_option = click.option("--threads", type=click.IntRange(min=1), help="CPU threads [default: all cores].")


@main.command(cls=Command, context_settings={"show_default": True, "max_content_width": 120})
@task_option()
@click.option("--network", help="One of the task's networks [default: its first].")
@click.option(
    "--samplers",
    default=ALL,
    help="Methods with commas between, options after a space: 'heun,restart sigma_r=2.24'. all: every method that has "
    "its settings, by the network's preset or the task's.",
)
@click.option("--seeds", type=SeedList(), help="Seeds; calibration used others [default: the task's].")
@click.option("--batch", type=click.IntRange(min=1), help="Samples per chunk [default: the task's].")
@click.option("--preset", help="Calibrated settings: a name or a file; none: do without [default: the network's].")
@threads_option
@out_option
def run(**opts: Any) -> None:
    """Sample the same seeds with every method; the same command goes on where it was interrupted."""
    use_threads(opts["threads"])
    task = TASKS[opts["task_name"]]()
    network = load_network(task, opts["network"])
    preset = find_preset(opts["preset"], network=network.name, folder=MODELS)
    settings = chosen_settings(opts["samplers"], task, preset, network.denoiser)
    seeds = opts["seeds"] or list(task.report_seeds)
    overlap = sorted(set(seeds) & set(task.calibration_seeds))
    if overlap:
        click.echo(
            f"--seeds: {len(overlap)} of them, such as {overlap[0]}, are calibration seeds; report none of these"
        )
    run_methods(task, network, settings, seeds, out=opts["out"], batch=opts["batch"] or task.batch)
    place = Place(opts["out"], task.name, network.name)
    base, *others = (read_results(place.results(s)).only(set(seeds)) for s in settings)
    rows = [compare(base, one) for one in (base, *others)]
    click.echo(outcome_table([row for row in rows if not row.is_score]).markdown())
    if scores := [row for row in rows if row.is_score]:
        click.echo("\n" + detection_table(scores, rows[0]).markdown())


@main.command(cls=Command, context_settings={"show_default": True})
@task_option()
@out_option
def audit(task_name: str, out: Path) -> None:
    """Label pictures whose truth is known: fresh real data, planted errors, changes of tone."""
    lines = TASKS[task_name]().audit()
    record = audit_record(lines)
    for line in record["lines"]:
        click.echo(f"{line['what']}: {line['label']} {line['share']}" + (f", bar {line['bar']}" if line["bar"] else ""))
    (out / task_name).mkdir(parents=True, exist_ok=True)
    with atomic_write(out / task_name / AUDIT_NAME) as temporary:
        temporary.write_text(json.dumps(record, indent=2) + "\n")


@main.command(cls=Command, context_settings={"show_default": True})
@task_option(required=False)
@click.option(
    "--dest",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("docs/benchmark"),
    help="The folder to write to.",
)
@threads_option
@out_option
def report(task_name: str | None, dest: Path, threads: int | None, out: Path) -> None:
    """Write report.md with its figures, and report.html, which needs nothing else."""
    use_threads(threads)
    tasks = [make() for name, make in TASKS.items() if task_name in (None, name)]
    written = write_document(report_blocks({task.name: task for task in tasks}, out, MODELS), dest, name="report")
    for path in written[-2:]:
        click.echo(path)


def use_threads(threads: int | None) -> None:
    torch.set_num_threads(threads or usable_cores())
    torch.set_flush_denormal(True)


def chosen_settings(text: str, task: Task, preset: Preset | None, denoiser: Denoiser) -> list[Setting]:
    """The settings of a list of methods, the baseline first; `all` leaves out what has no settings, and says so.

    It takes the first of two methods that come to the same.
    """
    if text != ALL:
        names = split_methods(text)
        return [resolve(name, task, preset, denoiser) for name in [BASELINE, *(n for n in names if n != BASELINE)]]
    found: list[Setting] = []
    for name in METHODS:
        try:
            setting = resolve(name, task, preset, denoiser)
            if all(setting.config != other.config for other in found):
                found.append(setting)
        except UserError as e:
            click.echo(f"left out: {e}")
    return found


if __name__ == "__main__":
    main()
