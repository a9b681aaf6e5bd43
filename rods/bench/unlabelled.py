"""Two runs of the same seeds compared without labels: what changed, at what cost, and how near to real images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from dnnlib.errors import UserError, counted
from rods.bench.compare import changed_images, common, frechet, total_variance, variance_kept
from rods.bench.labelled import LabelledRun, is_finite
from rods.bench.pooled import POOLED, pooled_levels, values_of
from rods.bench.qualitative import Pair, frame_of, pair_sheet
from rods.bench.real import open_real, some_of
from rods.eval.bootstrap import Estimate
from rods.eval.correction import Proportion, proportion_interval
from rods.runs.images import U8

F64 = NDArray[np.float64]
MOST_REAL = 10_000
MOST_PAIRS = 32  # of a sheet


@dataclass(frozen=True)
class RealImages:
    """What a run is held against."""

    num: int
    total_variance: float  # summed over pixels, of values in [-1, 1]
    features: F64  # 8x8 means [N, d]


@dataclass(frozen=True)
class Nearness:
    """How far two runs are from real images."""

    variance: tuple[float, float]  # total variance as a ratio to the real images', of the baseline and of the run
    frechet: tuple[float, float]  # distance of the 8x8 means


@dataclass(frozen=True)
class Changes:
    """A run against the baseline on the n seeds that both have, labels or none."""

    n: int
    changed: Proportion  # images that are not the baseline's, bit for bit
    above: tuple[Proportion, Proportion] | None  # above a restart's threshold, before and after; None: no restart
    nfe: tuple[float, float]  # F + B an image, of the baseline and of the run
    variance_kept: Estimate  # total variance as a ratio to the baseline's
    nearness: Nearness | None  # None without real images
    left_out: int = 0  # seeds that both have, and of which one of them has no image

    def lines(self) -> list[str]:
        """Sentences for people."""
        said = [f"{counted(self.n, 'seed')}: {counted(self.changed.k, 'image')} changed, {_percent(self.changed)}"]
        if self.left_out:
            said.append(f"left out: {counted(self.left_out, 'seed')} of which a run has no image (dropped, not finite)")
        if self.above:
            before, after = self.above
            said.append(
                f"above the gate's own threshold: {_percent(before)} before, {_percent(after)} after; the gate "
                "chose the images, so it judges itself here"
            )
        said.append(
            f"NFE an image: {self.nfe[0]:.1f} before, {self.nfe[1]:.1f} after ({self.nfe[1] / self.nfe[0]:.2f}x)"
        )
        v = self.variance_kept
        if v.value == v.value:  # one image has none
            said.append(f"variance kept: {v.value:.3f}" + (f" ({v.low:.3f} to {v.high:.3f})" if v.low == v.low else ""))
        if self.nearness:
            one, two = self.nearness.variance, self.nearness.frechet
            said.append(f"variance as a ratio to the real images': {one[0]:.3f} before, {one[1]:.3f} after")
            said.append(f"Fréchet distance to them on {POOLED}x{POOLED} means: {two[0]:.4f} before, {two[1]:.4f} after")
        return said


def image_shape(*runs: LabelledRun) -> tuple[int, ...]:
    """[C, H, W] of the runs' images, by a PNG of any. UserError where none is there, or they are points."""
    check_pictures(*runs, option="--real")
    for image in (run.image(i) for run in runs for i in range(len(run))):
        if image is not None:
            return image.shape
    raise UserError(f"{runs[0].path}: its PNGs are missing, so --real cannot be held against them; sample it again")


def check_pictures(*runs: LabelledRun, option: str) -> None:
    """UserError where a run's samples are points."""
    for run in runs:
        if run.is_points:
            raise UserError(f"{option}: the samples of {run.path} are points and have no images; leave it out")


def read_real(path: str, shape: Sequence[int]) -> RealImages:
    """The images [C, H, W] of a folder or zip, at most MOST_REAL. UserError: fewer than two, or of another shape."""
    dataset = open_real(path)
    if len(dataset) < 2:
        raise UserError(f"--real={path} has one image; a variance needs two or more")
    index = some_of(len(dataset), MOST_REAL)
    pixels: U8 = dataset.batch(index)[0].numpy()
    if list(pixels.shape[1:]) != list(shape):
        raise UserError(f"--real={path}: images of shape {list(pixels.shape[1:])}, and the runs' are {list(shape)}")
    x = values_of(pixels).clip(-1, 1)
    return RealImages(len(index), float(x.var(axis=0).sum()), pooled_levels(x).reshape(len(x), -1) / 255)


