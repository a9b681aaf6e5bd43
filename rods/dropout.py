"""A network with its dropout on as a guide: masks that belong to an image and not to its batch."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from rods.denoiser import Keyed
from rods.types import AnyDenoiser


@dataclass(frozen=True)
class Dropout(Keyed):
    """A network with its dropout on (in-situ autoguidance, arXiv 2510.17136).

    The masks of an image depend on the image (`bind`'s keys: its seed), the noise level and the layer, never on the
    rows beside it: D is a function of x, which can be differentiated, with another mask at every noise level.
    `rate` replaces the network's own. What acts are the network's calls of `torch.nn.functional.dropout`.
    """

    main: AnyDenoiser = field(repr=False)
    rate: float | None = None

    def __post_init__(self) -> None:
        if self.rate is not None and not 0 < self.rate < 1:
            raise ValueError(f"rate: {self.rate} is not a probability; give 0 < rate < 1")

    @property
    def label_dim(self) -> int:
        return int(getattr(self.main, "label_dim", 0))

    def keyed(self, x: Tensor, sigma: Tensor, class_labels: Tensor | None = None, *, keys: Tensor) -> Tensor:
        given = () if class_labels is None else (class_labels,)
        with _RowMasks(keys, float(sigma), self.rate, x.device) as masks:
            D: Tensor = self.main(x, sigma, *given)
        if not masks.used:
            raise ValueError(
                "guide: this network was made without dropout; give a rate, such as dropout:rate=.1, where it has "
                "layers for it, or another guide"
            )
        return D


class _RowMasks(TorchFunctionMode):
    """Within the block, `dropout` acts, in evaluation mode too, with a mask from each row's own generator."""

    def __init__(self, keys: Tensor, sigma: float, rate: float | None, device: torch.device) -> None:
        super().__init__()
        self.rate, self.used = rate, False
        level = struct.unpack("<Q", struct.pack("<d", sigma))[0]
        seeds = [mixed(mixed(key) ^ level) for key in keys.tolist()]
        self.generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not torch.nn.functional.dropout:
            return func(*args, **kwargs)
        x, p = args[0] if args else kwargs["input"], args[1] if len(args) > 1 else kwargs.get("p", 0.5)
        p = p if self.rate is None else self.rate
        if p == 0:
            return x
        self.used = True
        draws = torch.stack([torch.rand(x.shape[1:], generator=g, device=x.device) for g in self.generators])
        return x * ((draws >= p).to(x.dtype) / (1 - p))


def mixed(n: int) -> int:
    """A 64-bit number in which every bit of `n` counts (the finaliser of splitmix64)."""
    n = (n + 0x9E3779B97F4A7C15) % 2**64
    n = (n ^ n >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    n = (n ^ n >> 27) * 0x94D049BB133111EB % 2**64
    return n ^ n >> 31
