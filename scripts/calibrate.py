"""Calibrate samplers for a task's network, on seeds that no report uses, and write the settings as a preset.

python scripts/calibrate.py --task=hands-32 --dest=models/hands-32.preset.json
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a plain checkout, installed or not

from dnnlib.cli import Command, SeedList
from dnnlib.errors import UserError
from dnnlib.util import atomic_write
from rods.bench.calibrate_restart import Found, iq_names, restart
from rods.bench.calibration import Search, critical_steps, options_of, rods, with_radius
from rods.bench.task import load_network
from rods.bench.tasks import TASKS
from rods.presets import parse_preset
from rods.runs.presets import beside_preset, read_preset
from torch_utils.distributed import usable_cores

FAMILIES = ("restart", "rods-cas", "rods-sas", "overshoot", "sigma-offset", "tag", "iq", "laplacian")
KAPPAS, ETAS, ALPHAS = (0.05, 0.1, 0.2, 0.4), (1.05, 1.1, 1.2), (0.003, 0.01, 0.03)


def calibrated(search: Search, family: str) -> tuple[dict[str, Any], float | None, str]:
    """Options of a sampler, the H from which a sample is held at risk where it measures H, and a remark."""
    if family == "rods-cas":
        return rods(search, family, "rods-cas")
    if family == "rods-sas":
        signs = [rods(search, f"rods-sas {sign}", f"rods-sas sas_sign={sign}") for sign in ("uphill", "downhill")]
        return min(signs, key=lambda found: rank_of(search, found[0]))
    if family == "iq":
        best = search.best(family, iq_names(search))
    elif family == "overshoot":
        best = with_radius(search, family, family)
    else:
        windows = ["0,1", *search.windows()] if family == "tag" else search.windows()
        option, values = {"sigma-offset": ("kappa", KAPPAS), "tag": ("eta", ETAS), "laplacian": ("strength", ALPHAS)}[
            family
        ]
        best = search.best(family, [f"{family} window={w} {option}={v:g}" for w in windows for v in values])
    return options_of(best), None, best.remark()


def rank_of(search: Search, options: dict[str, Any]) -> tuple[float, ...]:
    """The rank of the trial with these options on the most seeds."""
    return min((-t.row.n, *t.rank) for t in search.trials.values() if options_of(t) == options)


def preset_text(
    search: Search,
    found: dict[str, tuple[dict[str, Any], float | None, str]],
    scores: Found | None,
    base: dict[str, Any] | None,
) -> str:
    """The preset as JSON; the random control has overshoot's radius and window. `base`: a preset to go on from."""
    samplers = {family: options for family, (options, _, _) in found.items()}
    if "overshoot" in samplers:
        samplers["random"] = dict(samplers["overshoot"])
    remarks = "; ".join(f"{family}: {remark}" for family, (_, _, remark) in found.items())
    preset: dict[str, Any] = {
        "name": search.network.name,
        "network": search.network.name,
        "source": f"scripts/calibrate.py --task={search.task.name}, {len(search.seeds)} seeds from {search.seeds[0]}, "
        f"network {search.network.sha256[:12]}. {remarks}",
        "samplers": samplers,
        "detect_eps": {family: risk for family, (_, risk, _) in found.items() if risk is not None},
    }
    if scores is not None:
        preset |= {"retention": scores.tables, **({"learned": scores.learned} if scores.learned else {})}
    if base is not None:
        others = [sampler for sampler in base["samplers"] if sampler not in samplers]
        preset["source"] += f". {', '.join(others)}: {base['source']}"
        for key in ("samplers", "detect_eps"):
            preset[key] = {**base.get(key, {}), **preset[key]}
        preset = {**base, **preset}
    parse_preset(preset, where="the calibration's preset")
    return json.dumps(preset, indent=2) + "\n"


