"""Fit a gate without labels: from real images and the network's own samples, with a gated restart in a preset.

python scripts/fit_gate.py --network=my.pkl --real=images.zip --dest=my.preset.json
python generate.py --network=my.pkl --preset=my.preset.json --sampler=restart --outdir=out
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import click
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a plain checkout, installed or not

from dnnlib.cli import Command, Destination, check_folder_of
from dnnlib.errors import UserError, counted, user_errors
from dnnlib.util import atomic_write
from rods.base_samplers import Euler
from rods.bench.gate_fit import (
    Choice,
    Features,
    FlightFeatures,
    ScoredImages,
    best_of,
    choices,
    columns_of,
    features,
    fitted,
    halves,
    levels_of,
    real_features,
)
from rods.bench.readout_fit import decoder_blocks
from rods.denoiser import bind
from rods.gate import DensityRatio, activations
from rods.presets import Preset
from rods.restart import Restart
from rods.runs.chunk import Chunk, cut_chunks, sample_chunk
from rods.runs.folder import OutputFolder
from rods.runs.presets import beside_preset, read_preset, write_preset
from rods.runs.run import Job, write_chunk
from rods.runs.trajectories import Strips
from rods.types import Denoiser
from torch_utils import distributed
from torch_utils.rng import SeedStreams
from training.checkpoint import Snapshot, load_snapshot
from training.dataset import ImageDataset
from training.header import tool_version

U8 = NDArray[np.uint8]
KIND = "density-ratio"
FIRST_SEED, NUM_SEEDS = 3_000_000, 1024  # seeds that neither calibration, nor a readout, nor a report uses
FIRST_TRIAL = 3_500_000
BACK = (2.24, 3.52, 5.38, 8.03)  # noise levels to go back to, of which the trial chooses
LEAST_REAL, MOST_REAL = 64, 4096
NO_SAMPLES = 1  # of LEVELS: where a gate reads that no sample of the network helped to choose


@dataclass(frozen=True)
class Trial:
    """What a restart from one noise level did to the trial's seeds."""

    sigma_r: float
    above: float  # share of the images above the threshold, at the end, by the gate itself
    second_opinion: float  # the same by a gate of the other half of the images, which chose nothing
    restarted: float  # share of the images that went back
    nfe: float  # F an image


def real_images(path: str, net: Denoiser) -> U8:
    """The images [N, C, H, W] of a folder or zip, at most MOST_REAL. Raises UserError: too few, or of another shape."""
    dataset = ImageDataset(path, cache=False, option="--real")
    shape = (net.img_channels, net.img_resolution, net.img_resolution)
    index = list(range(len(dataset)))
    if len(index) < LEAST_REAL:
        raise UserError(f"--real={path} has {counted(len(index), 'image')}; a gate needs {LEAST_REAL} or more")
    if len(index) > MOST_REAL:
        index = sorted(np.random.default_rng(0).choice(len(index), MOST_REAL, replace=False).tolist())
    images = dataset.batch(index)[0].numpy()
    if images.shape[1:] != shape:
        raise UserError(f"--real={path}: images of shape {list(images.shape[1:])}, and the network makes {list(shape)}")
    return cast(U8, images)


def own_features(
    snapshot: Snapshot, job: Job, blocks: tuple[str, ...], out: Path, levels: Sequence[Any]
) -> dict[float, Tensor]:
    """Activations of the network's own samples in flight, by `score_at` [M, K]; the samples are a run folder."""
    folder = OutputFolder(out, identity=job.identity())
    parts: list[dict[str, NDArray[np.float64]]] = []
    about = {"network": snapshot.describe(), "torch": torch.__version__, "version": tool_version()}
    cache = out / ".features"
    total = sum(len(chunk.seeds) for chunk in job.chunks)
    with folder.open(about), tqdm(total=total, unit="img", desc="samples", disable=not sys.stderr.isatty()) as bar:
        cache.mkdir(exist_ok=True)
        for chunk in job.chunks:
            path = cache / f"{chunk.seeds[0]}-{len(chunk.seeds)}.npz"
            if not path.is_file():
                flight = FlightFeatures(snapshot.net, blocks, levels, chunk.seeds)
                done = sample_chunk(snapshot.net, chunk, job.sampler, device=job.device, observers=[flight])
                write_chunk(job, done, Strips(()), folder)
                with atomic_write(path) as temporary, temporary.open("wb") as f:
                    np.savez(f, **{str(t): p.numpy() for t, p in flight.found.items()})
            with np.load(path) as saved:
                parts.append({name: saved[name] for name in saved.files})
            bar.update(len(chunk.seeds))
        folder.finish()
    return {
        level.score_at: torch.from_numpy(np.concatenate([p[str(level.score_at)] for p in parts])) for level in levels
    }


