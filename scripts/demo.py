"""The demo: hands from seven samplers on the same seeds, fingers counted, what RODS repaired and what it cost."""

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

from dnnlib.cli import Command, Destination, SeedList
from dnnlib.errors import UserError, counted, of_option
from dnnlib.util import atomic_write
from rods.bench.compare import Comparison, compare
from rods.bench.labelled import LabelledRun, read_run
from rods.bench.methods import Method, resolve
from rods.bench.qualitative import Pair, control, frame_of, pair_sheet, stacked, tone_line
from rods.bench.run import Place, run_methods
from rods.bench.stored import load_images
from rods.bench.tables import outcome_table
from rods.bench.task import LoadedNetwork, Task
from rods.bench.tasks import TASKS
from rods.config import to_json
from rods.eval.detection import auroc
from rods.eval.labels import Label
from rods.presets import Preset
from rods.runs.images import save_png
from rods.runs.presets import SUFFIX, find_preset, read_preset
from rods.types import Denoiser
from torch_utils.distributed import usable_cores
from training.checkpoint import load_snapshot
from training.model_zoo import MODELS

SHOWN = 24  # pairs in the image
KINDS = ("NEWLY BROKEN", "repaired", "still hallucinated", "uncertain", "still valid")  # in the order of the image
NAMES = {(Label.HALLUCINATED, Label.VALID): "repaired", (Label.VALID, Label.HALLUCINATED): "NEWLY BROKEN"}
NAMES |= {(Label.HALLUCINATED, Label.HALLUCINATED): "still hallucinated", (Label.VALID, Label.VALID): "still valid"}


def demo_presets(network: str) -> tuple[Preset, Preset | None]:
    """The preset of the network, and the one of its gate without labels, if any. UserError if it has none."""
    preset = find_preset(None, network=network, folder=MODELS)
    if preset is None:
        raise UserError(f"--network={network} has no preset in models/; make one with scripts/calibrate.py")
    gate = MODELS / f"{network}-gate{SUFFIX}"
    return preset, read_preset(gate) if gate.is_file() else None


def demo_methods(task: Task, preset: Preset, gate: Preset | None = None) -> list[Method]:
    """Euler, the restarts by a gate without and with labels, Heun and the calibrated corrections, all of equal steps.

    H is measured once, with CAS: SAS goes without detection where the preset corrects every sample anyway.
    """
    every = getattr(preset.sampler("rods-sas", {}), "eps", None) == 0
    restarts = [] if gate is None else [replace(resolve("restart", task, gate), name="restart-gate")]
    restarts += [resolve("restart", task, preset)] if "restart" in preset.samplers else []
    names = ["heun", "rods-cas", "rods-sas-all" if every else "rods-sas", "overshoot"]
    return [resolve("euler", task, preset), *restarts, *(resolve(name, task, preset) for name in names)]


def settings_line(method: Method) -> str:
    shown = ("eps", "rho", "window", "sas_sign", "detector", "threshold", "sigma_r", "score_at", "rounds")
    described = to_json(method.sampler)
    return f"  {method.name}: " + ", ".join(f"{k} {described[k]}" for k in shown if k in described)


def images_of(run: LabelledRun) -> np.ndarray:
    """The images [N, C, H, W] of a run."""
    found = load_images(run)
    if found is None:
        raise UserError(f"images are missing in {run.path}; remove that folder and run again")
    return stacked(found, run.seeds.tolist())


