"""Fit a gate: from real images and the network's own samples, from labels, or from both; with a restart in a preset.

python scripts/fit_gate.py --network=my.pkl --real=images.zip --dest=my.preset.json
python scripts/fit_gate.py --network=my.pkl --real=images.zip --labels=out/euler/labels.jsonl --dest=my.preset.json
python generate.py --network=my.pkl --preset=my.preset.json --sampler=restart --outdir=out
"""

from __future__ import annotations

import sys
from dataclasses import asdict, replace
from pathlib import Path
from shlex import quote
from typing import Any, cast

import click
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a plain checkout, installed or not

from dnnlib.cli import Command, Destination
from dnnlib.errors import UserError, user_errors
from rods.base_samplers import Euler
from rods.bench.gate_fit import LEVELS, Features, at_level, chosen, gates_of, halves, levels_of, measured_levels
from rods.bench.gate_labels import Labelled, check_labels, taught_gate
from rods.bench.gate_plan import Inputs, plan
from rods.bench.gate_preset import (
    Fit,
    Fitted,
    best_of_trials,
    checked_guidance,
    cost_text,
    forecast_text,
    forecasts_log,
    network_text,
    off_support_text,
    with_fit,
    write_log,
)
from rods.bench.gate_run import FIRST_SEED, LEAST_REAL, MOST_REAL, Measuring, real_images
from rods.bench.labelled_images import LabelledImages, of_runs, runs_of
from rods.bench.readout_fit import decoder_blocks
from rods.bench.restart_trial import Forecast, Trial
from rods.config import to_text
from rods.detectors import Detector, Lid
from rods.presets import RESTART_SCORES, percentiles
from rods.restart import Restart
from rods.runs.decode import add_vae_option, open_network
from rods.runs.guidance import add_guidance_options, guided_network
from rods.runs.presets import beside_preset, read_preset, write_preset
from rods.types import Denoiser
from torch_utils import distributed

NUM_SEEDS = 1024
LEAST_SAMPLES = 16  # of which quantiles and halves can be taken
BACK = (2.24, 3.52, 5.38)  # noise levels to go back to, of which the trial chooses
FEW_REAL = 300  # images, below which a gate is weak and its other half says nothing of one in a hundred
BACK_WITHOUT_IMAGES = 2.24  # where nothing tells how good a restart is
MOST_RESTARTED = 0.5  # of the samples, without images: whatever the budget
NO_IMAGES = "none"


@click.command(cls=Command, context_settings={"show_default": True, "max_content_width": 120})
@click.option("--network", metavar="FILE|URL", required=True, help="An EDM pickle or a safetensors snapshot.")
@add_vae_option
@click.option("--real", metavar="DIR|ZIP|none",
              help=f"Real images, best such that the network never saw: {LEAST_REAL} or more, at most {MOST_REAL} are "
              "read. none: a restart by LID, from samples alone. Needed where there are no labels.")  # fmt: skip
@click.option("--labels", metavar="FILE|SOURCE|FILE:SOURCE",
              help="Labels of the network's images: a file, or whose of --run [default: the only ones].")  # fmt: skip
@click.option("--run", "runs", multiple=True, type=click.Path(exists=True, file_okay=False, path_type=Path),
              help="A run with the labelled images [default: the folder of --labels]. Several are pooled.")  # fmt: skip
@click.option("--dest", type=Destination(dir_okay=False, folder_exists=True), required=True,
              help="The preset that gets the gate and a restart; what else it has stays.")  # fmt: skip
@click.option("--samples", type=click.IntRange(0, 100_000), default=NUM_SEEDS,
              help=f"The network's own samples to fit to, {LEAST_SAMPLES} or more; 0: real images alone.")  # fmt: skip
@click.option("--trial", "num_trial", type=click.IntRange(16, 100_000), default=128,
              help="Seeds on which restarts from several noise levels are tried, for the choice.")  # fmt: skip
@click.option("--budget", type=click.FloatRange(1, 10, min_open=True), default=1.3,
              help="What sampling may cost, as a ratio to its NFE without restarts: sets the threshold.")  # fmt: skip
@click.option("--alpha", type=click.FloatRange(0, 0.5, min_open=True), default=0.2,
              help="The largest share of real images that may be sent back, whatever the budget; without real images, "
              "of the images that are labelled valid.")  # fmt: skip
