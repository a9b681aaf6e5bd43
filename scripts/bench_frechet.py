"""Times the Fréchet distance by symmetric eigenvalues beside the usual way, scipy.linalg.sqrtm, in one run."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import scipy.linalg
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a plain checkout, installed or not

from dnnlib.cli import Command
from rods.eval.frechet import frechet_distance

F64 = NDArray[np.float64]


@click.command(cls=Command, context_settings={"show_default": True})
@click.option("--dim", type=click.IntRange(2), default=2048, help="Number of features; the FID has 2048.")
@click.option("--num", type=click.IntRange(2), default=5000, help="Samples behind each covariance.")
@click.option("--repeats", type=click.IntRange(1), default=1, help="Timed rounds over both; the medians are printed.")
def main(dim: int, num: int, repeats: int) -> None:
    """Compare the time and the result of both on random features whose variances fall from 1 to 1e-6."""
    rng = np.random.default_rng(0)
    scale = np.geomspace(1, 1e-3, dim)
    moments = [_moments(rng.normal(size=(num, dim)) * scale + shift) for shift in (0, 0.01)]
    ways: dict[str, Callable[..., float]] = {"symmetric eigenvalues": frechet_distance, "scipy.linalg.sqrtm": by_sqrtm}
    times: dict[str, list[float]] = {name: [] for name in ways}
    values: dict[str, float] = {}
    for _ in range(repeats):
        for name, distance in ways.items():
            start = time.perf_counter()
            values[name] = distance(*moments[0], *moments[1])
            times[name].append(time.perf_counter() - start)
    click.echo(f"{dim} features, {num} samples, {repeats} repeats")
    for name in ways:
        click.echo(f"{name:<22} {np.median(times[name]):8.2f} s   {values[name]:.9g}")
    ratio = np.median(times["scipy.linalg.sqrtm"]) / np.median(times["symmetric eigenvalues"])
    click.echo(f"symmetric eigenvalues are {ratio:.1f} times as fast")


def by_sqrtm(mean1: F64, cov1: F64, mean2: F64, cov2: F64) -> float:
    """The Fréchet distance by the square root of a matrix that is not symmetric, as many programs have it."""
    difference = mean1 - mean2
    root = scipy.linalg.sqrtm(cov1 @ cov2)
    return float(difference @ difference + np.trace(cov1) + np.trace(cov2) - 2 * np.trace(root).real)


def _moments(features: F64) -> tuple[F64, F64]:
    return features.mean(axis=0), np.cov(features, rowvar=False)


if __name__ == "__main__":
    main()
