"""The one door to the network: labels bound, passes counted, and nothing evaluated twice at one point."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from math import inf, sqrt
from typing import Literal

import torch
from torch import Tensor

from rods.room import Room
from rods.types import AnyDenoiser, Step

TINY = 1e-12
"""Norms below this have no direction."""
Gradient = Literal["backward", "difference"]
"""How g(x) = grad_x ||v|| is had: by a backward pass through the network, or by one finite difference."""
DIFFERENCE = 0.01
"""How far that difference moves an element (root mean square), in units of the noise level.

In two dimensions about the length .01 t of spec method.md, section 3. In pictures a length of .01 t in all is too
short: float32 inside the network rounds H away at high noise levels (docs/performance.md).
"""


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


@dataclass(frozen=True, eq=False)
class BoundDenoiser:
    """D(x; sigma) with its labels, for some rows of a batch; counts F and B of every sample of that batch.

    The counts are measured where the network is called (B by a hook on its output), so that a corrector cannot
    forget to declare what it spends. `rows` narrows it to a part of the batch, and may repeat rows. `watch` is shown
    every finished step of a trajectory of the whole batch: how a run is scored whose steps its sampler keeps. `room`
    says how many rows the network gets at once.
    """

    denoiser: AnyDenoiser
    class_labels: Tensor | None  # [b, label_dim]
    index: Tensor  # [b] int64 on the CPU: which sample of the batch each row is
    forward: Tensor  # [B] int64 on the CPU
    backward: Tensor  # [B] int64 on the CPU
    watch: Callable[[Step], None] | None = None
    room: Room = field(default_factory=Room)

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        if torch.is_grad_enabled():  # whoever differentiates this splits it: see `with_gradient`
            denoised = self._evaluate(x, self.class_labels, sigma)
        else:
            labels = self.class_labels
            (denoised,) = self.room.run(
                "forward", len(x), lambda p: (self._evaluate(x[p], labels if labels is None else labels[p], sigma),)
            )
        if denoised.shape != x.shape:
            raise ValueError(f"denoiser: returned shape {list(denoised.shape)} for an input of {list(x.shape)}")
        self.forward.index_add_(0, self.index, torch.ones_like(self.index))
        denoised = denoised.to(x.dtype)
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
        or as many as `room` has space for. Cost: F + B; what is tried in vain for want of memory is not counted.
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

        extra, slope = self.room.run("probe", len(x), evaluate)
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
        return BoundDenoiser(
            self.denoiser, labels, self.index[index.cpu()], self.forward, self.backward, room=self.room
        )

    def watched(self, watch: Callable[[Step], None] | None) -> BoundDenoiser:
        """The same rows and counters with another `watch`, or none."""
        return replace(self, watch=watch)


def bind(
    denoiser: AnyDenoiser, batch: int, class_labels: Tensor | None = None, *, room: Room | None = None
) -> BoundDenoiser:
    """`denoiser` for a batch of `batch` samples, with counters at zero; one that is bound already stays as it is.

    Any sampler takes the result as its denoiser, and its counters then tell what the run has cost.
    """
    if isinstance(denoiser, BoundDenoiser):
        if class_labels is not None:
            raise ValueError("class_labels: this denoiser is bound to its labels already; leave them out here")
        if len(denoiser.index) != batch:
            raise ValueError(f"denoiser: bound to {len(denoiser.index)} samples, called for {batch}; bind it anew")
        return denoiser
    if class_labels is not None and len(class_labels) != batch:
        raise ValueError(f"class_labels: {len(class_labels)} rows for {batch} latents; give one row per latent")
    zeros = torch.zeros(batch, dtype=torch.int64)
    return BoundDenoiser(denoiser, class_labels, torch.arange(batch), zeros, zeros.clone(), room=room or Room())


def fresh(denoise: BoundDenoiser, x: Tensor, randn_like: Callable[[Tensor], Tensor]) -> Tensor:
    """Standard normal draws for the rows `x` [b, ...] of a batch, from a source that draws for all of it.

    A row gets the numbers of its place in the batch whichever other rows are with it.
    """
    whole: Tensor = randn_like(x.new_empty(len(denoise.forward), *x.shape[1:]))
    return whole[denoise.index.to(x.device)]


@dataclass(eq=False)
class Point:
    """A state of a trajectory and what the network says there, evaluated on first use and then shared.

    `d` costs F; `g` costs F + B and brings `d` with it, so that whoever needs both asks for `g` first, or, with
    `gradient` "difference", F more than `d`. `u` is g / ||g||, or what was put in its place by `towards`;
    `uphill(rho)` is again such a point, which is how the detector's probe becomes the corrector's.
    """

    denoise: BoundDenoiser
    x: Tensor  # [B, C, H, W]
    sigma: Tensor  # []
    i: int = 0
    num_steps: int = 1
    gradient: Gradient = "backward"
    _denoised: Tensor | None = field(default=None, repr=False)
    _d: Tensor | None = field(default=None, repr=False)
    _g: Tensor | None = field(default=None, repr=False)
    _u: Tensor | None = field(default=None, repr=False)
    _uphill: dict[float, Point] = field(default_factory=dict, repr=False)

    @property
    def denoised(self) -> Tensor:
        """D(x; sigma) [B, C, H, W]."""
        if self._denoised is None:
            with torch.no_grad():
                self._denoised = self.denoise(self.x, self.sigma)
        return self._denoised

    @property
    def d(self) -> Tensor:
        """d(x) = (x - D(x; t)) / t  [B, C, H, W]."""
        if self._d is None:
            self._d = (self.x - self.denoised) / self.sigma
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
            if self._denoised is None:
                self._denoised = denoised
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

    def moved(self, delta: Tensor) -> Point:
        """The point x + delta at the same noise level, nothing evaluated yet."""
        return Point(self.denoise, self.x + delta, self.sigma, self.i, self.num_steps, self.gradient)

    def towards(self, u: Tensor | None) -> Point:
        """This point with the direction `u` of an earlier step for its own; None: as it is. Costs F where d does."""
        return self if u is None else replace(self, _denoised=self.denoised, _d=self.d, _u=u, _uphill={})

    def uphill(self, rho: float) -> Point:
        """x + rho u."""
        if rho == 0:
            return self
        if rho not in self._uphill:
            self._uphill[rho] = self.moved(rho * self.u)
        return self._uphill[rho]

    def using(self, d: Tensor) -> Point:
        """This point with the direction `d` in place of the denoiser's own."""
        return replace(self, _denoised=self.denoised, _d=d, _uphill=dict(self._uphill))

    def rows(self, index: Tensor) -> Point:
        """The rows `index` [b] of the batch, with what is known about them."""

        def pick(value: Tensor | None) -> Tensor | None:
            return None if value is None else value[index]

        return replace(
            self,
            denoise=self.denoise.rows(index),
            x=self.x[index],
            _denoised=pick(self._denoised),
            _d=pick(self._d),
            _g=pick(self._g),
            _u=pick(self._u),
            _uphill={rho: point.rows(index) for rho, point in self._uphill.items()},
        )
