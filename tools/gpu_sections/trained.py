"""The optimiser step of hands-128-ve, EMA and all: images per second, memory, the share of the matrix ceiling."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import torch

from tools.gpu_sections.common import Section
from tools.gpu_sections.speed import HANDS, best_of, flops
from training.config import Execution, TrainConfig
from training.feed import Batch
from training.recipes import RECIPES, network_kwargs
from training.trainer import Trainer


def random_batch(B: int, R: int) -> Batch:
    g = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (B, 3, R, R), dtype=torch.uint8, generator=g)
    noise, n = torch.randn(B, 3, R, R, generator=g), torch.randn(B, generator=g)
    return Batch(range(B), images, None, n, noise, torch.zeros(B, dtype=torch.bool), None)


def training_runs(section: Section, variants: dict[str, tuple[str, int, Execution]]) -> None:
    """The optimiser step of hands-128-ve, EMA and all, on batches that lie ready in memory."""
    for name, (precision, B, execution) in variants.items():
        with section.part(name):
            options: dict[str, Any] = {**RECIPES[HANDS[0]], "augment": 0}
            if section.quick:
                options |= {"cbase": 8, "blocks": 1, "attn": ()}
            R = 16 if section.quick else HANDS[1]
            kwargs = network_kwargs(options, img_resolution=R, img_channels=3)
            network = {"class_name": "EDMPrecond", "init_kwargs": kwargs}
            run = Trainer(TrainConfig("", 1, network, batch=B, precision=precision), section.device, execution)
            batch = random_batch(B, R)
            start = time.perf_counter()
            step = partial(run.step, [batch])
            step()
            section.synchronize()
            first = time.perf_counter() - start
            cost = flops(run.net, torch.zeros(1, 3, R, R, device=section.device))
            top = best_of("bf16" if precision == "bf16" else "tf32", section)
            taken = section.seconds(step, least=1.0, warm=1)
            _, mib = section.peak(step)
            share = 3 * cost * B / taken / 1000 / top
            section.record(name, {"images/s": B / taken, "share of matmul": share, "peak MiB": mib,
                                  "seconds of the first step": first})  # fmt: skip
            del run, step
            if section.cuda:
                torch.cuda.empty_cache()


def training(section: Section) -> None:
    B = 2 if section.quick else 64
    variants = {f"bf16, batch {B}": ("bf16", B, Execution())}
    if not section.quick:
        variants |= {
            "bf16, channels last, batch 64": ("bf16", 64, Execution(channels_last=True)),
            "fp32 (tf32 in convolutions), batch 64": ("fp32", 64, Execution()),
        }
    torch.backends.cudnn.benchmark = True  # as train.py does
    training_runs(section, variants)


def compiled_training(section: Section) -> None:
    B = 2 if section.quick else 64
    training_runs(section, {f"bf16, compiled, batch {B}": ("bf16", B, Execution(compiled=True))})
