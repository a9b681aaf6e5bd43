"""What the sections of gpu_check share: their record on disk, timing, differences."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
MODELS = ROOT / "models"
THREADS = 2


@dataclass
class Section:
    """A section that runs: where it runs, and what it has found so far, kept on disk after every finding."""

    device: torch.device
    quick: bool
    path: Path
    found: dict[str, Any] = field(default_factory=lambda: {"results": {}, "checks": []})

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    def record(self, name: str, value: Any) -> None:
        """A number, or a dict of numbers."""
        self.found["results"][name] = plain(value)
        self.save()

    def check(self, name: str, value: float, limit: float, *, least: bool = False) -> None:
        """A number that must be at most `limit`, or at least with `least`; NaN never passes."""
        ok = value >= limit if least else value <= limit
        self.found["checks"].append({"name": name, "value": plain(value), "limit": limit, "least": least, "ok": ok})
        self.save()

    def fails(self, name: str, error: BaseException) -> None:
        """A part that has failed, where the others go on."""
        text = f"{type(error).__name__}: {error}"[:1500]
        self.found["checks"].append({"name": name, "ok": False, "error": text})
        self.save()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """What fails within is recorded, and does not end the section."""
        try:
            yield
        except Exception as e:
            self.fails(name, e)

    def save(self) -> None:
        temporary = self.path.with_suffix(".part")
        temporary.write_text(json.dumps(self.found))
        os.replace(temporary, self.path)

    def synchronize(self) -> None:
        if self.cuda:
            torch.cuda.synchronize(self.device)

    def seconds(self, work: Callable[[], Any], *, least: float = 0.15, warm: int = 2, most: int = 200) -> float:
        """Seconds of one call: the mean of a few in a row, by the device's own clock, after calls that warm up."""
        for _ in range(warm):
            work()
        self.synchronize()
        start = time.perf_counter()
        work()
        self.synchronize()
        once = time.perf_counter() - start
        n = 1 if self.quick else max(1, min(most, math.ceil(least / max(once, 1e-6))))
        if n == 1:
            return once
        if not self.cuda:
            start = time.perf_counter()
            for _ in range(n):
                work()
            return (time.perf_counter() - start) / n
        first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        first.record()
        for _ in range(n):
            work()
        last.record()
        last.synchronize()
        return first.elapsed_time(last) / 1000 / n

    def peak(self, work: Callable[[], Any]) -> tuple[float, float]:
        """Seconds of one call, and the MiB that it takes at most (nan off CUDA)."""
        if self.cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        self.synchronize()
        start = time.perf_counter()
        work()
        self.synchronize()
        taken = time.perf_counter() - start
        return taken, torch.cuda.max_memory_allocated() / 2**20 if self.cuda else math.nan


@contextmanager
def arithmetic(device: torch.device, name: str) -> Iterator[None]:
    """Within the block: fp32 (no tf32 at all), tf32, default (torch's own: tf32 in convolutions alone), bf16, fp16."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    tf32 = {"fp32": (False, False), "default": (False, True)}.get(name, (True, True))
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = tf32
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(name)
    try:
        with torch.autocast(device.type, half or torch.bfloat16, enabled=half is not None):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def relative(a: Tensor, b: Tensor) -> float:
    """||a - b|| / ||b||, on the CPU in float64."""
    a, b = a.detach().to("cpu", torch.float64), b.detach().to("cpu", torch.float64)
    return float((a - b).norm() / b.norm().clamp(min=1e-300))


def psnr(a: Tensor, b: Tensor) -> float:
    """Of images in [-1, 1], in dB; 999 where they are equal."""
    mse = float((a.detach().to("cpu", torch.float64) - b.detach().to("cpu", torch.float64)).square().mean())
    return 999.0 if mse == 0 else 10 * math.log10(4 / mse)


def plain(value: Any) -> Any:
    """As JSON can hold it: four digits, null for what is no number."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, float):
        return float(f"{value:.4g}") if math.isfinite(value) else None
    return value
