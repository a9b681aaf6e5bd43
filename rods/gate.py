"""Detectors that read the network's own activations, fitted to one network: the usual gates of a restart.

(The combinator `Gate`, which puts a threshold to a detector of steps, is in combinators.py.)

`DensityRatio` needs no labels, but real images: how much more likely the activations are of an image of the network
than of a real one, by a Gaussian of each (quadratic discriminant analysis), or of the real ones alone. Its relatives
are discriminator rejection (DiffRS, arXiv 2405.17880), which trains a network for it, and one-class detection on
features. scripts/fit_gate.py fits one.

`Readout` is a linear readout, or probe, of hidden layers (Alain and Bengio 2016, arXiv 1610.01644). It needs labelled
samples of the network, from a program or from people; scripts/fit_readout.py fits one.

The weights live in a safetensors file beside a preset (rods/runs/gates.py).
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import inf, isfinite, isqrt
from typing import Any, ClassVar

import torch
from torch import Tensor

from rods.denoiser import BoundDenoiser, main_of
from rods.detectors import Detector, Needs, noise_level
from rods.types import AnyDenoiser

MOST_SUMMED = 64
"""Features whose products are summed one by one, as they always were: scores of readouts stay the same to the bit."""
LARGEST = 40.0
"""Exponents of the logistic function end here, so that scores above all others stay apart from 1."""

REMEDY = "choose one whose output is [B, C, H, W], [B, N, C] or [B, C]"


def pooled(output: Tensor) -> Tensor:
    """Mean and standard deviation of each channel over space, [B, C, H, W], or over tokens, [B, N, C]: [B, 2 C].

    A vector per sample, [B, C], stays as it is. In float64. Raises ValueError for a tensor of another shape.
    """
    if not isinstance(output, Tensor):
        raise ValueError(f"block: its output is a {type(output).__name__}; {REMEDY}")
    if output.ndim == 2:
        return output.detach().double()
    if output.ndim not in (3, 4):
        raise ValueError(f"block: its output has shape {list(output.shape)}; {REMEDY}")
    maps = output.detach().float()
    maps = maps.flatten(2) if output.ndim == 4 else maps.transpose(1, 2)  # [B, C, places]
    return torch.cat([maps.mean(dim=2), maps.std(dim=2, correction=0)], dim=1).double()


def network_of(denoiser: AnyDenoiser) -> torch.nn.Module:
    """The network whose layers are read: of a guided one the main network, of a wrapper the module that it calls.

    Raises ValueError where there is no torch module.
    """
    main = main_of(denoiser)
    network = main if isinstance(main, torch.nn.Module) else getattr(main, "network", None)
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

    D is the main network's own, with the labels: no guide is evaluated, and a score is the same with and without one.

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
                denoise.of(main_of(denoise))(image + sigma * e, sigma)
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
class ActivationDetector(Detector):
    """A quadratic function of the network's activations: what DensityRatio and Readout have in common.

    Modules `blocks` of the network (paths such as model.dec.32x32_block0) are read while D(image + t e; t) is
    evaluated at t = `sigma`, for `draws` draws e: p [K] are their `activations` side by side, z = (p - mean) / scale,
    and the value is bias + linear . z + quadratic . products(z'), where z' are the first features of z, as many as
    `quadratic` has weights for. Cost: `draws` F. `network` is the `fingerprint` of the blocks in the network that it
    was fitted on; `check` refuses others. Raises ValueError: values that are not finite, or lengths that do not match.
    """

    blocks: tuple[str, ...]
    sigma: float
    draws: int
    network: str
    bias: float
    mean: tuple[float, ...] = field(repr=False)  # [K]: 2 C of every block whose output has places, else C
    scale: tuple[float, ...] = field(repr=False)  # [K]
    linear: tuple[float, ...] = field(repr=False)  # [K]
    quadratic: tuple[float, ...] = field(repr=False, default=())  # [k (k + 1) / 2], k = 0 to K

    needs: ClassVar[Needs] = "image"
    kind: ClassVar[str] = "gate"
    remedy: ClassVar[str] = "fit it again"

    def __post_init__(self) -> None:
        K, remedy = len(self.mean), self.remedy
        if not re.fullmatch("[0-9a-f]{12}", self.network):
            raise ValueError(f"{self.kind}: {self.network!r} is not a checksum of a network; {remedy}")
        if not self.blocks or not all(self.blocks) or K == 0 or len(self.scale) != K or len(self.linear) != K:
            raise ValueError(f"{self.kind}: it needs a block, and as many means as scales and weights; {remedy}")
        if self.width > K or len(self.quadratic) != self.width * (self.width + 1) // 2:
            raise ValueError(f"{self.kind}: {len(self.quadratic)} weights of products for {K} features; {remedy}")
        if not all(map(isfinite, (self.bias, *self.mean, *self.scale, *self.linear, *self.quadratic))):
            raise ValueError(f"{self.kind}: a weight is not finite; {remedy}")
        if min(self.scale) <= 0:
            raise ValueError(f"{self.kind}: a scale is not above 0; {remedy}")
        if not 0 < self.sigma < inf or self.draws < 1:
            raise ValueError(f"{self.kind}: sigma is a noise level > 0, and draws a whole number >= 1; {remedy}")

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

    @cached_property
    def _form(self) -> Tensor:
        """The weights of products as an upper triangular matrix [k, k]: `products` of many features fill the memory."""
        form = torch.zeros(self.width, self.width, dtype=torch.float64)
        i, j = torch.triu_indices(self.width, self.width)
        form[i, j] = torch.tensor(self.quadratic, dtype=torch.float64)
        return form

    def value(self, p: Tensor) -> Tensor:
        """The quadratic function [B] of activations [B, K]."""
        if p.shape[1] != len(self.mean):
            raise ValueError(f"{self.kind}: {p.shape[1]} activations, and {len(self.mean)} weights; {self.remedy}")
        z = (p - p.new_tensor(self.mean)) / p.new_tensor(self.scale)
        value = self.bias + (z * p.new_tensor(self.linear)).sum(dim=1)
        if self.quadratic:
            first = z[:, : self.width]  # [B, k]
            if self.width <= MOST_SUMMED:
                value = value + (products(first) * p.new_tensor(self.quadratic)).sum(dim=1)
            else:
                value = value + ((first @ self._form.to(z)) * first).sum(dim=1)
        return value

    def of(self, p: Tensor) -> Tensor:
        """The score [B] of activations [B, K]."""
        return self.value(p)

    def check(self, denoiser: AnyDenoiser, levels: Sequence[float]) -> None:
        """ValueError where the network is not the one that it was fitted on. Reads the blocks' weights once."""
        own = fingerprint(network_of(denoiser), self.blocks)
        if own != self.network:
            raise ValueError(
                f"detector: the preset's {self.kind} is of another network ({self.blocks[0]} has checksum {own}, not "
                f"{self.network}); use this network's own preset, or {self.remedy}"
            )

    def score(self, denoise: BoundDenoiser, image: Tensor, *, noise: Tensor) -> Tensor:
        p = activations(denoise, image, noise_level(self.sigma, image), noise, self.blocks)
        return self.of(torch.cat(p, dim=1)).to(image.dtype)


@dataclass(frozen=True)
class Readout(ActivationDetector):
    """The probability that an image is hallucinated, by a logistic regression: see `ActivationDetector`.

    The score is 1 / (1 + exp(-value)). Cost: `draws` F.
    """

    kind: ClassVar[str] = "readout"
    remedy: ClassVar[str] = "fit one by scripts/fit_readout.py"

    def of(self, p: Tensor) -> Tensor:
        return torch.sigmoid(self.value(p).clamp(-LARGEST, LARGEST))


@dataclass(frozen=True)
class DensityRatio(ActivationDetector):
    """log N(p; own) - log N(p; real) of an image's activations p, or -log N(p; real) alone: see `ActivationDetector`.

    Fitted to activations of real images and of the network's own samples that went the same way, without labels: what
    the network draws and the data do not hold has a high score. In nats, up to a constant. Cost: `draws` F.
    """

    kind: ClassVar[str] = "density-ratio"
    remedy: ClassVar[str] = "fit one by scripts/fit_gate.py"


def density_ratio(
    real: Tensor,
    own: Tensor | None,
    *,
    blocks: tuple[str, ...],
    sigma: float,
    draws: int,
    network: str,
    ridge: float = 1e-3,
    same_mean: bool = False,
) -> DensityRatio:
    """The `DensityRatio` of activations of real images [N, K] and of the network's own [M, K]; None: of `real` alone.

    Features are standardised by the real ones; `ridge` is added to the covariances' diagonals. `same_mean` takes the
    shift between the two means out: the network's style does not count then. Raises ValueError: too few rows.
    """
    least = 8
    if len(real) < least or (own is not None and len(own) < least):
        raise ValueError(f"real, own: {len(real)} and {0 if own is None else len(own)} images; give {least} or more")
    mean, scale = real.mean(dim=0), real.std(dim=0, correction=0)
    scale = torch.where(scale > 1e-9, scale, 1.0)
    m, P, half_log_det = _gaussian((real - mean) / scale, ridge)
    A, b = P / 2, -P @ m
    c = m @ P @ m / 2 - half_log_det
    if own is not None:
        m_own, P_own, half_log_det_own = _gaussian((own - mean) / scale, ridge)
        if same_mean:
            m_own = m
        A, b = A - P_own / 2, b + P_own @ m_own
        c = c - m_own @ P_own @ m_own / 2 + half_log_det_own
    i, j = torch.triu_indices(len(mean), len(mean))
    quadratic = torch.where(i == j, A[i, j], 2 * A[i, j])
    numbers = (tuple(part.tolist()) for part in (mean, scale, b, quadratic))
    return DensityRatio(blocks, sigma, draws, network, float(c), *numbers)


def _gaussian(z: Tensor, ridge: float) -> tuple[Tensor, Tensor, Tensor]:
    """Mean [K], precision [K, K], and half the logarithm of the precision's determinant, of rows z [N, K]."""
    m = z.mean(dim=0)
    cov = (z - m).T @ (z - m) / len(z) + ridge * torch.eye(z.shape[1], dtype=z.dtype)
    L = torch.linalg.cholesky(cov)
    return m, torch.cholesky_inverse(L), -L.diagonal().log().sum()