def chosen(f: Features, net: Denoiser) -> tuple[Choice, list[Choice]]:
    """The best choice and all of them; without samples, a fixed level and as many blocks as there are images for."""
    found = choices(f, net)
    if f.num_own:
        return best_of(found), found
    level = f.levels[min(NO_SAMPLES, len(f.levels) - 1)]
    mine = [c for c in found if c.level == level]
    return max(mine, key=lambda c: len(c.blocks)), found


def trial(
    net: Denoiser, gate: DensityRatio, other: DensityRatio, limits: tuple[float, float], restart: Restart,
    chunks: Sequence[Chunk], device: torch.device,
) -> Trial:  # fmt: skip
    """What a restart does to the seeds of the chunks."""
    above, second, back, nfe, n = 0, 0, 0, 0, 0
    for chunk in chunks:
        scored = ScoredImages()
        done = sample_chunk(net, chunk, restart, device=device, observers=[scored])
        noise = SeedStreams(chunk.seeds, device).third().randn_like(scored.images)[None]
        for record in done.records:
            assert record.restart is not None, "a restart keeps records"
            above += record.restart.scores[record.restart.kept] > limits[0]
            back += len(record.restart.scores) > 1
            nfe += record.forward
        p = features(net, scored.images, other.sigma, other.blocks, noise)
        second += int((other.of(p) > limits[1]).sum())
        n += len(chunk.seeds)
    return Trial(restart.sigma_r, above / n, second / n, back / n, nfe / n)


@click.command(cls=Command, context_settings={"show_default": True, "max_content_width": 120})
@click.option("--network", metavar="FILE|URL", required=True, help="An EDM pickle or a safetensors snapshot.")
@click.option("--real", metavar="DIR|ZIP", required=True, help="Real images, best such that the network never saw: "
              f"{LEAST_REAL} or more, at most {MOST_REAL} are read.")  # fmt: skip
@click.option("--dest", type=Destination(dir_okay=False), required=True,
              help="The preset that gets the gate and a restart; what else it has stays.")  # fmt: skip
@click.option("--samples", type=click.IntRange(0, 100_000), default=NUM_SEEDS,
              help="The network's own samples to fit to; 0: real images alone.")  # fmt: skip
@click.option("--trial", "num_trial", type=click.IntRange(16, 100_000), default=128,
              help="Seeds on which restarts from several noise levels are tried, for the choice.")  # fmt: skip
@click.option("--alpha", type=click.FloatRange(0, 0.5, min_open=True), default=0.01,
              help="The share of real images that would be sent back: sets the threshold.")  # fmt: skip
@click.option("--steps", type=click.IntRange(8, 1000), default=40, help="Sampling steps.")
@click.option("--batch", type=click.IntRange(1, 100_000), default=64, help="Images per chunk.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda", "mps"]), default="auto", help="Where to run.")
@click.option("--threads", type=click.IntRange(1, 1024), help="CPU threads [default: all cores].")
@click.option("--out", type=Destination(file_okay=False), default=Path("out/gate"),
              help="Where samples and activations are kept: the same command goes on there.")  # fmt: skip
