"""Exact denoisers, reference vectors and a pass counter that the tests of the core share."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rods import Mixture, State, Step, bind, gaussian
from rods.schedules import iddpm_levels
from torch_utils.rng import SeedStreams

GOLDEN = Path(__file__).parent / "golden"
CPU = torch.device("cpu")
SEEDS = [11, 3, 7, 29, 5, 2]


@cache
def golden(name: str) -> dict[str, Tensor]:
    """The arrays of tests/golden/NAME.npz."""
    with np.load(GOLDEN / f"{name}.npz") as arrays:
        return {key: torch.from_numpy(np.asarray(arrays[key])) for key in arrays}


@cache
def mixture() -> Mixture:
    """The mixture of four Gaussians of the reference vectors."""
    z = golden("samplers/mixture")
    return Mixture(z["mu"], z["w"], float(z["s0"]))


def isotropic(s0: float = 0.5) -> Mixture:
    """N(0, s0^2 I) on the same images."""
    return gaussian(torch.zeros(2, 3, 3), s0)


def latents() -> Tensor:
    """Its latents [6, 2, 3, 3]."""
    return golden("samplers/mixture")["latents"]


def recorded_noise() -> Callable[[Tensor], Tensor]:
    """randn_like from the recorded draws: noise[k] at the k-th call."""
    draws: Iterator[Tensor] = iter(golden("samplers/mixture")["noise"])
    return lambda x: next(draws)


def second_stream(seeds: Sequence[int] = tuple(SEEDS)) -> Callable[[Tensor], Tensor]:
    """randn_like from the second stream of some seeds, one per row."""
    return SeedStreams(seeds, CPU).second().randn_like


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Unit normal float64 draws."""
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def state(denoiser: Any, sigma: float = 2.0, *, x: Tensor | None = None, **options: Any) -> State:
    """A state of the six latents at a noise level; `options` are `State`'s, and `randn_like` is `bind`'s."""
    x = sigma * latents().double() if x is None else x
    denoise = bind(denoiser, len(x), randn_like=options.pop("randn_like", None))
    return State(denoise, x, torch.tensor(sigma, dtype=torch.float64), **options)


def dots(x: Tensor, y: Tensor) -> Tensor:
    """Scalar product of each sample: [B, ...] -> [B]."""
    return (x * y).flatten(1).sum(dim=1)


def close(a: Tensor, b: Tensor, *, tol: float) -> bool:
    """max|a - b| <= tol max|b|."""
    return bool((a - b).abs().max() <= tol * b.abs().max())


class Axes:
    """N(0, diag(lam)): D = lam / (lam + sigma^2) x, v = A x with A = 1 / (lam + sigma^2)."""

    def __init__(self, lam: Tensor) -> None:
        self.lam = lam  # [C, H, W]

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self.lam / (self.lam + sigma**2) * x

    def g(self, x: Tensor, sigma: float) -> Tensor:
        """grad ||A x|| = A^2 x / ||A x||."""
        A = 1 / (self.lam + sigma**2)
        n = (A * x).flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)
        return A**2 * x / n


class Counting:
    """The mixture, or another denoiser of its images, that counts the rows it gets and those gradients return by."""

    img_channels, img_resolution, label_dim = 2, 3, 0
    sigma_min, sigma_max = 0.0, math.inf

    def __init__(self, denoiser: Callable[..., Tensor] | None = None) -> None:
        self.denoiser = denoiser or mixture()
        self.calls = self.forward = self.backward = 0

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        self.calls += 1
        self.forward += len(x)
        return _Tap.apply(self.denoiser(x, sigma), self)

    def round_sigma(self, sigma: Tensor) -> Tensor:
        return sigma


class _Tap(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, y: Tensor, owner: Counting) -> Tensor:
        ctx.owner = owner  # type: ignore[attr-defined]
        return y.view_as(y)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        ctx.owner.backward += len(grad)  # type: ignore[attr-defined]
        return grad, None


class Stepped:
    """A denoiser with a range and a table of noise levels, as iDDPM's: remembers what it was asked."""

    sigma_min, sigma_max = 0.02, 40.0
    u = iddpm_levels(C_1=0.001, C_2=0.008, M=1000)

    def __init__(self) -> None:
        self.asked: list[Tensor] = []
        self.labels: list[Tensor | None] = []

    def __call__(self, x: Tensor, sigma: Tensor, class_labels: Tensor | None = None) -> Tensor:
        assert x.dtype == torch.float64
        assert sigma.dtype == torch.float64
        assert sigma.ndim == 0
        self.asked.append(sigma)
        self.labels.append(class_labels)
        return mixture()(x, sigma).float()

    def round_sigma(self, sigma: Tensor) -> Tensor:
        sigma = torch.as_tensor(sigma)
        index = (sigma.reshape(-1, 1) - self.u).abs().argmin(dim=1)
        return self.u[index].reshape(sigma.shape).float()


def conditional(x: Tensor, sigma: Tensor, labels: Tensor) -> Tensor:
    """The mixture moved by a shift of each of six classes: a gather that lost track would mix them up."""
    centre = torch.einsum("bk,kchw->bchw", labels, normal(6, 2, 3, 3, seed=3))
    return centre + mixture()(x - centre, sigma)


def broken_row(x: Tensor, sigma: Tensor) -> Tensor:
    """The mixture, but for the second row of a batch, which is not a number."""
    return mixture()(x, sigma) * torch.tensor([1, math.nan, 1, 1, 1, 1][: len(x)]).reshape(-1, 1, 1, 1)


class Watch:
    """Keeps the steps of a run."""

    def __init__(self) -> None:
        self.steps: list[Step] = []

    def add(self, step: Step) -> None:
        self.steps.append(step)


def final(steps: Iterator[Step]) -> Tensor:
    """The state after the last step."""
    return list(steps)[-1].x_next
