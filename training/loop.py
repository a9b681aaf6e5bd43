"""The training loop: what happens at every step, tick and stop; resumable at any moment, the same on all ranks."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import numpy as np
import psutil
from torch import nn
from tqdm import tqdm

from dnnlib.errors import UserError
from torch_utils import distributed
from training.checkpoint import save_snapshot
from training.config import RunSettings, learning_rate
from training.dataset import ImageDataset
from training.feed import feed
from training.folder import open_run_dir, refuse_other_options
from training.logging import RunLog, say
from training.state import dump_name, keep_newest, load_newest, save_state, saved_states, state_name
from training.trainer import StepResult, Trainer
from training.transfer import start_from_state, start_from_weights

Draw = Callable[[nn.Module, Path], None]  # an image of what the network draws, into this file
Validate = Callable[[nn.Module], Mapping[str, Any]]  # entries for stats.jsonl; called on every rank


class StopRequest:
    """Within the block, SIGTERM and SIGINT ask for a save after the current step; a second Ctrl-C interrupts.

    Under torchrun it does not: there a Ctrl-C reaches a rank twice, from the terminal and from torchrun.
    """

    def __init__(self) -> None:
        self.received = False
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():  # others may not set handlers
            for s in (signal.SIGTERM, signal.SIGINT):
                self._previous[s] = signal.signal(s, self._receive)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for s, handler in self._previous.items():
            signal.signal(s, signal.SIG_DFL if handler is None else handler)

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        if self.received and signum == signal.SIGINT and not distributed.launched():
            raise KeyboardInterrupt
        self.received = True


def train(
    trainer: Trainer,
    settings: RunSettings,
    dataset: ImageDataset,
    *,
    draw: Draw | None = None,
    validate: Validate | None = None,
) -> None:
    """Train to `total_images` or until told to stop, going on from the last state in `run_dir` if there is one.

    Every rank of a run calls this. Rank 0 alone writes there: `stats.jsonl` (a line a tick), states (at each tick and
    on SIGTERM/SIGINT, which may come to any rank), `network-snapshot-{kimg:06d}.safetensors` (the EMA), and, where
    `draw` is given, `grid-{kimg:06d}.png` with each. A kill at any moment loses what followed the last state.

    Raises:
        UserError: a folder in use or of other options, a damaged state or image, a rank that is gone, or
            `max_bad_steps` in a row with gradients that are not finite.
    """
    lead = distributed.rank() == 0
    if lead and not saved_states(settings.run_dir):
        start(trainer, dataset)  # before the folder is made, for it may fail
    with open_run_dir(settings.run_dir, trainer.config.options()) if lead else nullcontext(), StopRequest() as stop:
        if lead and _go_on(trainer, settings):
            _make_up(trainer, settings, dataset, draw)
        trainer.share()
        log = RunLog(settings.run_dir, trainer.images_seen) if lead else None
        _train_on(trainer, settings, dataset, stop, log, draw, validate)
        if log is not None:
            log.close()
            if trainer.images_seen >= settings.total_images:
                say(f"Finished: {write_snapshots(trainer, dataset, settings.run_dir, draw)}")
            else:
                say(f"Stopped at {trainer.images_seen / 1000:.1f} kimg; the same command goes on from here")
        distributed.barrier()


def start(trainer: Trainer, dataset: ImageDataset) -> None:
    """What --resume or --transfer ask for, and what is to say about it; reads all images once.

    UserError for what cannot be had, and for a damaged or odd image, which the training would find hours later.
    """
    lines: list[str] = []
    if trainer.config.resume:
        lines += start_from_state(trainer, trainer.config.resume)
    elif trainer.config.transfer:
        lines += start_from_weights(trainer, trainer.config.transfer)
    for line in lines:
        say(line)
    for i in tqdm(range(len(dataset)), desc="Reading images", unit="img", disable=None, leave=False):
        dataset.image(i)


def _go_on(trainer: Trainer, settings: RunSettings) -> bool:
    """Whether there was a state to go on from."""
    state, problems = load_newest(settings.run_dir)
    if state is None:
        say(f"Starting in {settings.run_dir}")
        return False
    refuse_other_options(settings.run_dir, state.options, trainer.config.options())
    trainer.restore(state)
    for problem in problems:
        say(f"Passed over: {problem}")
    say(f"Going on in {settings.run_dir} at {trainer.images_seen / 1000:.1f} kimg")
    return True


def _make_up(trainer: Trainer, settings: RunSettings, dataset: ImageDataset, draw: Draw | None) -> None:
    """The snapshots that were due at this state: it is saved before them, and the run ended in between."""
    due = _passed(trainer, settings.tick_images * settings.snapshot_ticks)
    if due and not all(path.is_file() for path in snapshot_paths(trainer, settings.run_dir)):
        write_snapshots(trainer, dataset, settings.run_dir, draw)


def _passed(trainer: Trainer, every: int) -> bool:
    """Whether the last step has passed a multiple of so many images; 0: there are none."""
    return every > 0 and (trainer.images_seen - trainer.config.batch) // every < trainer.images_seen // every


def _steps(trainer: Trainer, settings: RunSettings, dataset: ImageDataset, stop: StopRequest) -> Iterator[StepResult]:
    """Trains and yields the result of every step, up to the end or a stop, at the same step on every rank."""
    ranks = distributed.world_size()
    batches = feed(
        dataset,
        trainer.config,
        trainer.images_seen,
        rank=distributed.rank(),
        ranks=ranks,
        batch_gpu=trainer.execution.batch_gpu,
        workers=settings.workers,
    )
    with batches as rounds:
        while trainer.images_seen < settings.total_images:
            result = trainer.step(next(rounds), stop=stop.received)
            yield result
            if trainer.bad_in_a_row >= settings.max_bad_steps:
                raise UserError(
                    f"gradients are not finite in {trainer.bad_in_a_row} steps in a row, up to image "
                    f"{trainer.images_seen:,}; the last good state is kept. Lower --lr, set --grad-clip or use "
                    "--precision=fp32, and --resume from a state or --transfer from a snapshot"
                )
            if result.stop:
                return


def _train_on(
    trainer: Trainer,
    settings: RunSettings,
    dataset: ImageDataset,
    stop: StopRequest,
    log: RunLog | None,
    draw: Draw | None,
    validate: Validate | None,
) -> None:
    """The steps of all ranks, with what happens at ticks; only the rank that has a log writes."""
    tick, total = settings.tick_images, settings.total_images
    results, tick_time = list[StepResult](), time.time()

    # disable=None: a bar on terminals only
    with tqdm(total=total, initial=trainer.images_seen, unit="img", disable=True if log is None else None) as progress:
        for result in _steps(trainer, settings, dataset, stop):
            results.append(result)
            progress.update(trainer.config.batch)
            done = trainer.images_seen >= total
            if not (done or result.stop or _passed(trainer, tick)):
                continue
            record = _record(trainer, settings, results, time.time() - tick_time)
            record.update(validate(trainer.emas[0]) if validate else {})  # the ranks share this work
            if log is not None:
                unlogged = _tried(partial(log.write, record))  # a full disk or closed terminal costs no state
                if result.good or done or result.stop:  # in a row of bad steps, older states are worth more
                    _save_states(trainer, settings)
                if unlogged is not None:
                    raise unlogged
                if _passed(trainer, tick * settings.snapshot_ticks):
                    write_snapshots(trainer, dataset, settings.run_dir, draw)
            results, tick_time = [], time.time()


def _tried(write: Callable[[], None]) -> OSError | None:
    """What the system has against it, to be raised later."""
    try:
        write()
    except OSError as e:
        return e
    return None


def _save_states(trainer: Trainer, settings: RunSettings) -> None:
    if _passed(trainer, settings.tick_images * settings.dump_ticks):
        save_state(settings.run_dir / dump_name(trainer.images_seen), trainer.state())
    save_state(settings.run_dir / state_name(trainer.images_seen), trainer.state())
    keep_newest(settings.run_dir, settings.keep_states)


def snapshot_paths(trainer: Trainer, run_dir: Path) -> list[Path]:
    """Where the EMAs go at this number of images."""
    plain = f"network-snapshot-{trainer.images_seen // 1000:06d}"
    names = [plain, *(f"{plain}-{average.label}" for average in trainer.config.averages[1:])]
    return [run_dir / f"{name}.safetensors" for name in names]


def write_snapshots(trainer: Trainer, dataset: ImageDataset, run_dir: Path, draw: Draw | None = None) -> Path:
    """The EMAs, for `load_denoiser` and generate.py; the path of the first one, `network-snapshot-{kimg:06d}`.

    The others' names end with their half-life in millions of images, `-ema0.5`, or their width, `-std0.1`. `draw`
    gets the first EMA.
    """
    kimg, paths = trainer.images_seen // 1000, snapshot_paths(trainer, run_dir)
    for path, ema, average in zip(paths, trainer.emas, trainer.config.averages, strict=True):
        save_snapshot(
            path,
            ema,
            init_kwargs=trainer.config.network["init_kwargs"],
            kimg=trainer.images_seen / 1000,
            dataset=dataset.name,
            extra={"training": trainer.config.options(), **average.header},
        )
    if draw is not None:
        draw(trainer.emas[0], run_dir / f"grid-{kimg:06d}.png")
    return paths[0]


def _record(trainer: Trainer, settings: RunSettings, results: list[StepResult], seconds: float) -> dict[str, Any]:
    """A line of stats.jsonl: means over the good steps of a tick."""
    good = [r for r in results if r.good]
    rate = len(results) * trainer.config.batch / max(seconds, 1e-9)
    record: dict[str, Any] = {
        "kimg": round(trainer.images_seen / 1000, 3),
        "images_seen": trainer.images_seen,
        "loss": float(np.mean([r.loss for r in good])) if good else None,
        "grad_norm": float(np.mean([r.grad_norm for r in good])) if good else None,
        "bad_steps": trainer.bad_steps,
        "lr": learning_rate(trainer.config, trainer.images_seen),
        "images_per_s": round(rate, 2),
        "eta_s": round(max(settings.total_images - trainer.images_seen, 0) / max(rate, 1e-9)),
        "ranks": distributed.world_size(),
        "rss_gib": round(psutil.Process().memory_info().rss / 2**30, 3),
        "time": round(time.time(), 1),
    }
    return record
