"""The network as a sampler sees it: labels and random numbers bound, evaluations counted, none made twice.

`BoundDenoiser` calls the network for some rows of a batch and counts F (network evaluations) and B (vector-Jacobian
products to the input) for each sample. `State` is a point of a trajectory with what the network says there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from math import inf, sqrt
from typing import Literal

import torch
from torch import Tensor

from rods.micro_batches import MicroBatches
from rods.types import AnyDenoiser

TINY = 1e-12
"""Norms below this have no direction."""
Gradient = Literal["backward", "difference"]
"""How g(x) = grad_x ||v|| is evaluated: by a backward pass through the network, or by one finite difference."""
DIFFERENCE = 0.01
"""How far that difference moves an element (root mean square), in units of the noise level.

A length of .01 t for the whole image is too short for an image: float32 inside the network rounds H away at high noise
levels (docs/lab/2026-11-24-performance.md).
"""
NO_GRADIENT = (
    "denoiser: the model gives no gradient (it runs under torch.no_grad, or detaches); let it be differentiated, "
    'or use gradient="difference", which needs none'
)
Noise = Callable[[Tensor], Tensor]
"""Unit normal draws in the shape and dtype of a whole batch, such as `torch.randn_like`."""


def norms(x: Tensor) -> Tensor:
    """Euclidean norm of each sample: [B, ...] -> [B]. Its gradient at 0 is 0, never NaN."""
    n: Tensor = torch.linalg.vector_norm(x.flatten(1), dim=1)
    return n


def per_sample(value: Tensor, like: Tensor) -> Tensor:
    """[B] -> [B, 1, 1, ...], to scale the samples of `like`."""
    return value.reshape(-1, *[1] * (like.ndim - 1))


def unit(x: Tensor) -> Tensor:
    """x / ||x|| per sample; 0 where ||x|| < 1e-12 or is not a number."""
    n = norms(x)
    sure = n >= TINY
    return torch.where(per_sample(sure, x), x / per_sample(torch.where(sure, n, 1.0), x), 0.0)


def no_rows(x: Tensor) -> Tensor:
    """No row flagged: [B] bool."""
    return torch.zeros(len(x), dtype=torch.bool, device=x.device)


# -- the network ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class BoundDenoiser:
    """D(x; sigma) with its labels, for some rows of a batch; counts F and B of every sample of that batch.

    The counts are measured where the network is called (B by a hook on its output), so that no corrector declares what
    it spends. `rows` narrows it to a part of the batch, and may repeat rows. `draw` gives these rows their own random
    numbers.
    """

    denoiser: AnyDenoiser
    class_labels: Tensor | None  # [b, label_dim]
    index: Tensor  # [b] int64 on the CPU: which sample of the batch each row is
    forward: Tensor  # [B] int64 on the CPU
    backward: Tensor  # [B] int64 on the CPU
    randn_like: Noise = torch.randn_like
    micro_batches: MicroBatches = field(default_factory=MicroBatches)

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        if torch.is_grad_enabled():  # whoever differentiates this splits it: see `with_gradient`
            denoised = self._evaluate(x, self.class_labels, sigma)
        else:
            labels = self.class_labels
            (denoised,) = self.micro_batches.run(
                "forward", len(x), lambda p: (self._evaluate(x[p], labels if labels is None else labels[p], sigma),)
            )
        if denoised.shape != x.shape:
            raise ValueError(f"denoiser: returned shape {list(denoised.shape)} for an input of {list(x.shape)}")
        self.forward.index_add_(0, self.index, torch.ones_like(self.index))
        denoised = denoised.to(x.dtype)
        if torch.is_grad_enabled() and x.requires_grad and not denoised.requires_grad:
            raise ValueError(NO_GRADIENT)
        if denoised.requires_grad:
            denoised.register_hook(self._count_backward)  # type: ignore[no-untyped-call]
        return denoised

    def _evaluate(self, x: Tensor, labels: Tensor | None, sigma: Tensor) -> Tensor:
        return self.denoiser(x, sigma) if labels is None else self.denoiser(x, sigma, labels)

    def with_gradient(
        self, x: Tensor, function: Callable[[BoundDenoiser, Tensor, slice], tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, Tensor]:
        """What a function hands back, and its gradient: for `x` [B, ...], both [B, ...].

        `function(denoise, x, part)` gets rows of x that require a gradient, the network for these, and which they are;
        it returns values [b], whose sum is differentiated, and what to hand back [b, ...]. The rows go through at once,
        or in micro-batches. Cost: F + B; what is tried in vain for want of memory is not counted.
        """

        def evaluate(part: slice) -> tuple[Tensor, Tensor]:
            before = self.forward.clone(), self.backward.clone()
            try:
                with torch.enable_grad():
                    rows = x[part].detach().requires_grad_(True)
                    mine = self if len(rows) == len(x) else self.rows(torch.arange(len(x))[part])
                    value, extra = function(mine, rows, part)
                    # With respect to x alone: the gradients of the weights are neither computed nor accumulated.
                    (slope,) = torch.autograd.grad(value.sum(), rows)
            except (RuntimeError, MemoryError):
                self.forward.copy_(before[0])
                self.backward.copy_(before[1])
                raise
            return extra.detach(), slope

        extra, slope = self.micro_batches.run("probe", len(x), evaluate)
        return extra, slope

    def _count_backward(self, grad: Tensor) -> None:
        self.backward.index_add_(0, self.index, torch.ones_like(self.index))

    @property
    def sigma_min(self) -> float:
        return float(getattr(self.denoiser, "sigma_min", 0.0))

    @property
    def sigma_max(self) -> float:
        return float(getattr(self.denoiser, "sigma_max", inf))

    def round_sigma(self, sigma: Tensor) -> Tensor:
        """The level as the network knows it; the identity where it does not say."""
        known = getattr(self.denoiser, "round_sigma", None)
        return sigma if known is None else torch.as_tensor(known(sigma)).to(sigma)

    def rows(self, index: Tensor) -> BoundDenoiser:
        """The same network for the rows `index` [b'] of this one."""
        labels = None if self.class_labels is None else self.class_labels[index.to(self.class_labels.device)]
        return replace(self, class_labels=labels, index=self.index[index.cpu()])

    def draw(self, x: Tensor) -> Tensor:
        """Unit normal draws for the rows `x` [b, ...], from a source that draws for the whole batch.

        A row gets the numbers of its place in the batch, whichever other rows are with it.
        """
        whole: Tensor = self.randn_like(x.new_empty(len(self.forward), *x.shape[1:]))
        return whole[self.index.to(x.device)]


def bind(
    denoiser: AnyDenoiser,
    batch: int,
    class_labels: Tensor | None = None,
    *,
    randn_like: Noise | None = None,
    micro_batches: MicroBatches | None = None,
) -> BoundDenoiser:
    """`denoiser` for a batch of `batch` samples, with counters at zero; one that is bound already keeps its counters.

    Any sampler takes the result as its denoiser, and its counters then tell what the run has cost.
    Raises ValueError: a bound denoiser of another batch or with other labels.
    """
    if isinstance(denoiser, BoundDenoiser):
        if class_labels is not None:
            raise ValueError("class_labels: this denoiser is bound to its labels already; leave them out here")
        if len(denoiser.index) != batch:
            raise ValueError(f"denoiser: bound to {len(denoiser.index)} samples, called for {batch}; bind it anew")
        return denoiser if randn_like is None else replace(denoiser, randn_like=randn_like)
    if class_labels is not None and len(class_labels) != batch:
        raise ValueError(f"class_labels: {len(class_labels)} rows for {batch} latents; give one row per latent")
    zeros = torch.zeros(batch, dtype=torch.int64)
    return BoundDenoiser(
        denoiser,
        class_labels,
        torch.arange(batch),
        zeros,
        zeros.clone(),
        randn_like=randn_like or torch.randn_like,
        micro_batches=micro_batches or MicroBatches(),
    )


def unbound(denoiser: AnyDenoiser) -> AnyDenoiser:
    """The denoiser itself, without its labels, its rows and its counters."""
    return denoiser.denoiser if isinstance(denoiser, BoundDenoiser) else denoiser


# -- a point of a trajectory ------------------------------------------------------------------------------------------


@dataclass(eq=False)
class State:
    """A point of a trajectory and what the network says there, evaluated on first use and then shared.

    `g` costs F + B and brings `D` with it (by a difference: F more than `D`); `D` alone costs F. The loop evaluates
    `g` first where a corrector announces that it reads it, so that a step's cost does not depend on the order in which
    correctors ask. `uphill(rho)` is again a state, which is how the detector's probe becomes the corrector's point.
    """

    denoise: BoundDenoiser
    x: Tensor  # [B, C, H, W]
    sigma: Tensor  # []
    i: int = 0
    num_steps: int = 1
    gradient: Gradient = "backward"
    _D: Tensor | None = field(default=None, repr=False)
    _d: Tensor | None = field(default=None, repr=False)
    _g: Tensor | None = field(default=None, repr=False)
    _u: Tensor | None = field(default=None, repr=False)
    _uphill: dict[float, State] = field(default_factory=dict, repr=False)

    @property
    def D(self) -> Tensor:
        """D(x; sigma) [B, C, H, W]."""
        if self._D is None:
            with torch.no_grad():
                self._D = self.denoise(self.x, self.sigma)
        return self._D

    @property
    def d(self) -> Tensor:
        """d(x) = (x - D(x; t)) / t  [B, C, H, W]."""
        if self._d is None:
            self._d = (self.x - self.D) / self.sigma
        return self._d

    @property
    def g(self) -> Tensor:
        """g(x) = grad_x n(x), n(x) = ||v(x)||, v = d / t  [B, C, H, W].

        By a backward pass it is J^T v / ||v||, J the Jacobian of v; by the difference (v(x + h d/||d||) - v(x)) / h,
        h = .01 t sqrt(C H W), it is J v / ||v|| to first order in h: the same where J is symmetric, as the exact
        score's is.
        """
        if self._g is None and self.gradient == "difference":
            h = DIFFERENCE * self.sigma * sqrt(self.x[0].numel())
            self._g = (self.moved(h * unit(self.d)).d - self.d) / self.sigma / h
        if self._g is None:

            def score_norm(denoise: BoundDenoiser, x: Tensor, part: slice) -> tuple[Tensor, Tensor]:
                denoised = denoise(x, self.sigma)
                return norms((x - denoised) / self.sigma / self.sigma), denoised  # n [b]

            denoised, self._g = self.denoise.with_gradient(self.x, score_norm)
            if self._D is None:
                self._D = denoised
        return self._g

    @property
    def u(self) -> Tensor:
        """u(x) = g / ||g||: where the score norm grows fastest; 0 where g vanishes  [B, C, H, W]."""
        if self._u is None:
            self._u = unit(self.g)
        return self._u

    @property
    def known_u(self) -> Tensor | None:
        """`u` where it costs nothing: None where neither it nor g is known yet."""
        return None if self._u is None and self._g is None else self.u

    def moved(self, delta: Tensor) -> State:
        """The state x + delta at the same noise level, nothing evaluated yet."""
        return State(self.denoise, self.x + delta, self.sigma, self.i, self.num_steps, self.gradient)

    def uphill(self, rho: float) -> State:
        """x + rho u."""
        if rho == 0:
            return self
        if rho not in self._uphill:
            self._uphill[rho] = self.moved(rho * self.u)
        return self._uphill[rho]

    def with_u(self, u: Tensor | None) -> State:
        """This state with the direction `u` of an earlier step for its own; None: as it is. Costs F where d does."""
        return self if u is None else replace(self, _D=self.D, _d=self.d, _u=u, _uphill={})

    def with_D(self, D: Tensor) -> State:
        """This state with `D` in place of D(x; sigma), which is not evaluated."""
        return replace(self, _D=D, _d=None, _uphill={})

    def with_d(self, d: Tensor) -> State:
        """This state with the direction `d` in place of the denoiser's own."""
        return replace(self, _D=self.D, _d=d, _uphill=dict(self._uphill))

    def select(self, index: Tensor) -> State:
        """The rows `index` [b] of the batch, with what is known about them."""

        def pick(value: Tensor | None) -> Tensor | None:
            return None if value is None else value[index]

        return replace(
            self,
            denoise=self.denoise.rows(index),
            x=self.x[index],
            _D=pick(self._D),
            _d=pick(self._d),
            _g=pick(self._g),
            _u=pick(self._u),
            _uphill={rho: state.select(index) for rho, state in self._uphill.items()},
        )
