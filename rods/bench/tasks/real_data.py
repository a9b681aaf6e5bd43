"""Real data of the image tasks: drawn from seeds of their own, or picked from a file of held-out images."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dnnlib.errors import UserError
from training.dataset import ImageDataset
from training.model_zoo import MODELS

F64 = NDArray[np.float64]
U8 = NDArray[np.uint8]
Int = NDArray[np.int64]

REAL_SEED = 2_000_000  # of the first block of real data; networks are trained on seed 0
DATA_VARIABLE = "RODS_DATA"


def real_seed(n: int, seed: int) -> int:
    """The generator's seed for block `seed` of n real images. Raises ValueError for a negative n or seed."""
    if n < 0 or seed < 0:
        raise ValueError(f"real data: n={n} and seed={seed} must not be negative")
    return REAL_SEED + seed


def as_samples(x: NDArray[Any]) -> F64:
    """Images as a sampler returns them, [N, C, H, W] in -1..1: from bytes or from floats, [N, C, H, W] or [N, H, W]."""
    unit = x / 127.5 - 1 if x.dtype == np.uint8 else x
    return np.asarray(unit if unit.ndim == 4 else unit[:, None], dtype=np.float64)


def picked(images: U8, n: int, seed: int) -> F64:
    """Block `seed` of n of these images, as samples, in an order that is the same for all blocks.

    Neighbouring blocks share no image: a block is half of the images where there are fewer than 2 n, and the count
    starts again where they end. Raises ValueError for a negative n or seed.
    """
    real_seed(n, seed)
    order = np.random.default_rng(REAL_SEED).permutation(len(images))
    size = min(n, len(images) // 2)
    first = size * (seed % (len(images) // size)) if size else 0
    return as_samples(images[order[first : first + size]])


def data_folder() -> Path:
    """The folder of data that is not in the repository: $RODS_DATA, else data/ in the project's folder."""
    return Path(os.environ.get(DATA_VARIABLE) or MODELS.parent / "data")


@cache
def read_images(path: Path, *, resolution: int, num_classes: int, made_by: str) -> tuple[U8, Int]:
    """(images [N, H, H], their classes [N], all 0 without classes) of a data set of grey images, in its order.

    Raises UserError, with the command that makes the data set: no such file, or other images in it.
    """
    if not path.exists():
        raise UserError(f"{path} is missing: `{made_by}` makes it; {DATA_VARIABLE}=FOLDER if the data are elsewhere")
    data = ImageDataset(path, cond=num_classes > 0)
    if (data.num_channels, data.resolution, data.label_dim) != (1, resolution, num_classes):
        in_classes = f" in {num_classes} classes" if num_classes else ""
        raise UserError(
            f"{path} must hold grey images of {resolution}x{resolution}{in_classes}; `{made_by}` makes them"
        )
    images, labels = data.batch(list(range(len(data))))
    classes = labels.argmax(dim=1).numpy() if num_classes else np.zeros(len(data), dtype=np.int64)
    return images[:, 0].numpy(), classes
