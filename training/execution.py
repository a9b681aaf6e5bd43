"""How a network is executed when it samples: threads, memory layout, precision, compilation; none changes what it is.

Layout and threads move images by float32 rounding, bf16 by more; checkpoints change no bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from training.checkpoint import STORED_DTYPES
from training.networks import Precond


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


class Padded(nn.Module):
    """A network that always sees `batch` rows, so that a compiled one is compiled once; the rest is the last row again.

    Attributes are the network's own. Calls with more rows than `batch` go through in parts.
    """

    def __init__(self, net: nn.Module, batch: int, call: Callable[..., Tensor] | None = None) -> None:
        super().__init__()
        self.net, self.batch, self.call = net, batch, call or net

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("net"), name)

    def forward(self, x: Tensor, sigma: Tensor, class_labels: Tensor | None = None) -> Tensor:
        done = []
        for start in range(0, len(x), self.batch):
            rows = torch.arange(start, start + self.batch, device=x.device).clamp(max=len(x) - 1)
            labels = None if class_labels is None else class_labels[rows]
            done.append(self.call(x[rows], sigma, labels)[: len(x) - start])
        return torch.cat(done)


def compiled(net: nn.Module, *, batch: int) -> Padded:
    """`net` through torch.compile with the one batch size that it will see. Tens of seconds at the first call."""
    return Padded(net, batch, torch.compile(net, dynamic=False))


@contextmanager
def apply_execution(net: nn.Module, config: ExecutionConfig) -> Iterator[None]:
    """Within the block, `net` is executed as `config` says; then contiguous and with the threads of before."""
    threads = torch.get_num_threads()
    device = next(net.parameters()).device.type
    set_layout(net, channels_last=config.channels_last)
    torch.set_num_threads(config.threads)
    try:
        with torch.autocast(device, STORED_DTYPES[config.dtype], enabled=config.dtype != "float32"):
            yield
    finally:
        torch.set_num_threads(threads)
        set_layout(net, channels_last=False)
