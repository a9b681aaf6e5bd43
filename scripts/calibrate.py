"""Calibrate RODS on drawn hands: which window, radius and sign repair, and from which H on, on a block of seeds.

This is the small calibration behind `make demo`; the general one belongs to the benchmark.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a plain checkout, installed or not

from dnnlib.cli import Command, SeedList
from dnnlib.util import atomic_write
from rods.bench.compare import Row, Sampled, compare, format_table, sample_all
from rods.bench.fingers import label_hands
from rods.correctors import Window
from rods.eval.detection import auroc
from rods.eval.labels import Label
from rods.pipeline import SamplerConfig, format_window, parse_window
from torch_utils.distributed import usable_cores
from training.checkpoint import load_snapshot

MODELS = Path(__file__).resolve().parents[1] / "models"
MAX_BROKEN = 0.02  # a setting that breaks more of the healthy samples than this is not chosen
FALSE_ALARMS = (0.5,)  # shares of the healthy samples that a threshold may flag
RISK_FALSE_ALARMS = 0.5  # where all samples are corrected, this share of the healthy ones counts as at risk
GRID = ("0.1,0.5:8,16", "0.2,0.6:4,8,16", "0.3,0.7:4,8")


class WindowAndRadii(click.ParamType):  # type: ignore[type-arg]
    """`.1,.5:4,8` -> a window and the radii to try in it."""

    name = "window:rho,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        window, _, radii = value.rpartition(":")
        try:
            return parse_window(window), tuple(float(r) for r in radii.split(","))
        except ValueError:
            self.fail(f"{value!r} will not do; write a window and radii, such as .1,.5:4,8", param, ctx)


def candidates(grid: Sequence[tuple[Window, tuple[float, ...]]], steps: int) -> dict[str, SamplerConfig]:
    """Every method, sign, window and radius, correcting all samples (eps 0, no detection)."""
    configs = {"euler": SamplerConfig("euler", {"num_steps": steps})}
    free = {"eps": 0.0, "detect": False}
    for window, rho in ((window, rho) for window, radii in grid for rho in radii):
        common: dict[str, Any] = {"rho": rho, "window": window, "num_steps": steps}
        name = f"{format_window(window)} {rho:g}"
        configs[f"rods-cas {name}"] = SamplerConfig("rods-cas", {**common, **free})
        for sign in ("uphill", "downhill"):
            configs[f"rods-sas {name} {sign}"] = SamplerConfig("rods-sas", {**common, **free, "sas_sign": sign})
        configs[f"overshoot {name}"] = SamplerConfig("overshoot", common)
    return configs


def choose(rows: list[Row], runs: dict[str, Sampled], sampler: str) -> str:
    """The setting of `sampler` with the fewest surely bad samples among those that break at most MAX_BROKEN.

    Ties go to the one that keeps more variance. If all break more, the one that breaks least.
    """
    mine = [row for row in rows if runs[row.name].config.sampler == sampler]
    allowed = [row for row in mine if row.outcomes.broken.rate <= MAX_BROKEN]
    if not allowed:
        return min(mine, key=lambda row: row.outcomes.broken.rate).name
    return min(allowed, key=lambda row: (row.outcomes.bad_after.k, -row.variance_kept)).name


def gated(chosen: SamplerConfig, detected: Sampled, bad: np.ndarray) -> dict[str, SamplerConfig]:
    """The chosen correction behind thresholds: eps at quantiles of the healthy samples' max H, and eps 0 (all)."""
    sampler, configs = chosen.sampler, {}
    for share in FALSE_ALARMS:
        eps = threshold(detected, bad, share)
        configs[f"{sampler} eps {eps:g}"] = with_eps(chosen, eps)
    return {**configs, f"{sampler} eps 0": with_eps(chosen, 0.0)}


def threshold(detected: Sampled, bad: np.ndarray, false_alarms: float) -> float:
    """The H that `false_alarms` of the healthy samples reach, to three digits."""
    return float(f"{np.quantile(detected.max_scores()[~bad], 1 - false_alarms):.3g}")


def with_eps(config: SamplerConfig, eps: float) -> SamplerConfig:
    return SamplerConfig(config.sampler, {**config.options, "eps": eps, "detect": True})


def preset_options(config: SamplerConfig) -> dict[str, Any]:
    """What a preset says about a sampler."""
    described = config.describe()
    return {k: described[k] for k in ("eps", "rho", "window", "sas_sign", "num_steps") if k in described}


@click.command(cls=Command, context_settings={"show_default": True, "max_content_width": 120})
@click.option(
    "--network",
    default=str(MODELS / "hands-32.safetensors"),
    show_default="the embedded one",
    help="A network of drawn hands.",
)
@click.option("--seeds", type=SeedList(), default="10000-10095", help="Calibration seeds; report no number on these.")
@click.option(
    "--try", "grid", type=WindowAndRadii(), multiple=True, default=GRID, help="A window and radii; repeatable."
)
@click.option("--steps", type=click.IntRange(1, 1000), default=40, help="Steps of every sampler.")
@click.option("--batch", type=click.IntRange(min=1), default=32, help="Images per chunk.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads [default: all cores].")
@click.option("--dest", type=click.Path(path_type=Path), required=True, help="The preset file to write (JSON).")
def main(**opts: Any) -> None:
    """Find window, radius, sign and threshold on a block of seeds, and write them as a preset.

    Every table is printed: the preset comes from these numbers alone, which the benchmark must not use again.
    """
    torch.set_num_threads(opts["threads"] or usable_cores())
    torch.set_flush_denormal(True)
    snapshot = load_snapshot(opts["network"])
    configs = candidates(opts["grid"], opts["steps"])
    runs = sample_all(snapshot.net, configs, opts["seeds"], batch=opts["batch"])
    rows = compare(runs, label_hands, baseline="euler")
    click.echo(format_table(rows, baseline="euler"))
    euler, bad = runs["euler"], label_hands(runs["euler"].images) == Label.BAD

    samplers: dict[str, dict[str, Any]] = {}
    detect_eps: dict[str, float] = {}
    for sampler in ("rods-cas", "rods-sas", "overshoot"):
        chosen = configs[choose(rows, runs, sampler)]
        if sampler != "overshoot":
            detect = sample_all(
                snapshot.net, {sampler: with_eps(chosen, float("inf"))}, opts["seeds"], batch=opts["batch"]
            )
            click.echo(f"{sampler}: AUROC of max H {auroc(detect[sampler].max_scores(), bad):.3f}")
            behind = gated(chosen, detect[sampler], bad)
            again = {"euler": euler, **sample_all(snapshot.net, behind, opts["seeds"], batch=opts["batch"])}
            gated_rows = compare(again, label_hands, baseline="euler")
            click.echo(format_table(gated_rows, baseline="euler"))
            name = choose(gated_rows, again, sampler)
            chosen = behind[name]
            detect_eps[sampler] = threshold(again[name], bad, RISK_FALSE_ALARMS)
        samplers[sampler] = preset_options(chosen)
        click.echo(f"chosen for {sampler}: {json.dumps(samplers[sampler])}")
    source = f"scripts/calibrate.py, {len(opts['seeds'])} seeds from {opts['seeds'][0]}, network {snapshot.sha256[:12]}"
    preset = {
        "name": snapshot.name,
        "network": snapshot.name,
        "source": source,
        "samplers": samplers,
        "detect_eps": detect_eps,
    }
    with atomic_write(opts["dest"]) as temporary:
        temporary.write_text(json.dumps(preset, indent=2) + "\n")


if __name__ == "__main__":
    main()
