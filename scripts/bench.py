"""The hallucination benchmark: run methods on a task, label and compare runs, audit a labeller, write the report.

python scripts/bench.py --task=hands-32 --samplers=euler,heun,restart --seeds=0-511 --out=results
python scripts/bench.py run experiments/hands-32.toml --out=results
python scripts/bench.py label out/euler --task=hands-32
python scripts/bench.py compare out/euler out/restart
python scripts/bench.py audit --task=hands-32 --out=results
python scripts/bench.py report --out=results --dest=docs/benchmark
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a plain checkout, installed or not

from dnnlib.cli import Command, Destination, Group, SeedList, check_once
from dnnlib.errors import UserError, counted
from dnnlib.util import atomic_write
from rods.bench.blind import blind_sheet, key_path, write_blind
from rods.bench.compare import agreeing
from rods.bench.compare import compare as compare_runs
from rods.bench.labelled import LabelledRun, labelled_in_both, read_run
from rods.bench.methods import BASELINE, METHODS, ExperimentTable, Method, read_experiments, resolve, split_methods
from rods.bench.plots.drawing import has_matplotlib
from rods.bench.report import NO_FIGURES, audit_record, report_parts, write_report
from rods.bench.run import Place, label_run, run_methods
from rods.bench.stored import AUDIT_NAME, read_sections
from rods.bench.tables import detection_table, outcome_table, redrawn_parts
from rods.bench.task import LoadedNetwork, Task, load_network
from rods.bench.tasks import TASKS
from rods.bench.unlabelled import MOST_PAIRS, changes, image_shape, pairs_sheet, read_real
from rods.labels.agreement import raters_lines
from rods.labels.labels import LABELS_NAME
from rods.presets import Preset
from rods.runs.folder import Sheet
from rods.runs.images import save_png
from rods.runs.presets import find_preset, other_network
from torch_utils import distributed
from training.model_zoo import MODELS

ALL = "all"
SEEDS = SeedList()


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


def folder_argument(name: str) -> Callable[[Any], Any]:
    return click.argument(name, type=click.Path(exists=True, file_okay=False, path_type=Path))


out_option = click.option(
    "--out", type=Destination(file_okay=False), default=Path("results"), help="Where runs are kept."
)
threads_option = click.option("--threads", type=click.IntRange(min=1), help="CPU threads [default: all cores].")
device_option = click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda", "mps"]), default="cpu", help="Where to sample."
)


@main.command(cls=Command, context_settings={"show_default": True, "max_content_width": 120})
@click.argument("experiment", required=False, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@task_option(required=False)
@click.option("--network", help="One of the task's networks [default: its first].")
@click.option(
    "--samplers",
    multiple=True,
    help="Methods with commas between, or one with options after it: 'restart sigma_r=2.24'. Can be given several "
    "times. all: every method that has its settings, by the network's preset or the task's [default: all].",
)
@click.option("--seeds", type=SEEDS, help="Seeds; calibration used others [default: the task's].")
@click.option("--batch", type=click.IntRange(min=1), help="Samples per chunk [default: the task's].")
@click.option("--preset", help="Calibrated settings: a name or a file; none: do without [default: the network's].")
@device_option
@threads_option
@out_option
def run(experiment: Path | None, **opts: Any) -> None:
    """Sample the same seeds with every method, and label them; the same command goes on where it was interrupted.

    EXPERIMENT is a TOML file of tables, as in experiments/; without one, --task and --samplers say what to run.
    """
    if (experiment is None) == (opts["task_name"] is None):
        raise UserError("give either an experiment's TOML file, or --task=NAME")
    device = distributed.begin(opts["device"], opts["threads"])
    if experiment is not None:
        for option in ("network", "samplers", "seeds", "batch", "preset"):
            if opts[option]:
                raise UserError(f"--{option}: the experiment says it; leave it out, or give --task without a file")
        parts = [part for table in read_experiments(experiment) for part in parts_of(table)]
        for task, network, methods, seeds, batch in parts:
            run_and_print(task, network, methods, seeds, opts["out"], batch, device)
    else:
        task = TASKS[opts["task_name"]]()
        network = load_network(task, opts["network"])
        preset = preset_of(opts["preset"], network)
        methods = chosen_methods(opts["samplers"] or (ALL,), task, preset, network)
        seeds = opts["seeds"] or list(task.report_seeds)
        run_and_print(task, network, methods, seeds, opts["out"], opts["batch"] or task.batch, device)
    distributed.close()


def parts_of(table: ExperimentTable) -> list[tuple[Task, LoadedNetwork, list[Method], list[int], int]]:
    """A table of an experiment, checked, by seeds: task, network, methods that are run in turns, seeds, batch."""
    if table.task not in TASKS:
        raise UserError(f"task {table.task!r} is unknown; use {', '.join(TASKS)}")
    task = TASKS[table.task]()
    network = load_network(task, table.network)
    preset = preset_of(table.preset, network)
    by_seeds: dict[str | None, list[Method]] = {}
    for name, method, given, seeds in table.methods:
        found = resolve(method, task, preset, network.denoiser, given=given, name=name)
        by_seeds.setdefault(seeds or table.seeds, []).append(found)
    parts = []
    for text, methods in by_seeds.items():
        seeds = list(task.report_seeds) if text is None else SEEDS.convert(text, None, None)
        if methods[0].name != BASELINE:
            methods.insert(0, resolve(BASELINE, task, preset))
        parts.append((task, network, methods, seeds, table.batch or task.batch))
    return parts


def preset_of(name: str | None, network: LoadedNetwork) -> Preset | None:
    """The preset of this name, or the network's own; one of another network is said."""
    preset = find_preset(name, network=network.name, folder=MODELS)
    for note in other_network(preset, network.name, network.denoiser) if distributed.rank() == 0 else ():
        click.echo(note)
    return preset


