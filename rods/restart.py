"""Gated restart: score the image, finished or in flight; re-noise the flagged ones to sigma_r and denoise them again.

After Restart sampling (Xu et al. 2023, arXiv 2306.14878), which restarts every sample; here a detector decides, per
sample. A sample's draws for the score are the same for all its images, so that these compare. In flight, the run stops
at a noise level, D(x_t) is scored there instead of the finished image, and flagged samples go back from there; the rest
of the run follows when all are done.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace
from math import isnan
from typing import Literal

import torch
from torch import Tensor

from rods.base_samplers import Sampler, check_solver
from rods.correctors import NamedCorrector
from rods.denoiser import BoundDenoiser, Noise, bind, unbound
from rods.detectors import Detector, Lid
from rods.trajectory import Corrector, Solver, trajectory
from rods.types import AnyDenoiser, RodsResult, Step, Steps, Verdict, option


@dataclass(frozen=True, kw_only=True)
class Restart(Sampler):
    """Images that score above `threshold` are re-noised to `sigma_r` and denoised again, at most `rounds` times.

    A new image is kept if its score is below (1 - margin) times the one kept so far; what is still above the threshold
    goes back again. Other samples are those of the base sampler (`Euler`, or `Edm` without churn for heun), bit for
    bit. `threshold` is absolute and belongs to the detector and the network: inf only records the scores, -inf sends
    every sample back. `score_at` > 0: in flight. A detector that reads steps up to a finite noise level (`max_sigma`)
    must find them in a restart too: that level is at most `sigma_r`.

    With acceptance = "ratio" the rule is that of DiffRS (arXiv 2405.17880), of which this is the form with one noise
    level: rejection sampling. A score s is then the logarithm of a ratio of densities, the network's own over the
    data's (`DensityRatio`), and an image is accepted with the probability min(1, exp(threshold - s)), whatever it
    replaces.
    Where the ratio is exact, nowhere below exp(threshold), and sigma_r so high that an image forgets where it came
    from, what is accepted is of the data's distribution. What is never accepted is the image of the last round.

    Cost: the base sampler's, and the score's; for a flagged sample in each round the steps from `sigma_r` to
    `score_at`, what `inside` spends in them, and the score's again.
    """

    threshold: float = option(help="Images that score higher go back; -inf: all, inf: none, the scores are recorded.")
    sigma_r: float = option(help="The noise level to go back to.")
    rounds: int = option(3, help="How often an image may go back.", least=1, most=1000)
    margin: float = option(0, help="The part of its score by which a new image must be better to be kept.")
    detector: Detector = option(Lid(), help="The score, such as lid:sigma=1.2,draws=4, or a preset's readout.")
    score_at: float = option(0, help="Score D(x_t) at this noise level, and go back from there; 0: the finished image.")
    inside: Corrector | None = option(None, help="A corrector of the restarted steps, such as cas:rho=4.")
    solver: Solver = option("euler", help="Integrator.")
    acceptance: Literal["ratio"] | None = option(
        None, help="ratio: DiffRS's rule, a chance of exp(threshold - score) instead of the lower score."
    )

    restarts = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_solver(self.solver)
        if isnan(self.threshold):
            raise ValueError(f"threshold: {self.threshold} is not a score; give a number (inf: only record them)")
        if not 0 <= self.margin < 1 or (self.margin and self.threshold < 0):
            raise ValueError(f"margin: {self.margin}: must be a fraction of a score, 0 <= margin < 1, and 0 where "
                             "scores may be negative")  # fmt: skip
        if self.margin and self.acceptance:
            raise ValueError(f"margin: {self.margin}: acceptance by ratio compares no scores; leave it out")
        if not 0 <= self.score_at < self.sigma_max:
            raise ValueError(f"score_at: {self.score_at}: must be a noise level below sigma_max (0: finished images)")
        if not isinstance(self.detector, Detector):
            raise ValueError(f"detector: a {type(self.detector).__name__}; give a detector's value, such as Lid()")
        if not self.sigma_r > 0:
            raise ValueError(f"sigma_r: {self.sigma_r} is not a noise level to go back to; give a number > 0")
        if self.sigma_r < self.detector.max_sigma < float("inf"):
            raise ValueError(
                f"detector: it reads noise levels up to {self.detector.max_sigma:g}, above sigma_r = {self.sigma_r}; "
                "lower the detector's level (hi of one of steps, sigma of tvf) or raise sigma_r"
            )
        if not isinstance(self.inside, Corrector | None):
            raise ValueError(f"inside: a {type(self.inside).__name__}; give a corrector's value, such as Cas(0.3)")
        if isinstance(self.inside, NamedCorrector) and self.inside.random:
            raise ValueError("inside: a corrector that draws would move the numbers of other rows; use another")

    @property
    def base_solver(self) -> Solver:
        return self.solver

    @property
    def stream(self) -> Literal["first", "second"]:
        return "second"

    def check(self, denoiser: AnyDenoiser) -> None:
        sigmas = torch.tensor([*self.levels(denoiser), 0.0], dtype=torch.float64)
        head = self._head(sigmas)
        self._levels_below(head, bind(unbound(denoiser), 1))
        self.detector.check(denoiser, [float(t) for t in head[:-1]])

    def along(self, denoise: BoundDenoiser, x: Tensor, sigmas: Tensor) -> Steps:
        noise = draws_of(denoise, x, self.detector.num_draws)
        head = self._head(sigmas)
        levels = self._levels_below(head, denoise)
        added = (levels[0] ** 2 - head[-1] ** 2).sqrt()  # sigma_r itself from a finished image

        first = trajectory(denoise, x, head, solver=self.solver)
        denoise, step = yield from self._scored(denoise, first, noise, None)
        assert step.verdict is not None
        x, risk = step.x_next, step.verdict.scores  # [B, C, H, W] finished, or at the level head[-1]; [B]
        limit = self._limits(denoise, x)  # [B]
        for _ in range(self.rounds):
            index = (risk > limit).nonzero().flatten()  # [b]; an image that is not a number is not above
            if len(index) == 0:
                break
            denoise_flagged, x_flagged = denoise.rows(index), x[index]
            x_back = x_flagged + added * denoise_flagged.draw(x_flagged)
            again = trajectory(denoise_flagged, x_back, levels, correct=self.inside, solver=self.solver)
            below = None if self.acceptance else (1 - self.margin) * risk[index]
            for step in self._scored(denoise_flagged, again, noise, below):
                yield replace(step, rows=index)
            assert step.verdict is not None
            kept = step.verdict.kept
            x = x.index_copy(0, index[kept], step.x_next[kept])
            risk = risk.index_copy(0, index[kept], step.verdict.scores[kept])
            limit = limit.index_copy(0, index, self._limits(denoise_flagged, x_flagged))
        if len(head) < len(sigmas):
            yield from trajectory(denoise, x, sigmas[len(head) - 1 :], solver=self.solver)

    def _limits(self, denoise: BoundDenoiser, x: Tensor) -> Tensor:
        """The score above which each of the rows x [b, C, H, W] goes back: [b].

        By ratio it is above the threshold by -log u, u uniform: s > threshold - log u has the chance 1 - exp(threshold
        - s). u is of the rows' own stream, whose draws are normal.
        """
        if self.acceptance is None:
            return x.new_full((len(x),), self.threshold)
        u: Tensor = torch.special.ndtr(denoise.draw(x).flatten(1)[:, 0])
        return self.threshold - u.log()

    def _scored(
        self, denoise: BoundDenoiser, steps: Steps, noise: Tensor, below: Tensor | None
    ) -> Generator[Step, Tensor | None, tuple[BoundDenoiser, Step]]:
        """The steps of some rows, the last one with its verdict: kept where the score is `below` [b], None: all.

        The image that is scored is the state after the last step, or, where that is still noisy, that step's D(x_t).
        Returns D and the last step of the rows that went on to the end.
        """
        own_noise = noise[:, denoise.index.to(noise.device)]  # [num_draws, b, C, H, W] of [num_draws, B, ...]
        follower = self.detector.follow(denoise, own_noise, solver=self.solver)
        step = next(steps)
        follower.add(step)
        while step.i < step.num_steps - 1:
            going_on = yield step
            if going_on is not None:
                denoise, follower = denoise.rows(going_on), follower.select(going_on)
            step = steps.send(going_on)
            follower.add(step)
        scores = follower.score(step.x_next if step.sigma_next == 0 else step.denoised)
        kept = torch.ones_like(scores, dtype=torch.bool) if below is None else scores < below
        step = replace(step, verdict=Verdict(scores, kept))
        going_on = yield step
        return (denoise, step) if going_on is None else (denoise.rows(going_on), step.select(going_on))

    def _head(self, sigmas: Tensor) -> Tensor:
        """The noise levels down to the first that is at most `score_at`; all of them [N + 1] where that is 0."""
        top = float(sigmas[0])
        if not self.score_at < top:
            raise ValueError(f"score_at: {self.score_at}: must be a noise level below {top:g} (0: the finished image)")
        return torch.cat([sigmas[sigmas > self.score_at], sigmas[sigmas <= self.score_at][:1]])

    def _levels_below(self, head: Tensor, denoise: BoundDenoiser) -> Tensor:
        """The restarted part's noise levels: sigma_r as the network knows it, then the run's own below it."""
        top, end = float(head[0]), float(head[-1])
        if not max(denoise.sigma_min, 0) <= self.sigma_r <= top or self.sigma_r == 0:
            raise ValueError(f"sigma_r: {self.sigma_r} is not a noise level of this run; give one up to {top:g}")
        first = denoise.round_sigma(head.new_tensor([self.sigma_r]))
        if not float(first) > end:
            raise ValueError(f"score_at: the run is scored at {end:g}, not below sigma_r = {self.sigma_r}; raise it")
        return torch.cat([first, head[head < first]])


def draws_of(denoise: BoundDenoiser, x: Tensor, draws: int) -> Tensor:
    """`draws` times unit normal noise for the whole batch [draws, B, C, H, W], of which `x` [b, C, H, W] are rows."""
    whole = x.new_empty(len(denoise.forward), *x.shape[1:])
    return torch.stack([denoise.randn_like(whole) for _ in range(draws)]) if draws else whole.new_empty(0, *whole.shape)


def restart_sampler(
    denoiser: AnyDenoiser,
    latents: Tensor,
    class_labels: Tensor | None = None,
    *,
    threshold: float,
    sigma_r: float,
    detector: Detector | None = None,
    rounds: int = 3,
    margin: float = 0,
    score_at: float = 0,
    inside: Corrector | None = None,
    num_steps: int = 40,
    sigma_min: float = 0.002,
    sigma_max: float = 80,
    time_rho: float = 7,
    solver: Solver = "euler",
    acceptance: Literal["ratio"] | None = None,
    randn_like: Noise | None = None,
) -> RodsResult:
    """Gated restart: see `Restart` for its options and cost.

    Args:
        denoiser: D(x, sigma), or bound already.
        latents: [B, C, H, W], unit normal; scaled here.
        class_labels: None, one-hot rows [B, label_dim], or the numbers of classes [B].
        detector: the score, `Lid()` without one.
        randn_like: called on the whole batch, for the score's draws and once per round: a sample's numbers do not
            depend on the rest of the batch.
    Returns:
        Images (float64, detached), and records with `restart` filled in.
    Raises:
        ValueError: an argument out of range, or a detector that belongs to another network.
    """
    sampler = Restart(
        threshold=threshold,
        sigma_r=sigma_r,
        detector=Lid() if detector is None else detector,
        rounds=rounds,
        margin=margin,
        score_at=score_at,
        inside=inside,
        num_steps=num_steps,
        sigma_min=sigma_min,
        sigma_max=sigma_max,
        time_rho=time_rho,
        solver=solver,
        acceptance=acceptance,
    )
    return sampler.sample(denoiser, latents, class_labels, randn_like=randn_like)
