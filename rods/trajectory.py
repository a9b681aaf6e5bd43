"""The one loop: a generator that integrates dx/dt from noise to image and yields its steps.

It also says what the loop hands to a corrector and gets back: a `State`, and a `Correction`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import inf, sqrt
from typing import Literal

import torch
from torch import Tensor

from rods.denoiser import BoundDenoiser, bind, no_rows, unbound
from rods.schedules import LINEAR, Schedule, clip_range, edm_grid
from rods.state import Gradient, State
from rods.types import AnyDenoiser, Probe, Step, Steps, form, state_dtype

Solver = Literal["euler", "heun"]


@dataclass(frozen=True, eq=False)
class Correction:
    """The direction to take, and how it was decided."""

    d: Tensor  # [B, C, H, W]
    score: Tensor | None = None  # [B]
    flagged: Tensor | None = None  # [B] bool; None = all rows
    probe: Probe | None = None  # for the steps that are not probed themselves; see `combinators.Every`
    at: State | None = None  # what was evaluated in the state's place; None: the state itself


class Corrector:
    """Changes the direction of a step: called with the state and the finished step before it (None at the first).

    Correctors are frozen dataclasses: printable, comparable, written to JSON field by field.
    """

    def __call__(self, cur: State, prev: Step | None) -> Correction:
        raise NotImplementedError

    def needs_gradient(self, cur: State, prev: Step | None) -> bool:
        """Whether it will read `cur.g` of every row, which is then evaluated first and brings D with it."""
        return False

    def probed_radii(self, cur: State, prev: Step | None) -> tuple[float, ...]:
        """The radii rho at whose points `cur.uphill(rho)` it reads g of every row; a `Chain` evaluates these first."""
        return ()

    def held(self, cur: State, prev: Step | None, probe: Probe) -> Correction:
        """The correction of the rows that an earlier step has flagged, by the direction u that it found."""
        return only(probe.flagged, self, cur.with_u(probe.u), prev)


def only(flagged: Tensor, correct: Corrector, cur: State, prev: Step | None) -> Correction:
    """`correct` for the rows `flagged` [B] bool, gathered; the others keep their direction bit for bit."""
    index = flagged.nonzero().flatten()  # [b]
    d = cur.d  # for the whole batch, before rows are gathered: a smaller batch may round differently
    if len(index) == 0:
        return Correction(d, flagged=flagged)
    if len(index) == len(flagged):
        part = correct(cur, prev)
    else:
        part = correct(cur.select(index), prev and prev.select(index))
    if part.flagged is not None:  # a gate within this one has the last word on its rows
        flagged = flagged.index_copy(0, index, part.flagged)
    return Correction(d.index_copy(0, index, part.d), flagged=flagged)


@dataclass(frozen=True)
class Churn:
    """EDM's stochasticity: before a step, S_churn/N more noise (at most sqrt(2) - 1) where S_min <= sigma <= S_max."""

    S_churn: float = 0
    S_min: float = 0
    S_max: float = inf
    S_noise: float = 1

    def __post_init__(self) -> None:
        if not 0 <= self.S_churn < inf or not 0 <= self.S_noise < inf:
            raise ValueError(f"S_churn, S_noise: {self.S_churn}, {self.S_noise}: must be finite numbers >= 0")
        if not 0 <= self.S_min <= self.S_max:
            raise ValueError(f"S_min, S_max: {self.S_min}, {self.S_max} is not a range; give 0 <= S_min <= S_max")

    def gammas(self, sigmas: list[float]) -> list[float]:
        """gamma_i for the N noise levels at which steps begin."""
        gamma = min(self.S_churn / len(sigmas), sqrt(2) - 1)
        return [gamma if self.S_min <= sigma <= self.S_max else 0.0 for sigma in sigmas]


def trajectory(
    denoise: AnyDenoiser,
    x: Tensor,
    sigmas: Tensor,
    *,
    correct: Corrector | None = None,
    solver: Solver = "euler",
    schedule: Schedule = LINEAR,
    alpha: float = 1.0,
    churn: Churn | None = None,
    gradient: Gradient = "backward",
) -> Steps:
    """Integrate from the noise level sigmas[0] to sigmas[-1] and yield a `Step` for each of the N = len(sigmas) - 1.

    EDM paper, Algorithms 1 and 2, with RODS's correction (RODS paper, Algorithm 2) of the first evaluation of a step.
    `x` [B, C, H, W] in the state's dtype is the state at sigmas[0] (s(t) times the noisy image); `sigmas` [N + 1] are
    noise levels on its device, decreasing, the last may be 0. `denoise` is D(x, sigma) or a `BoundDenoiser`, whose
    counters then tell F and B. With `heun`, steps that do not end at 0 get the second-order correction, its second
    evaluation at t + alpha h. With `churn`, noise is drawn at every step. `gradient` is how `State.g` is evaluated.
    Rows that are sent after a step are those that go on (`Steps`).
    Cost: F per step, with Heun 2F (the step to 0: F), and what `correct` spends.
    """
    denoise = bind(denoise, len(x))
    num_steps = len(sigmas) - 1
    gammas = [] if churn is None else churn.gammas(sigmas[:-1].tolist())
    # sigma^-1(0) is 0 for every schedule, but not to the last bit: the end of the time axis is exact.
    times = torch.where(sigmas > 0, schedule.time(sigmas), 0.0)
    to_zero = (sigmas[1:] == 0).tolist()
    x, prev = x.detach(), None
    for i in range(num_steps):
        t_hat, t_next, x_hat = times[i], times[i + 1], x
        if churn is not None:
            noise = churn.S_noise * denoise.draw(x)  # drawn at every step, so that streams stay aligned
            if gammas[i] > 0:
                x_hat, t_hat = more_noise(x, times[i], gammas[i], noise, schedule=schedule, denoise=denoise)

        cur = State(denoise, x_hat / schedule.s(t_hat), schedule.sigma(t_hat), i, num_steps, gradient)
        if correct is not None and correct.needs_gradient(cur, prev):
            _ = cur.g
        done = Correction(cur.d, flagged=no_rows(x)) if correct is None else correct(cur, prev)
        seen = done.at or cur
        d_used = done.d.detach()
        d_cur = schedule.rate(t_hat, x_hat, d_used)
        x = x_hat + (t_next - t_hat) * d_cur
        if solver == "heun" and not to_zero[i]:
            x = second_order(denoise, x_hat, d_cur, t_hat, t_next, alpha=alpha, schedule=schedule)

        prev = Step(
            i=i,
            num_steps=num_steps,
            sigma=cur.sigma,
            sigma_next=sigmas[i + 1],
            x=cur.x,
            x_next=x / schedule.s(t_next),
            at=seen.x,
            denoised=seen.D,
            d=seen.d,
            d_used=d_used,
            score=done.score,
            flagged=~no_rows(x) if done.flagged is None else done.flagged,
            probe=done.probe,
        )
        going_on = yield prev
        if going_on is not None:
            denoise, x, prev = denoise.rows(going_on), x[going_on], prev.select(going_on)


