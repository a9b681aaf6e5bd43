"""What a training run is: the options that decide its weights, those that do not, and the schedules they set."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from training.ema import Average, HalfLife, PowerFunction


@dataclass(frozen=True)
class TrainConfig:
    """What decides a run's weights after any number of images, and so what tells runs apart.

    Runs with equal configs have equal weights: bit for bit on one machine with one number of ranks, of images per
    round and of CPU threads, else up to rounding (dropout draws one mask for a round, and so differs with them).
    """

    data: str
    num_images: int  # in the data set
    network: dict[str, Any]  # {"class_name": ..., "init_kwargs": {...}}
    cond: bool = False
    batch: int = 512
    lr: float = 1e-3
    lr_rampup: int = 10_000_000  # images
    lr_decay: int | None = None  # images after which the rate falls by 1/sqrt of the images seen; None: it stays
    adam_beta2: float = 0.999
    ema_halflives: tuple[int, ...] = (500_000,)  # images
    ema_rampup_ratio: float = 0.05
    ema_stds: tuple[float, ...] = ()  # relative widths of averages by power function
    P_mean: float = -1.2
    P_std: float = 1.2
    augment: float = 0.0  # probability of each transformation; 0: none, and a network without its labels
    xflip: bool = False
    seed: int = 0
    precision: str = "fp32"  # or bf16, fp16
    loss_scale: float = 1.0  # of the backward pass alone: the gradients are divided by it again
    grad_clip: float | None = None  # largest norm of the gradient of a step
    transfer: str | None = None  # start from the weights of this snapshot
    resume: str | None = None  # start from this state of another run

    def options(self) -> dict[str, Any]:
        """As JSON gives it back, so that files and configs compare; options that came later, only where they act."""
        options: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return {k: v for k, v in options.items() if k not in _LATER or v != _LATER[k]}

    @property
    def averages(self) -> tuple[Average, ...]:
        """Of the weights, one a snapshot; the first one's snapshots have the plain name."""
        return averages(self.options())


_LATER: dict[str, Any] = {
    "lr_decay": None,
    "adam_beta2": 0.999,
    "ema_stds": [],
}  # older runs go on, and their files stay as they are


def averages(options: Mapping[str, Any]) -> tuple[Average, ...]:
    """The averages of a run with these `TrainConfig.options`."""
    halflives = [HalfLife(int(n), options["ema_rampup_ratio"]) for n in options["ema_halflives"]]
    return (*halflives, *map(PowerFunction, options.get("ema_stds", ())))


PLACES = ("data", "transfer", "resume")
"""Options of a `TrainConfig` that name a file or folder of this machine, or an address."""


def same_options(one: Mapping[str, Any], two: Mapping[str, Any]) -> bool:
    """Whether two runs have equal options; a place is the same however it is spelt."""
    return {**one, **two}.keys() == one.keys() == two.keys() and not different_options(one, two)


def different_options(one: Mapping[str, Any], two: Mapping[str, Any]) -> list[str]:
    """The names of the options that differ."""
    names = {**one, **two}
    return [k for k in names if one.get(k) != two.get(k) and not (k in PLACES and same_place(one.get(k), two.get(k)))]


def same_place(one: object, two: object) -> bool:
    """Whether two texts name one file or folder: `im`, `./im/`, an absolute path, a link to it."""
    if not isinstance(one, str) or not isinstance(two, str) or "://" in one + two:
        return one == two
    return one == two or os.path.realpath(one) == os.path.realpath(two)


@dataclass(frozen=True)
class RunSettings:
    """What does not change the weights along the way: where, how far, how often to save."""

    run_dir: Path
    total_images: int
    tick_images: int  # the state is saved whenever a multiple of this is passed
    snapshot_ticks: int  # and a snapshot at every so many ticks; 0: at the end only
    dump_ticks: int = 0  # and a state that is kept for good; 0: none
    keep_states: int = 2
    max_bad_steps: int = 20  # in a row, with gradients that are not finite
    workers: int = 1  # threads that prepare batches ahead; 0: none


@dataclass(frozen=True)
class Execution:
    """How the arithmetic is carried out. Changes weights by rounding at most (and which dropout masks are drawn)."""

    batch_gpu: int | None = None  # images per round of a rank, None: all at once
    compiled: bool = False
    channels_last: bool = False


def learning_rate(config: TrainConfig, images_seen: int) -> float:
    """Linear from 0 at the first image to `lr` at `lr_rampup`; from `lr_decay` on it falls as 1/sqrt(images)."""
    ramp = min(images_seen / config.lr_rampup, 1) if config.lr_rampup else 1.0
    decay = max(images_seen / config.lr_decay, 1) ** -0.5 if config.lr_decay else 1.0
    return config.lr * ramp * decay
