"""Restart: score the finished image, and take only those at risk back to a noise level and down again."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import isnan
from typing import Literal, Protocol

import torch
from torch import Tensor

from rods.correctors import Corrector, SigmaWindow, Window, cas, within
from rods.detectors import noise_level
from rods.evaluation import BoundDenoiser, fresh
from rods.scores import TrajectoryVariance, lid
from rods.trajectory import Solver, check_solver, last, start, trajectory
from rods.types import AnyDenoiser, RestartRecord, RodsResult, SampleRecord, Step


class ImageScore(Protocol):
    """Runs some rows' steps to the end: their images [b, C, H, W] and scores [b], higher = more at risk."""

    def __call__(self, denoise: BoundDenoiser, steps: Iterable[Step]) -> tuple[Tensor, Tensor]: ...


def restart_sampler(
    denoiser: AnyDenoiser,
    latents: Tensor,
    class_labels: Tensor | None = None,
    *,
    randn_like: Callable[[Tensor], Tensor] = torch.randn_like,
    threshold: float,
    sigma_r: float,
    rounds: int = 3,
    margin: float = 0,
    detector: Literal["lid", "tvf"] = "lid",
    lid_sigma: float = 1.2,
    draws: int = 4,
    tvf_sigma: float = 2,
    rho: float = 0,
    window: Window = (0, 1),
    num_steps: int = 40,
    sigma_min: float = 0.002,
    sigma_max: float = 80,
    time_rho: float = 7,
    solver: Solver = "euler",
) -> RodsResult:
    """Gated restart: images that score above `threshold` go back to `sigma_r` and down again with fresh noise.

    Spec method.md, section 5; restarts are from Xu et al. 2023 (Restart sampling), which restarts every sample. A new
    image is kept if its score is below (1 - margin) times the one kept so far, and what is still above the threshold
    goes round again, at most `rounds` times. Other samples are those of the base sampler (`euler_sampler`, or
    `edm_sampler` without churn for heun), bit for bit. `threshold` is absolute and calibrated with the score's other
    options: inf only records the scores, 0 sends every sample round.

    `latents` [B, C, H, W] are unit normal and are scaled here. `detector` lid looks at the noise level `lid_sigma` with
    `draws` draws, the same for all images of a sample, so that these compare; tvf looks at the steps at noise levels up
    to `tvf_sigma`, which is at most `sigma_r`. `rho` > 0 corrects the restarted part by CAS of that radius,
    in the `window` of its own steps or in noise levels. `randn_like` is called on the whole batch, `draws` times for
    lid and once per round: a sample's numbers do not depend on its mates.
    Returns images (float64, detached) and records with `restart` filled in. Raises ValueError for arguments out of
    range. Cost: the base sampler's, `draws` F more for lid; for a sample at risk in each round the steps below
    `sigma_r` (CAS: F + B more each), and `draws` F more for lid.
    """
    check_solver(solver)
    if draws < 1:
        raise ValueError(f"draws: {draws} is too few; give a whole number >= 1")
    denoise, x, sigmas = start(denoiser, latents, class_labels, num_steps, sigma_min, sigma_max, time_rho)
    scores: dict[str, Callable[[], ImageScore]] = {
        "lid": lambda: by_lid(whole_draws(denoise, x, randn_like, draws), noise_level(lid_sigma, x, name="lid_sigma")),
        "tvf": lambda: by_tvf(late_levels(sigmas, tvf_sigma, sigma_r)),
    }
    if detector not in scores:
        raise ValueError(f"detector: unknown detector {detector!r}; give lid or tvf")
    return gated_restart(
        denoise,
        x,
        sigmas,
        score=scores[detector](),
        threshold=threshold,
        sigma_r=sigma_r,
        rounds=rounds,
        margin=margin,
        correct=within(window, cas(rho)) if rho != 0 else None,
        solver=solver,
        randn_like=randn_like,
    )


