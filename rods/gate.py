"""Readouts: detectors that read the network's own activations, fitted to one network, the usual gate of a restart.

The combinator `Gate`, which puts a threshold to a detector of steps, is in combinators.py.

`Readout` is a linear readout, or probe, of hidden layers (Alain and Bengio 2016, arXiv 1610.01644), of a denoiser's
U-Net and for the risk of an image. It needs labelled samples of the network, from a program or from people;
scripts/fit_readout.py fits one. Its weights live in a safetensors file beside a preset (rods/runs/gates.py).
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import inf, isfinite, isqrt
from typing import Any, ClassVar

import torch
from torch import Tensor

from rods.denoiser import BoundDenoiser, unbound
from rods.detectors import Detector, Needs, noise_level
from rods.types import AnyDenoiser

LARGEST = 40.0
"""Exponents of the logistic function end here, so that scores above all others stay apart from 1."""


def pooled(output: Tensor) -> Tensor:
    """Mean and standard deviation over space of each channel: [B, C, H, W] -> [B, 2 C], float64.

    Raises ValueError for a tensor of another shape.
    """
    if output.ndim != 4:
        raise ValueError(f"block: its output has shape {list(output.shape)}; choose one whose output is [B, C, H, W]")
    maps = output.detach().float().flatten(2)  # [B, C, H W]
    return torch.cat([maps.mean(dim=2), maps.std(dim=2, correction=0)], dim=1).double()


def network_of(denoiser: AnyDenoiser) -> torch.nn.Module:
    """The network whose layers are read. Raises ValueError where the denoiser is no torch module."""
    network = unbound(denoiser)
    if not isinstance(network, torch.nn.Module):
        raise ValueError("detector: a readout reads layers; this denoiser is not a torch module; use another detector")
    return network


def module_of(network: torch.nn.Module, block: str) -> torch.nn.Module:
    """The module at a path below the network. Raises ValueError where there is none."""
    try:
        return network.get_submodule(block)
    except AttributeError:
        raise ValueError(
            f"detector: this network has no module {block}; a readout belongs to the network that it was fitted on"
        ) from None


def fingerprint(network: torch.nn.Module, blocks: tuple[str, ...]) -> str:
    """Twelve hexadecimal digits of a checksum of modules' parameters and buffers as float32: whose layers they are.

    Raises ValueError where the network has no such module.
    """
    digest = hashlib.sha256()
    for block in blocks:
        for name, value in sorted(module_of(network, block).state_dict().items()):
            numbers = value.detach().to("cpu", torch.float32).contiguous().numpy()
            digest.update(repr((name, numbers.shape)).encode() + numbers.astype("<f4").tobytes())
    return digest.hexdigest()[:12]


def activations(
    denoise: BoundDenoiser, image: Tensor, sigma: Tensor, noise: Tensor, blocks: tuple[str, ...]
) -> tuple[Tensor, ...]:
    """`pooled` outputs of some blocks [B, 2 C] each, while D(image + t e; t) is evaluated: the mean over draws.

    `image` [B, C, H, W], `sigma` [] is t, `noise` [k, B, C, H, W] unit normal. Cost: k F, for any number of blocks.
    Raises ValueError: no torch module, no such block, or one whose output no evaluation shows.
    """
    network = network_of(denoise)
    current: dict[str, Tensor] = {}
    seen: list[dict[str, Tensor]] = []  # of each evaluation that came to its end: one that did not fit is made again

    def watch(block: str) -> Callable[[Any, Any, Tensor], None]:
        return lambda module, args, output: current.update({block: pooled(output)})

    hooks = [module_of(network, block).register_forward_hook(watch(block)) for block in blocks]
    hooks.append(network.register_forward_pre_hook(lambda module, args: current.clear()))
    hooks.append(network.register_forward_hook(lambda module, args, output: seen.append(dict(current))))
    try:
        with torch.no_grad():
            for e in noise:
                denoise(image + sigma * e, sigma)
    finally:
        for hook in hooks:
            hook.remove()
    found = []
    for block in blocks:
        rows = [part[block] for part in seen if block in part]
        if sum(map(len, rows)) != len(noise) * len(image):
            raise ValueError(f"readout: evaluations do not show {block}; leave out --compile, which hides it")
        found.append(torch.cat(rows).reshape(*noise.shape[:2], -1).mean(dim=0))
    return tuple(found)


def products(z: Tensor) -> Tensor:
    """z_i z_j for i <= j, row by row: [B, K] -> [B, K (K + 1) / 2]."""
    i, j = torch.triu_indices(z.shape[1], z.shape[1])
    return z[:, i] * z[:, j]


@dataclass(frozen=True)
class Readout(Detector):
    """The probability that an image is hallucinated, by a logistic regression on the network's activations.

    Modules `blocks` of the network (paths such as model.dec.32x32_block0) are read while D(image + t e; t) is
    evaluated at t = `sigma`, for `draws` draws e: p [K] are their `activations` side by side, z = (p - mean) / scale,
    and the score is 1 / (1 + exp(-(bias + linear . z + quadratic . products(z')))), where z' are the first features of
    z, as many as `quadratic` has weights for. Cost: `draws` F. `network` is the `fingerprint` of the blocks in the
    network that it was fitted on; `check` refuses others. Raises ValueError: values that are not finite, or lengths
    that do not match.
    """

    blocks: tuple[str, ...]
    sigma: float
    draws: int
    network: str
    bias: float
    mean: tuple[float, ...] = field(repr=False)  # [K], K = 2 C of every block
    scale: tuple[float, ...] = field(repr=False)  # [K]
    linear: tuple[float, ...] = field(repr=False)  # [K]
    quadratic: tuple[float, ...] = field(repr=False, default=())  # [k (k + 1) / 2], k = 0 to K

    needs: ClassVar[Needs] = "image"

    def __post_init__(self) -> None:
        K = len(self.mean)
        if not re.fullmatch("[0-9a-f]{12}", self.network):
            raise ValueError(f"readout: {self.network!r} is not a checksum of a network; fit it again")
        if not self.blocks or not all(self.blocks) or K == 0 or K % 2 or len(self.scale) != K or len(self.linear) != K:
            raise ValueError("readout: it needs a block, and as many means as scales and weights; fit it again")
        if self.width > K or len(self.quadratic) != self.width * (self.width + 1) // 2:
            raise ValueError(f"readout: {len(self.quadratic)} weights of products for {K} features; fit it again")
        if not all(map(isfinite, (self.bias, *self.mean, *self.scale, *self.linear, *self.quadratic))):
            raise ValueError("readout: a weight is not finite; fit it again")
        if min(self.scale) <= 0:
            raise ValueError("readout: a scale is not above 0; fit it again")
        if not 0 < self.sigma < inf or self.draws < 1:
            raise ValueError("readout: sigma is a noise level > 0, and draws a whole number >= 1; fit it again")

    @property
    def num_draws(self) -> int:
        return self.draws

    @property
    def width(self) -> int:
        """k, the number of features whose products have weights."""
        return (isqrt(8 * len(self.quadratic) + 1) - 1) // 2

    @property
    def digest(self) -> str:
        """Twelve hexadecimal digits of a checksum of everything in it: what identifies it in records."""
        numbers = [self.bias, *self.mean, *self.scale, *self.linear, *self.quadratic]
        what = repr((self.blocks, float(self.sigma), self.draws, self.network, len(self.mean)))
        return hashlib.sha256(what.encode() + struct.pack(f"<{len(numbers)}d", *numbers)).hexdigest()[:12]

    def of(self, p: Tensor) -> Tensor:
        """The score [B] of activations [B, K]."""
        if p.shape[1] != len(self.mean):
            raise ValueError(f"readout: {p.shape[1]} activations, and {len(self.mean)} weights; fit it again")
        z = (p - p.new_tensor(self.mean)) / p.new_tensor(self.scale)
        logit = self.bias + (z * p.new_tensor(self.linear)).sum(dim=1)
        if self.quadratic:
            logit = logit + (products(z[:, : self.width]) * p.new_tensor(self.quadratic)).sum(dim=1)
        return torch.sigmoid(logit.clamp(-LARGEST, LARGEST))

    def check(self, denoiser: AnyDenoiser, levels: Sequence[float]) -> None:
        """ValueError where the network is not the one that it was fitted on. Reads the blocks' weights once."""
        own = fingerprint(network_of(denoiser), self.blocks)
        if own != self.network:
            raise ValueError(
                f"detector: the preset's readout is of another network ({self.blocks[0]} has checksum {own}, not "
                f"{self.network}); use this network's own preset, or fit one by scripts/fit_readout.py"
            )

    def score(self, denoise: BoundDenoiser, image: Tensor, *, noise: Tensor) -> Tensor:
        p = activations(denoise, image, noise_level(self.sigma, image), noise, self.blocks)
        return self.of(torch.cat(p, dim=1)).to(image.dtype)