def main(**opts: Any) -> None:
    """Fit a gate to real images and the network's own samples, without labels, and write a preset with a restart.

    The gate scores how much more likely the network's activations are of a sample than of a real image. How many of the
    decoder's blocks it reads, at which noise level, and how far back a restart goes are chosen without labels. The
    preset is then for generate.py --preset=DEST --sampler=restart.
    """
    dest: Path = opts["dest"]
    check_folder_of(dest, option="--dest")
    device = distributed.pick_device(opts["device"])
    torch.set_num_threads(opts["threads"] or distributed.usable_cores())
    torch.set_flush_denormal(True)
    old = read_preset(dest, option="--dest") if dest.exists() else None
    snapshot = load_snapshot(opts["network"], device=device)
    net = cast(Denoiser, snapshot.net)
    if net.label_dim:
        raise UserError(f"--network: {snapshot.name} needs class labels, which this command does not handle yet")
    if old and old.network not in (None, snapshot.name):
        raise UserError(f"--dest={dest} is for network {old.network}, not {snapshot.name}; name another file")
    images, blocks = real_images(opts["real"], net), decoder_blocks(snapshot.net)
    sampler = Euler(num_steps=opts["steps"])
    with user_errors("--steps"):
        levels = levels_of(sampler.levels(net))
    f = measured(snapshot, images, blocks, sampler, levels, opts, device)

    choice, tried = chosen(f, net)
    last = len(choice.blocks)
    two_class = f.num_own > 0 and choice.separation == choice.separation
    (fit_real, held_real), (_, other_own) = halves(len(images)), halves(f.num_own)
    gate = fitted(f, choice.level, last, net, fit_real, torch.arange(f.num_own) if two_class else None, same_mean=False)
    other = fitted(f, choice.level, last, net, held_real, other_own if two_class else None, same_mean=False)
    columns = columns_of(f.widths, last)
    held = gate.of(f.real[choice.level.score_at][held_real][:, columns])
    limits = (
        quantile(held, opts["alpha"]),
        quantile(other.of(f.real[choice.level.score_at][fit_real][:, columns]), opts["alpha"]),
    )
    click.echo(
        f"Gate: {last} of {len(blocks)} decoder blocks, {sum(f.widths[-last:])} numbers, at noise level "
        f"{choice.level.score_at:g}, of {len(fit_real)} real images"
        + (f" and {f.num_own} samples" if two_class else " alone")
        + f"; threshold {limits[0]:.4g}, which {opts['alpha']:.3g} of other real images exceed"
    )
    if f.num_own:
        own = gate.of(f.own[choice.level.score_at][:, columns])
        click.echo(f"Above it: {float((own > limits[0]).double().mean()):.1%} of the samples")

    chunks = cut_chunks(range(FIRST_TRIAL, FIRST_TRIAL + opts["num_trial"]), batch=opts["batch"])
    trials = []
    for sigma_r in BACK:
        restart = Restart(threshold=limits[0], sigma_r=sigma_r, detector=gate, score_at=choice.level.score_at,
                          num_steps=opts["steps"])  # fmt: skip
        trials.append(trial(net, gate, other, limits, restart, chunks, device))
        t = trials[-1]
        click.echo(
            f"Restart from {sigma_r:g}: {t.restarted:.1%} sent back, {t.above:.1%} above the threshold at the end "
            f"({t.second_opinion:.1%} by a second gate), {t.nfe:.1f} F an image"
        )
    best = min(trials, key=lambda t: (round(t.second_opinion, 3), t.nfe))
    restart = Restart(threshold=limits[0], sigma_r=best.sigma_r, detector=gate, score_at=choice.level.score_at,
                      num_steps=opts["steps"])  # fmt: skip
    remark = (
        f"density-ratio: scripts/fit_gate.py, {len(images)} real images of {Path(opts['real']).name}, "
        f"{f.num_own} samples from seed {FIRST_SEED}, network {snapshot.sha256[:12]}, alpha {opts['alpha']:g}; "
        f"forecast of {opts['num_trial']} seeds from {FIRST_TRIAL}: {best.restarted:.1%} sent back, {best.nfe:.1f} F "
        "an image"
    )
    write_preset(dest, with_gate(old, snapshot.name, gate, restart, sampler, remark))
    write_log(beside_preset(dest, ".gate.jsonl"), remark, tried, trials)
    click.echo(
        f"Forecast: {best.restarted:.1%} of the images go back to noise level {best.sigma_r:g}, {best.nfe:.1f} F an "
        f"image ({best.nfe / opts['steps']:.2f}x Euler's)"
    )
    click.echo(f"Wrote {dest} and {beside_preset(dest, f'.{KIND}.safetensors')}. Next:")
    for sampler_name in ("euler", "restart"):
        click.echo(
            f"  python generate.py --network={opts['network']} --preset={dest} --sampler={sampler_name} --seeds=0-63 "
            f"--outdir=out/{sampler_name}"
        )


