"""How a run is scored: limits, each sample's own draws, and what watches a run whose steps its sampler keeps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor

from rods.evaluation import BoundDenoiser
from rods.image_scores import Score
from rods.readout import shortened
from rods.score_text import format_score
from rods.trajectory import Solver
from rods.types import Step, state_dtype
from torch_utils.rng import SeedStreams


@dataclass(frozen=True)
class Limit:
    """A score and the value it is compared with; inf where it is only recorded."""

    score: Score
    value: float = inf


def whole_draws(denoise: BoundDenoiser, x: Tensor, randn_like: Callable[[Tensor], Tensor], draws: int) -> Tensor:
    """`draws` times unit normal noise for the whole batch [draws, B, C, H, W], of which `x` [b, C, H, W] are rows."""
    whole = x.new_empty(len(denoise.forward), *x.shape[1:])
    return torch.stack([randn_like(whole) for _ in range(draws)]) if draws else whole.new_empty(0, *whole.shape)


class Scored:
    """The scores of a run of the whole batch: `add` sees its steps, `risks` its images [B, C, H, W].

    The draws are from the beginning of the third stream for each score. Raises ValueError for a score of a run's steps
    where the sampler takes steps again.
    """

    def __init__(
        self,
        denoise: BoundDenoiser,
        latents: Tensor,
        limits: Sequence[Limit],
        sampler: str,
        solver: Solver,
        streams: SeedStreams,
    ) -> None:
        state = latents.to(state_dtype(latents.device))
        self.watches = []
        for limit in limits:
            if limit.score.sees > 0 and sampler == "restart":
                raise ValueError(
                    f"{shortened(format_score(limit.score))} looks at a run's steps, and restart takes some of "
                    "them again; score its images by lid, or restart by this score (--detector)"
                )
            noise = whole_draws(denoise, state, streams.third().randn_like, limit.score.draws)
            self.watches.append(limit.score.watch(denoise, noise, limit=limit.value, solver=solver))

    def add(self, step: Step) -> None:
        for watch in self.watches:
            watch.add(step)

    def risks(self, images: Tensor) -> tuple[tuple[float, ...], ...]:
        """Of every score, that of every image [scores][B]."""
        return tuple(tuple(watch.score(images).tolist()) for watch in self.watches)
