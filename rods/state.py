"""A point of a trajectory: the state, its noise level, and what the network says there, evaluated once."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import sqrt
from typing import Literal

import torch
from torch import Tensor

from rods.denoiser import BoundDenoiser, norms, unit

Gradient = Literal["backward", "difference"]
"""How g(x) = grad_x ||v|| is evaluated: by a backward pass through the network, or by one finite difference."""
DIFFERENCE = 0.01
"""How far that difference moves an element (root mean square), in units of the noise level.

A length of .01 t for the whole image is too short for an image: float32 inside the network rounds H away at high noise
levels (docs/lab/2026-11-24-performance.md).
"""


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
            h = DIFFERENCE * self.sigma * sqrt(self.x.shape[1:].numel())
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
