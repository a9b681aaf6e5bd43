"""The training loop: EDM loss, Adam, EMA; resumable at any step, deterministic in (seed, images seen)."""

from __future__ import annotations

import copy
import json
import signal
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import numpy as np
import psutil
import torch
from tqdm import tqdm

from dnnlib.errors import UserError
from training.checkpoint import load_snapshot, save_snapshot
from training.dataset import ImageDataset, data_order
from training.folder import open_run_dir, refuse_other_options
from training.logging import STATS_NAME, append_stats, say, trim_stats
from training.loss import EDMLoss, image_draws, stream_seed
from training.networks import NETWORKS
from training.schema import check_init_kwargs
from training.state import STATE_NAME, TrainingState, load_state, save_state


@dataclass(frozen=True)
class TrainConfig:
    """What decides a run's weights after any number of images, and so what tells runs apart.

    Runs with equal configs have equal weights, bit for bit on one machine with one number of CPU threads.
    """

    data: str
    num_images: int  # in the data set
    network: dict[str, Any]  # {"class_name": ..., "init_kwargs": {...}}
    cond: bool = False
    batch: int = 512
    lr: float = 1e-3
    lr_rampup: int = 10_000_000  # images
    ema_halflife: int = 500_000  # images
    ema_rampup_ratio: float = 0.05
    P_mean: float = -1.2
    P_std: float = 1.2
    xflip: bool = False
    seed: int = 0
    precision: str = "fp32"
    transfer: str | None = None

    def options(self) -> dict[str, Any]:
        """As JSON gives it back, so that files and configs compare."""
        options: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return options


@dataclass(frozen=True)
class RunSettings:
    """What does not change the weights along the way: where, how far, how often to save."""

    run_dir: Path
    total_images: int
    tick_images: int  # the state is saved whenever a multiple of this is passed
    snapshot_ticks: int  # and a snapshot at every so many ticks; 0: at the end only


def learning_rate(config: TrainConfig, images_seen: int) -> float:
    """Linear from 0 at the first image to `lr` at `lr_rampup`."""
    return config.lr * min(images_seen / config.lr_rampup, 1) if config.lr_rampup else config.lr


def ema_beta(config: TrainConfig, images_seen: int) -> float:
    """.5^(batch / half-life), the half-life held to a share of what was seen (EDM, Appendix F)."""
    halflife = min(config.ema_halflife, images_seen * config.ema_rampup_ratio)
    return float(0.5 ** (config.batch / max(halflife, 1e-8)))


