"""Fitting a density-ratio gate without labels: features of real images and of the network's own samples.

Both go the same way. A sample is scored in flight, at D(x_t), or finished; a real image is noised to that level and
denoised once, or taken as it is. Then the activations of the decoder's blocks are read at the noise level T with one
draw. What is chosen without labels: how many of the last blocks, and at which level (`chosen`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rods.bench.encoding import samples_of
from rods.denoiser import bind
from rods.eval.detection import auroc
from rods.gate import DensityRatio, activations, density_ratio, fingerprint, network_of
from rods.types import AnyDenoiser, Denoiser, Step
from torch_utils.rng import SeedStreams

U8 = NDArray[np.uint8]
READ_AT = 0.6  # of a level that was asked for, the noise level at which it is read
LEVELS = ((0.131, 0.12), (0.47, 0.3), (1.07, 0.6))  # (score_at, T): where samples are scored in flight, and read
RIDGE = 1e-3  # larger ones are worse: the directions in which real data hardly vary tell most
NEAR_BEST = 0.85  # of the heaviest tail: among choices as near as that, the one of the most numbers is taken
MOST_NUMBERS, FEW_BLOCKS = 350, 4  # of more than so many blocks; a quadratic form of more tells no more
OFF_SUPPORT = 0.01  # the share of real images above the second gate's limit, by which a restart is judged
FIXED = 1  # of LEVELS: where a gate reads that was not chosen
OWN_PER_NUMBER = 2.0  # samples for each feature, below which a gate of both kinds is not tried
ENOUGH_REAL, ENOUGH_OWN = 512, 256  # images of either kind, below which the tail chooses worse than a fixed choice
NOISE_SEED = 7_000_000  # of real images' noise


@dataclass(frozen=True)
class Level:
    """Where a sample is scored: at the first noise level of the run that is at most `score_at`, read at `sigma`."""

    score_at: float
    sigma: float  # T
    i: int  # the step whose D(x_t) is scored
    t: float  # that step's noise level


def levels_of(steps_begin: Sequence[float], wanted: Sequence[tuple[float, float]] = LEVELS) -> list[Level]:
    """The levels of a run whose steps begin at these noise levels, each once."""
    found: dict[int, Level] = {}
    for score_at, sigma in wanted:
        below = [k for k, t in enumerate([*steps_begin, 0.0]) if t <= score_at]
        i = below[0] - 1
        if i >= 0:
            found.setdefault(i, Level(score_at, sigma, i, float(steps_begin[i])))
    return list(found.values())


def measured_levels(score_at: float | None) -> tuple[tuple[float, float], ...]:
    """(score_at, T) of the levels to measure: those to choose from, unless another is asked for."""
    return LEVELS if score_at is None or score_at in dict(LEVELS) else ((score_at, READ_AT * score_at),)


@dataclass
class FlightFeatures:
    """Sees the steps of a run of a whole batch and reads the activations of D(x_t) at chosen levels. Cost: F each."""

    denoiser: AnyDenoiser
    class_labels: Tensor | None  # [B, label_dim] of the run
    blocks: tuple[str, ...]
    levels: Sequence[Level]
    seeds: Sequence[int]
    found: dict[float, Tensor] = field(default_factory=dict)  # by score_at: [B, K of all blocks]

    def add(self, step: Step) -> None:
        for level in self.levels:
            if step.rows is None and step.i == level.i:
                noise = SeedStreams(self.seeds, step.denoised.device).third().randn_like(step.denoised)[None]
                self.found[level.score_at] = features(
                    self.denoiser, step.denoised, level.sigma, self.blocks, noise, self.class_labels
                )


def features(
    denoiser: AnyDenoiser,
    image: Tensor,
    sigma: float,
    blocks: tuple[str, ...],
    noise: Tensor,
    class_labels: Tensor | None = None,
) -> Tensor:
    """The activations [B, K] of blocks side by side for images [B, C, H, W]; `noise` [1, B, C, H, W]. Cost: F."""
    level = torch.as_tensor(sigma, dtype=image.dtype, device=image.device)
    denoise = bind(denoiser, len(image), class_labels)
    return torch.cat(activations(denoise, image, level, noise, blocks), dim=1).cpu()


def real_features(
    denoiser: Denoiser,
    images: U8,
    class_labels: Tensor | None,
    levels: Sequence[Level],
    blocks: tuple[str, ...],
    *,
    first: int,
    device: torch.device,
) -> dict[float, Tensor]:
    """By `score_at`, the activations [N, K] of real images [N, C, H, W] that went the samples' way. 2F a level.

    `class_labels` [N, label_dim], or None for a network without classes; `first` is the number of the first image,
    which its noise depends on.
    """
    found: dict[float, Tensor] = {}
    seeds = range(NOISE_SEED + first, NOISE_SEED + first + len(images))
    x = samples_of(denoiser, images, SeedStreams(seeds, device))
    labels = None if class_labels is None else class_labels.to(device)
    for level in levels:
        streams = SeedStreams(seeds, device)
        t = torch.as_tensor(level.t, dtype=x.dtype, device=device)
        with torch.no_grad():
            denoised = bind(denoiser, len(x), labels)(x + t * streams.randn_like(x), t)
        noise = streams.third().randn_like(x)[None]
        found[level.score_at] = features(denoiser, denoised, level.sigma, blocks, noise, labels)
    return found


# -- what is chosen ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Choice:
    """A gate before its threshold: a level, the last blocks and what it is fitted to, with what speaks for it."""

    level: Level
    blocks: tuple[str, ...]
    two_class: bool  # fitted to real images and own samples; False: to real images alone
    width: int  # K, the numbers that it reads
    tail: float  # heaviness of the upper tail of the samples' scores: (q95 - q50) / (q50 - q05)
    separation: float  # AUROC of held-out real images against samples that were not used in the fit

    @property
    def numbers(self) -> int:
        """How many means it is fitted to: those of both kinds count."""
        return self.width * (2 if self.two_class else 1)


def halves(N: int) -> tuple[Tensor, Tensor]:
    """Every second index, and the others: what is fitted, and what is held out."""
    index = torch.arange(N)
    return index[index % 2 == 0], index[index % 2 == 1]


def columns_of(widths: Sequence[int], last: int) -> Tensor:
    """The columns of the last blocks among those of all, given every block's width."""
    return torch.arange(sum(widths) - sum(widths[-last:]), sum(widths))


