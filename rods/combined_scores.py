"""Several scores as one: a learned combination, and a cheap score that decides who gets the full one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import inf, isfinite, isnan

import torch
from torch import Tensor

from rods.evaluation import BoundDenoiser
from rods.image_scores import Score, Watch
from rods.trajectory import Solver
from rods.types import Step

TINY = 1e-300
"""Scores below this are this under a logarithm."""


@dataclass(frozen=True)
class Term:
    """One score of a learned combination, or its logarithm, and its weight."""

    weight: float
    score: Score
    log: bool = False


def logistic(bias: float, weights: Iterable[float], values: Iterable[Tensor]) -> Tensor:
    """1 / (1 + exp(-(bias + sum of weight * value)))  [B], from values [B] each."""
    total: Tensor | float = bias
    for weight, value in zip(weights, values, strict=True):
        total = total + weight * value
    return torch.sigmoid(torch.as_tensor(total))


@dataclass(frozen=True)
class Learned:
    """A logistic combination of scores, between 0 and 1: weights that calibration has learned for a network.

    The terms share their draws. Cost: that of the terms.
    """

    bias: float
    terms: tuple[Term, ...]

    def __post_init__(self) -> None:
        if not self.terms:
            raise ValueError("learned: no terms; give at least one score with its weight")
        if not all(map(isfinite, [self.bias, *(term.weight for term in self.terms)])):
            raise ValueError("learned: a weight is not finite; calibrate it again")

    @property
    def draws(self) -> int:
        return max(term.score.draws for term in self.terms)

    @property
    def sees(self) -> float:
        return max(term.score.sees for term in self.terms)

    def watch(self, denoise: BoundDenoiser, noise: Tensor, *, limit: float, solver: Solver) -> Watch:
        parts = [t.score.watch(denoise, noise[: t.score.draws], limit=inf, solver=solver) for t in self.terms]
        return _Combined(self, parts)


class _Combined:
    def __init__(self, learned: Learned, parts: list[Watch]) -> None:
        self.learned, self.parts = learned, parts

    def add(self, step: Step) -> None:
        for part in self.parts:
            part.add(step)

    def score(self, image: Tensor) -> Tensor:
        terms = self.learned.terms
        values = [part.score(image) for part in self.parts]
        values = [v.clamp(min=TINY).log() if t.log else v for v, t in zip(values, terms, strict=True)]
        return logistic(self.learned.bias, [t.weight for t in terms], values)


@dataclass(frozen=True)
class Screened:
    """A cheap score decides who gets the full one: 0 where `screen` is not above `above`, else `score`.

    Cost: that of the screen, and of the score for those above. The full score must be one of the image.
    """

    screen: Score
    above: float
    score: Score

    def __post_init__(self) -> None:
        if isnan(self.above):
            raise ValueError("screen: nan is not a score; give a number")
        if self.score.sees > 0:
            raise ValueError("screen: only a score of the image can be left out, such as lid; put the other one first")

    @property
    def draws(self) -> int:
        return max(self.screen.draws, self.score.draws)

    @property
    def sees(self) -> float:
        return self.screen.sees

    def watch(self, denoise: BoundDenoiser, noise: Tensor, *, limit: float, solver: Solver) -> Watch:
        cheap = self.screen.watch(denoise, noise[: self.screen.draws], limit=self.above, solver=solver)

        def full(image: Tensor, index: Tensor) -> Tensor:
            draws = noise[: self.score.draws, index]
            return self.score.watch(denoise.rows(index), draws, limit=limit, solver=solver).score(image[index])

        return _TwoStages(cheap, self.above, full)


class _TwoStages:
    def __init__(self, cheap: Watch, above: float, full: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.cheap, self.above, self.full = cheap, above, full
        self.add = cheap.add

    def score(self, image: Tensor) -> Tensor:
        first = self.cheap.score(image)
        index = (~(first <= self.above)).nonzero().flatten()  # one that is no number is looked at
        risk = torch.zeros_like(first)
        return risk.index_copy(0, index, self.full(image, index)) if len(index) else risk
