"""Fitting a readout: which block of a network, at which noise level, tells bad images from good ones, and how.

Candidates are blocks times noise levels, each linear, and with products where it has few features; then, at the noise
level of the best of these, the last blocks together, linear and with the products of one of them. They are ranked by
the AUROC of cross-validated scores; the best is fitted to all images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray

from dnnlib.errors import UserError
from rods.bench.pooled import values_of
from rods.blocks import gate_blocks
from rods.denoiser import bind
from rods.eval.detection import auroc
from rods.eval.logistic import fit_logistic
from rods.gate import Readout, activations, products
from rods.types import Denoiser, state_dtype
from torch_utils.rng import SeedStreams

F64 = NDArray[np.float64]
Measured = Mapping[tuple[str, float], F64]
"""Activations [N, K] by block and noise level, blocks in the network's order."""
MOST_PRODUCTS = 32  # features, above which products would be more than most labels can tell apart
RIDGES = (1.0, 0.1, 10.0)  # the first ranks the candidates
FOLDS = 5
HELD_BACK = 0.2  # of the images, for the learning curve
COUNTS = (128, 256, 512, 1024, 2048, 4096, 8192)  # labels on the learning curve


@dataclass(frozen=True)
class Kind:
    """What a readout is made of, before its weights."""

    blocks: tuple[str, ...]
    sigma: float
    quadratic: bool  # products of the first block's activations
    ridge: float


@dataclass(frozen=True)
class Judged:
    """A kind of readout and the AUROC of its cross-validated scores."""

    kind: Kind
    auroc: float


def decoder_blocks(network: torch.nn.Module, *, remedy: str = "name its modules by --blocks") -> tuple[str, ...]:
    """The paths of the decoder's blocks: what the image is made of, at every size. UserError where there are none."""
    try:
        return gate_blocks(network)
    except ValueError:
        raise UserError(f"--network has no decoder blocks; {remedy}") from None


def pooled_activations(
    network: Denoiser,
    images: NDArray[np.uint8],
    sigma: float,
    blocks: tuple[str, ...],
    *,
    draws: int,
    batch: int,
    report: Callable[[int], None],
    device: torch.device | None = None,
) -> dict[str, F64]:
    """Activations [N, 2 C] of each block for images [N, C, H, W]; image i has the draws of seed i. Cost: `draws` F.

    `report` is told how many images are done, batch by batch. The network is on `device` already.
    """
    where = device or torch.device("cpu")
    found: dict[str, list[F64]] = {block: [] for block in blocks}
    for start in range(0, len(images), batch):
        rows = images[start : start + batch]
        x = torch.from_numpy(values_of(rows)).to(where, state_dtype(where))
        streams = SeedStreams(range(start, start + len(rows)), x.device)
        noise = torch.stack([streams.randn_like(x) for _ in range(draws)])
        level = torch.as_tensor(network.round_sigma(x.new_tensor(sigma)))
        for block, p in zip(blocks, activations(bind(network, len(x)), x, level, noise, blocks), strict=True):
            found[block].append(p.cpu().numpy())
        report(len(rows))
    return {block: np.concatenate(parts) for block, parts in found.items()}


def features(z: F64, width: int) -> F64:
    """Standardised activations [N, K], and the products of the first `width` of them."""
    return np.concatenate([z, products(torch.from_numpy(z[:, :width])).numpy()], axis=1) if width else z


def standardised(p: F64) -> tuple[F64, F64, F64]:
    """z = (p - mean) / scale, mean and scale; a feature that is the same everywhere has scale 1."""
    mean, scale = p.mean(axis=0), p.std(axis=0)
    scale = np.where(scale > 1e-9, scale, 1.0)
    return (p - mean) / scale, mean, scale


def usable(X: F64) -> NDArray[np.bool_]:
    """The columns [K] that vary."""
    varies: NDArray[np.bool_] = X.std(axis=0) > 1e-9
    return varies


def regression(X: F64, bad: NDArray[np.bool_], ridge: float | F64) -> tuple[float, F64]:
    """`fit_logistic` on the columns that vary, weight 0 for the others; `ridge` is one number or one for each [K]."""
    weights, varies = np.zeros(X.shape[1]), usable(X)
    bias, weights[varies] = fit_logistic(
        X[:, varies], bad, ridge=ridge[varies] if isinstance(ridge, np.ndarray) else ridge
    )
    return bias, weights


def cross_validated(X: F64, bad: NDArray[np.bool_], ridge: float) -> float:
    """AUROC of scores that each come from a regression on the other folds; image i is in fold i mod 5."""
    fold, scores = np.arange(len(X)) % FOLDS, np.zeros(len(X))
    for k in range(FOLDS):
        bias, weights = regression(X[fold != k], bad[fold != k], ridge)
        scores[fold == k] = bias + X[fold == k] @ weights
    return auroc(scores, bad)


