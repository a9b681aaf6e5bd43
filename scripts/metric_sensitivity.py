"""How the distances answer to blur, noise and lost classes on real images, beside real images against real images."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a plain checkout, installed or not

from dnnlib.cli import Command, NumberList
from dnnlib.errors import UserError
from dnnlib.util import atomic_write
from rods.bench.plots.drawing import figure, require_matplotlib, save
from rods.eval.extractors import open_extractor
from rods.eval.features import F32, Extractor
from rods.eval.frechet import frechet_distance
from rods.eval.kernel import kernel_within, kid
from rods.eval.reference import read_reference
from rods.eval.statistics import feature_statistics
from torch_utils import distributed
from training.dataset import ImageDataset

FLOOR, BLUR, NOISE, LOST = "real against real", "blur, s.d. in pixels", "noise, s.d. of 255", "classes lost"
Images = NDArray[np.uint8]  # [N, C, H, W]


@dataclass(frozen=True)
class Point:
    """Both distances of n images to the reference after one change."""

    change: str
    amount: float
    frechet: float
    kernel: float
    n: int
    n_ref: int


@click.command(cls=Command, context_settings={"show_default": True})
@click.option("--ref", metavar="NPZ", required=True, help="Statistics of real images, made with fid.py ref.")
@click.option("--held-out", metavar="DIR|ZIP", required=True, help="Other real images, with classes.")
@click.option("--num", type=click.IntRange(4), default=1000, help="Images behind every point.")
@click.option("--draws", type=click.IntRange(1), default=5, help="Random choices of held-out images behind the floor.")
@click.option("--blur", type=NumberList(float), default="0.25,0.4,0.5,0.75,1", help="Standard deviations, in pixels.")
@click.option("--noise", type=NumberList(float), default="2,4,8,16,32", help="Standard deviations, of 255.")
@click.option("--lost", type=NumberList(int), default="1,2,3,4,5", help="How many classes to leave out.")
@click.option("--detector", default="efficientnet-lite0", help="As fid.py's.")
@click.option("--resize", help="As fid.py's.")
@click.option("--batch", type=click.IntRange(1), default=64, help="Images at once.")
@click.option("--threads", type=click.IntRange(1), help="CPU threads; by default all cores.")
@click.option("--out", metavar="PNG", default="metric-sensitivity.png", help="The picture; its numbers go beside it.")
def main(
    ref: str, held_out: str, num: int, draws: int, blur: tuple[float, ...], noise: tuple[float, ...],
    lost: tuple[int, ...], detector: str, resize: str | None, batch: int, threads: int | None, out: str,
) -> None:  # fmt: skip
    """Measure and draw what a blur, noise and lost classes do to the Fréchet and the kernel distance."""
    torch.set_num_threads(threads or distributed.usable_cores())
    picture = Path(out)
    if picture.suffix != ".png" or not picture.resolve().parent.is_dir():
        raise UserError(f"--out={out} must be a .png file in a folder that is there")
    require_matplotlib()
    extractor = open_extractor(detector, device=torch.device("cpu"), resize=resize)
    reference = read_reference(ref)
    if (mismatch := reference.mismatch(extractor)) or reference.features is None:
        raise UserError(
            f"--ref={ref} {mismatch or 'keeps no features'}; make it with fid.py ref and the same --detector"
        )
    y, within_y = reference.features, kernel_within(reference.features)
    real, classes = _read(held_out)
    if len(real) < num or max(lost) >= len(set(classes.tolist())):
        raise UserError(f"--held-out={held_out} has {len(real)} images of {len(set(classes.tolist()))} classes; "
                        "give a smaller --num or --lost")  # fmt: skip

    def features(images: Images) -> F32:
        starts = tqdm(range(0, len(images), batch), unit="batch", leave=False, disable=None)
        return np.concatenate([extractor(torch.from_numpy(images[i : i + batch])) for i in starts])

    x, points = features(real), []
    for change, amount, z in _changes(real, x, classes, features, num=num, draws=draws, levels=(blur, noise, lost)):
        s = feature_statistics(z)
        frechet = frechet_distance(s.mean, s.cov, reference.mu, reference.sigma)
        points.append(Point(change, amount, frechet, kid(z, y, within_y=within_y), len(z), len(y)))
        click.echo(f"{change:<22} {amount:<6g} {extractor.frechet_name} {frechet:<10.5g} "
                   f"{extractor.kernel_name} {points[-1].kernel:<12.5g} n = {len(z)} against {len(y)}")  # fmt: skip
    with atomic_write(picture.with_suffix(".jsonl")) as temporary:
        recipe = {"detector": extractor.describe(), "ref": Path(ref).name, "held_out": Path(held_out).name}
        temporary.write_text("".join(json.dumps(line) + "\n" for line in (recipe, *map(asdict, points))))
    _draw(points, extractor, picture)
    click.echo(f"wrote {picture} and {picture.with_suffix('.jsonl')}")


def _changes(
    real: Images,
    x: F32,
    classes: NDArray[np.int64],
    features: Callable[[Images], F32],
    *,
    num: int,
    draws: int,
    levels: tuple[tuple[float, ...], tuple[float, ...], tuple[int, ...]],
) -> Iterator[tuple[str, float, F32]]:
    """(change, amount, features); every changed set is made of the same `num` held-out images, but for lost classes."""
    rng = np.random.default_rng(0)
    for draw in range(draws):
        yield FLOOR, draw, x[rng.choice(len(x), num, replace=False)]
    chosen = np.sort(rng.choice(len(x), num, replace=False))
    blur, noise, lost = levels
    for s in blur:
        yield BLUR, s, features(ndimage.gaussian_filter(real[chosen], sigma=(0, 0, s, s)))
    for s in noise:
        noisy = real[chosen] + s * rng.standard_normal(real[chosen].shape)
        yield NOISE, s, features(noisy.round().clip(0, 255).astype(np.uint8))
    for count in lost:
        left = np.flatnonzero(classes >= count)  # the first `count` classes are gone
        yield LOST, count, x[rng.choice(left, min(num, len(left)), replace=False)]


def _read(path: str) -> tuple[Images, NDArray[np.int64]]:
    """(images, their classes), in order."""
    try:
        dataset = ImageDataset(path, cond=True, cache=False)
    except UserError as e:
        raise UserError(str(e).replace("--data=", "--held-out=")) from None
    images, labels = dataset.batch(list(range(len(dataset))))
    return images.numpy(), labels.argmax(dim=1).numpy()


def _draw(points: list[Point], extractor: Extractor, path: Path) -> None:
    """One row a distance, one column a change; the band is real against real, from its lowest to its highest draw."""
    fig, axes = figure(2, 3, width=9, height=5.4, sharey="row")
    for row, (name, label) in enumerate((("frechet", extractor.frechet_name), ("kernel", extractor.kernel_name))):
        floor = [getattr(p, name) for p in points if p.change == FLOOR]
        for column, change in enumerate((BLUR, NOISE, LOST)):
            axis, shown = axes[row][column], [p for p in points if p.change == change]
            axis.axhspan(min(floor), max(floor), color="tab:green", alpha=0.4, label=FLOOR)
            axis.plot(
                [p.amount for p in shown], [getattr(p, name) for p in shown], "o-", color="tab:red", label="changed"
            )
            axis.grid(alpha=0.3)
            axis.set_ylabel(label if column == 0 else "")
            axis.set_xlabel(change if row == 1 else "")
            if row == 0:
                axis.set_yscale("log")
            else:
                axis.set_yscale("symlog", linthresh=max(max(map(abs, floor)), 1e-9))
            if change == NOISE:
                axis.set_xscale("log", base=2)
    axes[0][0].legend(fontsize="small")
    fig.suptitle(
        f"{extractor.describe().split(', sha256')[0]}, n = {points[0].n} against {points[0].n_ref}", fontsize="medium"
    )
    save(fig, path)


if __name__ == "__main__":
    main()
