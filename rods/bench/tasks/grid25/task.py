"""Task grid25: 25 Gaussians on a 5x5 grid in the plane, where "hallucinated" is a distance.

The grid has spacing 2 and the Gaussians a standard deviation of .05, as in Aithal et al. (arXiv 2406.09358). All is
divided by 2.829, so that the data has unit variance along both axes: the spacing becomes .70696 and the s.d. .017674.
A point is an image [2, 1, 1] to the samplers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from rods.bench.task import AuditLine, LoadedNetwork, Task, audit_line, embedded_network, exact_network
from rods.densities import Mixture
from rods.eval.labels import Label, combine_readings

F64 = NDArray[np.float64]

SIDE = 5
SCALE = 2.829  # sqrt(8 + .05^2), the data's standard deviation before the division
SPACING, SD = 2 / SCALE, 0.05 / SCALE
RADII = (4.5, 5.0, 5.5)  # in s.d.: a real point lies beyond them with probability 4.0e-5, 3.7e-6 and 2.7e-7
NUM_MODES = SIDE**2
BETWEEN, ELSEWHERE = "between two modes", "elsewhere"
NUM_NETWORKS = 3  # training seeds
MADE_BY = "python scripts/train_labellers.py grid25 --seeds=0-2 --outdir=models"
_REAL_STREAM, _AUDIT_STREAM = 25_001, 25_002  # of random numbers: training uses torch's


def modes() -> F64:
    """The centres [25, 2], row by row."""
    axis = (np.arange(SIDE) - (SIDE - 1) / 2) * SPACING
    x, y = np.meshgrid(axis, axis)
    return np.stack([x.ravel(), y.ravel()], axis=1)


def density() -> Mixture:
    """The data's density, whose denoiser is exact at every noise level."""
    return Mixture(torch.from_numpy(modes())[:, :, None, None], torch.ones(NUM_MODES), SD)


def draw_points(n: int, rng: np.random.Generator) -> F64:
    """n real points [n, 2, 1, 1]."""
    points: F64 = modes()[rng.integers(NUM_MODES, size=n)] + SD * rng.standard_normal((n, 2))
    return points[:, :, None, None]


def real_points(n: int, seed: int) -> F64:
    """n real points [n, 2, 1, 1] that depend on the seed alone. Raises ValueError for a negative n or seed."""
    if n < 0 or seed < 0:
        raise ValueError(f"real_points: n={n} and seed={seed} must not be negative")
    return draw_points(n, np.random.default_rng([_REAL_STREAM, seed]))


def nearest_mode(points: F64) -> tuple[F64, NDArray[np.int64]]:
    """Distance [N] in s.d. to the nearest mode, and its number [N], of points [N, 2, 1, 1].

    Raises ValueError for other shapes and for values that are not finite.
    """
    if points.ndim != 4 or points.shape[1:] != (2, 1, 1):
        raise ValueError(f"points have shape {list(points.shape)}, pass [N, 2, 1, 1]")
    if not np.isfinite(points).all():
        raise ValueError("points hold values that are not finite, look at the sampler's settings first")
    p, cells = points[:, :, 0, 0], (SIDE - 1) / 2
    column, row = np.clip(np.rint(p / SPACING + cells), 0, SIDE - 1).astype(np.int64).T
    distance = np.linalg.norm(p - (np.stack([column, row], axis=1) - cells) * SPACING, axis=1) / SD
    return distance, row * SIDE + column


def label_points(points: F64) -> NDArray[np.int8]:
    """Labels int8 [N] (codes of `Label`) of points [N, 2, 1, 1]: is there a mode within 4.5, 5 and 5.5 s.d.?

    Errors as `nearest_mode`. Read at three radii as images are at three thresholds.
    """
    return combine_readings(nearest_mode(points)[0][:, None] <= np.array(RADII))


def mode_of(points: F64) -> NDArray[np.int64]:
    """The mode [N] that each point belongs to (within 5 s.d.), -1 for none."""
    distance, mode = nearest_mode(points)
    return np.where(distance <= RADII[1], mode, -1)