def tail_heaviness(scores: Tensor) -> float:
    """(q95 - q50) / (q50 - q05): above 1 where a part of the samples scores far higher than the rest."""
    low, middle, high = torch.quantile(scores, scores.new_tensor([0.05, 0.5, 0.95])).tolist()
    return float((high - middle) / max(middle - low, 1e-9))


@dataclass(frozen=True)
class Features:
    """Activations by `score_at`: of real images [N, K] and of the network's own samples [M, K] (M = 0: none)."""

    levels: Sequence[Level]
    blocks: tuple[str, ...]
    widths: tuple[int, ...]  # K of each block
    real: dict[float, Tensor]
    own: dict[float, Tensor]

    @property
    def num_real(self) -> int:
        return len(next(iter(self.real.values())))

    @property
    def num_own(self) -> int:
        return len(next(iter(self.own.values()))) if self.own else 0


def at_level(f: Features, score_at: float | None) -> Features:
    """The features at one of the levels, where one is asked for."""
    return f if score_at is None else replace(f, levels=[level for level in f.levels if level.score_at == score_at])


def fitted(
    f: Features,
    level: Level,
    last: int,
    real: Tensor,
    own: Tensor | None,
    *,
    same_mean: bool = False,
    network: str = "0" * 12,
) -> DensityRatio:
    """The gate of the last blocks at a level, of real images [n] and own samples [m] by index.

    `network` is the blocks' `fingerprint`, which a gate that leaves this file needs.
    """
    columns, blocks = columns_of(f.widths, last), f.blocks[-last:]
    return density_ratio(
        f.real[level.score_at][real][:, columns],
        None if own is None else f.own[level.score_at][own][:, columns],
        blocks=blocks,
        sigma=level.sigma,
        draws=1,
        network=network,
        ridge=RIDGE,
        same_mean=same_mean,
    )


