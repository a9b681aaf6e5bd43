"""Fit a gate without labels: from real images and the network's own samples, with a gated restart in a preset.

python scripts/fit_gate.py --network=my.pkl --real=images.zip --dest=my.preset.json
python generate.py --network=my.pkl --preset=my.preset.json --sampler=restart --outdir=out
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from shlex import quote
from typing import Any

import click
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a plain checkout, installed or not

from dnnlib.cli import Command, Destination, check_folder_of
from dnnlib.errors import UserError, user_errors
from dnnlib.util import atomic_write
from rods.base_samplers import Euler
from rods.bench.gate_fit import chosen, gates_of, halves, levels_of
from rods.bench.gate_run import FIRST_SEED, FIRST_TRIAL, LEAST_REAL, MOST_REAL, Measuring, real_images
from rods.bench.readout_fit import decoder_blocks
from rods.bench.restart_trial import Forecast, Trial
from rods.config import to_text
from rods.detectors import Detector, Lid
from rods.presets import RESTART_SCORES, Preset, percentiles
from rods.restart import Restart
from rods.runs.decode import add_vae_option, open_network
from rods.runs.presets import beside_preset, read_preset, write_preset
from torch_utils import distributed

KIND = "density-ratio"
NUM_SEEDS = 1024
LEAST_SAMPLES = 16  # of which quantiles and halves can be taken
BACK = (2.24, 3.52, 5.38)  # noise levels to go back to, of which the trial chooses
FEW_REAL = 300  # images, below which a gate is weak and its other half says nothing of one in a hundred
ALIKE = 0.02  # off-support shares that a trial cannot tell apart
BACK_WITHOUT_IMAGES = 2.24  # where nothing tells how good a restart is
MOST_RESTARTED = 0.5  # of the samples, without images: whatever the budget
NO_IMAGES = "none"


@dataclass(frozen=True)
class Fit:
    """What goes into the preset."""

    restart: Restart
    forecast: Forecast
    source: str  # where its numbers come from
    quantiles: Mapping[str, tuple[float, ...]]  # percentiles of scores of samples that no report uses
    log: Sequence[dict[str, Any]]  # what was tried


@click.command(cls=Command, context_settings={"show_default": True, "max_content_width": 120})
@click.option("--network", metavar="FILE|URL", required=True, help="An EDM pickle or a safetensors snapshot.")
@add_vae_option
@click.option("--real", metavar="DIR|ZIP|none", required=True,
              help=f"Real images, best such that the network never saw: {LEAST_REAL} or more, at most {MOST_REAL} are "
              "read. none: a restart by LID, from samples alone.")  # fmt: skip
@click.option("--dest", type=Destination(dir_okay=False), required=True,
              help="The preset that gets the gate and a restart; what else it has stays.")  # fmt: skip
@click.option("--samples", type=click.IntRange(0, 100_000), default=NUM_SEEDS,
              help=f"The network's own samples to fit to, {LEAST_SAMPLES} or more; 0: real images alone.")  # fmt: skip
@click.option("--trial", "num_trial", type=click.IntRange(16, 100_000), default=128,
              help="Seeds on which restarts from several noise levels are tried, for the choice.")  # fmt: skip
@click.option("--budget", type=click.FloatRange(1, 10, min_open=True), default=1.3,
              help="What sampling may cost, as a ratio to its NFE without restarts: sets the threshold.")  # fmt: skip
@click.option("--alpha", type=click.FloatRange(0, 0.5, min_open=True), default=0.2,
              help="The largest share of real images that may be sent back, whatever the budget.")  # fmt: skip
@click.option("--steps", type=click.IntRange(8, 1000), default=40, help="Sampling steps.")
@click.option("--batch", type=click.IntRange(1, 100_000), default=64, help="Images per chunk.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda", "mps"]), default="auto", help="Where to run.")
@click.option("--threads", type=click.IntRange(1, 1024), help="CPU threads [default: all cores].")
@click.option("--out", type=Destination(file_okay=False), default=Path("out/gate"),
              help="Where samples and activations are kept: the same command goes on there.")  # fmt: skip
def main(**opts: Any) -> None:
    """Fit a gate to real images and the network's own samples, without labels, and write a preset with a restart.

    The gate scores how much more likely the network's activations are of a sample than of a real image. What it reads
    is chosen without labels; how far back a restart goes, and the threshold, by a trial. The preset is then for
    generate.py --preset=DEST --sampler=restart. With --real=none the restart's detector is LID, which finds less.
    """
    dest: Path = opts["dest"]
    check_folder_of(dest, option="--dest")
    check_samples(opts)
    if distributed.world_size() > 1:
        raise UserError("torchrun: fit_gate.py runs as one process; start it by python")
    device = distributed.begin(opts["device"], opts["threads"])
    old = read_preset(dest, option="--dest") if dest.exists() else None
    snapshot = open_network(opts["network"], device=device, vae=opts["vae"])
    if old and old.network not in (None, snapshot.name):
        raise UserError(f"--dest={dest} is for network {old.network}, not {snapshot.name}; name another file")
    if old and old.guidance:
        raise UserError(f"--dest={dest} has guidance, and a gate is fitted to samples without it; name another file")
    m = Measuring(snapshot, Euler(num_steps=opts["steps"]), device, opts["batch"], opts["out"])
    fit = fit_without_images(m, opts) if opts["real"] == NO_IMAGES else fit_to_images(m, opts)

    write_preset(dest, with_fit(old, beside_preset(dest, "").name, snapshot.name, fit, m.sampler))
    write_log(beside_preset(dest, ".gate.jsonl"), fit)
    best, steps = fit.forecast, opts["steps"]
    click.echo(
        f"Forecast: {best.restarted:.1%} of the images go back to noise level {best.sigma_r:g}, {best.nfe:.1f} F an "
        f"image ({best.nfe / steps:.2f}x Euler's)"
    )
    click.echo(f"Wrote {dest}. Next:")
    runs = [quote(f"out/{beside_preset(dest, '').name}-{sampler}") for sampler in ("euler", "restart")]
    vae = f" --vae={quote(str(opts['vae']))}" if opts["vae"] else ""
    for sampler, run in zip(("euler", "restart"), runs, strict=True):
        click.echo(
            f"  python generate.py --network={quote(opts['network'])}{vae} --preset={quote(str(dest))} "
            f"--sampler={sampler} --seeds=0-255 --outdir={run}"
        )
    real = "" if opts["real"] == NO_IMAGES else f" --real={quote(opts['real'])}"
    click.echo(f"  python scripts/bench.py compare {' '.join(runs)}{real} --pairs=out/pairs.png")


def fit_to_images(m: Measuring, opts: dict[str, Any]) -> Fit:
    """A density ratio, or one class, of the activations of real images, and a restart by it."""
    check_budget(opts, draws=1)
    images, labels = real_images(opts["real"], m.net)
    blocks = decoder_blocks(m.snapshot.net, remedy=f"a gate reads them; use --real={NO_IMAGES}, whose LID reads none")
    with user_errors("--steps"):
        levels = levels_of(m.sampler.levels(m.net))
    f = m.features(images, labels, blocks, levels, opts["samples"])
    choice, tried = chosen(f)
    gate, second, lowest, off_limit = gates_of(f, choice, m.net, opts["alpha"])
    limit: float | None = off_limit
    click.echo(
        f"Gate: the last {len(choice.blocks)} of {len(blocks)} decoder blocks, {len(gate.mean)} numbers, at noise "
        f"level {choice.level.score_at:g}, fitted to {len(halves(len(images))[0])} real images "
        + (f"and {f.num_own} samples" if choice.two_class else "alone")
        + "; the other half sets the threshold"
    )
    if len(images) < FEW_REAL:
        limit = None
        click.echo(
            f"{len(images)} real images make a weak gate: look at the pairs before you trust it, and give {FEW_REAL} "
            "or more if you can. Off support is not told"
        )
    found: list[tuple[Forecast, Restart, Trial]] = []
    for sigma_r in BACK:
        restart = Restart(threshold=lowest, sigma_r=sigma_r, detector=gate, score_at=choice.level.score_at,
                          num_steps=opts["steps"])  # fmt: skip
        trial = m.trial(restart, second, opts["num_trial"])
        found.append((within_budget(trial, limit, opts), restart, trial))
    least = min(forecast.off_support or 0 for forecast, _, _ in found)
    alike = [one for one in found if (one[0].off_support or 0) <= least + ALIKE]
    # What is drawn from a higher level depends less on what was there before.
    best, restart, trial = max(alike, key=lambda one: one[0].sigma_r)
    source = (
        f"{KIND}: scripts/fit_gate.py, {len(images)} real images of {Path(opts['real']).name}, {f.num_own} samples "
        f"from seed {FIRST_SEED}, network {m.snapshot.sha256[:12]}, budget {opts['budget']:g}, alpha "
        f"{opts['alpha']:g}; {forecast_text(best, opts)}"
    )
    log = [{"score_at": c.level.score_at, "sigma": c.level.sigma, "blocks": len(c.blocks), "two_class": c.two_class,
            "tail": c.tail, "separation": c.separation} for c in tried]  # fmt: skip
    quantiles = {RESTART_SCORES: percentiles([scores[0] for scores in trial.scores])}
    log += [asdict(forecast) for forecast, _, _ in found]
    return Fit(replace(restart, threshold=best.threshold), best, source, quantiles, log)


def fit_without_images(m: Measuring, opts: dict[str, Any]) -> Fit:
    """A restart by LID, whose scores are compared with those of the network's other samples."""
    detector: Detector = Lid()
    check_budget(opts, detector.num_draws)
    scores = m.own_scores(opts["samples"], detector)
    lowest = float(np.quantile(scores, 1 - MOST_RESTARTED))
    restart = Restart(threshold=lowest, sigma_r=BACK_WITHOUT_IMAGES, detector=detector, num_steps=opts["steps"])
    best = within_budget(m.trial(restart, None, opts["num_trial"]), None, opts)
    click.echo(
        "Without images nothing tells how many samples are hallucinated, nor how many this repairs. On networks of "
        "this project with labels LID found some of them (AUROC 0.64 to 0.77; 0.98 on points): look at the images, "
        f"and fit to {LEAST_REAL} real images or more if you can get them"
    )
    source = (
        f"restart: scripts/fit_gate.py --real=none, {opts['samples']} samples from seed {FIRST_SEED}, network "
        f"{m.snapshot.sha256[:12]}, budget {opts['budget']:g}; {forecast_text(best, opts)}"
    )
    found = percentiles(scores.tolist())
    quantiles = {RESTART_SCORES: found, to_text(detector): found}
    return Fit(replace(restart, threshold=best.threshold), best, source, quantiles, [asdict(best)])


