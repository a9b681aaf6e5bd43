"""Calibrate samplers on seeds that no report uses, and write the settings as a preset: from labelled runs, or a task.

python scripts/calibrate.py out/euler out/restart out/restart-high --labels=labels.jsonl --dest=my.preset.json
python scripts/calibrate.py --task=hands-32 --dest=models/hands-32.preset.json
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import torch
from click.core import ParameterSource

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a plain checkout, installed or not

from dnnlib.cli import Command, Destination, SeedList, check_once
from dnnlib.errors import UserError
from dnnlib.util import atomic_write
from rods.bench import calibrate
from rods.bench.calibrate import Calibrated, Search
from rods.bench.calibrate_restart import iq, restart
from rods.bench.calibrate_rods import critical_steps, rods_cas, rods_sas
from rods.bench.calibrate_runs import best_of, labelled_runs, preset_of_runs, table_of, trials_of
from rods.bench.task import load_network
from rods.bench.tasks import TASKS
from rods.config import changed, values_of
from rods.correctors import RandomShift
from rods.presets import Preset
from rods.runs.presets import beside_preset, preset_options, read_preset, write_preset
from rods.samplers import RodsCas
from torch_utils import distributed

FAMILIES: dict[str, Callable[[Search], Calibrated]] = {
    "restart": restart,
    "rods-cas": rods_cas,
    "rods-sas": rods_sas,
    "overshoot": calibrate.overshoot,
    "sigma-offset": calibrate.sigma_offset,
    "tag": calibrate.tag,
    "iq": iq,
    "laplacian": calibrate.laplacian,
}


def preset_of(search: Search, found: Mapping[str, Calibrated], base: Preset | None) -> Preset:
    """The preset; the random control has overshoot's radius and window. `base`: a preset to go on from."""
    samplers = {family: done.sampler for family, done in found.items()}
    if "overshoot" in samplers:
        same = values_of(samplers["overshoot"])
        control = calibrate.corrected(search, RandomShift(same["rho"]))
        samplers["random"] = changed(control, {"window": same["window"]})
    remarks = "; ".join(f"{family}: {done.remark}" for family, done in found.items())
    source = (
        f"scripts/calibrate.py --task={search.task.name}, {len(search.seeds)} seeds from {search.seeds[0]}, "
        f"network {search.network.sha256[:12]}. {remarks}"
    )
    risks = {family: done.risk for family, done in found.items() if done.risk is not None}
    mine = Preset(search.network.name, search.network.name, source, samplers, risks)
    if base is None:
        return mine
    kept = ", ".join(name for name in base.samplers if name not in samplers)
    return replace(
        mine,
        source=f"{source}. {kept}: {base.source}",
        samplers={**base.samplers, **samplers},
        detect_eps={**base.detect_eps, **risks},
        fitted=base.fitted,
    )


def write_trials(path: Path, search: Search, critical: Mapping[str, Any] | None) -> None:
    """Every candidate that was tried, as JSON lines after a header."""
    header = {
        "task": search.task.name,
        "network": search.network.name,
        "network_sha256": search.network.sha256,
        "seeds": [search.seeds[0], search.seeds[-1], len(search.seeds)],
        "num_steps": search.task.num_steps,
        "batch": search.batch,
        "torch": torch.__version__,
    }
    lines: list[Mapping[str, Any]] = [header, *(trial.record() for trial in search.trials.values())]
    if critical is not None:
        lines.append({"critical": critical})
    with atomic_write(path) as temporary:
        temporary.write_text("".join(json.dumps(line) + "\n" for line in lines))


@click.command(cls=Command, context_settings={"show_default": True, "max_content_width": 120})
@click.argument("runs", metavar="[RUN]...", nargs=-1, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--labels", metavar="FILE|SOURCE|FILE:SOURCE",
              help="runs: a file of labels, or whose of each run's own [default: the only ones].")  # fmt: skip
@click.option("--task", "task_name", type=click.Choice(list(TASKS)),
              help="A task of the benchmark, whose program labels what is sampled.")  # fmt: skip
