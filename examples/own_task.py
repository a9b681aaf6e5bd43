"""A benchmark task of your own in 60 lines: images of one bar, and what an ideal denoiser makes of too few steps.

python examples/own_task.py

In the project it would be a folder, rods/bench/tasks/bars/, and one entry of TASKS. Then it has
`bench.py run, audit, report`, `calibrate.py`, `fit_readout.py`, `make_data.py`, and the laws that all tasks keep.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # so that it runs without installing the project

from rods.bench.task import AuditLine, DrawnData, Task, exact_network
from rods.bench.tasks.image_audit import image_audit
from rods.bench.tasks.real_data import as_samples, real_seed
from rods.bench.tasks.tone_control import as_unit, normalise
from rods.densities import Mixture
from rods.eval.labels import combine_readings

SIZE, WIDTH = 16, 4
THRESHOLDS = (0.35, 0.5, 0.65)
AUDIT_SEED = 1_000_001


def bars(tops: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Images [N, 16, 16] of bars four pixels wide, one for each column of `tops` [N, bars per image]."""
    below = np.arange(SIZE)[None, None, :] - tops[:, :, None]  # [N, bars, rows]
    bright = ((below >= 0) & (below < WIDTH)).any(axis=1)
    return np.repeat(np.where(bright, 230, 30).astype(np.uint8)[:, :, None], SIZE, axis=2)


def draw(indices: Sequence[int], seed: int, resolution: int = SIZE) -> NDArray[np.uint8]:
    """Data: one bar anywhere. Image i depends on (seed, i) alone."""
    return bars(np.array([np.random.default_rng([seed, i]).integers(SIZE - WIDTH + 1, size=1) for i in indices]))


def draw_two(indices: Sequence[int], seed: int, resolution: int = SIZE) -> NDArray[np.uint8]:
    """A planted error: two bars with a gap between them."""
    top = np.array([np.random.default_rng([seed, i]).integers(3, size=1) for i in indices])
    return bars(np.concatenate([top, top + WIDTH + 3], axis=1))


def label(images: NDArray[Any]) -> NDArray[np.int8]:
    """Labeller: as many bright rows as one bar has, at all three thresholds."""
    rows = normalise(as_unit(images))[0].mean(axis=2)  # [N, rows]
    return combine_readings((rows[:, :, None] > np.array(THRESHOLDS)).sum(axis=1) == WIDTH)


def planted(n: int) -> Mapping[str, NDArray[np.uint8]]:
    """n images with each known error."""
    return {"two bars": draw_two(range(n), AUDIT_SEED)}


def audit(*, num: int = 2_000, num_planted: int = 500) -> Sequence[AuditLine]:
    """What the labeller says of images whose truth is known, and whether tone can fool it."""
    return image_audit(draw(range(num), AUDIT_SEED), planted(num_planted), label, most=0.005, least=0.97)


def task() -> Task:
    """The entry of the registry: TASKS["bars"] = task."""
    every_bar = as_samples(bars(np.arange(SIZE - WIDTH + 1)[:, None]))
    density = Mixture(torch.from_numpy(every_bar), torch.ones(len(every_bar)), 0.05)
    return Task(
        name="bars",
        title="One bar, 16x16",
        networks={"bars-exact": lambda: exact_network("bars-exact", density)},
        label=label,
        kinds=None,
        num_kinds=0,
        real=lambda n, seed: as_samples(draw(range(n), real_seed(n, seed))),
        audit=audit,
        num_steps=3,  # so few that about one image in ten is no bar; 4 leave none
        faults=lambda images: ["" if code == 1 else "another number of bars" for code in label(images)],
        planted=planted,
        drawn=DrawnData(draw, num=1_000, resolutions=(SIZE, SIZE)),
    )


def main() -> None:
    """Print the audit."""
    for line in task().audit():
        print(f"{line.what}: {line.label} {line.share.k} of {line.share.n}")


if __name__ == "__main__":
    main()
