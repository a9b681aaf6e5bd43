"""The demo: hands from five samplers on the same seeds, fingers counted, what RODS repaired and what it cost."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import click
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a plain checkout, installed or not

from dnnlib.cli import Command, SeedList
from dnnlib.errors import UserError
from dnnlib.util import atomic_write
from rods.bench.looks import control, load_pictures, stacked
from rods.bench.methods import Setting, resolve
from rods.bench.pairs import Pair, pair_sheet
from rods.bench.results import Results, read_results
from rods.bench.rows import Row, compare
from rods.bench.run import Place, run_methods
from rods.bench.tables import outcome_table
from rods.bench.task import LoadedNetwork, Task
from rods.bench.tasks import TASKS
from rods.eval.correction import PairedOutcomes
from rods.eval.detection import auroc, confusion
from rods.eval.labels import Label
from rods.presets import Preset
from rods.readout import shortened
from rods.runs.images import save_png
from rods.runs.presets import find_preset
from rods.types import Denoiser
from torch_utils.distributed import usable_cores
from training.checkpoint import load_snapshot
from training.model_zoo import MODELS

SHOWN = 24  # pairs in the picture
KINDS = ("NEWLY BROKEN", "repaired", "still bad", "unsure", "healthy")  # in the order of the picture
NAMES = {(Label.BAD, Label.WELL): "repaired", (Label.WELL, Label.BAD): "NEWLY BROKEN"}
NAMES |= {(Label.BAD, Label.BAD): "still bad", (Label.WELL, Label.WELL): "healthy"}


def demo_preset(network: str) -> Preset:
    """The preset of the network. UserError if it has none."""
    preset = find_preset(None, network=network, folder=MODELS)
    if preset is None:
        raise UserError(f"--network={network} has no preset in models/; make one with scripts/calibrate.py")
    return preset


def demo_settings(task: Task, preset: Preset) -> list[Setting]:
    """Euler, Heun and the calibrated corrections, all with the same number of steps.

    H is measured once, with CAS: SAS goes without detection where the preset corrects every sample anyway.
    """
    every = preset.config("rods-sas", {}).options["eps"] == 0
    names = ["euler", "heun", "rods-cas", "rods-sas-all" if every else "rods-sas", "overshoot"]
    return [resolve(name, task, preset) for name in [*names, *(["restart"] if "restart" in preset.samplers else [])]]


def settings_line(setting: Setting) -> str:
    shown = ("eps", "rho", "window", "sas_sign", "detector", "lid_sigma", "threshold", "sigma_r", "rounds")
    described = setting.config.describe()
    return f"  {setting.name}: " + shortened(", ".join(f"{k} {described[k]}" for k in shown if k in described))


def risk_threshold(setting: Setting, preset: Preset) -> float | None:
    """The H from which a sample is held at risk: the gate's eps, else the preset's."""
    eps: float = setting.config.options["eps"]
    return eps or preset.risk_threshold(setting.config)


def pictures_of(place: Place, run: Results) -> np.ndarray:
    """The pictures [N, C, H, W] of a run."""
    found = load_pictures(place, run)
    if found is None:
        raise UserError(f"pictures are missing below {place.out}; remove that folder and run again")
    return stacked(found, run.seeds.tolist())


def choose_pairs(
    task: Task, base: Results, run: Results, pictures: Sequence[np.ndarray], at_risk: np.ndarray
) -> tuple[list[Pair], dict[str, int]]:
    """The pairs worth seeing, Euler against RODS-CAS: broken, repaired, still bad, then the largest changes."""
    seeds = base.seeds.tolist()
    before, after = pictures
    change = np.abs(after.astype(np.int16) - before).mean(axis=(1, 2, 3))
    kinds = [NAMES.get((Label(a), Label(b)), "unsure") for a, b in zip(base.labels, run.labels, strict=True)]
    ranked = sorted(range(len(seeds)), key=lambda i: (KINDS.index(kinds[i]), -change[i]))[:SHOWN]
    say = task.faults or (lambda x: [""] * len(x))
    was, became = ([fault or "well" for fault in say(x[ranked] / 127.5 - 1)] for x in (before, after))
    pairs = [
        Pair(
            before[i],
            after[i],
            f"seed {seeds[i]}: {a} -> {b}, {kinds[i]}",
            f"max H {run.scores[i]:.3g}" + (", at risk" if at_risk[i] else ""),
            bool(at_risk[i]),
        )
        for i, a, b in zip(ranked, was, became, strict=True)
    ]
    return pairs, {k: kinds.count(k) for k in KINDS}


def detection_lines(scores: np.ndarray, bad: np.ndarray, eps: float, threshold: float | None) -> list[str]:
    """What the curvature index said about the baseline's hallucinations, as it stands."""
    lines = [f"AUROC of max H against 'surely bad': {auroc(scores, bad):.2f} (.5 is chance)."]
    if eps == 0:
        lines.append("eps 0: RODS-CAS corrects every sample; the threshold below only tells who is at risk.")
    if threshold is not None:
        c = confusion(scores, bad, threshold)
        lines.append(
            f"At risk (H >= {threshold:g} at some step): {c.risk_bad + c.risk_good} of {len(bad)}; among them "
            f"{c.risk_bad} of {bad.sum()} surely bad, {c.risk_good} of {(~bad).sum()} others."
        )
    return lines


