"""Micro-batches: batches that do not fit in memory go through the network in parts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from torch_utils.memory import is_out_of_memory

Kind = Literal["forward", "probe", "decode"]
"""What is evaluated: D(x; sigma) alone, or with a backward pass to x, which keeps every layer's activations; or the
decoder of latents, whose images are many times larger than these."""
DECODED_AT_ONCE = 8


class MicroBatches:
    """How many rows the network gets at once: all of them, until memory runs out; then half as many, and so on.

    The chunks of a run share one, so that the limit is found once. `probe_batch` bounds the backward passes from the
    start, which need several times the memory of a forward pass. A sample's result does not depend on the rows beside
    it, but for float32 rounding, which may differ with their number. Raises ValueError for a `probe_batch` < 1.
    """

    def __init__(self, *, probe_batch: int | None = None) -> None:
        if probe_batch is not None and probe_batch < 1:
            raise ValueError(f"probe_batch: {probe_batch} is too few; give a whole number >= 1")
        self.limits: dict[Kind, int | None] = {"forward": None, "probe": probe_batch, "decode": DECODED_AT_ONCE}
        self.halved: dict[Kind, int] = {}

    def run(self, kind: Kind, rows: int, evaluate: Callable[[slice], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """`evaluate` on slices that make up `rows` rows, its results joined; a slice that does not fit is halved.

        Raises what `evaluate` raises; out of memory only where a single row does not fit.
        """
        if not rows:
            return evaluate(slice(0, 0))
        parts, start = [], 0
        while start < rows:
            size = min(self.limits[kind] or rows, rows - start)
            try:
                parts.append(evaluate(slice(start, start + size)))
            except (RuntimeError, MemoryError) as e:
                if size == 1 or not is_out_of_memory(e):
                    raise
                self.limits[kind] = self.halved[kind] = (size + 1) // 2
            else:
                start += size
                continue
            # Not in the except block, for there the traceback still holds what did not fit.
            if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
                torch.cuda.empty_cache()
        return parts[0] if len(parts) == 1 else tuple(torch.cat(column) for column in zip(*parts, strict=True))

    def describe(self) -> str:
        """What was halved, in words; nothing where nothing was."""
        if not self.halved:
            return ""
        forward, probe, decode = (self.halved.get(kind) for kind in ("forward", "probe", "decode"))
        parts = [f"{forward} at a time"] if forward else []
        parts += [f"backward passes {probe} at a time (--probe-batch={probe} starts there)"] if probe else []
        parts += [f"decoded {decode} at a time"] if decode else []
        return "out of memory; going on with the same images, " + ", ".join(parts)