def gated_restart(
    denoise: BoundDenoiser,
    x: Tensor,
    sigmas: Tensor,
    *,
    score: ImageScore,
    threshold: float,
    sigma_r: float,
    rounds: int,
    margin: float,
    correct: Corrector | None,
    solver: Solver,
    randn_like: Callable[[Tensor], Tensor],
) -> RodsResult:
    """`restart_sampler` from the state x at sigmas[0] [N + 1], with any score, and any corrector in the restarts."""
    check_restart(threshold, rounds, margin)
    levels = levels_below(sigma_r, sigmas, denoise)
    x, risk = score(denoise, trajectory(denoise, x, sigmas, solver=solver))  # [B]
    tried = [[s] for s in risk.tolist()]
    kept = [0] * len(x)
    for _ in range(rounds):
        index = (risk > threshold).nonzero().flatten()  # [b]; an image that is not a number is not above
        if len(index) == 0:
            break
        rows, x_kept = denoise.rows(index), x[index]
        x_back = x_kept + levels[0] * fresh(rows, x_kept, randn_like)
        x_new, new = score(rows, trajectory(rows, x_back, levels, correct=correct, solver=solver))
        better = new < (1 - margin) * risk[index]
        for b, s, is_better in zip(index.tolist(), new.tolist(), better.tolist(), strict=True):
            tried[b].append(s)
            kept[b] = len(tried[b]) - 1 if is_better else kept[b]
        x = x.index_copy(0, index[better], x_new[better])
        risk = risk.index_copy(0, index[better], new[better])
    records = []
    for b, (F, B) in enumerate(zip(denoise.forward[denoise.index], denoise.backward[denoise.index], strict=True)):
        restart = RestartRecord(scores=tuple(tried[b]), kept=kept[b])
        records.append(SampleRecord((), (), (), (), (), int(F), int(B), restart=restart))
    return RodsResult(images=x, records=tuple(records))


def check_restart(threshold: float, rounds: int, margin: float) -> None:
    """ValueError unless these are a threshold, a number of rounds and a relative margin."""
    if isnan(threshold) or threshold < 0:
        raise ValueError(f"threshold: {threshold} is not a score; give a number >= 0 (inf: only record the scores)")
    if rounds < 1:
        raise ValueError(f"rounds: {rounds} is too few; give a whole number >= 1")
    if not 0 <= margin < 1:
        raise ValueError(f"margin: {margin} is not a fraction of a score; give 0 <= margin < 1")


def levels_below(sigma_r: float, sigmas: Tensor, denoise: BoundDenoiser) -> Tensor:
    """The restarted part's noise levels: sigma_r as the network knows it, then the run's own below it."""
    top = float(sigmas[0])
    if not max(denoise.sigma_min, 0) <= sigma_r <= top or sigma_r == 0:
        raise ValueError(f"sigma_r: {sigma_r} is no noise level of this run; give one up to {top:g}")
    first = denoise.round_sigma(sigmas.new_tensor([sigma_r]))
    return torch.cat([first, sigmas[sigmas < first]])


# -- scores of finished images ----------------------------------------------------------------------------------------


def whole_draws(denoise: BoundDenoiser, x: Tensor, randn_like: Callable[[Tensor], Tensor], draws: int) -> Tensor:
    """`draws` times unit normal noise for the whole batch [draws, B, C, H, W]."""
    whole = x.new_empty(len(denoise.forward), *x.shape[1:])
    return torch.stack([randn_like(whole) for _ in range(draws)])


def by_lid(noise: Tensor, sigma: Tensor) -> ImageScore:
    """`lid` at the level `sigma`; `noise` [k, B, C, H, W] holds each sample's draws."""

    def score(denoise: BoundDenoiser, steps: Iterable[Step]) -> tuple[Tensor, Tensor]:
        x = last(steps)
        return x, lid(denoise, x, sigma, noise=noise[:, denoise.index.to(x.device)])

    return score


def by_tvf(window: SigmaWindow) -> ImageScore:
    """The trajectory variance at the noise levels of a window."""

    def score(denoise: BoundDenoiser, steps: Iterable[Step]) -> tuple[Tensor, Tensor]:
        spread = TrajectoryVariance(window)
        for step in steps:
            spread.add(step)
            x = step.x_next
        return x, spread.score()

    return score


def late_levels(sigmas: Tensor, tvf_sigma: float, sigma_r: float) -> SigmaWindow:
    """The noise levels from `tvf_sigma` down, all of which a restart from `sigma_r` must go through."""
    lowest = float(sigmas[-2])
    if not lowest <= tvf_sigma <= sigma_r:
        raise ValueError(
            f"tvf_sigma: {tvf_sigma} will not do; give a noise level from {lowest:g} to sigma_r = {sigma_r}"
        )
    return SigmaWindow(0, tvf_sigma)