def changes(base: LabelledRun, run: LabelledRun, real: RealImages | None = None) -> Changes:
    """What a run did to the baseline's images: everything is of the seeds of which both have an image.

    Raises ValueError: no seed in common. UserError: no image of one in common, images of different shapes, or a single
    one to hold against real images.
    """
    base, run, left_out = with_images(base, run)
    n, places = len(base), list(range(len(base)))
    changed = int(changed_images(base, run, places, places).sum())
    above = None
    threshold = run.options.get("threshold")
    if (
        run.has_restarts
        and isinstance(threshold, int | float)
        and run.scores is not None
        and run.own_scores is not None
    ):
        over = [int((scores > threshold).sum()) for scores in (run.scores, run.own_scores)]
        above = proportion_interval(over[0], n), proportion_interval(over[1], n)
    nearness = None
    if real is not None:
        if n < 2:
            raise UserError(f"--real: {run.path} and {base.path} share one image; a distance needs two or more")
        variances = [total_variance(one.groups()) / real.total_variance for one in (base, run)]
        distances = [frechet(one.features, real.features) for one in (base, run)]
        nearness = Nearness((variances[0], variances[1]), (distances[0], distances[1]))
    return Changes(
        n,
        proportion_interval(changed, n),
        above,
        (float(base.nfe.sum(axis=1).mean()), float(run.nfe.sum(axis=1).mean())),
        variance_kept(base, run),
        nearness,
        left_out,
    )


def with_images(base: LabelledRun, run: LabelledRun) -> tuple[LabelledRun, LabelledRun, int]:
    """Both runs' samples of the seeds of which both have an image, in one order, and how many others they share."""
    mine, theirs = common(base, run)
    pairs = zip(mine, theirs, strict=True)
    both = [(i, j) for i, j in pairs if is_finite(base.samples[i]) and is_finite(run.samples[j])]
    if not both:
        raise UserError(f"{run.path} and {base.path} have images of no seed in common; sample the same seeds")
    one, two = base.at([i for i, _ in both]), run.at([j for _, j in both])
    widths = {run.groups()[1].shape[1] for run in (one, two)} - {0}  # 0: no image is there
    if one.is_points != two.is_points or len(widths) > 1:
        raise UserError(f"{run.path} and {base.path} have samples of different shapes; compare runs of equal ones")
    return one, two, len(mine) - len(both)


def changed_pictures(base: LabelledRun, run: LabelledRun, *, option: str) -> tuple[LabelledRun, LabelledRun, list[int]]:
    """Both runs' samples as `with_images` has them, and the places of those that changed. UserError for points."""
    check_pictures(base, run, option=option)
    base, run, _ = with_images(base, run)
    places = list(range(len(base)))
    return base, run, np.flatnonzero(changed_images(base, run, places, places)).tolist()


def images_of(base: LabelledRun, run: LabelledRun, i: int) -> tuple[U8, U8]:
    """Both images [C, H, W] of a place. UserError where a PNG is not there."""
    one, two = base.image(i), run.image(i)
    if one is None or two is None:
        raise UserError(f"{base.path} and {run.path}: some PNGs are missing; sample them again")
    return one, two


def pairs_sheet(base: LabelledRun, run: LabelledRun, *, most: int = MOST_PAIRS) -> PIL.Image.Image | None:
    """Changed images beside the baseline's, before and after, the largest fall of the score first; None: none changed.

    With labels the frame is green around what was repaired and red around what was newly broken. Raises UserError where
    the PNGs are not there.
    """
    base, run, both = changed_pictures(base, run, option="--pairs")
    if not both:
        return None
    first, last = run.scores, run.own_scores
    if first is not None and last is not None:
        with np.errstate(invalid="ignore"):  # of two scores that JSON could not hold, a fall of 0
            falls = np.nan_to_num(last - first)
        both.sort(key=lambda i: falls[i])
    pairs = []
    for i in both[:most]:
        one, two = images_of(base, run, i)
        scores = "" if first is None or last is None else f": score {first[i]:.3g} -> {last[i]:.3g}"
        frame = frame_of(int(base.labels[i]), int(run.labels[i]))
        pairs.append(Pair(one, two, f"seed {int(base.seeds[i])}{scores}", frame))
    return pair_sheet(pairs)


def _percent(share: Proportion) -> str:
    return f"{share.rate:.1%} ({share.low:.1%} to {share.high:.1%})"
