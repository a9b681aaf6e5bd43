"""Measures ratios in time, in one run: every sampler to plain Euler, and train.py's loop to a plain one."""

from __future__ import annotations

import copy
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from statistics import mean, median
from typing import Any

import click
import numpy as np
import PIL.Image
import torch
from torch import Tensor
from torch.utils.benchmark import Timer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a plain checkout, installed or not

from dnnlib.cli import Command, Destination
from dnnlib.errors import UserError, of_option
from dnnlib.util import atomic_write
from rods.base_samplers import Sampler
from rods.config import build
from rods.types import AnyDenoiser
from torch_utils import distributed
from torch_utils.machine import facts, keep_freed_memory
from training.checkpoint import load_snapshot
from training.config import Execution, TrainConfig
from training.dataset import ImageDataset
from training.feed import feed
from training.model_zoo import MODELS
from training.recipes import RECIPES, network_kwargs
from training.trainer import Trainer

EULER, PLAIN = "euler", "plain float32 loop"  # what the others are compared with
RECIPE, RESOLUTION = "hands-32", 32  # of the network whose training is timed
VARIANTS = {  # precision, execution, augmentation
    "train.py, fp32": ("fp32", Execution(), 0.0),
    "train.py, fp32, channels last": ("fp32", Execution(channels_last=True), 0.0),
    "train.py, fp32, augment .12": ("fp32", Execution(), 0.12),
    "train.py, bf16": ("bf16", Execution(), 0.0),
}

Row = dict[str, Any]  # of the table and of the JSON


def samplers(*, num_steps: int, rho: float) -> dict[str, Sampler]:
    """The samplers by name. RODS corrects every image (eps 0): the most that a gated run can cost."""
    every_image: dict[str, Any] = {"eps": 0.0, "rho": rho}
    chosen: dict[str, tuple[str, dict[str, Any]]] = {
        EULER: ("euler", {}),
        "heun": ("edm", {}),
        "overshoot": ("overshoot", {"rho": rho}),
        "rods-cas": ("rods-cas", every_image),
        "rods-cas, no detection": ("rods-cas", {**every_image, "detect": False}),
        "rods-cas, every 4th": ("rods-cas", {**every_image, "probe_every": 4}),
        "rods-sas": ("rods-sas", every_image),
        "rods-sas, no detection": ("rods-sas", {**every_image, "detect": False}),
    }
    return {name: build(s, {"num_steps": num_steps, **options}) for name, (s, options) in chosen.items()}


def interleaved(runs: Mapping[str, Callable[[], object]], *, repeats: int) -> dict[str, list[float]]:
    """Seconds per run, in the order a b c a b c ..., so that other work on the machine falls on all of them alike."""
    threads = torch.get_num_threads()
    timers = {name: Timer("run()", globals={"run": run}, num_threads=threads) for name, run in runs.items()}
    rounds = [{name: timer.timeit(1).median for name, timer in timers.items()} for _ in range(repeats)]
    return {name: [times[name] for times in rounds] for name in runs}


def compared(seconds: Mapping[str, list[float]], *, baseline: str, images: int) -> list[Row]:
    """A row per run: seconds per image, and the median over the rounds of its time as a ratio to the baseline's."""
    rows = []
    for name, times in seconds.items():
        ratios = [t / base for t, base in zip(times, seconds[baseline], strict=True)]
        rows.append({"name": name, "ratio": median(ratios), "ratios": ratios, "s_per_image": median(times) / images})
    return rows


def time_samplers(denoiser: AnyDenoiser, latents: Tensor, chosen: Mapping[str, Sampler], *, repeats: int) -> list[Row]:
    """A row per sampler, with its F and B per image. Cost: 3 repeats + 1 runs of each."""
    runs = {name: partial(sampler.sample, denoiser, latents) for name, sampler in chosen.items()}
    records = {name: run().records for name, run in runs.items()}
    rows = compared(interleaved(runs, repeats=repeats), baseline=EULER, images=len(latents))
    return [
        {**row, "F": mean(r.forward for r in of), "B": mean(r.backward for r in of)}
        for row, of in zip(rows, records.values(), strict=True)
    ]


def plain_loop(trainer: Trainer, dataset: ImageDataset) -> Callable[[], object]:
    """A step as one would write it without any of this: no streams per image, no resuming, no ranks, one EMA."""
    net, batch, device = copy.deepcopy(trainer.net), trainer.config.batch, trainer.device
    ema = copy.deepcopy(net)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)

    def step() -> None:
        images, _ = dataset.batch(np.random.randint(len(dataset), size=batch).tolist())
        y = images.to(device, torch.float32) / 127.5 - 1  # [B, C, H, W]
        s = (torch.randn(batch, 1, 1, 1, device=device) * 1.2 - 1.2).exp()
        weight = (s**2 + 0.25) / (s * 0.5) ** 2
        loss = (weight * (net(y + s * torch.randn_like(y), s) - y) ** 2).sum() / batch
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for p_ema, p in zip(ema.parameters(), net.parameters(), strict=True):
                p_ema.lerp_(p, 0.01)

    return step


