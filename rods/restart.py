"""Restart: score the image, finished or in flight, and take only those at risk back to a noise level and down again.

Spec method.md, section 5; restarts are from Xu et al. 2023 (Restart sampling), which restarts every sample. Scores are
those of image_scores.py. A sample's draws are the same for all its images, so that these compare. In flight, the run is
stopped at a noise level, D(x_t) is scored there instead of the finished image, and samples at risk go back from there;
the rest of the run follows when all are done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import isnan
from typing import Literal, Protocol

import torch
from torch import Tensor

from rods.correctors import Corrector, Window, cas, overshoot, sas, within
from rods.detectors import noise_level
from rods.evaluation import BoundDenoiser, fresh
from rods.image_scores import Lid, Score, Tvf
from rods.score_text import parse_score
from rods.scoring import Limit, whole_draws
from rods.trajectory import Solver, check_solver, last, start, trajectory
from rods.types import AnyDenoiser, RestartRecord, RodsResult, SampleRecord, Step


class ImageScore(Protocol):
    """Runs some rows' steps to their end: the states there [b, C, H, W] and scores [b], higher = more at risk."""

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
    detector: str = "lid",
    lid_sigma: float = 1.2,
    draws: int = 4,
    tvf_sigma: float = 2,
    score_at: float = 0,
    rho: float = 0,
    window: Window = (0, 1),
    inside: Literal["cas", "sas", "overshoot"] = "cas",
    ascent_steps: int = 1,
    sas_sign: Literal["uphill", "downhill"] = "uphill",
    inside_solver: Solver | None = None,
    num_steps: int = 40,
    sigma_min: float = 0.002,
    sigma_max: float = 80,
    time_rho: float = 7,
    solver: Solver = "euler",
) -> RodsResult:
    """Gated restart: images that score above `threshold` go back to `sigma_r` and down again with fresh noise.

    A new image is kept if its score is below (1 - margin) times the one kept so far, and what is still above the
    threshold goes round again, at most `rounds` times. Other samples are those of the base sampler (`euler_sampler`, or
    `edm_sampler` without churn for heun), bit for bit. `threshold` is absolute and calibrated with the score's other
    options: inf only records the scores, 0 sends every sample round.

    `latents` [B, C, H, W] are unit normal and are scaled here. `detector` is a score as `parse_score` reads it; alone,
    lid looks at `lid_sigma` with `draws` draws, and tvf at levels up to `tvf_sigma`. No score but lmi looks at levels
    above `sigma_r`. `score_at` > 0 scores in flight, at that level. `rho` > 0 corrects the restarted part by `inside`
    (cas takes `ascent_steps`, sas `sas_sign`), in the `window` of its own steps or in noise levels; `inside_solver` is
    its solver where not the base's. `randn_like` is called on the whole batch, for the score's draws and once per
    round: a sample's numbers do not depend on its mates. Returns images (float64, detached) and records with `restart`
    filled in. Raises ValueError for arguments out of range. Cost: the base sampler's, and the score's; for a sample at
    risk in each round the steps from `sigma_r` to `score_at` (CAS: F + B more each, SAS: F), and the score's again.
    """
    check_solver(solver)
    check_solver(inside_solver or solver)
    if draws < 1:
        raise ValueError(f"draws: {draws} is too few; give a whole number >= 1")
    denoise, x, sigmas = start(denoiser, latents, class_labels, num_steps, sigma_min, sigma_max, time_rho)
    lowest = float(until(sigmas, score_at)[-2])
    named: dict[str, Callable[[], Score]] = {
        "lid": lambda: Lid(float(noise_level(lid_sigma, x, name="lid_sigma")), draws),
        "tvf": lambda: Tvf(late_level(tvf_sigma, lowest, sigma_r)),
    }
    score = named[detector]() if detector in named else parsed(detector, sigma_r)
    return gated_restart(
        denoise,
        x,
        sigmas,
        score=image_score(Limit(score, threshold), whole_draws(denoise, x, randn_like, score.draws), solver),
        threshold=threshold,
        sigma_r=sigma_r,
        rounds=rounds,
        margin=margin,
        correct=within(window, correction(inside, rho, ascent_steps, sas_sign)) if rho != 0 else None,
        solver=solver,
        randn_like=randn_like,
        score_at=score_at,
        inside_solver=inside_solver,
    )