def check_samples(opts: dict[str, Any]) -> None:
    """UserError for too few samples of the network."""
    if opts["real"] == NO_IMAGES and not opts["samples"]:
        raise UserError("--samples=0: without images, the network's own samples are all there is; leave it out")
    if 0 < opts["samples"] < LEAST_SAMPLES:
        raise UserError(f"--samples={opts['samples']} are too few; give {LEAST_SAMPLES} or more, or leave it out")


def check_budget(opts: dict[str, Any], draws: int) -> None:
    """UserError where the scores of `draws` evaluations alone cost more."""
    least = 1 + draws / opts["steps"]
    if least > opts["budget"]:
        raise UserError(f"--budget={opts['budget']:g}: sampling and one score cost {least:g}; give more than that")


def within_budget(trial: Trial, limit: float | None, opts: dict[str, Any]) -> Forecast:
    """The forecast with the lowest threshold that the budget allows."""
    found = trial.forecast(trial.within(opts["budget"] * opts["steps"]), limit)
    click.echo(
        f"Restart from {trial.sigma_r:g}: threshold {found.threshold:.4g} sends {found.restarted:.1%} back, "
        f"{found.nfe:.1f} F an image" + off_support_text(found, opts)
    )
    return found


def off_support_text(found: Forecast, opts: dict[str, Any]) -> str:
    """With counts, for a trial of a hundred seeds says little of a per cent; empty without a second gate."""
    if found.off_support_before is None or found.off_support is None:
        return ""
    before, after = (round(share * opts["num_trial"]) for share in (found.off_support_before, found.off_support))
    return f"; off support {before} of {opts['num_trial']} before, {after} after"


