"""Trains the counter of rendered hands, and measures it on fresh seeds; needs the extra package anny."""

import json
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import click
import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that it runs without installing the project

from dnnlib.cli import Command
from dnnlib.errors import UserError
from dnnlib.util import alone, atomic_write
from rods.bench.counter import (
    COUNTER,
    MEMBERS,
    RESOLUTION,
    Counter,
    CountingNet,
    Thresholds,
    probabilities,
    save_counter,
)
from rods.bench.counter_training import U8, Recipe, choose_thresholds, measure, spoilt, train_member
from rods.bench.hand_mesh import load_rig
from rods.bench.rendered import as_grey, render_hands

SEEDS = {"train": 910_000, "held-out": 910_001, "fresh": 910_002}
NUMBERS = {"train": (1500, 1500, 1500), "held-out": (200, 800, 200), "fresh": (250, 1000, 250)}  # of 4, 5, 6 fingers
CHUNK = 50


@click.command(cls=Command)
@click.option("--outdir", type=click.Path(file_okay=False, path_type=Path), default="data/counter", show_default=True)
@click.option("--dest", type=click.Path(dir_okay=False, path_type=Path), default=COUNTER, help="The file to write.")
@click.option("--workers", type=click.IntRange(1, 256), default=1, show_default=True, help="Processes that render.")
@click.option("--threads", type=click.IntRange(1, 256), default=1, show_default=True, help="Of torch.")
@click.option("--steps", type=click.IntRange(10, 100_000), default=Recipe.steps, show_default=True, help="A member.")
@click.option("--scale", type=click.FloatRange(0.001, 10), default=1.0, show_default=True, help="Of the data's size.")
def main(outdir: Path, dest: Path, workers: int, threads: int, steps: int, scale: float) -> None:
    """Render hands, train three members, choose the thresholds on held-out hands, measure on fresh ones.

    Finished pieces are kept in --outdir, so the same command goes on where it was stopped.
    """
    torch.set_num_threads(threads)
    recipe = Recipe(steps=steps)
    outdir.mkdir(parents=True, exist_ok=True)
    with alone(outdir, busy=f"another process trains in {outdir}; wait for it or choose another --outdir"):
        _claim(outdir, {"steps": steps, "scale": scale, "numbers": NUMBERS, "seeds": SEEDS})
        load_rig()
        hands = {split: _hands(outdir, split, scale, workers) for split in SEEDS}
        members = tuple(_member(outdir, hands["train"], recipe, m) for m in range(MEMBERS))
        _finish(dest, members, hands, recipe)


def _claim(outdir: Path, options: dict[str, object]) -> None:
    path, text = outdir / "options.json", json.dumps(options, sort_keys=True)
    if path.exists() and path.read_text() != text:
        raise UserError(f"--outdir={outdir} holds pieces of a training with other options; choose another folder")
    with atomic_write(path) as temporary:
        temporary.write_text(text)


def _hands(outdir: Path, split: str, scale: float, workers: int) -> dict[int, U8]:
    """Pictures [N, 64, 64] of a split by number of fingers, rendered unless the folder has them."""
    hands = {}
    for fingers, number in zip((4, 5, 6), NUMBERS[split], strict=True):
        path = outdir / f"{split}-{fingers}.npy"
        if not path.exists():
            images = _render(max(int(number * scale), 8), SEEDS[split], fingers, workers, path.stem)
            with atomic_write(path) as temporary:
                np.save(temporary, images)
        hands[fingers] = np.load(path, allow_pickle=False)
    return hands


def _render(number: int, seed: int, fingers: int, workers: int, name: str) -> U8:
    chunks = [range(s, min(s + CHUNK, number)) for s in range(0, number, CHUNK)]
    work = partial(_render_chunk, seed=seed, fingers=fingers)
    with tqdm(total=number, unit="hand", desc=name) as bar:
        parts = []
        if workers == 1:
            for chunk in chunks:
                parts.append(work(chunk))
                bar.update(len(chunk))
        else:
            with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
                for part in pool.map(work, chunks):
                    parts.append(part)
                    bar.update(len(part))
    return np.concatenate(parts)


def _render_chunk(chunk: range, *, seed: int, fingers: int) -> U8:
    return as_grey(render_hands(chunk, seed=seed, resolution=RESOLUTION, num_fingers=fingers))


def _member(outdir: Path, hands: dict[int, U8], recipe: Recipe, m: int) -> CountingNet:
    """Member m, trained unless the folder has it."""
    path = outdir / f"member-{m}.safetensors"
    if not path.exists():
        with tqdm(train_member(hands, recipe, seed=m), total=recipe.steps, unit="step", desc=f"member {m}") as bar:
            smooth = 1.4
            for step, loss, net in bar:
                trained, smooth = net, smooth + 0.02 * (loss - smooth)
                if step % 25 == 0:
                    bar.set_postfix(loss=f"{smooth:.3f}")
        with atomic_write(path) as temporary:
            save_file({k: v.contiguous() for k, v in trained.state_dict().items()}, temporary)
    member = CountingNet()
    stored = {k: v.to(torch.bfloat16) if v.is_floating_point() else v for k, v in load_file(path).items()}
    member.load_state_dict(stored)  # what is measured below is what the counter's file will hold
    return member.eval().requires_grad_(False)


def _finish(dest: Path, members: tuple[CountingNet, ...], hands: dict[str, dict[int, U8]], recipe: Recipe) -> None:
    """Thresholds, measurements and the file."""
    trial = Counter(members, Thresholds(0.5, 0.5), {})
    p = {}
    for split in ("held-out", "fresh"):
        of = {f"{f} fingers": probabilities(images, trial) for f, images in hands[split].items()}
        number = len(hands[split][4])
        p[split] = {**of, "no hand": probabilities(spoilt(hands[split], seed=SEEDS[split], num=number), trial)}
    held_out = p["held-out"]
    others = np.concatenate([v for truth, v in held_out.items() if truth != "5 fingers"])
    thresholds = choose_thresholds(held_out["5 fingers"], others)
    facts = {"seeds": SEEDS, "steps": recipe.steps, **measure(p["fresh"], thresholds)}
    dest.parent.mkdir(parents=True, exist_ok=True)
    save_counter(dest, Counter(members, thresholds, facts))
    click.echo(json.dumps(facts, indent=1))
    click.echo(f"{dest}: {dest.stat().st_size / 1e3:.0f} kB, five fingers above {thresholds.low} to {thresholds.high}")


if __name__ == "__main__":
    main()