@contextmanager
def our_loop(trainer: Trainer, dataset: ImageDataset) -> Iterator[Callable[[], object]]:
    """A step of train.py, with the thread that prepares batches ahead."""
    with feed(dataset, trainer.config, 0, workers=1) as batches:
        yield lambda: trainer.step(next(batches))


@contextmanager
def random_images(resolution: int) -> Iterator[ImageDataset]:
    """64 grey images of noise."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        for i in range(64):
            pixels = rng.integers(0, 256, (resolution, resolution), dtype=np.uint8)
            PIL.Image.fromarray(pixels).save(Path(folder) / f"{i:02d}.png")
        yield ImageDataset(folder)


def time_training(device: torch.device, *, batch: int, repeats: int) -> list[Row]:
    """A row per variant of train.py's step, of the recipe's network, beside that of a plain float32 loop."""
    with random_images(RESOLUTION) as dataset, ExitStack() as stack:
        loops: dict[str, Callable[[], object]] = {}
        for name, (precision, execution, augment) in VARIANTS.items():
            options = {**RECIPES[RECIPE], "augment": augment, "dropout": 0.0}
            kwargs = network_kwargs(options, img_resolution=RESOLUTION, img_channels=1)
            network = {"class_name": "EDMPrecond", "init_kwargs": kwargs}
            config = TrainConfig("", len(dataset), network, batch=batch, augment=augment, precision=precision)
            trainer = Trainer(config, device, execution)
            if not loops:
                loops[PLAIN] = plain_loop(trainer, dataset)
            loops[name] = stack.enter_context(our_loop(trainer, dataset))
        return compared(interleaved(loops, repeats=repeats), baseline=PLAIN, images=batch)


def table(rows: list[Row]) -> str:
    """The rows as text: the ratio in time (median, least to greatest), seconds per image, and NFE where known."""
    lines = [f"{'':<32}{'time':>7}{'range':>15}{'s/image':>10}{'F':>7}{'B':>7}"]
    for row in rows:
        spread = f"{min(row['ratios']):.2f}-{max(row['ratios']):.2f}"
        nfe = f"{row['F']:>7.1f}{row['B']:>7.1f}" if "F" in row else ""
        lines.append(f"{row['name']:<32}{row['ratio']:>6.2f}x{spread:>15}{row['s_per_image']:>10.4f}{nfe}")
    return "\n".join(lines)


@click.command(cls=Command, context_settings={"show_default": True})
@click.option(
    "--network", metavar="PATH|URL", default=str(MODELS / "hands-32.safetensors"), help="An EDM pickle or a snapshot."
)
@click.option("--batch", type=click.IntRange(min=1), default=8, help="Images per run, and per training step.")
@click.option("--steps", type=click.IntRange(1, 100_000), default=20, help="Sampling steps.")
@click.option("--rho", type=click.FloatRange(min=0), default=1.0, help="Radius of RODS and overshoot.")
@click.option("--repeats", type=click.IntRange(min=1), default=3, help="Timed rounds over all runs.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda", "mps"]), default="cpu", help="Where to run.")
@click.option("--threads", type=click.IntRange(1, 1024), help="CPU threads; by default as many as torch chooses.")
@click.option("--training/--no-training", default=True, help="Also time a training step.")
@click.option("--out", type=Destination(dir_okay=False), default="bench.json", help="The JSON to write.")
def main(
    network: str, batch: int, steps: int, rho: float, repeats: int, device: str, threads: int | None, training: bool,
    out: Path,
) -> None:  # fmt: skip
    """Compare the time of Heun, overshoot and RODS with Euler's, and of train.py's loop with a plain one's."""
    if not out.resolve().parent.is_dir():
        raise UserError(f"--out={out}: there is no folder {out.parent}; make it first")
    keep_freed_memory()
    torch.set_num_threads(threads or torch.get_num_threads())
    where = distributed.pick_device(device)
    with of_option("--network"):
        snapshot = load_snapshot(network, device=where)
    k = snapshot.header.init_kwargs
    shape = (batch, k["img_channels"], k["img_resolution"], k["img_resolution"])
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(where)
    about = {
        "network": snapshot.describe(), "device": str(where), "batch": batch, "steps": steps, "rho": rho,
        "repeats": repeats, **facts(),
    }  # fmt: skip
    click.echo("\n".join(f"{name}: {value}" for name, value in about.items()))
    timed = time_samplers(snapshot.net, latents, samplers(num_steps=steps, rho=rho), repeats=repeats)
    click.echo(table(timed))
    loops = time_training(where, batch=batch, repeats=repeats) if training else []
    if loops:
        click.echo(table(loops))
    with atomic_write(out) as temporary:
        temporary.write_text(json.dumps({**about, "samplers": timed, "training": loops}, indent=2) + "\n")
    click.echo(f"wrote {out}")


if __name__ == "__main__":
    main()
