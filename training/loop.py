"""The training loop: EDM loss, Adam, EMA; resumable at any step, deterministic in (seed, images seen)."""

from __future__ import annotations

import copy
import json
import signal
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import psutil
import torch
from tqdm import tqdm

from training.checkpoint import load_snapshot, save_snapshot
from training.dataset import ImageDataset, data_order
from training.loss import EDMLoss, image_draws
from training.networks import NETWORKS
from training.state import STATE_NAME, TrainingState, load_state, save_state


@dataclass(frozen=True)
class TrainConfig:
    """What decides a run's weights; two runs with equal configs on one machine end with equal weights."""

    data: str
    network: dict[str, Any]  # {"class_name": ..., "init_kwargs": {...}}
    total_images: int
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


@dataclass(frozen=True)
class RunSettings:
    """What does not change the weights: where, how often, on what."""

    run_dir: Path
    device: torch.device
    tick_images: int
    snapshot_ticks: int


def learning_rate(config: TrainConfig, images_seen: int) -> float:
    return config.lr * min(images_seen / max(config.lr_rampup, 1e-8), 1)


def ema_beta(config: TrainConfig, images_seen: int) -> float:
    """.5^(batch / half-life), the half-life held to a share of what was seen (EDM, Appendix F)."""
    halflife = min(config.ema_halflife, images_seen * config.ema_rampup_ratio)
    return float(0.5 ** (config.batch / max(halflife, 1e-8)))


class Run:
    """Network, EMA and optimiser of one run, with their state."""

    def __init__(self, config: TrainConfig, device: torch.device) -> None:
        torch.manual_seed(config.seed)
        self.config, self.device, self.images_seen = config, device, 0
        net = NETWORKS[config.network["class_name"]](**config.network["init_kwargs"])
        if config.transfer:
            net.load_state_dict(load_snapshot(config.transfer).net.state_dict())
        self.net = net.train().requires_grad_(True).to(device)
        self.ema = copy.deepcopy(self.net).eval().requires_grad_(False)
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=config.lr, betas=(0.9, 0.999), eps=1e-8)
        self.loss = EDMLoss(config.P_mean, config.P_std, config.network["init_kwargs"].get("sigma_data", 0.5))

    def state(self) -> TrainingState:
        return TrainingState(
            self.net.state_dict(),
            self.ema.state_dict(),
            self.optimizer.state_dict(),
            self.images_seen,
            asdict(self.config),
        )

    def restore(self, state: TrainingState) -> None:
        self.net.load_state_dict(state.net)
        self.ema.load_state_dict(state.ema)
        self.optimizer.load_state_dict(state.optimizer)
        self.images_seen = state.images_seen

    def step(self, dataset: ImageDataset, indices: list[int]) -> float:
        """One optimiser step on the images `indices`; returns the mean loss per pixel."""
        config, start = self.config, self.images_seen
        images, labels = dataset.batch(indices)
        y = images.to(self.device, torch.float32) / 127.5 - 1
        n, noise, flips = image_draws(config.seed, range(start, start + len(y)), y.shape[1:], flip=config.xflip)
        y = torch.where(flips.to(self.device)[:, None, None, None], y.flip(3), y)
        torch.manual_seed((config.seed << 40) + start)  # dropout masks
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(config, start)
        self.optimizer.zero_grad(set_to_none=True)
        draws = {"n": n.to(self.device), "noise": noise.to(self.device)}
        with torch.autocast(self.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            loss = self.loss(self.net, y, labels.to(self.device) if dataset.label_dim else None, **draws)
        mean = loss.mean(dim=(1, 2, 3)).mean()
        mean.backward()  # type: ignore[no-untyped-call]
        for p in self.net.parameters():
            if p.grad is not None and not p.grad.isfinite().all():
                raise FloatingPointError(
                    f"gradients are not finite at image {start}; lower --lr or use --precision=fp32"
                )
        self.optimizer.step()
        self.images_seen += len(y)
        self.update_ema()
        return float(mean.detach())

    @torch.no_grad()
    def update_ema(self) -> None:
        beta = ema_beta(self.config, self.images_seen)
        for p_ema, p in zip(self.ema.parameters(), self.net.parameters(), strict=True):
            p_ema.lerp_(p, 1 - beta)
        for b_ema, b in zip(self.ema.buffers(), self.net.buffers(), strict=True):
            b_ema.copy_(b)


class StopRequest:
    """SIGTERM and SIGINT ask for a save after the current step."""

    def __init__(self) -> None:
        self.received = False
        for s in (signal.SIGTERM, signal.SIGINT):
            signal.signal(s, self._receive)

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        self.received = True


def train(config: TrainConfig, settings: RunSettings) -> Run:
    """Train to `total_images`, resuming from the state in `run_dir` if there is one.

    Writes `stats.jsonl` (a line a tick), `training-state.pt` (each tick and on SIGTERM/SIGINT) and
    `network-snapshot-{kimg:06d}.safetensors` (the EMA) in `run_dir`.
    """
    dataset = ImageDataset(config.data, cond=config.cond)
    run = Run(config, settings.device)
    state_path = settings.run_dir / STATE_NAME
    if state_path.exists():
        run.restore(load_state(state_path))
        print(f"Resuming {settings.run_dir} at {run.images_seen / 1000:.1f} kimg")
    stop = StopRequest()
    order = data_order(len(dataset), seed=config.seed, start=run.images_seen)
    tick_start, tick_time, losses, tick = run.images_seen, time.time(), list[float](), 0
    with tqdm(total=config.total_images, initial=run.images_seen, unit="img", disable=None) as progress:
        while run.images_seen < config.total_images and not stop.received:
            losses.append(run.step(dataset, [next(order) for _ in range(config.batch)]))
            progress.update(config.batch)
            done = run.images_seen >= config.total_images
            if not (done or stop.received or run.images_seen - tick_start >= settings.tick_images):
                continue
            save_state(state_path, run.state())
            _log_tick(settings.run_dir, run, losses, run.images_seen - tick_start, time.time() - tick_time)
            tick += 1
            if done or (settings.snapshot_ticks and tick % settings.snapshot_ticks == 0):
                write_snapshot(run, dataset, settings)
            tick_start, tick_time, losses = run.images_seen, time.time(), []
    return run


def write_snapshot(run: Run, dataset: ImageDataset, settings: RunSettings) -> Path:
    path = settings.run_dir / f"network-snapshot-{run.images_seen // 1000:06d}.safetensors"
    save_snapshot(
        path,
        run.ema,
        init_kwargs=run.config.network["init_kwargs"],
        kimg=run.images_seen / 1000,
        dataset=dataset.name,
        extra={"training": asdict(run.config)},
    )
    return path


def _log_tick(run_dir: Path, run: Run, losses: list[float], images: int, seconds: float) -> None:
    rate = images / max(seconds, 1e-9)
    line = {
        "kimg": round(run.images_seen / 1000, 3),
        "loss": float(np.mean(losses)),
        "lr": learning_rate(run.config, run.images_seen),
        "images_per_s": round(rate, 2),
        "eta_s": round((run.config.total_images - run.images_seen) / max(rate, 1e-9)),
        "rss_gib": round(psutil.Process().memory_info().rss / 2**30, 3),
        "time": round(time.time(), 1),
    }
    with open(run_dir / "stats.jsonl", "a") as f:
        f.write(json.dumps(line) + "\n")
    tqdm.write(" ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in line.items()))