@click.option("--score-at", type=click.FloatRange(0, BACK[-1], min_open=True, max_open=True), show_default=False,
              help="Score there [default: the best of noise levels " + ", ".join(f"{t:g}" for t, _ in LEVELS) + "]. A "
              "higher one is for generate.py --accept='density-ratio<50%@LEVEL', which gives up sooner.")  # fmt: skip
@click.option("--steps", type=click.IntRange(8, 1000), default=40, help="Sampling steps.")
@click.option("--batch", type=click.IntRange(1, 100_000), default=64, help="Images per chunk.")
@add_guidance_options
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda", "mps"]), default="auto", help="Where to run.")
@click.option("--threads", type=click.IntRange(1, 1024), help="CPU threads [default: all cores].")
@click.option("--out", type=Destination(file_okay=False), default=Path("out/gate"),
              help="Where samples and activations are kept: the same command goes on there.")  # fmt: skip
@click.option(
    "-n", "--dry-run", is_flag=True, help="Check all inputs, say what would be sampled and its cost, and stop."
)
def main(**opts: Any) -> None:
    """Fit a gate, and write a preset with a restart by it: from real images, from labels, or from both.

    From real images and the network's own samples, without labels, the gate scores how much more likely the network's
    activations are of a sample than of a real image. What it reads is chosen without labels; how far back a restart
    goes, and the threshold, by a trial. Labels refine it, or make a readout, where that finds more of the labels that
    it was not fitted to. The preset is then for generate.py --preset=DEST --sampler=restart. With --real=none and no
    labels the restart's detector is LID, which finds less. torchrun shares the work out; the gate is the same.
    """
    opts["runs"] = runs_of(opts["runs"], opts["labels"])
    check_sources(opts)
    device = distributed.begin(opts["device"], opts["threads"])
    with distributed.rank0_first():
        inputs = prepared(opts, device)
    if opts["dry_run"]:
        back = BACK[:1] if inputs.needs_lid else BACK
        tell(*plan(inputs, back, opts["samples"], opts["num_trial"], opts["dest"], ranks=distributed.world_size()))
        distributed.close()
        return
    fit = fit_without_images(inputs.m, opts) if inputs.needs_lid else fit_to_inputs(inputs, opts)
    if distributed.rank() == 0:
        write(inputs, fit, opts)
    distributed.close()


def tell(*lines: str) -> None:
    """Says it once, whatever the number of ranks."""
    for line in lines if distributed.rank() == 0 else ():
        click.echo(line)


def check_sources(opts: dict[str, Any]) -> None:
    """UserError for options that do not go together: nothing to fit to, or too few samples of the network."""
    if opts["real"] == NO_IMAGES and not opts["runs"] and opts["score_at"] is not None:
        raise UserError("--score-at is where a gate of images scores; --real=none has LID, which scores finished ones")
    if opts["real"] is None and not opts["runs"]:
        raise UserError("--real: give real images, labels (--labels, --run), or none for a restart by LID")
    without = opts["real"] in (None, NO_IMAGES)
    if without and not opts["runs"] and not opts["samples"]:
        raise UserError("--samples=0: without images, the network's own samples are all there is; leave it out")
    if 0 < opts["samples"] < LEAST_SAMPLES:
        raise UserError(f"--samples={opts['samples']} are too few; give {LEAST_SAMPLES} or more, or leave it out")


def prepared(opts: dict[str, Any], device: torch.device) -> Inputs:
    """Load and check everything before anything is sampled or written."""
    dest: Path = opts["dest"]
    old = read_preset(dest, option="--dest") if dest.exists() else None
    snapshot = open_network(opts["network"], device=device, vae=opts["vae"])
    if old and old.network not in (None, snapshot.name):
        raise UserError(f"--dest={dest} is for network {old.network}, not {snapshot.name}; name another file")
    guidance, sampler = checked_guidance(opts, old), Euler(num_steps=opts["steps"])
    guided = guided_network(cast(Denoiser, snapshot.net), guidance, device=device)
    guided.check(sampler)
    if guidance and not guidance.is_self:
        guidance = replace(guidance, sha256=guided.identity["guide_sha256"])
    m = Measuring(snapshot, guided, sampler, device, opts["batch"], opts["out"])
    real = None if opts["real"] in (None, NO_IMAGES) else real_images(opts["real"], m.net)
    labelled = of_runs(opts["runs"], opts["labels"], snapshot.sha256) if opts["runs"] else None
    blocks: tuple[str, ...] = ()
    if real is not None or labelled is not None:
        blocks = decoder_blocks(
            m.snapshot.net, remedy=f"a gate reads them; use --real={NO_IMAGES}, whose LID reads none"
        )
    if labelled is not None:
        labelled.class_labels(m.net)
        check_labels(labelled.bad, has_real=real is not None)
    with user_errors("--steps"):
        levels = levels_of(m.sampler.levels(m.net), measured_levels(opts["score_at"]))
    if (asked := opts["score_at"]) is not None and asked not in [level.score_at for level in levels]:
        raise UserError(f"--score-at={asked:g}: no step of its own lies there; use more --steps")
    m.check_folder()
    inputs = Inputs(m, old, guidance, real, labelled, blocks, levels)
    least = 1 + inputs.draws / m.euler_cost
    if least > opts["budget"]:
        raise UserError(f"--budget={opts['budget']:g}: sampling and one score cost {least:g}; give more than that")
    return inputs


