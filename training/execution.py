"""How a loaded network is carried out when it samples: threads, memory layout, precision; none changes what it is.

Layout and threads move images by float32 rounding, bf16 by more; checkpoints change no bit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from torch_utils.machine import has_bf16_units
from training.blocks import UNetBlock
from training.checkpoint import STORED_DTYPES

GAIN = 1.05  # a setting has to be this much faster than the plain one before it is taken
FAITHFUL = 40.0  # dB, to the float32 result
LEVELS = (10.0, 1.0, 0.1)


@dataclass(frozen=True)
class Manner:
    """One way to carry out a network."""

    threads: int
    channels_last: bool = False
    dtype: str = "float32"

    def describe(self) -> str:
        """As on the command line."""
        return f"--threads={self.threads} --channels-last={str(self.channels_last).lower()} --dtype={self.dtype}"


@dataclass(frozen=True)
class Timed:
    """What a manner took for D and its gradient, and how near its D is to the plain one's."""

    manner: Manner
    seconds: float  # the fastest of a few rounds
    psnr: float  # dB; inf where equal

    def describe(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {**asdict(self.manner), "seconds": self.seconds, "psnr": min(self.psnr, 999.0)}


def set_layout(net: nn.Module, *, channels_last: bool) -> nn.Module:
    """The same network with its weights laid out [out, H, W, in], or as they come; its activations follow."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return net.to(memory_format=layout)  # type: ignore[call-overload,no-any-return]


def checkpoint_blocks(net: nn.Module) -> int:
    """Backward passes compute every residual block again instead of keeping it: returns the number of blocks.

    Cost: B grows by about one F; its memory shrinks to the tensors between blocks, and the bits stay.
    """
    blocks = [module for module in net.modules() if isinstance(module, UNetBlock)]
    for block in blocks:
        block.checkpointed = True
    return len(blocks)


class Compiled(nn.Module):
    """A network through torch.compile: a graph for all batch sizes, and another one where a gradient is asked for.

    The number of rows is a symbol of the graphs, so that the few rows of a restart neither compile again nor are padded
    to a whole batch; torch makes one row a special case, which is padded to two unless all batches are of one. A graph
    calls no hooks: while somebody watches layers (rods.readout), the network is carried out as it is. Attributes are
    the network's own.
    """

    def __init__(self, net: nn.Module, *, batch: int) -> None:
        super().__init__()
        self.net, self.least = net, min(batch, 2)
        self.graph = torch.compile(net.forward)  # the method: as a module it would be a second owner of the weights

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("net"), name)

    def forward(self, x: Tensor, sigma: Tensor, class_labels: Tensor | None = None) -> Tensor:
        if any(m._forward_hooks or m._forward_pre_hooks for m in self.modules()):
            return self.net(x, sigma, class_labels)
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
def carried_out(net: nn.Module, manner: Manner) -> Iterator[None]:
    """Within the block, `net` is carried out in this manner; then contiguous and with the threads of before."""
    threads = torch.get_num_threads()
    device = next(net.parameters()).device.type
    set_layout(net, channels_last=manner.channels_last)
    torch.set_num_threads(manner.threads)
    try:
        with torch.autocast(device, STORED_DTYPES[manner.dtype], enabled=manner.dtype != "float32"):
            yield
    finally:
        torch.set_num_threads(threads)
        set_layout(net, channels_last=False)


def fastest(
    net: nn.Module,
    *,
    batch: int,
    cores: int,
    rounds: int = 3,
    gradient: bool = True,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[Manner, list[Timed]]:
    """The fastest manner on this machine, now, and all that was tried.

    One thread against `cores`, then channels last, then bf16 where the device multiplies it in hardware. Another
    manner than the plain one (all cores, float32) needs 5 % less time and 40 dB or more to its D at three noise levels.
    `batch` images at most 16 are used. Cost: (rounds + 2) F, and with `gradient` rounds (F + B), for each of up to
    five manners.
    """
    p = next(net.parameters())
    C, R, L = (int(getattr(net, name)) for name in ("img_channels", "img_resolution", "label_dim"))
    x = torch.randn(min(batch, 16), C, R, R, generator=torch.Generator().manual_seed(0)).to(p.device)
    labels = torch.eye(L, device=p.device)[torch.arange(len(x)) % L] if L else None
    fast_bf16 = torch.cuda.is_bf16_supported() if p.is_cuda else p.device.type == "cpu" and has_bf16_units()
    best = Manner(cores)
    with carried_out(net, best):
        plain = _denoised(net, x, labels)
    tried = {best: Timed(best, _seconds(net, best, x, labels, rounds, gradient, clock), float("inf"))}
    axes: list[dict[str, Any]] = [{"threads": 1}] if cores > 1 and p.device.type == "cpu" else []
    axes += [{"channels_last": True}, *([{"dtype": "bf16"}] if fast_bf16 else [])]
    for change in axes:
        manner = Manner(**{**asdict(best), **change})
        seconds = _seconds(net, manner, x, labels, rounds, gradient, clock)
        with carried_out(net, manner):
            tried[manner] = Timed(manner, seconds, psnr(_denoised(net, x, labels), plain))
        if seconds * GAIN < tried[best].seconds and tried[manner].psnr >= FAITHFUL:
            best = manner
    return best, list(tried.values())


def psnr(a: Tensor, b: Tensor) -> float:
    """Of images with values from -1 to 1, in dB; inf where they are equal."""
    mse = float((a.double() - b.double()).square().mean())
    return float("inf") if mse == 0 else float(10 * torch.log10(torch.tensor(4 / mse, dtype=torch.float64)))


def _denoised(net: nn.Module, x: Tensor, labels: Tensor | None) -> Tensor:
    """D at three noise levels [3 B, C, H, W]."""
    with torch.no_grad():
        return torch.cat([net(x * s, torch.tensor(s, device=x.device), labels) for s in LEVELS])


def _seconds(
    net: nn.Module,
    manner: Manner,
    x: Tensor,
    labels: Tensor | None,
    rounds: int,
    gradient: bool,
    clock: Callable[[], float],
) -> float:
    """The least time of a few rounds of D, and of its gradient, at sigma 1; one round before them is not timed."""
    sigma, times = torch.ones([], device=x.device), []
    with carried_out(net, manner):
        for _ in range(rounds + 1):
            start = clock()
            with torch.no_grad():
                net(x, sigma, labels)
            if gradient:
                with torch.enable_grad():
                    y = x.clone().requires_grad_(True)
                    torch.autograd.grad(net(y, sigma, labels).square().sum(), y)
            if x.is_cuda:
                torch.cuda.synchronize(x.device)
            times.append(clock() - start)
    return min(times[1:])