@click.option("--network", help="One of the task's networks [default: its first].")
@click.option("--samplers", default=",".join(FAMILIES), help="What to calibrate, with commas between.")
@click.option("--seeds", type=SeedList(), help="Calibration seeds [default: the task's]; report no number on these.")
@click.option(
    "--first", type=click.IntRange(min=2), help="Seeds of the coarse round [default: a quarter, in whole batches]."
)
@click.option("--batch", type=click.IntRange(min=1), help="Samples per chunk [default: the task's].")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda", "mps"]), default="cpu", help="Where to sample.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads [default: all cores].")
@click.option(
    "--out",
    type=Destination(file_okay=False),
    default=Path("out/calibration"),
    help="Where run folders are kept: the same command goes on where it was interrupted.",
)
@click.option(
    "--base",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A preset whose settings of other samplers are taken over, and whose readout, if any, gates restarts.",
)
@click.option(
    "--dest",
    type=Destination(dir_okay=False, folder_exists=True),
    required=True,
    help="The preset to write, NAME.preset.json; NAME.calibration.jsonl beside it lists every candidate.",
)
def main(**opts: Any) -> None:
    """Find the settings of samplers that repair most, and write them as a preset.

    From runs of any network, made by generate.py and labelled by people or a program: the first RUN is by
    --sampler=euler, the others are candidates, and of a restart's also higher thresholds than its own are judged, with
    nothing sampled. Or for a --task, whose program labels: window, radius, sign and threshold of each sampler are
    searched on a block of seeds. --base is the preset whose gate the runs had.

    Of the candidates that break at most 1 % of the valid samples by the upper end of the 95 % interval, keep 97 % of
    the variance (of points also of the standard deviation within modes) and take at most 1.5 times Euler's NFE, the
    one with the most repaired minus broken is chosen, ties going to the lowest NFE; where there is none, the preset's
    `source` says what was missed.
    """
    check_options(opts)
    base = None if opts["base"] is None else read_preset(opts["base"], option="--base")
    if opts["dest"].exists():  # what is replaced is a preset
        read_preset(opts["dest"], option="--dest")
    if opts["runs"]:
        from_runs(opts["runs"], opts["labels"], base, opts["dest"])
    else:
        search_for_task(opts, base)


def check_options(opts: dict[str, Any]) -> None:
    """UserError unless either runs or a task are given, with what belongs to them."""
    if bool(opts["runs"]) == bool(opts["task_name"]):
        raise UserError("give either labelled runs, the baseline's first, or --task=NAME")
    if len(opts["runs"]) == 1:
        raise UserError(f"{opts['runs'][0]}: one run is a baseline without candidates; give runs of other settings too")
    check_once(opts["runs"], option="")
    given = click.get_current_context().get_parameter_source
    others = ("network", "samplers", "seeds", "first", "batch", "device", "threads", "out")
    for option in others if opts["runs"] else ("labels",):
        if given(option) is ParameterSource.COMMANDLINE:
            raise UserError(f"--{option} is {'for --task' if opts['runs'] else 'of runs'}; leave it out")


def from_runs(paths: Sequence[Path], labels: str | None, base: Preset | None, dest: Path) -> None:
    """Prints what each candidate did to the baseline's images, and writes the best as a preset."""
    euler, runs, said = labelled_runs(paths, labels)
    for line in said:
        click.echo(line)
    fitted = {} if base is None else base.fitted
    trials = [trial for run in runs for trial in trials_of(euler, run, fitted)]
    if not trials:
        raise UserError(f"{paths[1]} only records scores; give runs that change images")
    click.echo(table_of(trials).markdown())
    chosen = best_of(trials)
    for family, trial in chosen.items():
        click.echo(f"{family}: {trial.method.name}: {trial.remark()}")
    write_preset(dest, preset_of_runs(paths, chosen, base, euler, beside_preset(dest, "").name))
    beside = beside_preset(dest, ".calibration.jsonl")
    with atomic_write(beside) as temporary:
        lines = [{"runs": [str(path) for path in paths], "labels": labels}, *(trial.record() for trial in trials)]
        temporary.write_text("".join(json.dumps(line) + "\n" for line in lines))
    click.echo(f"Wrote {dest} and {beside}. The best of many looks better than it is: judge it on other seeds")


def search_for_task(opts: dict[str, Any], base: Preset | None) -> None:
    """Searches each sampler on a task's calibration seeds, and writes the settings as a preset."""
    families = opts["samplers"].split(",")
    for family in families:
        if family not in FAMILIES:
            raise UserError(f"--samplers: {family!r} cannot be calibrated; use {', '.join(FAMILIES)}")
    device = distributed.begin(opts["device"], opts["threads"])
    task = TASKS[opts["task_name"]]()
    network = load_network(task, opts["network"])
    seeds, batch = opts["seeds"] or list(task.calibration_seeds), opts["batch"] or task.batch
    first = min(opts["first"] or max(batch, len(seeds) // 4 // batch * batch), len(seeds))
    fitted = {} if base is None else base.fitted
    search = Search(task, network, opts["out"], seeds, first, batch, device, fitted)

    lead = distributed.rank() == 0
    beside = beside_preset(opts["dest"], ".calibration.jsonl")
    found: dict[str, Calibrated] = {}
    critical = None
    for family in families:
        done = found[family] = FAMILIES[family](search)
        if isinstance(done.sampler, RodsCas) and done.risk is not None:
            critical = critical_steps(search, done.sampler, eps=done.sampler.eps or done.risk)
        if lead:
            click.echo(f"{family}: {json.dumps(preset_options(done.sampler))}; {done.remark}")
            write_trials(beside, search, critical)
    if lead:
        write_preset(opts["dest"], preset_of(search, found, base))
        click.echo(f"wrote {opts['dest']} and {beside}")
    distributed.close()


if __name__ == "__main__":
    main()
