"""What a measurement was taken on, and two habits of the C library's allocator that cost time."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from pathlib import Path
from typing import Any

import torch

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # of <malloc.h>
LARGEST_FROM_HEAP = 1 << 25  # bytes; glibc takes no more
KEPT_FREE = 1 << 30  # bytes


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
