"""The vocabulary: what a denoiser is, what one step of a trajectory holds, what a RODS run returns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor


class Denoiser(Protocol):
    """D(x; sigma): the expected clean image given the noisy one, with EDM's implicit interface made explicit.

    `x` is float64 [B, C, H, W], `sigma` a 0-dim float64 tensor on the same device (a noise level), `class_labels`
    None or [B, label_dim]. The result has the shape of `x` and is differentiable in `x`.
    Only the call is required: where the attributes are absent the samplers neither clip the range of noise levels
    nor round them, so that a plain function is a denoiser too.
    """

    img_channels: int
    img_resolution: int
    label_dim: int
    sigma_min: float
    sigma_max: float

    def __call__(self, x: Tensor, sigma: Tensor, class_labels: Tensor | None = None) -> Tensor: ...

    def round_sigma(self, sigma: Tensor) -> Tensor: ...


AnyDenoiser = Callable[..., Tensor]
"""A `Denoiser`, or a plain function D(x, sigma) or D(x, sigma, class_labels)."""


@dataclass(frozen=True, eq=False)
class Probe:
    """What the last probed step has found, where some steps go by it instead of probing themselves."""

    i: int  # the probed step
    u: Tensor | None  # [B, C, H, W] g / ||g|| there; None where nobody asked for it
    flagged: Tensor  # [B] bool

    def rows(self, index: Tensor) -> Probe:
        """The rows `index` [b] of the batch."""
        return Probe(self.i, None if self.u is None else self.u[index], self.flagged[index])


@dataclass(frozen=True, eq=False)
class Step:
    """One finished step of a trajectory; images are in the unscaled coordinates of the denoiser (x = y + sigma n)."""

    i: int
    x: Tensor  # [B, C, H, W] state before the step, after the churn if there is any
    x_next: Tensor  # [B, C, H, W] state after the step
    sigma: Tensor  # [] noise level of x
    sigma_next: Tensor  # [] noise level of x_next
    denoised: Tensor  # [B, C, H, W] D(x; sigma); of flagged rows between probes, D at their worst point (`every`)
    d: Tensor  # [B, C, H, W] the denoiser's own direction there, (x - D(x; sigma)) / sigma
    d_used: Tensor  # [B, C, H, W] the direction taken; equal to d bit for bit in rows that are not flagged
    score: Tensor | None  # [B] what the detector said; None where none was asked
    flagged: Tensor  # [B] bool, rows whose direction was handed to a corrector
    num_steps: int  # of the whole trajectory
    probe: Probe | None = None  # what the next step may go by; None where every step is probed, or none

    def rows(self, index: Tensor) -> Step:
        """The rows `index` [b] of the batch."""
        return replace(
            self,
            x=self.x[index],
            x_next=self.x_next[index],
            denoised=self.denoised[index],
            d=self.d[index],
            d_used=self.d_used[index],
            score=None if self.score is None else self.score[index],
            flagged=self.flagged[index],
            probe=self.probe and self.probe.rows(index),
        )


@dataclass(frozen=True)
class RestartRecord:
    """What a gated restart saw and did on one sample."""

    scores: tuple[float, ...]  # of the base sampler's image, then of the new image of each round
    kept: int  # which of these images is the result; 0 = the base sampler's


@dataclass(frozen=True)
class TriesRecord:
    """The images that were drawn until one was accepted."""

    scores: tuple[float, ...]  # of each
    seeds: tuple[int, ...]  # of each, the sample's own first
    kept: int  # which of them is the result
    accepted: bool  # whether its score is below the limit


@dataclass(frozen=True)
class SampleRecord:
    """What RODS saw and did on one sample; plain numbers, ready for JSON."""

    probed: tuple[int, ...]  # steps at which the curvature index was measured
    sigma: tuple[float, ...]  # their noise levels t
    H: tuple[float, ...]  # curvature index at these steps, eq. (8)
    H_scaled: tuple[float, ...]  # the scale-free companion H t^3 / rho (0 where rho = 0)
    flagged: tuple[int, ...]  # steps that were corrected
    forward: int  # network passes spent on this sample
    backward: int  # backward passes to the input spent on this sample
    scores: tuple[float, ...] = ()  # at the probed steps, of a sampler whose detector is not the curvature index
    restart: RestartRecord | None = None  # None for samplers that do not restart
    tries: TriesRecord | None = None  # None where nothing is drawn again; passes are then those of all tries


@dataclass(frozen=True, eq=False)
class RodsResult:
    """Images and, for each of them, its record."""

    images: Tensor  # [B, C, H, W] float64, detached
    records: tuple[SampleRecord, ...]  # [B]


def state_dtype(device: torch.device) -> torch.dtype:
    """float64, as in EDM; float32 on MPS, which has no float64 (this branch was never run on such a machine)."""
    return torch.float32 if device.type == "mps" else torch.float64