def read(measured: Measured, kind: Kind) -> tuple[F64, int]:
    """The activations [N, K] that a kind reads, and how many of the first have products."""
    parts = [measured[block, kind.sigma] for block in kind.blocks]
    return np.concatenate(parts, axis=1), parts[0].shape[1] if kind.quadratic else 0


def together(found: Sequence[Judged], measured: Measured) -> list[Kind]:
    """The last 2, 4, 8, ... blocks, at the noise level of the best alone; also with products, of the block that tells
    most with them and of the one that gains most by them.
    """
    level = max(found, key=lambda j: j.auroc).kind.sigma
    blocks = [block for block, sigma in measured if sigma == level]
    alone = {(*j.kind.blocks, j.kind.quadratic): j.auroc for j in found if j.kind.sigma == level}
    squared = [block for block in blocks if (block, True) in alone]
    tells = sorted(squared, key=lambda block: -alone[block, True])[:1]
    gains = sorted(squared, key=lambda block: alone[block, False] - alone[block, True])[:1]
    kinds = []
    for n in sorted({min(2**k, len(blocks)) for k in range(1, len(blocks).bit_length() + 1)} - {1}):
        kinds.append(Kind(tuple(blocks[-n:]), level, False, RIDGES[0]))
        for first in dict.fromkeys(tells + gains):
            others = [block for block in blocks[-n:] if block != first]
            kinds.append(Kind((first, *others), level, True, RIDGES[0]))
    return kinds


def judge(measured: Measured, bad: NDArray[np.bool_], *, report: Callable[[Judged], None]) -> list[Judged]:
    """Every kind of readout, best first: all at one ridge, and the best at the others.

    `measured` has activations [N, K] by block and noise level, `bad` [N] labels. Raises UserError where a fold holds
    labels of one kind only.
    """
    if min(bad.sum(), (~bad).sum()) < 2 * FOLDS:
        raise UserError(
            f"labels: {int(bad.sum())} bad and {int((~bad).sum())} good images are too few to learn from; label more"
        )
    found = []

    def add(kind: Kind) -> None:
        p, width = read(measured, kind)
        X = features(standardised(p)[0], width)
        found.append(Judged(kind, cross_validated(X, bad, kind.ridge)))
        report(found[-1])

    for (block, sigma), quadratic in product(measured, (False, True)):
        if not quadratic or measured[block, sigma].shape[1] <= MOST_PRODUCTS:
            add(Kind((block,), sigma, quadratic, RIDGES[0]))
    for kind in together(found, measured):
        add(kind)
    best = max(found, key=lambda j: j.auroc).kind
    for ridge in RIDGES[1:]:
        add(replace(best, ridge=ridge))
    return sorted(found, key=lambda j: -j.auroc)


def fit(kind: Kind, measured: Measured, bad: NDArray[np.bool_], *, draws: int, network: str) -> Readout:
    """The readout of a kind, fitted to activations and labels [N]; its weights are float32 numbers.

    `network` is the fingerprint of its blocks.
    """
    p, width = read(measured, kind)
    z, mean, scale = standardised(p)
    bias, weights = regression(features(z, width), bad, kind.ridge)
    K = len(mean)
    numbers = [tuple(np.float32(part).tolist()) for part in (mean, scale, weights[:K], weights[K:])]
    return Readout(kind.blocks, kind.sigma, draws, network, float(bias), *numbers)


def learning_curve(kind: Kind, measured: Measured, bad: NDArray[np.bool_]) -> list[tuple[int, int, float]]:
    """Labels, bad ones among them, and the AUROC on the last fifth of the images, from which nothing was learned."""
    p, width = read(measured, kind)
    X = features(standardised(p)[0], width)
    end = round(len(X) * (1 - HELD_BACK))
    curve = []
    for n in [c for c in COUNTS if c < end] + [end]:
        if 0 < bad[:n].sum() < n and 0 < bad[end:].sum() < len(bad) - end:
            bias, weights = regression(X[:n], bad[:n], kind.ridge)
            curve.append((n, int(bad[:n].sum()), auroc(bias + X[end:] @ weights, bad[end:])))
    return curve


def chosen_levels(text: Sequence[float]) -> tuple[float, ...]:
    """Noise levels, each once. Raises UserError for one that is none."""
    if not text or not all(0 < t < np.inf for t in text):
        raise UserError(f"--levels={','.join(map(str, text))}: give noise levels > 0, such as .3,.5,.8")
    return tuple(dict.fromkeys(text))