def fit_to_inputs(inputs: Inputs, opts: dict[str, Any]) -> Fit:
    """A gate of real images, labels or both, and a restart by it."""
    m, blocks, levels = inputs.m, inputs.blocks, inputs.levels
    f = None if inputs.real is None else m.features(*inputs.real, blocks, levels, opts["samples"])
    f = f and at_level(f, opts["score_at"])
    if inputs.labelled is not None:
        fitted = from_labels(inputs, f, inputs.labelled, opts)
    else:
        assert f is not None, "either real images or labels are there"
        fitted = from_real(inputs, f, opts)
    found: list[tuple[Forecast, Restart, Trial]] = []
    scored_at = next(level.t for level in levels if level.score_at == fitted.score_at)
    for sigma_r in (t for t in BACK if t > scored_at):
        restart = Restart(threshold=fitted.lowest, sigma_r=sigma_r, detector=fitted.gate, score_at=fitted.score_at,
                          num_steps=opts["steps"])  # fmt: skip
        trial = m.trial(restart, fitted.second, opts["num_trial"])
        found.append((within_budget(m, trial, fitted.limit, opts), restart, trial))
    best, restart, trial = best_of_trials(found)
    if fitted.held_out:
        tell(f"At threshold {best.threshold:.4g}, of the labels: {fitted.held_out.at(best.threshold)} are above it")
    source = (
        f"{fitted.source}, {network_text(m)}, budget {opts['budget']:g}, alpha {opts['alpha']:g}; "
        f"{forecast_text(best, opts['num_trial'])}"
    )
    quantiles = {RESTART_SCORES: percentiles([scores[0] for scores in trial.scores])}
    return Fit(
        replace(restart, threshold=best.threshold), best, source, quantiles, [*fitted.log, *forecasts_log(found)]
    )


def from_real(inputs: Inputs, f: Features, opts: dict[str, Any]) -> Fitted:
    """A density ratio, or one class, of the activations of real images, chosen without labels."""
    choice, tried = chosen(f)
    gate, second, lowest, off_limit = gates_of(f, choice, inputs.m.net, opts["alpha"])
    limit: float | None = off_limit
    tell(
        f"Gate: the last {len(choice.blocks)} of {len(f.blocks)} decoder blocks, {len(gate.mean)} numbers, at noise "
        f"level {choice.level.score_at:g}, fitted to {len(halves(f.num_real)[0])} real images "
        + (f"and {f.num_own} samples" if choice.two_class else "alone")
        + "; the other half sets the threshold"
    )
    if f.num_real < FEW_REAL:
        limit = None
        tell(
            f"{f.num_real} real images make a weak gate: look at the pairs before you trust it, and give {FEW_REAL} "
            "or more if you can. Off support is not told"
        )
    log = [{"score_at": c.level.score_at, "sigma": c.level.sigma, "blocks": len(c.blocks), "two_class": c.two_class,
            "tail": c.tail, "separation": c.separation} for c in tried]  # fmt: skip
    return Fitted(gate, choice.level.score_at, lowest, second, limit, f"density-ratio: {real_source(f, opts)}", log)


def real_source(f: Features, opts: dict[str, Any]) -> str:
    return (
        f"scripts/fit_gate.py, {f.num_real} real images of {Path(opts['real']).name}, {f.num_own} samples from seed "
        f"{FIRST_SEED}"
    )