def control_line(outcomes: PairedOutcomes) -> str:
    return (
        "Tone control (Euler's images with RODS-CAS's background, contrast and sharpness): "
        f"{outcomes.repaired.k} repaired, {outcomes.broken.k} broken; that is the labeller's doing, not the sampler's."
    )


@click.command(cls=Command, context_settings={"show_default": True, "max_content_width": 120})
@click.option(
    "--network",
    default=str(MODELS / "hands-32.safetensors"),
    show_default="the embedded one",
    help="A network of drawn hands with a preset.",
)
@click.option("--seeds", type=SeedList(), default="0-127", help="Seeds; calibration used others.")
@click.option("--steps", type=click.IntRange(1, 1000), default=40, help="Steps of every sampler.")
@click.option("--batch", type=click.IntRange(min=1), default=32, help="Images per chunk.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads [default: all cores].")
@click.option("--outdir", type=click.Path(path_type=Path), default=Path("out/demo"), help="Where the results go.")
def main(**opts: Any) -> None:
    """Sample the same seeds with Euler, Heun, RODS-CAS, RODS-SAS and overshoot; count fingers; show pairs and price."""
    torch.set_num_threads(opts["threads"] or usable_cores())
    torch.set_flush_denormal(True)
    snapshot, outdir = load_snapshot(opts["network"]), opts["outdir"]
    preset = demo_preset(snapshot.name)
    task = replace(TASKS["hands-32"](), num_steps=opts["steps"])
    settings = demo_settings(task, preset)
    click.echo(f"Network {snapshot.describe()}\n{len(opts['seeds'])} seeds, {opts['steps']} steps; settings:")
    for setting in settings[2:]:
        click.echo(settings_line(setting))

    network = LoadedNetwork(cast(Denoiser, snapshot.net), snapshot.name, snapshot.sha256)
    run_methods(task, network, settings, opts["seeds"], out=outdir, batch=opts["batch"])
    place = Place(outdir, task.name, snapshot.name)
    runs = {s.name: read_results(place.results(s)).only(set(opts["seeds"])) for s in settings}
    base, cas = runs["euler"], runs["rods-cas"]
    rows = [compare(base, run) for run in runs.values()]
    bad, threshold = base.labels == Label.BAD, risk_threshold(settings[2], preset)
    at_risk = cas.scores >= threshold if threshold is not None else np.zeros(len(bad), bool)
    pictures = [pictures_of(place, run) for run in (base, cas)]
    pairs, kinds = choose_pairs(task, base, cas, pictures, at_risk)
    lines = [
        outcome_table(rows).markdown(),
        "",
        f"RODS-CAS against Euler: {', '.join(f'{n} {kind}' for kind, n in kinds.items())}.",
        *detection_lines(cas.scores, bad, settings[2].config.options["eps"], threshold),
        control_line(control(task, *pictures)),
    ]
    click.echo("\n" + "\n".join(lines))
    heading = "Euler | RODS-CAS | what changed (green: added, red: removed). Red frame: held at risk by H."
    save_png(pair_sheet(pairs, heading=heading), outdir / "pairs.png")
    write_results(outdir, lines, [row_record(row, runs[row.name]) for row in rows])
    click.echo(f"\nPicture: {outdir / 'pairs.png'}   table: {outdir / 'demo.md'}   samples: {place.folder}")


def row_record(row: Row, run: Results) -> dict[str, Any]:
    """A row of the table with the recipe of its numbers."""
    return {**asdict(row), "recipe": run.recipe, "runs": run.runs}


def write_results(outdir: Path, lines: list[str], rows: list[dict[str, Any]]) -> None:
    with atomic_write(outdir / "demo.md") as temporary:
        temporary.write_text("\n".join(lines) + "\n")
    with atomic_write(outdir / "demo.json") as temporary:
        temporary.write_text(json.dumps({"rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