def run_and_print(
    task: Task,
    network: LoadedNetwork,
    methods: Sequence[Method],
    seeds: Sequence[int],
    out: Path,
    batch: int,
    device: torch.device,
) -> None:
    """Run methods, and print what they did."""
    overlap = sorted(set(seeds) & set(task.calibration_seeds))
    if overlap and distributed.rank() == 0:
        click.echo(
            f"--seeds: {counted(len(overlap), 'calibration seed')} among them, such as {overlap[0]}; report none of "
            "these"
        )
    run_methods(task, network, methods, seeds, out=out, batch=batch, device=device)
    if distributed.rank() == 0:
        place = Place(out, task.name, network.name)
        print_tables([read_run(place.run(m)).only(set(seeds)) for m in methods])


def print_tables(runs: Sequence[LabelledRun]) -> None:
    """What each run did to the images of the first, and how well each score ranks them."""
    rows = [compare_runs(runs[0], one) for one in runs]
    click.echo(outcome_table([row for row in rows if not row.is_score]).markdown())
    for part in redrawn_parts(rows):
        click.echo(f"\n{part}")
    if scores := [row for row in rows if row.is_score]:
        found = detection_table(scores, rows[0])
        click.echo("\n" + found.markdown())
        if len(found.rows) < len(scores):
            click.echo("A score's line needs hallucinated and valid images among these; sample more seeds.")


@main.command(cls=Command, context_settings={"show_default": True})
@folder_argument("run_folder")
@task_option()
@threads_option
def label(run_folder: Path, task_name: str, threads: int | None) -> None:
    """Label the images of a run by the program of a task: writes labels.jsonl into the run's folder."""
    distributed.begin("cpu", threads)
    count = label_run(TASKS[task_name](), run_folder)
    click.echo(f"{counted(count, 'image')} of {run_folder} labelled")


@main.command(cls=Command, context_settings={"show_default": True})
@folder_argument("run_a")
@folder_argument("run_b")
@click.option("--labels", "source", help="Whose labels, such as 'program hands-32' or people, or a file of labels "
              "(scripts/label.py), or FILE:SOURCE [default: the only ones beside the runs].")  # fmt: skip
@click.option("--real", metavar="DIR|ZIP", help="Real images: how near both runs are to them.")
@click.option("--pairs", type=Sheet(), help="Also draw changed images, before and after: a PNG.")
@click.option("--blind", type=Sheet(), help="Also draw changed images in random order, on random sides: a PNG, and its "
              "key in a CSV beside it.")  # fmt: skip
