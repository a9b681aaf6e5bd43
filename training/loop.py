"""The training loop: what happens at every step, tick and stop; resumable at any moment, the same on all ranks."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
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
from training.run import Run, StepResult
from training.state import dump_name, keep_newest, load_newest, save_state, saved_states, state_name
from training.transfer import start_from_state, start_from_weights

Draw = Callable[[nn.Module, Path], None]  # a picture of what the network draws, into this file
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
    run: Run,
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
        start(run)  # before the folder is made, for it may fail
    with open_run_dir(settings.run_dir, run.config.options()) if lead else nullcontext(), StopRequest() as stop:
        if lead:
            _go_on(run, settings, dataset, stop)
        run.share()
        log = RunLog(settings.run_dir, run.images_seen) if lead else None
        _train_on(run, settings, dataset, stop, log, draw, validate)
        if log is not None:
            log.close()
            if run.images_seen >= settings.total_images:
                say(f"Finished: {write_snapshots(run, dataset, settings.run_dir, draw)}")
            else:
                say(f"Stopped at {run.images_seen / 1000:.1f} kimg; the same command goes on from here")
        distributed.barrier()


def start(run: Run) -> None:
    """What --resume or --transfer ask for, and what is to say about it. UserError where it cannot be had."""
    lines: list[str] = []
    if run.config.resume:
        lines += start_from_state(run, run.config.resume)
    elif run.config.transfer:
        lines += start_from_weights(run, run.config.transfer)
    for line in lines:
        say(line)


def _go_on(run: Run, settings: RunSettings, dataset: ImageDataset, stop: StopRequest) -> None:
    state, problems = load_newest(settings.run_dir)
    if state is None:
        say(f"Starting in {settings.run_dir}")
        _decode_all(dataset, stop)
        return
    refuse_other_options(settings.run_dir, state.options, run.config.options())
    run.restore(state)
    for problem in problems:
        say(f"Passed over: {problem}")
    say(f"Going on in {settings.run_dir} at {run.images_seen / 1000:.1f} kimg")


def _steps(run: Run, settings: RunSettings, dataset: ImageDataset, stop: StopRequest) -> Iterator[StepResult]:
    """Trains and yields the result of every step, up to the end or a stop, at the same step on every rank."""
    ranks = distributed.world_size()
    batches = feed(
        dataset,
        run.config,
        run.images_seen,
        rank=distributed.rank(),
        ranks=ranks,
        batch_gpu=run.execution.batch_gpu,
        workers=settings.workers,
    )
    with batches as rounds:
        while run.images_seen < settings.total_images:
            result = run.step(next(rounds), stop=stop.received)
            yield result
            if run.bad_in_a_row >= settings.max_bad_steps:
                raise UserError(
                    f"gradients are not finite in {run.bad_in_a_row} steps in a row, up to image {run.images_seen:,}; "
                    "the last good state is kept. Lower --lr, set --grad-clip or use --precision=fp32, and --resume "
                    "from a state or --transfer from a snapshot"
                )
            if result.stop:
                return


def _train_on(
    run: Run,
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

    def passed(every: int) -> bool:
        return every > 0 and (run.images_seen - run.config.batch) // every < run.images_seen // every

    # disable=None: a bar on terminals only
    with tqdm(total=total, initial=run.images_seen, unit="img", disable=True if log is None else None) as progress:
        for result in _steps(run, settings, dataset, stop):
            results.append(result)
            progress.update(run.config.batch)
            done = run.images_seen >= total
            if not (done or result.stop or passed(tick)):
                continue
            record = _record(run, settings, results, time.time() - tick_time)
            record.update(validate(run.emas[0]) if validate else {})  # the ranks share this work
            if log is not None:
                log.write(record)
                if passed(tick * settings.snapshot_ticks):
                    write_snapshots(run, dataset, settings.run_dir, draw)
                if result.good or done or result.stop:  # in a row of bad steps, older states are worth more
                    if passed(tick * settings.dump_ticks):
                        save_state(settings.run_dir / dump_name(run.images_seen), run.state())
                    save_state(settings.run_dir / state_name(run.images_seen), run.state())  # last: else done again
                    keep_newest(settings.run_dir, settings.keep_states)
            results, tick_time = [], time.time()


def _decode_all(dataset: ImageDataset, stop: StopRequest) -> None:
    """Finds a damaged or odd image before the training does, hours later."""
    for i in tqdm(range(len(dataset)), desc="Reading images", unit="img", disable=None, leave=False):
        if stop.received:
            return
        dataset.image(i)


def write_snapshots(run: Run, dataset: ImageDataset, run_dir: Path, draw: Draw | None = None) -> Path:
    """The EMAs, for `load_denoiser` and generate.py; the path of the first one, `network-snapshot-{kimg:06d}`.

    The others' names end with their half-life in millions of images, `-ema0.5`. `draw` gets the first EMA.
    """
    kimg = run.images_seen // 1000
    paths = [run_dir / f"network-snapshot-{kimg:06d}.safetensors"]
    paths += [
        run_dir / f"network-snapshot-{kimg:06d}-ema{halflife / 1e6:g}.safetensors"
        for halflife in run.config.ema_halflives[1:]
    ]
    for path, ema, halflife in zip(paths, run.emas, run.config.ema_halflives, strict=True):
        save_snapshot(
            path,
            ema,
            init_kwargs=run.config.network["init_kwargs"],
            kimg=run.images_seen / 1000,
            dataset=dataset.name,
            extra={"training": run.config.options(), "ema_halflife": halflife},
        )
    if draw is not None:
        draw(run.emas[0], run_dir / f"grid-{kimg:06d}.png")
    return paths[0]


def _record(run: Run, settings: RunSettings, results: list[StepResult], seconds: float) -> dict[str, Any]:
    """A line of stats.jsonl: means over the good steps of a tick."""
    good = [r for r in results if r.good]
    rate = len(results) * run.config.batch / max(seconds, 1e-9)
    record: dict[str, Any] = {
        "kimg": round(run.images_seen / 1000, 3),
        "images_seen": run.images_seen,
        "loss": float(np.mean([r.loss for r in good])) if good else None,
        "grad_norm": float(np.mean([r.grad_norm for r in good])) if good else None,
        "bad_steps": run.bad_steps,
        "lr": learning_rate(run.config, run.images_seen),
        "images_per_s": round(rate, 2),
        "eta_s": round(max(settings.total_images - run.images_seen, 0) / max(rate, 1e-9)),
        "ranks": distributed.world_size(),
        "rss_gib": round(psutil.Process().memory_info().rss / 2**30, 3),
        "time": round(time.time(), 1),
    }
    return record
