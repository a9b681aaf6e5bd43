"""Exact denoisers, reference vectors and a pass counter that the tests of the core share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rods import Mixture, Step

# These tensors have a few dozen elements: a second thread costs far more than it brings, above all on a busy machine.
torch.set_num_threads(1)

GOLDEN = Path(__file__).parent / "golden"


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


def latents() -> Tensor:
    """Its latents [6, 2, 3, 3]."""
    return golden("samplers/mixture")["latents"]


def recorded_noise() -> Callable[[Tensor], Tensor]:
    """randn_like from the recorded draws: noise[k] at the k-th call."""
    draws: Iterator[Tensor] = iter(golden("samplers/mixture")["noise"])
    return lambda x: next(draws)


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
    """A denoiser that counts the rows it is asked for and the rows gradients come back through."""

    sigma_min, sigma_max = 0.0, float("inf")

    def __init__(self, denoiser: Callable[..., Tensor]) -> None:
        self.denoiser = denoiser
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


def final(steps: Iterator[Step]) -> Tensor:
    """The state after the last step."""
    return list(steps)[-1].x_next
