"""The demo: hands from five samplers on the same seeds, fingers counted, what RODS repaired and what it cost."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a plain checkout, installed or not

from dnnlib.cli import Command, SeedList
from dnnlib.errors import UserError
from dnnlib.util import atomic_write
from rods.bench.compare import Row, Sampled, compare, format_table, sample_all
from rods.bench.fingers import NO_HAND, count_fingers, label_hands
from rods.bench.pairs import Pair, pair_sheet
from rods.bench.tone import tone_control
from rods.eval.correction import PairedOutcomes
from rods.eval.detection import auroc
from rods.eval.labels import Label
from rods.pipeline import SamplerConfig, sampler_options
from rods.presets import Preset
from rods.runs.images import save_png
from rods.runs.presets import find_preset
from torch_utils.distributed import usable_cores
from training.checkpoint import load_snapshot

MODELS = Path(__file__).resolve().parents[1] / "models"
SHOWN = 24  # pairs in the picture


def demo_preset(network: str) -> Preset:
    """The preset of the network. UserError if it has none."""
    preset = find_preset(None, network=network, folder=MODELS)
    if preset is None:
        raise UserError(f"--network={network} has no preset in models/; make one with scripts/calibrate.py")
    return preset


def demo_configs(preset: Preset, steps: int) -> dict[str, SamplerConfig]:
    """Euler, Heun and the calibrated corrections, all with the same number of steps.

    H is measured once, with CAS: SAS goes without detection where the preset corrects every sample anyway.
    """
    given = {"num_steps": steps}
    configs = {"euler": SamplerConfig("euler", given), "heun": SamplerConfig("edm", given)}
    for sampler in ("rods-cas", "rods-sas", "overshoot"):
        configs[sampler] = preset.config(sampler, given)
    if configs["rods-sas"].options["eps"] == 0:
        configs["rods-sas"] = preset.config("rods-sas", {**given, "detect": False})
    return configs


def settings_line(name: str, config: SamplerConfig) -> str:
    described = config.describe()
    shown = [k for k in ("eps", "rho", "window", "sas_sign") if k in sampler_options(config.sampler)]
    return f"  {name}: " + ", ".join(f"{k} {described[k]}" for k in shown)


def held_at_risk(run: Sampled, preset: Preset) -> tuple[float | None, np.ndarray]:
    """The H from which a sample is at risk (the gate's eps, else the preset's), and who reaches it [N]."""
    threshold = run.config.options["eps"] or preset.risk_threshold(run.config)
    reached = run.max_scores() >= threshold if threshold is not None else np.zeros(len(run.records), bool)
    return threshold, reached


def choose_pairs(
    runs: Mapping[str, Sampled], seeds: list[int], at_risk: np.ndarray
) -> tuple[list[Pair], dict[str, int]]:
    """The pairs worth seeing, Euler against RODS-CAS: broken, repaired, still bad, then the largest changes."""
    before, after = runs["euler"].images, runs["rods-cas"].images
    labels = label_hands(before), label_hands(after)
    fingers = [count_fingers(images)[:, 1] for images in (before, after)]
    H = runs["rods-cas"].max_scores()
    change = np.abs(after.astype(np.int16) - before).mean(axis=(1, 2, 3))

    def kind(i: int) -> str:
        was, became = labels[0][i], labels[1][i]
        if was == Label.BAD and became == Label.WELL:
            return "repaired"
        if was == Label.WELL and became == Label.BAD:
            return "NEWLY BROKEN"
        if was == Label.BAD and became == Label.BAD:
            return "still bad"
        return "healthy" if was == became == Label.WELL else "unsure"

    order = ("NEWLY BROKEN", "repaired", "still bad", "unsure", "healthy")
    kinds = [kind(i) for i in range(len(seeds))]
    ranked = sorted(range(len(seeds)), key=lambda i: (order.index(kinds[i]), -change[i]))
    pairs = [
        Pair(
            before[i],
            after[i],
            f"seed {seeds[i]}: {_count(fingers[0][i])} -> {_count(fingers[1][i])}, {kinds[i]}",
            f"max H {H[i]:.3g}" + (", at risk" if at_risk[i] else ""),
            bool(at_risk[i]),
        )
        for i in ranked[:SHOWN]
    ]
    return pairs, {k: kinds.count(k) for k in order}


def _count(fingers: int) -> str:
    return "no hand" if fingers == NO_HAND else f"{fingers} fingers"


def detection_lines(run: Sampled, bad: np.ndarray, threshold: float | None, at_risk: np.ndarray) -> list[str]:
    """What the curvature index said about the baseline's hallucinations, as it stands."""
    lines = [f"AUROC of max H against 'surely bad': {auroc(run.max_scores(), bad):.2f} (.5 is chance)."]
    if run.config.options["eps"] == 0:
        lines.append("eps 0: RODS-CAS corrects every sample; the threshold below only tells who is at risk.")
    if threshold is not None:
        lines.append(
            f"At risk (H >= {threshold:g} at some step): {at_risk.sum()} of {len(bad)}; among them "
            f"{(at_risk & bad).sum()} of {bad.sum()} surely bad, {(at_risk & ~bad).sum()} of {(~bad).sum()} others."
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
    snapshot, seeds = load_snapshot(opts["network"]), opts["seeds"]
    preset = demo_preset(snapshot.name)
    configs = demo_configs(preset, opts["steps"])
    click.echo(f"Network {snapshot.describe()}\n{len(seeds)} seeds, {opts['steps']} steps; settings:")
    for name in ("rods-cas", "rods-sas", "overshoot"):
        click.echo(settings_line(name, configs[name]))
    opts["outdir"].mkdir(parents=True, exist_ok=True)

    runs = sample_all(snapshot.net, configs, seeds, batch=opts["batch"])
    rows = compare(runs, label_hands, baseline="euler")
    table = format_table(rows, baseline="euler")
    bad = label_hands(runs["euler"].images) == Label.BAD
    threshold, at_risk = held_at_risk(runs["rods-cas"], preset)
    pairs, kinds = choose_pairs(runs, seeds, at_risk)
    control = tone_control(runs["euler"].images, like=runs["rods-cas"].images, label=label_hands)
    lines = [
        table,
        "",
        f"RODS-CAS against Euler: {', '.join(f'{n} {kind}' for kind, n in kinds.items())}.",
        *detection_lines(runs["rods-cas"], bad, threshold, at_risk),
        control_line(control),
    ]
    click.echo("\n" + "\n".join(lines))
    heading = "Euler | RODS-CAS | what changed (green: added, red: removed). Red frame: held at risk by H."
    save_png(pair_sheet(pairs, heading=heading), opts["outdir"] / "pairs.png")
    recipe = {
        "network_sha256": snapshot.sha256,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "seeds": [seeds[0], seeds[-1], len(seeds)],
    }
    write_results(opts["outdir"], lines, {**recipe, "rows": [row_record(row, runs[row.name]) for row in rows]})
    click.echo(f"\nPicture: {opts['outdir'] / 'pairs.png'}   table: {opts['outdir'] / 'demo.md'}")


def row_record(row: Row, run: Sampled) -> dict[str, Any]:
    """A row of the table with the recipe of its numbers."""
    names = ("surely_bad", "unsure", "repaired", "newly_broken", "variance_kept", "passes", "time_ratio")
    return {"config": run.config.describe(), **dict(zip(names, row.cells()[1:], strict=True))}


def write_results(outdir: Path, lines: list[str], record: dict[str, Any]) -> None:
    with atomic_write(outdir / "demo.md") as temporary:
        temporary.write_text("\n".join(lines) + "\n")
    with atomic_write(outdir / "demo.json") as temporary:
        temporary.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
