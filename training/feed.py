"""The batches of a run: which images, and all randomness of each, from (seed, image counter) alone; made ahead."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from training.augment import augment_labels
from training.config import TrainConfig
from training.dataset import ImageDataset, data_order
from training.loss import image_draws


@dataclass(frozen=True, eq=False)
class Batch:
    """The images of one round on one rank, with their draws."""

    counters: range  # the numbers of these images in the run
    images: Tensor  # uint8 [B, C, H, W]
    labels: Tensor | None  # [B, L]
    n: Tensor  # [B], for the noise level
    noise: Tensor  # [B, C, H, W]
    flipped: Tensor  # bool [B]
    augment_labels: Tensor | None  # [B, 9]


def share(start: int, batch: int, *, rank: int = 0, ranks: int = 1, at_most: int | None = None) -> list[range]:
    """The micro-batches of a rank in the step that begins at image `start`: contiguous, `at_most` images each."""
    first, last = start + batch * rank // ranks, start + batch * (rank + 1) // ranks
    size = at_most or batch
    return [range(i, min(i + size, last)) for i in range(first, last, size)]


def draw_batch(dataset: ImageDataset, config: TrainConfig, counters: range, indices: list[int]) -> Batch:
    """The images `indices` of the data set as the images `counters` of the run."""
    images, labels = dataset.batch(indices)
    n, noise, flipped = image_draws(config.seed, counters, images.shape[1:], flip=config.xflip)
    changes = augment_labels(config.seed, counters, p=config.augment) if config.augment else None
    return Batch(counters, images, labels if dataset.label_dim else None, n, noise, flipped, changes)


@contextmanager
def feed(
    dataset: ImageDataset,
    config: TrainConfig,
    start: int,
    *,
    rank: int = 0,
    ranks: int = 1,
    batch_gpu: int | None = None,
    workers: int = 0,
) -> Iterator[Iterator[list[Batch]]]:
    """For every step from image `start` on, the micro-batches of this rank; `workers` threads are as many steps ahead.

    What comes does not depend on `workers`. The threads end with the block.
    """

    def prepare(first: int, indices: list[int]) -> list[Batch]:
        rounds = share(first, config.batch, rank=rank, ranks=ranks, at_most=batch_gpu)
        return [draw_batch(dataset, config, r, indices[r.start - first : r.stop - first]) for r in rounds]

    def steps() -> Iterator[tuple[int, list[int]]]:
        order, first = data_order(len(dataset), seed=config.seed, start=start), start
        while True:
            yield first, [next(order) for _ in range(config.batch)]
            first += config.batch

    if not workers:
        yield (prepare(*step) for step in steps())
        return
    with ThreadPoolExecutor(workers, thread_name_prefix="feed") as pool:
        try:
            yield _ahead(pool, prepare, steps(), workers)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _ahead(
    pool: ThreadPoolExecutor,
    prepare: Callable[[int, list[int]], list[Batch]],
    steps: Iterator[tuple[int, list[int]]],
    count: int,
) -> Iterator[list[Batch]]:
    waiting: deque[Future[list[Batch]]] = deque()
    while True:
        while len(waiting) <= count:
            waiting.append(pool.submit(prepare, *next(steps)))
        yield waiting.popleft().result()


def standard_deviation(dataset: ImageDataset) -> float:
    """The s.d. of all values of all images, scaled to [-1, 1], about their one mean; four digits. Reads everything."""
    count, total, squares = 0, 0, 0  # whole numbers: exact, in any order
    for i in tqdm(range(len(dataset)), desc="Measuring sigma_data", unit="img", disable=None, leave=False):
        image = dataset.image(i).astype(np.int64)
        count, total, squares = count + image.size, total + int(image.sum()), squares + int((image * image).sum())
    variance = squares / count - (total / count) ** 2
    return float(f"{np.sqrt(variance) / 127.5:.4g}")


def as_signed(images: Tensor, device: torch.device) -> Tensor:
    """uint8 [...] -> float32 [...] in [-1, 1] on the device."""
    return images.to(device, non_blocking=True).to(torch.float32) / 127.5 - 1