def choices(f: Features) -> list[Choice]:
    """Every level and number of last blocks, the heaviest tail first.

    Few real images carry many features: the ridge stands for what they do not show, and fewer blocks find less at any
    number of images. Judged on halves: a gate is fitted to one half of the real images, and where there are enough
    samples, another to these and half of the samples with the shift between their means taken out; they score the other
    half. The more the scores of samples have an upper tail, the better: a few samples that lie off the data's support,
    and most that do not. The gate of both kinds has to have the heavier tail of the two. Separation itself is not asked
    for: it is also of the network's style.
    """
    found = []
    (fit_real, held_real), (fit_own, held_own) = halves(f.num_real), halves(f.num_own)

    def judged(level: Level, last: int, columns: Tensor, own: Tensor | None) -> Choice:
        gate = fitted(f, level, last, fit_real, own, same_mean=own is not None)
        tail = apart = float("nan")
        if f.num_own:
            scores = gate.of(f.own[level.score_at][held_own][:, columns])
            apart = separation(gate.of(f.real[level.score_at][held_real][:, columns]), scores)
            tail = tail_heaviness(scores)
        return Choice(level, f.blocks[-last:], own is not None, len(columns), tail, apart)

    for level in f.levels:
        for last in range(1, len(f.blocks) + 1):
            columns = columns_of(f.widths, last)
            K = len(columns)
            if last > FEW_BLOCKS and K > MOST_NUMBERS:
                break
            best = judged(level, last, columns, None)
            if f.num_own and len(fit_own) >= OWN_PER_NUMBER * K:
                best = max(judged(level, last, columns, fit_own), best, key=lambda c: c.tail)
            found.append(best)
    return sorted(found, key=lambda c: -c.tail if f.num_own else -len(c.blocks))


def best_of(found: Sequence[Choice]) -> Choice:
    """The choice that is fitted to the most numbers among those whose tail is near the heaviest.

    Of several the one at the lowest noise level, where most of the image is decided.
    """
    heaviest = max(c.tail for c in found)
    near = [c for c in found if c.tail >= NEAR_BEST * heaviest]
    return max(near, key=lambda c: (c.numbers, -c.level.score_at))


def chosen(f: Features) -> tuple[Choice, list[Choice]]:
    """The best choice and all of them; with few images a fixed level and a little more than half of the blocks."""
    found = choices(f)
    if f.num_own >= ENOUGH_OWN and f.num_real >= ENOUGH_REAL:
        return best_of(found), found
    level = f.levels[min(FIXED, len(f.levels) - 1)]
    wanted = len(f.blocks) // 2 + 1
    alone = [replace(c, two_class=False) for c in found if c.level == level and len(c.blocks) <= wanted]
    return max(alone, key=lambda c: len(c.blocks)), found


def separation(real: Tensor, own: Tensor) -> float:
    """AUROC of scores [n], [m]: how often a sample scores higher than a real image."""
    positive = np.arange(len(real) + len(own)) >= len(real)
    return auroc(torch.cat([real, own]).numpy(), positive)


def gates_of(
    f: Features, choice: Choice, denoiser: AnyDenoiser, alpha: float
) -> tuple[DensityRatio, DensityRatio, float, float]:
    """The gate, its lowest threshold, another gate of the other half of the real images, and that one's limit.

    The threshold is what a share `alpha` of the real images that the gate was not fitted to exceeds, the limit what
    OFF_SUPPORT of those exceed that the second gate was not fitted to. In the order gate, second, threshold, limit.
    """
    last, level = len(choice.blocks), choice.level
    columns = columns_of(f.widths, last)
    real = f.real[level.score_at]
    first_half, second_half = halves(f.num_real)
    every, odd = (torch.arange(f.num_own), halves(f.num_own)[1]) if choice.two_class else (None, None)
    network = fingerprint(network_of(denoiser), choice.blocks)
    gate = fitted(f, level, last, first_half, every, network=network)
    second = fitted(f, level, last, second_half, odd, network=network)
    return (
        gate,
        second,
        quantile(gate.of(real[second_half][:, columns]), alpha),
        quantile(second.of(real[first_half][:, columns]), OFF_SUPPORT),
    )


def quantile(scores: Tensor, alpha: float) -> float:
    """The threshold that a share alpha of the scores exceeds."""
    return float(torch.quantile(scores, 1 - alpha))
