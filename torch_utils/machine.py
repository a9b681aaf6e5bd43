"""What a measurement was taken on and how work is measured; two habits of the C library's allocator that cost time."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor

from dnnlib.errors import UserError
from torch_utils.memory import is_out_of_memory

if sys.platform != "win32":
    import resource

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # of <malloc.h>
LARGEST_FROM_HEAP = 1 << 25  # bytes; glibc takes no more
KEPT_FREE = 1 << 30  # bytes
ENOUGH_SECONDS = 1.0  # a measurement of so long says enough
STALLED = 3.0  # times slower by the row than with fewer rows: another process had the core, so it is measured again


def facts() -> dict[str, Any]:
    """Machine and versions, ready for JSON: what every measurement is written beside."""
    known = {
        "machine": f"{platform.system()} {platform.machine()}, {cpu_name()}, {os.cpu_count()} cores",
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "bf16_units": has_bf16_units(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    if torch.cuda.is_available():
        known["gpu"] = torch.cuda.get_device_name()
    return known


def cpu_name() -> str:
    """The processor's name where the system tells it."""
    return next(_cpuinfo("model name"), "unknown processor")


def has_bf16_units() -> bool:
    """Whether this CPU multiplies bf16 in hardware (AMX or AVX-512 bf16); without, bf16 is far slower than float32."""
    return bool({"amx_bf16", "avx512_bf16"} & set(next(_cpuinfo("flags"), "").split()))


def _cpuinfo(key: str) -> Any:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return (line.split(":", 1)[1].strip() for line in lines if line.startswith(key))


@contextmanager
def must_fit(remedy: str) -> Iterator[None]:
    """Within the block, memory that runs out is the user's to mend: UserError(remedy)."""
    try:
        yield
    except (RuntimeError, MemoryError) as e:
        if not is_out_of_memory(e):
            raise
        raise UserError(remedy) from None


@contextmanager
def kept_for_backward(parameters: Iterable[Tensor]) -> Iterator[Callable[[], int]]:
    """Within the block, forward passes are watched; what is handed over gives the bytes that a backward pass needs.

    Each piece of memory counts once, and `parameters`, which are there anyway, not at all.
    """
    theirs = {p.untyped_storage().data_ptr() for p in parameters}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in theirs:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield lambda: sum(kept.values())


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Seconds that `work` takes, to its end on the device."""
    _finish(device)
    start = time.perf_counter()
    work()
    _finish(device)
    return time.perf_counter() - start


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def largest_measured(work: Callable[[int], object], most: int, device: torch.device) -> tuple[int, float]:
    """(rows, seconds) of `work` on 1, 2, 4, ... up to `most` rows, the last that was tried within about a second.

    One row goes first, unmeasured: kernels are chosen and memory is fetched there.
    """
    work(1)
    rows, seconds = 1, timed(lambda: work(1), device)
    while rows < most and seconds < ENOUGH_SECONDS:
        before = seconds / rows
        rows = min(2 * rows, most)
        seconds = timed(partial(work, rows), device)
        if seconds > STALLED * before * rows:
            seconds = min(seconds, timed(partial(work, rows), device))
    return rows, seconds


def peak_memory(device: torch.device) -> int:
    """The most bytes that this process has held so far: on the GPU, or as a whole where there is none."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def size_text(size: int) -> str:
    """Bytes in GiB, or small ones in MiB."""
    return f"{size / 2**30:.2g} GiB" if size >= 2**26 else f"{size / 2**20:.2g} MiB"


def keep_freed_memory() -> bool:
    """Asks glibc to keep freed memory for the next layer, up to 1 GiB, instead of handing it back at once.

    Else the kernel clears the same pages anew for every activation. Changes no result; the peak is as without. False
    where the C library has no such call, or the environment has settled it (MALLOC_..._).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    settings = {M_MMAP_THRESHOLD: LARGEST_FROM_HEAP, M_TRIM_THRESHOLD: KEPT_FREE, M_TOP_PAD: 1 << 26}
    return all(mallopt(name, value) for name, value in settings.items())
