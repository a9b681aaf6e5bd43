"""How a network is executed when it samples: threads, memory layout, precision, compilation; none changes what it is.

Layout and threads move images by float32 rounding, bf16 by more; checkpoints change no bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from training.checkpoint import DTYPES
from training.networks import Precond

PRECISIONS = (*DTYPES, "mixed")
"""mixed: `Mixed`, which is float32 to whoever is around it."""


def autocast_of(precision: str) -> torch.dtype:
    """The dtype of the autocast in which a network of this precision is called; float32: none."""
    return DTYPES.get(precision, torch.float32)


@dataclass(frozen=True)
class ExecutionConfig:
    """Threads of the CPU, memory layout of the weights, and precision inside the network."""

    threads: int
    channels_last: bool = False
    dtype: str = "float32"


def set_layout(net: nn.Module, *, channels_last: bool) -> nn.Module:
    """The same network with its weights laid out [out, H, W, in], or as they come; its activations follow."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return net.to(memory_format=layout)  # type: ignore[call-overload,no-any-return]


def checkpoint_blocks(net: Precond) -> int:
    """Backward passes compute every residual block again instead of keeping it: returns the number of blocks.

    Cost: B grows by about one F; its memory shrinks to the tensors between blocks, and the bits stay.
    """
    blocks = net.model.blocks()
    for block in blocks:
        block.checkpointed = True
    return len(blocks)


class _Around(nn.Module):
    """A network that is called in another way; its attributes are the network's own."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("net"), name)

    def is_watched(self) -> bool:
        """Whether somebody reads layers (a gate, rods/gate.py)."""
        return any(m._forward_hooks or m._forward_pre_hooks for m in self.modules())


class Mixed(_Around):
    """A network in bf16 where only its D is wanted, and in float32 where a gradient or a layer is read.

    In bf16, H above a noise level of about 5 is rounding noise (docs/lab/2026-11-24-performance.md), and a gate's
    threshold is one of float32 activations.
    """

    def forward(self, x: Tensor, sigma: Tensor, class_labels: Tensor | None = None) -> Tensor:
        exact = (torch.is_grad_enabled() and x.requires_grad) or self.is_watched()
        with torch.autocast(x.device.type, torch.bfloat16, enabled=not exact):
            denoised: Tensor = self.net(x, sigma, class_labels)
        return denoised


class Compiled(_Around):
    """A network through torch.compile: a graph for all batch sizes, and another one where a gradient is asked for.

    The number of rows is a symbol of the graphs, so that the few rows of a restart neither compile again nor are padded
    to a whole batch; torch makes one row a special case, which is padded to two unless all batches are of one. A graph
    calls no hooks: while somebody watches layers, the network is carried out as it is.
    """

    def __init__(self, net: nn.Module, *, batch: int) -> None:
        super().__init__(net)
        self.least = min(batch, 2)
        self.graph = torch.compile(net.forward)  # the method: as a module it would be a second owner of the weights

    def forward(self, x: Tensor, sigma: Tensor, class_labels: Tensor | None = None) -> Tensor:
        if self.is_watched():
            return self.net(x, sigma, class_labels)  # type: ignore[no-any-return]
        B = len(x)
        if self.least > B:
            x = torch.cat([x, x[-1:]])
            class_labels = None if class_labels is None else torch.cat([class_labels, class_labels[-1:]])
        if self.least > 1:
            for t in (x, class_labels):
                if t is not None:
                    torch._dynamo.maybe_mark_dynamic(t, 0)  # type: ignore[no-untyped-call]
        denoised: Tensor = self.graph(x, sigma, class_labels)
        return denoised[:B]


def compiled(net: nn.Module, *, batch: int) -> Compiled:
    """`net` through torch.compile, for batches of up to `batch` rows. Tens of seconds at the first call."""
    return Compiled(net, batch=batch)


@contextmanager
def apply_execution(net: nn.Module, config: ExecutionConfig) -> Iterator[None]:
    """Within the block, `net` is executed as `config` says; then contiguous and with the threads of before."""
    threads = torch.get_num_threads()
    device = next(net.parameters()).device.type
    set_layout(net, channels_last=config.channels_last)
    torch.set_num_threads(config.threads)
    try:
        dtype = autocast_of(config.dtype)
        with torch.autocast(device, dtype, enabled=dtype != torch.float32):
            yield
    finally:
        torch.set_num_threads(threads)
        set_layout(net, channels_last=False)