def trials_text(search: Search, critical: dict[str, Any] | None) -> str:
    """Every setting that was tried, as JSON lines after a header."""
    header = {
        "task": search.task.name,
        "network": search.network.name,
        "network_sha256": search.network.sha256,
        "seeds": [search.seeds[0], search.seeds[-1], len(search.seeds)],
        "num_steps": search.task.num_steps,
        "batch": search.batch,
        "torch": torch.__version__,
    }
    lines: list[dict[str, Any]] = [header, *(trial.record() for trial in search.trials.values())]
    if critical is not None:
        lines.append({"critical": critical})
    return "".join(json.dumps(line) + "\n" for line in lines)


def write(path: Path, text: str) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(text)


@click.command(cls=Command, context_settings={"show_default": True, "max_content_width": 120})
@click.option("--task", "task_name", type=click.Choice(list(TASKS)), required=True, help="What is sampled.")
@click.option("--network", help="One of the task's networks [default: its first].")
@click.option("--samplers", default=",".join(FAMILIES), help="What to calibrate, with commas between.")
@click.option("--seeds", type=SeedList(), help="Calibration seeds [default: the task's]; report no number on these.")
@click.option(
    "--first", type=click.IntRange(min=2), help="Seeds of the coarse round [default: a quarter, in whole batches]."
)
@click.option("--batch", type=click.IntRange(min=1), help="Samples per chunk [default: the task's].")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads [default: all cores].")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("out/calibration"),
    help="Where the samples' results are kept: the same command goes on where it was interrupted.",
)
@click.option(
    "--base",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A preset whose settings of other samplers are taken over, and whose readout, if any, may gate restarts.",
)
@click.option(
    "--dest",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    help="The preset to write, NAME.preset.json; NAME.calibration.jsonl beside it lists every setting that was tried.",
)
def main(**opts: Any) -> None:
    """Find window, radius, sign and threshold of each sampler on a block of seeds, and write them as a preset.

    Of the settings that break at most 1 % of the healthy samples by the upper end of the 95 % interval, keep 97 % of
    the variance (of points also of the spread inside kinds) and take at most 1.5 times Euler's passes, the one with the
    most repaired minus broken is chosen, ties going to the fewest passes; where there is none, the preset's `source`
    says what was missed.
    """
    families = opts["samplers"].split(",")
    for family in families:
        if family not in FAMILIES:
            raise UserError(f"--samplers: {family!r} cannot be calibrated; use {', '.join(FAMILIES)}")
    if not opts["dest"].resolve().parent.is_dir():
        raise UserError(f"--dest={opts['dest']}: there is no such folder; make it first")
    base, scores_of = None, None
    if opts["base"] is not None:
        scores_of = replace(read_preset(opts["base"], option="--base"), samplers={})
        base = json.loads(opts["base"].read_text())
    torch.set_num_threads(opts["threads"] or usable_cores())
    torch.set_flush_denormal(True)
    task = TASKS[opts["task_name"]]()
    network = load_network(task, opts["network"])
    seeds, batch = opts["seeds"] or list(task.calibration_seeds), opts["batch"] or task.batch
    first = opts["first"] or max(batch, len(seeds) // 4 // batch * batch)
    search = Search(task, network, opts["out"], seeds, min(first, len(seeds)), batch, scores_of)

    beside = beside_preset(opts["dest"], ".calibration.jsonl")
    found, critical, scores = {}, None, None
    for family in families:
        if family == "restart":
            scores = restart(search)
            found[family] = options, risk, remark = scores.options, None, scores.remark
        else:
            found[family] = options, risk, remark = calibrated(search, family)
        click.echo(f"{family}: {json.dumps(options)}; {remark}")
        if family == "rods-cas" and risk is not None:
            eps = float(options["eps"]) or risk
            critical = critical_steps(search, rho=options["rho"], window=options["window"], eps=eps)
        write(beside, trials_text(search, critical))
    write(opts["dest"], preset_text(search, found, scores, base))
    click.echo(f"wrote {opts['dest']} and {beside}")


if __name__ == "__main__":
    main()