def second_order(
    denoise: BoundDenoiser,
    x_hat: Tensor,
    d_cur: Tensor,
    t_hat: Tensor,
    t_next: Tensor,
    *,
    alpha: float,
    schedule: Schedule,
) -> Tensor:
    """x at t_next from x_hat at t_hat by a second evaluation at t_hat + alpha h: Heun for alpha = 1. Cost: F."""
    h = t_next - t_hat
    x_prime, t_prime = x_hat + alpha * h * d_cur, t_hat + alpha * h
    ahead = State(denoise, x_prime / schedule.s(t_prime), schedule.sigma(t_prime))
    d_prime = schedule.rate(t_prime, x_prime, ahead.d)
    return x_hat + h * ((1 - 1 / (2 * alpha)) * d_cur + 1 / (2 * alpha) * d_prime)


def more_noise(
    x: Tensor,
    t: Tensor,
    gamma: float,
    noise: Tensor,
    *,
    schedule: Schedule,
    denoise: BoundDenoiser,
) -> tuple[Tensor, Tensor]:
    """Raise the noise level by 1 + gamma > 1: (x_hat, t_hat); EDM paper, Algorithm 2, lines 4 to 6.

    Not to be called with gamma = 0: the round trip t -> sigma -> t is off by 1e-15, of which the square root below
    makes noise of 1e-7.
    """
    sigma = schedule.sigma(t)
    t_hat = schedule.time(denoise.round_sigma(sigma * (1 + gamma)))
    added = (schedule.sigma(t_hat) ** 2 - sigma**2).clamp(min=0).sqrt()
    return schedule.s(t_hat) / schedule.s(t) * x + schedule.s(t_hat) * added * noise, t_hat


# -- how a run begins and ends ----------------------------------------------------------------------------------------


def check_latents(latents: object, denoiser: AnyDenoiser) -> None:
    """ValueError unless `latents` is a floating-point [B, C, H, W], C the denoiser's `img_channels` if it has any."""
    channels = getattr(unbound(denoiser), "img_channels", None)
    if not isinstance(latents, Tensor) or latents.ndim != 4 or not latents.is_floating_point():
        raise ValueError(f"latents: {form(latents)}: must be a floating-point tensor [B, C, H, W]")
    if channels not in (None, latents.shape[1]):
        raise ValueError(f"latents: {list(latents.shape)}: must be [B, {channels}, H, W] for this denoiser")


def with_zero(levels: Tensor, denoise: BoundDenoiser, latents: Tensor) -> Tensor:
    """The grid on the state's device: levels [N] rounded as the network wants them, then 0  [N + 1]."""
    levels = denoise.round_sigma(levels.to(latents.device, state_dtype(latents.device)))
    return torch.cat([levels, levels.new_zeros(1)])


def start(
    denoiser: AnyDenoiser,
    latents: Tensor,
    class_labels: Tensor | None,
    *,
    num_steps: int,
    sigma_min: float,
    sigma_max: float,
    time_rho: float,
) -> tuple[BoundDenoiser, Tensor, Tensor]:
    """What a sampler on EDM's grid begins with: D with its labels, x = sigma_0 latents, and the grid [N + 1]."""
    denoise = bind(denoiser, len(latents), class_labels)
    allowed = (denoise.sigma_min, denoise.sigma_max)
    lo, hi = clip_range(sigma_min, sigma_max, allowed=allowed, num_steps=num_steps)
    sigmas = with_zero(edm_grid(num_steps, sigma_min=lo, sigma_max=hi, time_rho=time_rho), denoise, latents)
    return denoise, latents.detach().to(sigmas.dtype) * sigmas[0], sigmas


def last(steps: Iterable[Step]) -> Tensor:
    """The image after the last step."""
    for step in steps:
        x = step.x_next
    return x