def compare(
    run_a: Path, run_b: Path, source: str | None, real: str | None, pairs: Path | None, blind: Path | None
) -> None:
    """Compare two runs of the same seeds: RUN_A is the baseline, RUN_B what is judged.

    With labels beside both: what was repaired and what newly broken. Without any: what changed and what it cost.
    """
    check_once([run_a, run_b], option="")
    check_once([path for path in (pairs, blind) if path], option="--pairs, --blind: ")
    labelled = source is not None or any((run / LABELS_NAME).is_file() for run in (run_a, run_b))
    base, other = (read_run(path, source=source, labelled=labelled, rest=True) for path in (run_a, run_b))
    if not (both := base.position().keys() & other.position().keys()):
        raise UserError(f"{run_a} and {run_b} have no seed in common; sample the same seeds")
    against = None if real is None else read_real(real, image_shape(base, other))
    found = changes(base, other, against)
    base, other = agreeing(base, other)
    judged = labelled_in_both(base, other, source) if labelled else []
    sheet = None if pairs is None else pairs_sheet(base, other)
    hidden = None if blind is None else blind_sheet(base, other)
    if labelled:
        if len(judged[0]) < len(both):
            click.echo(
                f"{len(judged[0])} of the {counted(len(both), 'image')} that both runs have are labelled in both, and "
                "the table is of these alone; what changed, and its cost, is of all"
            )
        print_tables(list(agreeing(*judged)))
        for line in raters_lines([run_a, run_b], source):
            click.echo(line)
        click.echo()
    else:
        click.echo("No labels: nothing here says which images are hallucinated, only what changed.")
    for line in found.lines():
        click.echo(line)
    for path, drawn in ((pairs, sheet), (blind, hidden)):
        if path is not None and drawn is None:
            click.echo(f"No image changed, so that there is no pair to draw: {path} was not written")
    if pairs is not None and sheet is not None:
        pairs.parent.mkdir(parents=True, exist_ok=True)
        save_png(sheet, pairs)
        shown, changed = min(found.changed.k, MOST_PAIRS), found.changed.k
        click.echo(f"Wrote {pairs}: {shown} of {counted(changed, 'pair')}, the largest falls of the score")
    if blind is not None and hidden is not None:
        write_blind(blind, *hidden)
        shown, changed = hidden[1].count("\n") - 1, found.changed.k  # the key has a line of column names
        click.echo(
            f"Wrote {blind}: {shown} of {counted(changed, 'pair')}, drawn at random, and which side is which run to "
            f"{key_path(blind)}: judge before you open it"
        )


@main.command(cls=Command, context_settings={"show_default": True})
@task_option(required=False)
@out_option
def audit(task_name: str | None, out: Path) -> None:
    """Label images whose truth is known: fresh real data, planted errors, changes of tone. Without --task, of all."""
    for name in [task_name] if task_name else list(TASKS):
        task = TASKS[name]()
        lines = task.audit()
        record = audit_record(lines)
        for line, said in zip(lines, record["lines"], strict=True):
            verdict = f", bar {said['bar']}{'' if line.passes else ', MISSED'}" if said["bar"] else ""
            click.echo(f"{name}: {said['what']}: {said['label']} {said['share']}{verdict}")
        (out / name).mkdir(parents=True, exist_ok=True)
        with atomic_write(out / name / AUDIT_NAME) as temporary:
            temporary.write_text(json.dumps(record, indent=2) + "\n")


@main.command(cls=Command, context_settings={"show_default": True})
@task_option(required=False)
@click.option(
    "--dest",
    type=Destination(file_okay=False),
    default=Path("docs/benchmark"),
    help="The folder to write to.",
)
@threads_option
@out_option
def report(task_name: str | None, dest: Path, threads: int | None, out: Path) -> None:
    """Write report.md and its figures, which need matplotlib."""
    distributed.begin("cpu", threads)
    tasks = [make() for name, make in TASKS.items() if task_name in (None, name)]
    sections = read_sections({task.name: task for task in tasks}, out, MODELS)
    click.echo(write_report(report_parts(sections), dest))
    if not has_matplotlib():
        click.echo(NO_FIGURES)


def chosen_methods(texts: Sequence[str], task: Task, preset: Preset | None, network: LoadedNetwork) -> list[Method]:
    """The methods that were asked for, the baseline first; `all` leaves out what has no settings, and says so.

    It takes the first of two methods that come to the same.
    """
    if list(texts) != [ALL]:
        asked = [(name, given) for text in texts for name, given in split_methods(text)]
        methods = [resolve(name, task, preset, network.denoiser, given=given) for name, given in asked]
        base = [m for m in methods if m.name == BASELINE] or [resolve(BASELINE, task, preset)]
        return [base[0], *(m for m in methods if m.name != BASELINE)]
    found: list[Method] = []
    for name in METHODS:
        try:
            method = resolve(name, task, preset, network.denoiser)
            if all(method.sampler != other.sampler for other in found):
                found.append(method)
        except UserError as e:
            click.echo(f"left out: {e}")
    return found


if __name__ == "__main__":
    main()
