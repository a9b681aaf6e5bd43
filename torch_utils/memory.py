"""Telling that memory has run out from other errors; nothing but torch is imported, for the sampling core uses this."""

from __future__ import annotations

import torch


def is_out_of_memory(error: BaseException) -> bool:
    """torch has a type of its own for the GPU's memory, and none for the CPU's."""
    return isinstance(error, MemoryError | torch.cuda.OutOfMemoryError) or "can't allocate memory" in str(error)
