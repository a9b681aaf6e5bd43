"""Readout: how much images are at risk, read off the network's own activations by a regression learned from labels.

A linear readout, or probe, of hidden layers (Alain and Bengio 2016, arXiv 1610.01644), of a denoiser's U-Net and for
the risk of an image. It needs labelled samples of the network, from a program or from people; scripts/fit_readout.py
learns one, and a preset carries it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from math import inf, isfinite, isqrt
from typing import Any

import torch
from torch import Tensor

from rods.detectors import noise_level
from rods.evaluation import BoundDenoiser
from rods.image_scores import OfImage, Watch
from rods.trajectory import Solver

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


def network_of(denoise: BoundDenoiser) -> torch.nn.Module:
    """The network whose layers are watched; in a rehearsal the one that is stood in for.

    Raises ValueError where the denoiser is no torch module.
    """
    network = getattr(denoise.denoiser, "stands_for", denoise.denoiser)
    if not isinstance(network, torch.nn.Module):
        raise ValueError("detector: readout looks at layers, and this denoiser is no torch module; use another score")
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
    Raises ValueError: no torch module, no such block, or one that evaluations do not show.
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
class Readout:
    """The probability that an image is bad, as a logistic regression on the network's activations has it.

    Modules `blocks` of the network (paths such as model.dec.32x32_block0) are watched while D(image + t e; t) is
    evaluated at t = `sigma`, for `draws` draws e: p [K] are their `activations` side by side, z = (p - mean) / scale,
    and the score is 1 / (1 + exp(-(bias + linear . z + quadratic . products(z')))), where z' are the first features of
    z, as many as `quadratic` has weights for. Cost: `draws` F. `network` is the `fingerprint` of the blocks in the
    network that the readout was fitted on; others are refused. Raises ValueError: values that are not finite, or
    lengths that do not match.
    """

    blocks: tuple[str, ...]
    sigma: float
    draws: int
    network: str
    bias: float
    mean: tuple[float, ...]  # [K], K = 2 C of every block
    scale: tuple[float, ...]  # [K]
    linear: tuple[float, ...]  # [K]
    quadratic: tuple[float, ...] = ()  # [k (k + 1) / 2], k = 0 to K

    def __post_init__(self) -> None:
        K = len(self.mean)
        if not re.fullmatch("[0-9a-f]{12}", self.network):
            raise ValueError(f"readout: {self.network!r} is no checksum of a network; fit it again")
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
    def width(self) -> int:
        """k, the number of features whose products have weights."""
        return (isqrt(8 * len(self.quadratic) + 1) - 1) // 2

    @property
    def sees(self) -> float:
        return 0

    def of(self, p: Tensor) -> Tensor:
        """The score [B] of activations [B, K]."""
        if p.shape[1] != len(self.mean):
            raise ValueError(f"readout: {p.shape[1]} activations, and {len(self.mean)} weights; fit it again")
        z = (p - p.new_tensor(self.mean)) / p.new_tensor(self.scale)
        logit = self.bias + (z * p.new_tensor(self.linear)).sum(dim=1)
        if self.quadratic:
            logit = logit + (products(z[:, : self.width]) * p.new_tensor(self.quadratic)).sum(dim=1)
        return torch.sigmoid(logit.clamp(-LARGEST, LARGEST))

    def watch(self, denoise: BoundDenoiser, noise: Tensor, *, limit: float, solver: Solver) -> Watch:
        own = fingerprint(network_of(denoise), self.blocks)
        if own != self.network:
            raise ValueError(
                f"detector: the preset's readout is of another network ({self.blocks[0]} has checksum {own}, not "
                f"{self.network}); use this network's own preset, or fit one by scripts/fit_readout.py"
            )

        def score(image: Tensor) -> Tensor:
            if hasattr(denoise.denoiser, "stands_for"):  # a rehearsal
                return image.new_zeros(len(image))
            p = activations(denoise, image, noise_level(self.sigma, image), noise, self.blocks)
            return self.of(torch.cat(p, dim=1)).to(image.dtype)

        return OfImage(score)


# -- as text ----------------------------------------------------------------------------------------------------------


def write_readout(readout: Readout) -> str:
    """`readout(block+block;sigma;draws;network;bias;K;weights)`: float32 numbers in base64, mean, scale and so on."""
    numbers = [*readout.mean, *readout.scale, *readout.linear, *readout.quadratic]
    data = base64.b64encode(struct.pack(f"<{len(numbers)}f", *numbers)).decode()
    what = ("+".join(readout.blocks), repr(readout.sigma), str(readout.draws), readout.network)
    return f"readout({';'.join(what)};{readout.bias!r};{len(readout.mean)};{data})"


def shortened(text: str) -> str:
    """A text with readouts in it for people to read: eight digits of a checksum in place of the weights."""

    def brief(found: re.Match[str]) -> str:
        return f"readout({found[1]};#{hashlib.sha256(found[2].encode()).hexdigest()[:8]})"

    return re.sub(r"readout\(([^;)]*;[^;)]*;[^;)]*);([^)]*)\)", brief, text)


def read_readout(body: str) -> Readout:
    """What `write_readout` has put between the brackets. Raises ValueError: not of that form."""
    try:
        blocks, sigma, draws, network, bias, size, data = body.split(";")
        raw, K = base64.b64decode(data, validate=True), int(size)
        numbers = struct.unpack(f"<{len(raw) // 4}f", raw)
        values = float(sigma), int(draws), network, float(bias)
    except (ValueError, struct.error, binascii.Error):
        raise ValueError(
            "readout: this is no readout(block;sigma;draws;network;bias;K;weights); scripts/fit_readout.py writes one"
        ) from None
    mean, scale, linear, quadratic = (numbers[a:b] for a, b in ((0, K), (K, 2 * K), (2 * K, 3 * K), (3 * K, None)))
    return Readout(tuple(blocks.split("+")), *values, mean, scale, linear, quadratic)