def correction(inside: str, rho: float, ascent_steps: int, sas_sign: Literal["uphill", "downhill"]) -> Corrector:
    """The corrector of the restarted part. None of them draws: which rows are restarted must not move a stream."""
    kinds = {
        "cas": lambda: cas(rho, ascent_steps),
        "sas": lambda: sas(rho, sas_sign),
        "overshoot": lambda: overshoot(rho),
    }
    if inside not in kinds:
        raise ValueError(f"inside: unknown corrector {inside!r}; give {' or '.join(kinds)}")
    return kinds[inside]()


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
    score_at: float = 0,
    inside_solver: Solver | None = None,
) -> RodsResult:
    """`restart_sampler` from the state x at sigmas[0] [N + 1], with any score, and any corrector in the restarts."""
    check_restart(threshold, rounds, margin)
    head = until(sigmas, score_at)
    levels = levels_below(sigma_r, head, denoise)
    added = (levels[0] ** 2 - head[-1] ** 2).sqrt()  # sigma_r itself from a finished image
    x, risk = score(denoise, trajectory(denoise, x, head, solver=solver))  # [B]
    tried = [[s] for s in risk.tolist()]
    kept = [0] * len(x)
    for _ in range(rounds):
        index = (risk > threshold).nonzero().flatten()  # [b]; an image that is not a number is not above
        if len(index) == 0:
            break
        rows, x_kept = denoise.rows(index), x[index]
        x_back = x_kept + added * fresh(rows, x_kept, randn_like)
        x_new, new = score(rows, trajectory(rows, x_back, levels, correct=correct, solver=inside_solver or solver))
        better = new < (1 - margin) * risk[index]
        for b, s, is_better in zip(index.tolist(), new.tolist(), better.tolist(), strict=True):
            tried[b].append(s)
            kept[b] = len(tried[b]) - 1 if is_better else kept[b]
        x = x.index_copy(0, index[better], x_new[better])
        risk = risk.index_copy(0, index[better], new[better])
    if len(head) < len(sigmas):
        x = last(trajectory(denoise, x, sigmas[len(head) - 1 :], solver=solver))
    records = []
    for b, (F, B) in enumerate(zip(denoise.forward[denoise.index], denoise.backward[denoise.index], strict=True)):
        restart = RestartRecord(scores=tuple(tried[b]), kept=kept[b])
        records.append(SampleRecord((), (), (), (), (), int(F), int(B), restart=restart))
    return RodsResult(images=x, records=tuple(records))


def image_score(limit: Limit, noise: Tensor, solver: Solver) -> ImageScore:
    """A score as `gated_restart` takes it; `noise` [k, B, C, H, W] holds each sample's draws.

    The image is the state after the last step, or, where that is still noisy, that step's D(x_t).
    """

    def score(denoise: BoundDenoiser, steps: Iterable[Step]) -> tuple[Tensor, Tensor]:
        own = noise[:, denoise.index.to(noise.device)]
        watch = limit.score.watch(denoise, own, limit=limit.value, solver=solver)
        for step in steps:
            watch.add(step)
        image = step.x_next if step.sigma_next == 0 else step.denoised
        return step.x_next, watch.score(image)

    return score


# -- what is checked --------------------------------------------------------------------------------------------------


def check_restart(threshold: float, rounds: int, margin: float) -> None:
    """ValueError unless these are a threshold, a number of rounds and a relative margin."""
    if isnan(threshold) or threshold < 0:
        raise ValueError(f"threshold: {threshold} is not a score; give a number >= 0 (inf: only record the scores)")
    if rounds < 1:
        raise ValueError(f"rounds: {rounds} is too few; give a whole number >= 1")
    if not 0 <= margin < 1:
        raise ValueError(f"margin: {margin} is not a fraction of a score; give 0 <= margin < 1")


def until(sigmas: Tensor, score_at: float) -> Tensor:
    """The noise levels down to the first that is at most `score_at`; all of them [N + 1] where that is 0."""
    top = float(sigmas[0])
    if not 0 <= score_at < top:
        raise ValueError(f"score_at: {score_at} will not do; give a noise level below {top:g} (0: the finished image)")
    return torch.cat([sigmas[sigmas > score_at], sigmas[sigmas <= score_at][:1]])


def levels_below(sigma_r: float, sigmas: Tensor, denoise: BoundDenoiser) -> Tensor:
    """The restarted part's noise levels: sigma_r as the network knows it, then the run's own below it."""
    top, end = float(sigmas[0]), float(sigmas[-1])
    if not max(denoise.sigma_min, 0) <= sigma_r <= top or sigma_r == 0:
        raise ValueError(f"sigma_r: {sigma_r} is no noise level of this run; give one up to {top:g}")
    first = denoise.round_sigma(sigmas.new_tensor([sigma_r]))
    if not float(first) > end:
        raise ValueError(f"score_at: the run is scored at {end:g}, not below sigma_r = {sigma_r}; go back further")
    return torch.cat([first, sigmas[sigmas < first]])


def late_level(tvf_sigma: float, lowest: float, sigma_r: float) -> float:
    """The level from which on tvf looks, all below which a restart from `sigma_r` must go through."""
    if not lowest <= tvf_sigma <= sigma_r:
        raise ValueError(
            f"tvf_sigma: {tvf_sigma} will not do; give a noise level from {lowest:g} to sigma_r = {sigma_r}"
        )
    return float(tvf_sigma)


def parsed(detector: str, sigma_r: float) -> Score:
    """The score of a text; ValueError where it is none, or looks at steps that no restart goes through."""
    try:
        score = parse_score(detector)
    except ValueError as e:
        raise ValueError(f"detector: {e}") from None
    if sigma_r < score.sees < float("inf"):
        raise ValueError(
            f"detector: {detector} looks at noise levels up to {score.sees:g}, above sigma_r = {sigma_r}; lower the "
            "one or raise the other"
        )
    return score
