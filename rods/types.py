"""The vocabulary: what a denoiser is, what one step of a trajectory holds, what a sampler returns."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

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


def form(value: object) -> str:
    """The dtype and shape of a tensor, or the type of what is none, for a message."""
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"


@dataclass(frozen=True, eq=False)
class Probe:
    """What the last probed step has found, for the steps that follow it without a probe of their own."""

    i: int  # the probed step
    u: Tensor | None  # [B, C, H, W] g / ||g|| there; None where no gradient was evaluated
    flagged: Tensor  # [B] bool

    def select(self, index: Tensor) -> Probe:
        """The rows `index` [b] of the batch."""
        return Probe(self.i, None if self.u is None else self.u[index], self.flagged[index])


@dataclass(frozen=True, eq=False)
class Verdict:
    """What a gated restart decided at the end of a run of some rows."""

    scores: Tensor  # [b] of the new images
    kept: Tensor  # [b] bool: the new image takes the place of the one before it

    def select(self, index: Tensor) -> Verdict:
        """The rows `index` of those that were judged."""
        return Verdict(self.scores[index], self.kept[index])


@dataclass(frozen=True, eq=False)
class Step:
    """One finished step of a trajectory; images are in the unscaled coordinates of the denoiser (x = y + sigma n)."""

    i: int
    num_steps: int  # of the trajectory that the step belongs to
    sigma: Tensor  # [] noise level of x
    sigma_next: Tensor  # [] noise level of x_next
    x: Tensor  # [B, C, H, W] state before the step, after the churn if there is any
    x_next: Tensor  # [B, C, H, W] state after the step
    at: Tensor  # [B, C, H, W] where the network was evaluated: x, or another point that a corrector put in its place
    denoised: Tensor  # [B, C, H, W] D(at; sigma)
    d: Tensor  # [B, C, H, W] the denoiser's own direction there, (at - denoised) / sigma
    d_used: Tensor  # [B, C, H, W] the direction taken; equal to d bit for bit in rows that are not flagged
    score: Tensor | None  # [B] what the detector said; None where none was asked
    flagged: Tensor  # [B] bool, rows whose direction was handed to a corrector
    probe: Probe | None = None  # what the next step may go by; None where every step is probed, or none
    rows: Tensor | None = None  # [B] int64, the rows of the batch that are restarted; None: a step of the whole batch
    verdict: Verdict | None = None  # only on the last step of a run that a restart has scored

    def select(self, index: Tensor) -> Step:
        """The rows `index` [b] of this step."""
        return replace(
            self,
            x=self.x[index],
            x_next=self.x_next[index],
            at=self.at[index],
            denoised=self.denoised[index],
            d=self.d[index],
            d_used=self.d_used[index],
            score=None if self.score is None else self.score[index],
            flagged=self.flagged[index],
            probe=self.probe and self.probe.select(index),
            rows=None if self.rows is None else self.rows[index],
            verdict=self.verdict and self.verdict.select(index),
        )


Steps = Generator[Step, Tensor | None, None]
"""The steps of a run. It is a `for` loop's; who sends it rows [b] int64 after a step lets only these rows go on."""


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
    level: float = 0  # the noise level at which the others were given up; 0: they were finished
    forward: tuple[int, ...] = ()  # in flight, F spent on each: what a full run has more is that of the kept one
    backward: tuple[int, ...] = ()  # and B


@dataclass(frozen=True)
class SampleRecord:
    """What a sampler saw and did on one sample; plain numbers, ready for JSON."""

    probed: tuple[int, ...]  # steps at which the curvature index was measured
    sigma: tuple[float, ...]  # their noise levels t
    H: tuple[float, ...]  # curvature index at these steps, eq. (8) of the RODS paper
    H_scaled: tuple[float, ...]  # the scale-free companion H t^3 / rho (0 where rho = 0)
    flagged: tuple[int, ...]  # steps that were corrected
    forward: int  # F: network evaluations spent on this sample
    backward: int  # B: vector-Jacobian products to the input spent on this sample
    scores: tuple[float, ...] = ()  # at the probed steps, of a sampler whose detector is not the curvature index
    restart: RestartRecord | None = None  # None for samplers that do not restart
    tries: TriesRecord | None = None  # None where nothing is drawn again; F and B are then those of all tries


@dataclass(frozen=True, eq=False)
class RodsResult:
    """Images and, for each of them, its record."""

    images: Tensor  # [B, C, H, W] float64, detached
    records: tuple[SampleRecord, ...]  # [B]


def state_dtype(device: torch.device) -> torch.dtype:
    """float64, as in EDM; float32 on MPS, which has no float64 (this branch was never run on such a machine)."""
    return torch.float32 if device.type == "mps" else torch.float64


def option(
    default: Any = ..., *, help: str, flag: str | None = None, least: int | None = None, most: int | None = None
) -> Any:
    """A dataclass field that is an option of the commands; without a default it is required.

    `help` is what --help says of it, `flag` its spelling where that is not --name with dashes; `least` and `most` are
    the range of a whole number.
    """
    metadata = {"help": help, "flag": flag, "least": least, "most": most}
    return field(metadata=metadata) if default is ... else field(default=default, metadata=metadata)
