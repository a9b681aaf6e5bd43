"""The fastest precision and memory layout of a network on this CPU: tried once, and kept for the next time.

bf16 pays where the processor multiplies it (AMX, AVX-512 bf16) and layers are large; converting to it and back costs
more than it gains where they are small. So it is measured, and float32 as it was stays unless something is faster.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dnnlib.util import atomic_write
from torch_utils.machine import cpu_name, has_bf16_units
from training.execution import Mixed, set_layout
from training.networks import Precond

GAIN = 0.95
"""What a choice may take of float32's time to be chosen: less than that is noise."""
REPEATS = 3
MOST_ROWS = 16  # of the images that are tried: more of them change little


@dataclass(frozen=True)
class Choice:
    """A precision and a layout, and the share of float32's time that a forward evaluation takes with them."""

    precision: str = "float32"
    channels_last: bool = False
    time: float = 1
    kept: bool = False  # from an earlier run

    def describe(self) -> str:
        """For the line that says what was chosen."""
        layout = ", channels last" if self.channels_last else ""
        faster = f"{self.time:.2f}x the time of float32" if self.time < 1 else "nothing faster was found"
        return f"{self.precision}{layout} ({faster}{', measured before' if self.kept else ''})"


def fastest(net: Precond, *, batch: int, channels_last: bool, device: torch.device) -> Choice:
    """The precision and layout that take the least time for `batch` images; float32 where nothing gains 5 %.

    With `channels_last` that layout is settled. Off the CPU, and on one without units for bf16, nothing is tried.
    """
    plain = Choice(channels_last=channels_last)
    if device.type != "cpu" or not has_bf16_units():
        return plain
    place, key = kept_at(), key_of(net, batch, channels_last)
    known = read(place)
    if key in known:
        with suppress(TypeError):
            return Choice(**{**known[key], "kept": True})
    found = measured(net, batch=min(batch, MOST_ROWS), channels_last=channels_last)
    with suppress(OSError):  # a folder that cannot be written: it is tried again the next time
        place.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(place) as temporary:
            temporary.write_text(json.dumps({**read(place), key: asdict(found)}, indent=1) + "\n")
    return found


def measured(net: Precond, *, batch: int, channels_last: bool) -> Choice:
    """The choice by a few forward evaluations of each kind, in turns. The network is laid out as it was."""
    layouts = [True] if channels_last else [False, True]
    kinds = [(precision, last) for precision in ("float32", "mixed") for last in layouts]
    called: dict[str, nn.Module] = {"float32": net, "mixed": Mixed(net)}
    x = torch.ones(batch, net.img_channels, net.img_resolution, net.img_resolution)
    labels = torch.zeros(batch, net.label_dim) if net.label_dim else None
    seconds: dict[tuple[str, bool], list[float]] = {kind: [] for kind in kinds}
    for _ in range(1 + REPEATS):
        for precision, last in kinds:
            set_layout(net, channels_last=last)
            seconds[precision, last].append(spent(called[precision], x, labels))
    set_layout(net, channels_last=channels_last)
    least = {kind: min(times[1:]) for kind, times in seconds.items()}  # the first chose its kernels
    plain, best = ("float32", channels_last), min(least, key=lambda kind: least[kind])
    share = least[best] / least[plain]
    return Choice(*best, round(share, 3)) if share <= GAIN else Choice(*plain)


@torch.no_grad()
def spent(net: nn.Module, x: Tensor, labels: Tensor | None) -> float:
    """Seconds of this process for D(x; 1): what others do on the machine does not count."""
    start = time.process_time()
    net(x, torch.ones([]), labels)
    return time.process_time() - start


def key_of(net: Precond, batch: int, channels_last: bool) -> str:
    """What a choice is good for: this machine with so many threads, and a network of this shape."""
    shapes = repr([(name, tuple(p.shape)) for name, p in net.named_parameters()]).encode()
    network = f"{type(net).__name__} {net.img_resolution}x{net.img_channels} {hashlib.sha256(shapes).hexdigest()[:12]}"
    threads = torch.get_num_threads()
    return f"{cpu_name()}, {threads} threads, torch {torch.__version__}: {network}, batch {batch}" + (
        ", channels last" if channels_last else ""
    )


def kept_at() -> Path:
    """The file of choices, beside what is downloaded."""
    return Path(os.environ.get("DNNLIB_CACHE_DIR") or "~/.cache/dnnlib").expanduser() / "precision.json"


def read(path: Path) -> dict[str, Any]:
    """The choices that are kept; none where the file is not there or damaged."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