def choose_pairs(
    task: Task, base: LabelledRun, run: LabelledRun, images: Sequence[np.ndarray]
) -> tuple[list[Pair], dict[str, int]]:
    """The pairs worth seeing, Euler against a corrected run: broken, repaired, then the largest changes."""
    seeds = base.seeds.tolist()
    before, after = images
    change = np.abs(after.astype(np.int16) - before).mean(axis=(1, 2, 3))
    kinds = [NAMES.get((Label(a), Label(b)), "uncertain") for a, b in zip(base.labels, run.labels, strict=True)]
    ranked = sorted(range(len(seeds)), key=lambda i: (KINDS.index(kinds[i]), -change[i]))[:SHOWN]
    say = task.faults or (lambda x: [""] * len(x))
    was, became = ([fault or "valid" for fault in say(x[ranked] / 127.5 - 1)] for x in (before, after))
    pairs = [
        Pair(before[i], after[i], f"seed {seeds[i]}: {kinds[i]}\n{a} -> {b}", frame_of(base.labels[i], run.labels[i]))
        for i, a, b in zip(ranked, was, became, strict=True)
    ]
    return pairs, {k: kinds.count(k) for k in KINDS}


def detection_line(scores: np.ndarray, bad: np.ndarray) -> str:
    """What the curvature index said about the baseline's hallucinations, as it stands."""
    return f"AUROC of max H, hallucinated against all other images: {auroc(scores, bad):.2f} (.5 is chance)."


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
@click.option("--outdir", type=Destination(), default=Path("out/demo"), help="Where the results go.")
def main(**opts: Any) -> None:
    """Sample the same seeds with Euler, gated restarts and rivals; count fingers; show pairs and price."""
    torch.set_num_threads(opts["threads"] or usable_cores())
    torch.set_flush_denormal(True)
    outdir = opts["outdir"]
    with of_option("--network"):
        snapshot = load_snapshot(opts["network"])
    task = replace(TASKS["hands-32"](), num_steps=opts["steps"])
    methods = demo_methods(task, *demo_presets(snapshot.name))
    seeds, steps = counted(len(opts["seeds"]), "seed"), counted(opts["steps"], "step")
    click.echo(f"Network {snapshot.describe()}\n{seeds}, {steps}; settings:")
    for method in methods[1:]:
        click.echo(settings_line(method))

    network = LoadedNetwork(cast(Denoiser, snapshot.net), snapshot.name, snapshot.sha256)
    run_methods(task, network, methods, opts["seeds"], out=outdir, batch=opts["batch"])
    place = Place(outdir, task.name, snapshot.name)
    runs = {m.name: read_run(place.run(m)).only(set(opts["seeds"])) for m in methods}
    base, best = runs["euler"], next(runs[name] for name in ("restart-gate", "restart", "rods-cas") if name in runs)
    rows = [compare(base, run) for run in runs.values()]
    images = [images_of(run) for run in (base, best)]
    pairs, kinds = choose_pairs(task, base, best, images)
    scores = runs["rods-cas"].scores
    lines = [
        outcome_table(rows).markdown(),
        "",
        f"{best.name} against Euler: {', '.join(f'{n} {kind}' for kind, n in kinds.items())}.",
        *([detection_line(scores, base.labels == Label.HALLUCINATED)] if scores is not None else []),
        tone_line(best.name, control(task, *images)),
    ]
    click.echo("\n" + "\n".join(lines))
    heading = f"Euler, then {best.name}. Green frame: repaired. Red frame: newly broken."
    save_png(pair_sheet(pairs, heading=heading), outdir / "pairs.png")
    write_results(outdir, lines, [row_record(row, runs[row.name]) for row in rows])
    click.echo(f"\nPairs: {outdir / 'pairs.png'}   table: {outdir / 'demo.md'}   runs: {place.folder}")


def row_record(row: Comparison, run: LabelledRun) -> dict[str, Any]:
    """A row of the table with the recipe of its numbers."""
    return {**asdict(row), "recipe": run.options, "machines": list(run.machines)}


def write_results(outdir: Path, lines: list[str], rows: list[dict[str, Any]]) -> None:
    with atomic_write(outdir / "demo.md") as temporary:
        temporary.write_text("\n".join(lines) + "\n")
    with atomic_write(outdir / "demo.json") as temporary:
        temporary.write_text(json.dumps({"rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