def measured(
    snapshot: Snapshot, images: U8, blocks: tuple[str, ...], sampler: Euler, levels: Sequence[Any],
    opts: dict[str, Any], device: torch.device,
) -> Features:  # fmt: skip
    """The activations of real images and of the network's own samples, kept in --out."""
    net, out = cast(Denoiser, snapshot.net), opts["out"] / f"{snapshot.name}-{snapshot.sha256[:8]}"
    chunks = cut_chunks(range(FIRST_SEED, FIRST_SEED + opts["samples"]), batch=opts["batch"])
    own: dict[float, Tensor] = {}
    if chunks:
        job = Job(denoiser=net, sampler=sampler, chunks=chunks, device=device, network_sha256=snapshot.sha256,
                  batch=opts["batch"])  # fmt: skip
        own = own_features(snapshot, job, blocks, out / f"euler-{sampler.num_steps}", levels)
    key = hashlib.sha256(images.tobytes() + repr((blocks, sampler.num_steps, device.type)).encode()).hexdigest()[:12]
    path = out / f"real-{key}.npz"
    if not path.is_file():
        out.mkdir(parents=True, exist_ok=True)
        with tqdm(total=len(images), unit="img", desc="real images", disable=not sys.stderr.isatty()) as bar:
            found = real_features(net, images, levels, blocks, batch=opts["batch"], device=device, report=bar.update)
        with atomic_write(path) as temporary, temporary.open("wb") as file:
            np.savez(file, **{str(t): p.numpy() for t, p in found.items()})
    with np.load(path) as saved:
        real = {level.score_at: torch.from_numpy(saved[str(level.score_at)]) for level in levels}
    x = torch.zeros(1, net.img_channels, net.img_resolution, net.img_resolution, dtype=torch.float64, device=device)
    one = activations(bind(net, 1), x, x.new_tensor(1.0), x[None], blocks)
    return Features(levels, blocks, tuple(p.shape[1] for p in one), real, own)


def quantile(scores: Tensor, alpha: float) -> float:
    """The threshold that a share alpha of the scores exceeds."""
    return float(torch.quantile(scores, 1 - alpha))


def with_gate(
    old: Preset | None, network: str, gate: DensityRatio, restart: Restart, sampler: Euler, remark: str
) -> Preset:
    """The preset with this gate and its restart in the place of what it had of either."""
    if old is None:
        return Preset(network, network, remark, {"euler": sampler, "restart": restart}, fitted={KIND: gate})
    others = [part for part in old.source.split(" | ") if part and not part.startswith(f"{KIND}: ")]
    return replace(
        old,
        source=" | ".join([*others, remark]),
        samplers={**old.samplers, "restart": restart},
        fitted={**old.fitted, KIND: gate},
    )


def write_log(path: Path, remark: str, tried: Sequence[Choice], trials: Sequence[Trial]) -> None:
    """Every choice that was tried, and the trial, as JSON lines."""
    lines: list[dict[str, Any]] = [{"gate": remark}]
    lines += [{"score_at": c.level.score_at, "sigma": c.level.sigma, "blocks": len(c.blocks), "tail": c.tail,
               "separation": c.separation} for c in tried]  # fmt: skip
    lines += [asdict(t) for t in trials]
    with atomic_write(path) as temporary:
        temporary.write_text("".join(json.dumps(line) + "\n" for line in lines))


if __name__ == "__main__":
    main()