def forecast_text(best: Forecast, opts: dict[str, Any]) -> str:
    return (
        f"forecast of {opts['num_trial']} seeds from {FIRST_TRIAL}: {best.restarted:.1%} sent back, {best.nfe:.1f} F "
        "an image" + off_support_text(best, opts)
    )


def with_fit(old: Preset | None, name: str, network: str, fit: Fit, sampler: Euler) -> Preset:
    """The preset with this restart, and its gate, in the place of what it had of either."""
    gate = fit.restart.detector
    fitted = {} if isinstance(gate, Lid) else {KIND: gate}
    if old is None:
        samplers = {"euler": sampler, "restart": fit.restart}
        return Preset(name, network, fit.source, samplers, fitted=fitted, quantiles=fit.quantiles)
    replaced = (f"{KIND}: ", "restart: scripts/fit_gate.py")
    others = [part for part in old.source.split(" | ") if part and not part.startswith(replaced)]
    return replace(
        old,
        source=" | ".join([*others, fit.source]),
        samplers={**old.samplers, "restart": fit.restart},
        fitted={**old.fitted, **fitted},
        quantiles={**old.quantiles, **fit.quantiles},
    )


def write_log(path: Path, fit: Fit) -> None:
    """Every choice that was tried, and the trial, as JSON lines."""
    with atomic_write(path) as temporary:
        temporary.write_text("".join(json.dumps(line) + "\n" for line in [{"gate": fit.source}, *fit.log]))


if __name__ == "__main__":
    main()