def from_labels(inputs: Inputs, f: Features | None, labelled: LabelledImages, opts: dict[str, Any]) -> Fitted:
    """The gate that finds most of the labels that it was not fitted to."""
    m, blocks, levels = inputs.m, inputs.blocks, inputs.levels
    classes = labelled.class_labels(m.net)
    found = m.image_features(labelled.images, classes, blocks, levels, "labelled images")
    free = None if f is None else chosen(f)[0]
    data = Labelled(levels, blocks, m.widths(classes, blocks), found, labelled.bad)
    by = f"{labelled.source}, {labelled.counts()}"
    source = (
        f"labelled gate: scripts/fit_gate.py, {by}" if f is None else f"labelled gate: {real_source(f, opts)}; {by}"
    )
    fitted, lines = taught_gate(f, free, data, m.net, opts["alpha"], source)
    tell(*lines)
    return fitted if f is None or f.num_real >= FEW_REAL else replace(fitted, limit=None)


def fit_without_images(m: Measuring, opts: dict[str, Any]) -> Fit:
    """A restart by LID, whose scores are compared with those of the network's other samples."""
    detector: Detector = Lid()
    scores = m.own_scores(opts["samples"], detector)
    lowest = float(np.quantile(scores, 1 - MOST_RESTARTED))
    restart = Restart(threshold=lowest, sigma_r=BACK_WITHOUT_IMAGES, detector=detector, num_steps=opts["steps"])
    best = within_budget(m, m.trial(restart, None, opts["num_trial"]), None, opts)
    tell(
        "Without images nothing tells how many samples are hallucinated, nor how many this repairs. On networks of "
        "this project with labels LID found some of them (AUROC 0.64 to 0.77; 0.98 on points): look at the images, "
        f"and fit to {LEAST_REAL} real images or more if you can get them"
    )
    source = (
        f"restart: scripts/fit_gate.py --real=none, {opts['samples']} samples from seed {FIRST_SEED}, "
        f"{network_text(m)}, budget {opts['budget']:g}; {forecast_text(best, opts['num_trial'])}"
    )
    found = percentiles(scores.tolist())
    quantiles = {RESTART_SCORES: found, to_text(detector): found}
    return Fit(replace(restart, threshold=best.threshold), best, source, quantiles, [asdict(best)])


def within_budget(m: Measuring, trial: Trial, limit: float | None, opts: dict[str, Any]) -> Forecast:
    """The forecast with the lowest threshold that the budget allows."""
    found = trial.forecast(trial.within(opts["budget"] * m.euler_cost), limit)
    tell(
        f"Restart from {trial.sigma_r:g}: threshold {found.threshold:.4g} sends {found.restarted:.1%} back, "
        f"{found.nfe:.1f} F an image" + off_support_text(found, opts["num_trial"])
    )
    return found


def write(inputs: Inputs, fit: Fit, opts: dict[str, Any]) -> None:
    """The preset and the log, and what to type next."""
    m, dest, best = inputs.m, opts["dest"], fit.forecast
    preset = with_fit(inputs.old, beside_preset(dest, "").name, m.snapshot.name, fit, m.sampler)
    write_preset(dest, replace(preset, guidance=inputs.guidance))
    write_log(beside_preset(dest, ".gate.jsonl"), fit)
    click.echo(
        f"Forecast: {best.restarted:.1%} of the images go back to noise level {best.sigma_r:g}, {best.nfe:.1f} F an "
        f"image ({cost_text(best, m.euler_cost)})"
    )
    if inputs.old and (stale := inputs.old.samplers.keys() - preset.samplers.keys()):
        click.echo(f"Left out, for they were of the gate before: the settings of {', '.join(sorted(stale))}")
    click.echo(f"Wrote {dest}. Next:")
    runs = [quote(f"out/{beside_preset(dest, '').name}-{sampler}") for sampler in ("euler", "restart")]
    vae = f" --vae={quote(str(opts['vae']))}" if opts["vae"] else ""
    for sampler, run in zip(("euler", "restart"), runs, strict=True):
        click.echo(
            f"  python generate.py --network={quote(opts['network'])}{vae} --preset={quote(str(dest))} "
            f"--sampler={sampler} --seeds=0-255 --outdir={run}"
        )
    real = "" if inputs.real is None else f" --real={quote(opts['real'])}"
    click.echo(f"  python scripts/bench.py compare {' '.join(runs)}{real} --pairs=out/pairs.png")


if __name__ == "__main__":
    main()
