"""Measures what the training loop costs beside a plain float32 loop of the same network, in one run, as ratios."""

from __future__ import annotations

import copy
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import click
import numpy as np
import PIL.Image
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a plain checkout, installed or not

from dnnlib.cli import Command
from dnnlib.errors import UserError
from dnnlib.util import atomic_write
from rods.bench.speed import interleaved
from torch_utils import distributed
from torch_utils.machine import facts
from training.config import Execution, TrainConfig
from training.dataset import ImageDataset
from training.feed import feed
from training.presets import PRESETS, network_kwargs
from training.run import Run

Loop = Callable[[int], None]  # trains so many steps

PLAIN = "plain float32 loop"
SLOW = 4  # times the plain loop: timed over one step, for bf16 without instructions for it would take minutes
VARIANTS = {  # precision, execution, augmentation
    "train.py, fp32": ("fp32", Execution(), 0.0),
    "train.py, fp32, channels last": ("fp32", Execution(channels_last=True), 0.0),
    "train.py, bf16": ("bf16", Execution(), 0.0),
    "train.py, bf16, channels last": ("bf16", Execution(channels_last=True), 0.0),
    "train.py, fp32, augment .12": ("fp32", Execution(), 0.12),
}


def plain_loop(run: Run, dataset: ImageDataset) -> Loop:
    """What one would write without any of this: no streams per image, no resuming, no ranks, one EMA."""
    net, batch = copy.deepcopy(run.net), run.config.batch
    ema = copy.deepcopy(net)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)

    def train(steps: int) -> None:
        for _ in range(steps):
            images, _ = dataset.batch(np.random.randint(len(dataset), size=batch).tolist())
            y = images.to(run.device, torch.float32) / 127.5 - 1  # [B, C, H, W]
            s = (torch.randn(batch, 1, 1, 1, device=run.device) * 1.2 - 1.2).exp()
            weight = (s**2 + 0.25) / (s * 0.5) ** 2
            loss = (weight * (net(y + s * torch.randn_like(y), s) - y) ** 2).sum() / batch
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                for p_ema, p in zip(ema.parameters(), net.parameters(), strict=True):
                    p_ema.lerp_(p, 0.01)
        _wait(run.device)

    return train


@contextmanager
def our_loop(run: Run, dataset: ImageDataset) -> Iterator[Loop]:
    """The steps of train.py, with the thread that prepares batches ahead."""
    with feed(dataset, run.config, 0, batch_gpu=run.execution.batch_gpu, workers=1) as batches:

        def train(steps: int) -> None:
            for _ in range(steps):
                run.step(next(batches))
            _wait(run.device)

        yield train


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def steps_each(loops: Mapping[str, Loop], steps: int) -> dict[str, int]:
    """How many steps to time of each loop, after one that warms it up."""
    first = {}
    for name, loop in loops.items():
        start = time.perf_counter()
        loop(1)
        first[name] = time.perf_counter() - start
    return {name: 1 if seconds > SLOW * first[PLAIN] else steps for name, seconds in first.items()}


@contextmanager
def random_images(resolution: int, channels: int) -> Iterator[ImageDataset]:
    """64 pictures of noise."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        for i in range(64):
            pixels = rng.integers(0, 256, (resolution, resolution, channels), dtype=np.uint8)
            PIL.Image.fromarray(pixels[:, :, 0] if channels == 1 else pixels).save(Path(folder) / f"{i:02d}.png")
        yield ImageDataset(folder)


@click.command(cls=Command, context_settings={"show_default": True})
@click.option("--preset", type=click.Choice(sorted(PRESETS)), default="hands-32", help="Whose network to train.")
@click.option("--resolution", type=click.IntRange(min=8), default=32, help="Of the images.")
@click.option("--channels", type=click.Choice(["1", "3"]), default="1", help="Of the images.")
@click.option("--batch", type=click.IntRange(min=1), default=16, help="Images per step.")
@click.option("--steps", type=click.IntRange(min=1), default=4, help="Steps per timing; one of a slow loop.")
@click.option("--repeats", type=click.IntRange(min=1), default=3, help="Timed rounds over all loops.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda", "mps"]), default="auto", help="Where to run.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads; by default as many as torch chooses.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), default="bench-train.json", help="The JSON.")
def main(
    preset: str,
    resolution: int,
    channels: str,
    batch: int,
    steps: int,
    repeats: int,
    device: str,
    threads: int | None,
    out: Path,
) -> None:
    """Compare the images per second of train.py's loop, in several settings, with those of a plain float32 loop."""
    if not out.resolve().parent.is_dir():
        raise UserError(f"--out={out}: there is no folder {out.parent}; make it first")
    if threads:
        torch.set_num_threads(threads)
    where = distributed.pick_device(device)
    torch.backends.cudnn.benchmark = True
    with random_images(resolution, int(channels)) as dataset, ExitStack() as stack:
        loops: dict[str, Loop] = {}
        for name, (precision, execution, augment) in VARIANTS.items():
            options = {**PRESETS[preset], "augment": augment, "dropout": 0.0}
            kwargs = network_kwargs(options, img_resolution=resolution, img_channels=int(channels))
            network = {"class_name": "EDMPrecond", "init_kwargs": kwargs}
            config = TrainConfig("", len(dataset), network, batch=batch, augment=augment, precision=precision)
            run = Run(config, where, execution)
            if not loops:
                loops[PLAIN] = plain_loop(run, dataset)
            loops[name] = stack.enter_context(our_loop(run, dataset))
        counts = steps_each(loops, steps)
        seconds = interleaved({name: partial(loop, counts[name]) for name, loop in loops.items()}, repeats=repeats)
    report(seconds, images={name: batch * n for name, n in counts.items()}, out=out, about={
        "preset": preset, "resolution": resolution, "channels": int(channels), "batch": batch, "steps": steps,
        "repeats": repeats, "device": str(where), **facts(),
    })  # fmt: skip


def report(
    seconds: Mapping[str, list[float]], *, images: Mapping[str, int], about: dict[str, object], out: Path
) -> None:
    """Prints the table and writes the JSON. A speed is the median over rounds of the rate beside the plain loop's."""
    click.echo("\n".join(f"{name}: {value}" for name, value in about.items()))
    click.echo(f"{'loop':<32}{'images/s':>10}{'speed':>8}  range")
    rows = []
    for name, times in seconds.items():
        more = images[name] / images[PLAIN]
        ratios = [more * plain / own for plain, own in zip(seconds[PLAIN], times, strict=True)]
        rate, ratio = images[name] / statistics.median(times), statistics.median(ratios)
        click.echo(f"{name:<32}{rate:>10.1f}{ratio:>7.2f}x  {min(ratios):.2f}-{max(ratios):.2f}")
        rows.append(
            {
                "name": name,
                "images_per_s": rate,
                "speed": ratio,
                "ratios": ratios,
                "images": images[name],
                "seconds": times,
            }
        )
    with atomic_write(out) as temporary:
        temporary.write_text(json.dumps({**about, "loops": rows}, indent=2) + "\n")
    click.echo(f"wrote {out}")


if __name__ == "__main__":
    main()