class Run:
    """Network, EMA and optimiser of one run, with their state."""

    def __init__(self, config: TrainConfig, device: torch.device) -> None:
        class_name = config.network["class_name"]
        kwargs = check_init_kwargs(class_name, config.network["init_kwargs"])  # what no snapshot could hold
        torch.manual_seed(config.seed)
        self.config, self.device, self.images_seen = config, device, 0
        self.net = NETWORKS[class_name](**kwargs).train().requires_grad_(True).to(device)
        self.ema = copy.deepcopy(self.net).eval().requires_grad_(False)
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=config.lr, betas=(0.9, 0.999), eps=1e-8)
        self.loss = EDMLoss(config.P_mean, config.P_std, kwargs.get("sigma_data", 0.5))

    def transfer(self, source: str) -> None:
        """Start from the weights of a snapshot. Raises UserError: they are those of another network."""
        snapshot = load_snapshot(source)
        found = {name: list(t.shape) for name, t in snapshot.net.state_dict().items()}
        wanted = {name: list(t.shape) for name, t in self.net.state_dict().items()}
        odd = [k for k in {**wanted, **found} if found.get(k) != wanted.get(k)]
        classes = snapshot.header.class_name, self.config.network["class_name"]
        if odd or classes[0] != classes[1]:
            shapes = [f"{k} is {found.get(k, 'missing')} there and {wanted.get(k, 'missing')} here" for k in odd[:1]]
            why = f"{len(odd)} of its tensors do not fit ({shapes[0]})" if odd else f"it is no {classes[1]}"
            raise UserError(f"--transfer={source}: {why}; give this run the options of that network")
        self.net.load_state_dict(snapshot.net.state_dict())
        self.ema.load_state_dict(snapshot.net.state_dict())
        say(f"Weights of {snapshot.describe()}")

    def state(self) -> TrainingState:
        return TrainingState(
            self.net.state_dict(),
            self.ema.state_dict(),
            self.optimizer.state_dict(),
            self.images_seen,
            self.config.options(),
        )

    def restore(self, state: TrainingState) -> None:
        self.net.load_state_dict(state.net)
        self.ema.load_state_dict(state.ema)
        self.optimizer.load_state_dict(state.optimizer)
        self.images_seen = state.images_seen

    def step(self, dataset: ImageDataset, indices: list[int]) -> float:
        """One optimiser step on the images `indices`, 1 F + 1 B to the weights; returns the mean loss per pixel.

        Raises UserError: gradients that are not finite; the weights stay as they were.
        """
        config, start = self.config, self.images_seen
        images, labels = dataset.batch(indices)
        y = images.to(self.device, torch.float32) / 127.5 - 1  # [B, C, H, W]
        n, noise, flips = image_draws(config.seed, range(start, start + len(y)), y.shape[1:], flip=config.xflip)
        y = torch.where(flips.to(self.device)[:, None, None, None], y.flip(3), y)
        torch.manual_seed(stream_seed(config.seed, start, use=1))  # dropout masks
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(config, start)
        self.optimizer.zero_grad(set_to_none=True)
        draws = {"n": n.to(self.device), "noise": noise.to(self.device)}
        with torch.autocast(self.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            loss = self.loss(self.net, y, labels.to(self.device) if dataset.label_dim else None, **draws)
        objective = loss.sum(dim=(1, 2, 3)).mean()  # the squared norm of eq. 8, so that Adam's eps stays negligible
        objective.backward()  # type: ignore[no-untyped-call]
        self.check_gradients()
        self.optimizer.step()
        self.images_seen += len(y)
        self.update_ema()
        return float(objective.detach()) / y[0].numel()

    def check_gradients(self) -> None:
        finite = [p.grad.isfinite().all() for p in self.net.parameters() if p.grad is not None]
        if not torch.stack(finite).all():
            raise UserError(
                f"gradients are not finite at image {self.images_seen:,}; the state of the last tick is kept. "
                "Lower --lr, lengthen --lr-rampup or use --precision=fp32, and --transfer from the last snapshot"
            )

    @torch.no_grad()
    def update_ema(self) -> None:
        beta = ema_beta(self.config, self.images_seen)
        for p_ema, p in zip(self.ema.parameters(), self.net.parameters(), strict=True):
            p_ema.lerp_(p, 1 - beta)
        for b_ema, b in zip(self.ema.buffers(), self.net.buffers(), strict=True):
            b_ema.copy_(b)


class StopRequest:
    """Within the block, SIGTERM and SIGINT ask for a save after the current step; a second Ctrl-C interrupts."""

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
        if self.received and signum == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = True


def train(run: Run, settings: RunSettings, dataset: ImageDataset) -> None:
    """Train to `total_images` or until told to stop, going on from the state in `run_dir` if there is one.

    Writes there `stats.jsonl` (a line a tick), `training-state.pt` (at each tick and on SIGTERM/SIGINT) and
    `network-snapshot-{kimg:06d}.safetensors` (the EMA). A kill at any moment loses what followed the last state.

    Raises:
        UserError: a folder in use or of other options, a damaged state or image, gradients that are not finite.
    """
    state_path, config = settings.run_dir / STATE_NAME, run.config
    if config.transfer and not state_path.exists():
        run.transfer(config.transfer)
    with open_run_dir(settings.run_dir, config.options()), StopRequest() as stop:
        if state_path.exists():
            state = load_state(state_path)
            refuse_other_options(settings.run_dir, state.options, config.options())
            run.restore(state)
            say(f"Going on in {settings.run_dir} at {run.images_seen / 1000:.1f} kimg")
        else:
            say(f"Starting in {settings.run_dir}")
            _decode_all(dataset, stop)
        trim_stats(settings.run_dir / STATS_NAME, run.images_seen)
        _train_on(run, settings, dataset, stop)
        if run.images_seen >= settings.total_images:
            say(f"Finished: {write_snapshot(run, dataset, settings.run_dir)}")
        else:
            say(f"Stopped at {run.images_seen / 1000:.1f} kimg; the same command goes on from here")


def _train_on(run: Run, settings: RunSettings, dataset: ImageDataset, stop: StopRequest) -> None:
    batch, tick, total = run.config.batch, settings.tick_images, settings.total_images
    order = data_order(len(dataset), seed=run.config.seed, start=run.images_seen)
    losses, tick_time = list[float](), time.time()
    # disable=None: a bar on terminals only
    with tqdm(total=total, initial=run.images_seen, unit="img", disable=None) as progress:
        while run.images_seen < total and not stop.received:
            start = run.images_seen
            losses.append(run.step(dataset, [next(order) for _ in range(batch)]))
            progress.update(batch)
            done = run.images_seen >= total
            if not (done or stop.received or start // tick < run.images_seen // tick):
                continue
            _log(run, settings, losses, time.time() - tick_time)
            every = tick * settings.snapshot_ticks
            if every and start // every < run.images_seen // every:
                write_snapshot(run, dataset, settings.run_dir)
            save_state(settings.run_dir / STATE_NAME, run.state())  # last: what is not in the state is done again
            losses, tick_time = [], time.time()


def _decode_all(dataset: ImageDataset, stop: StopRequest) -> None:
    """Finds a damaged or odd image before the training does, hours later."""
    for i in tqdm(range(len(dataset)), desc="Reading images", unit="img", disable=None, leave=False):
        if stop.received:
            return
        dataset.image(i)


def write_snapshot(run: Run, dataset: ImageDataset, run_dir: Path) -> Path:
    """The EMA as `network-snapshot-{kimg:06d}.safetensors`, for `load_denoiser` and generate.py."""
    path = run_dir / f"network-snapshot-{run.images_seen // 1000:06d}.safetensors"
    save_snapshot(
        path,
        run.ema,
        init_kwargs=run.config.network["init_kwargs"],
        kimg=run.images_seen / 1000,
        dataset=dataset.name,
        extra={"training": run.config.options()},
    )
    return path


def _log(run: Run, settings: RunSettings, losses: list[float], seconds: float) -> None:
    rate = len(losses) * run.config.batch / max(seconds, 1e-9)
    line = {
        "kimg": round(run.images_seen / 1000, 3),
        "images_seen": run.images_seen,
        "loss": float(np.mean(losses)),
        "lr": learning_rate(run.config, run.images_seen),
        "images_per_s": round(rate, 2),
        "eta_s": round(max(settings.total_images - run.images_seen, 0) / max(rate, 1e-9)),
        "rss_gib": round(psutil.Process().memory_info().rss / 2**30, 3),
        "time": round(time.time(), 1),
    }
    append_stats(settings.run_dir / STATS_NAME, line)
    shown = {k: v for k, v in line.items() if k not in ("images_seen", "time")}
    say(" ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in shown.items()))