def faults(points: F64) -> Sequence[str]:
    """What is wrong with each point: "" (within 5 s.d. of a mode), "between two modes" or "elsewhere".

    Between two modes: within 5 s.d. of the straight line from a mode to its neighbour in the row or column.
    """
    distance, _ = nearest_mode(points)
    p, half = np.abs(points[:, :, 0, 0]), (SIDE - 1) / 2 * SPACING
    off_line = np.abs(p - np.rint(p / SPACING) * SPACING) / SD  # [N, 2] from the nearest column and row of the grid
    inside = (p <= half + RADII[1] * SD).all(axis=1)
    between = inside & (off_line.min(axis=1) <= RADII[1])
    kinds = np.where(between, BETWEEN, ELSEWHERE)
    return ["" if d <= RADII[1] else str(kind) for d, kind in zip(distance, kinds, strict=True)]


def planted(n: int) -> Mapping[str, F64]:
    """n points [n, 2, 1, 1] of each known place off the modes, with the audit's own random numbers."""
    return _planted(n, np.random.default_rng(_AUDIT_STREAM))


def _planted(n: int, rng: np.random.Generator) -> Mapping[str, F64]:
    steps = rng.choice([-1, 1], size=(n, 1)) * np.eye(2)[rng.integers(2, size=n)]
    middle = modes()[NUM_MODES // 2] + steps * SPACING * rng.uniform(0.4, 0.6, size=(n, 1))
    turn = rng.uniform(0, 2 * np.pi, n)
    ring = np.stack([np.cos(turn), np.sin(turn)], axis=1) * SD  # one s.d. around a mode
    points = {"half way between two modes": middle + SD * rng.standard_normal(middle.shape)}
    points |= {f"{sds} s.d. from a mode": modes()[0] + sds * ring for sds in (6, 5, 4)}
    return {what: p[:, :, None, None] for what, p in points.items()}


VERDICTS = (Label.HALLUCINATED, Label.HALLUCINATED, Label.UNCERTAIN, Label.VALID)  # of the planted points, in order


def audit(*, num: int = 1_000_000, num_planted: int = 100_000) -> list[AuditLine]:
    """Labels of fresh real points and of planted ones; about a second."""
    rng = np.random.default_rng(_AUDIT_STREAM)
    real = label_points(draw_points(num, rng))
    return [
        audit_line("real data, fresh", real, Label.HALLUCINATED, most=1e-5),
        audit_line("real data, fresh", real, Label.UNCERTAIN, most=1e-4),
        *(
            audit_line(f"planted: {what}", label_points(points), verdict, least=0.99)
            for (what, points), verdict in zip(_planted(num_planted, rng).items(), VERDICTS, strict=True)
        ),
    ]


def grid25() -> Task:
    """The task on three learnt denoisers, one for each training seed."""
    networks = {f"grid25-{i}": partial(embedded_network, f"grid25-{i}", made_by=MADE_BY) for i in range(NUM_NETWORKS)}
    return _task("grid25", "25 Gaussians in the plane, learnt denoiser (MLP)", networks)


def grid25_exact() -> Task:
    """The task on the data's own denoiser: all that is left is the error of integration."""
    return _task(
        "grid25-exact",
        "25 Gaussians in the plane, exact denoiser",
        {"grid25-exact": lambda: exact_network("grid25-exact", density())},
    )


def _task(name: str, title: str, networks: Mapping[str, Callable[[], LoadedNetwork]]) -> Task:
    return Task(
        name=name,
        title=title,
        networks=networks,
        label=label_points,
        kinds=mode_of,
        num_kinds=NUM_MODES,
        real=real_points,
        audit=audit,
        is_picture=False,
        calibration_seeds=range(1_000_000, 1_010_000),
        report_seeds=range(20_000),
        batch=1_000,
        faults=faults,
        planted=planted,
    )
