"""Random numbers per image: a stream for each seed, so that an image does not depend on its batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

SECOND = 0x524F4453
"""Flips the bits of a seed for its second stream. A CPU generator knows 32 bits of its seed, so that the second seeds
must lie among the first: this one-to-one map sends all seeds below 2^28 to seeds above 2^30."""
THIRD = 0x4C494453
"""The same for its third stream, whose numbers score an image and never make one."""
LARGEST_REDRAWN, MOST_TRIES = 1 << 26, 16
"""Seeds that can be redrawn lie below the first, and there are so many images of each, its own among them."""


def redrawn(seed: int, attempt: int) -> int:
    """The seed of another try at the image of `seed`; try 0 is the seed itself.

    The try's number goes into bits 26, 27, 29 and 31 of a seed below 2^26. The streams' constants differ in their upper
    six bits, too, and no two of (try, stream) agree in these: all three streams of all 16 tries of all such seeds are
    distinct, and none is that of another such seed. Raises ValueError for a larger seed, or a try that does not exist.
    """
    if not 0 <= seed < LARGEST_REDRAWN:
        raise ValueError(f"seeds: {seed} is too large to be redrawn; give seeds below {LARGEST_REDRAWN:,}")
    if not 0 <= attempt < MOST_TRIES:
        raise ValueError(f"max_tries: try {attempt} of a seed does not exist; give {MOST_TRIES} or fewer")
    places = (26, 27, 29, 31)
    return seed | sum((attempt >> k & 1) << place for k, place in enumerate(places))


class SeedStreams:
    """One generator per seed (seed mod 2^32), each feeding `rows_per_seed` rows of a batch of B rows.

    Draws, in this order, give the numbers of EDM's generate.py: latents (float32), one class for conditional networks,
    then the float64 noise of each step. With `rows_per_seed` > 1 a seed's generator draws its rows together, which is
    how the RODS paper seeded whole batches.
    """

    def __init__(self, seeds: Sequence[int], device: torch.device, *, rows_per_seed: int = 1, on_cpu: bool = False):
        self.device, self.rows = device, rows_per_seed
        self._source = torch.device("cpu") if on_cpu else device
        self._seeds = [seed % (1 << 32) for seed in seeds]
        self._generators = [torch.Generator(self._source).manual_seed(seed) for seed in self._seeds]

    def second(self) -> SeedStreams:
        """The second stream of each seed, from its beginning: what correctors and restarts draw.

        It never moves the numbers of the first, which are EDM's. Its generators have the seeds
        (seed mod 2^32) xor 0x524F4453.
        """
        return self._other(SECOND)

    def third(self) -> SeedStreams:
        """The third stream of each seed, from its beginning: the draws of scores, which no image depends on.

        Its generators have the seeds (seed mod 2^32) xor 0x4C494453.
        """
        return self._other(THIRD)

    def _other(self, flips: int) -> SeedStreams:
        seeds = [seed ^ flips for seed in self._seeds]
        return SeedStreams(seeds, self.device, rows_per_seed=self.rows, on_cpu=self._source.type == "cpu")

    def keys(self) -> Tensor:
        """What tells rows apart, int64 [B] on the CPU: the seed (mod 2^32), and the row of a seed that has several."""
        seeds = torch.tensor(self._seeds, dtype=torch.int64).repeat_interleave(self.rows)
        return seeds + (torch.arange(len(self)) % self.rows << 32)

    def __len__(self) -> int:
        return len(self._generators) * self.rows

    def randn(self, shape: Sequence[int], *, dtype: torch.dtype = torch.float32) -> Tensor:
        """Standard normal draws [B, *shape]."""
        size = [self.rows, *shape] if self.rows > 1 else list(shape)
        draws = [torch.randn(size, generator=g, dtype=dtype, device=self._source) for g in self._generators]
        return torch.stack(draws).reshape(len(self), *shape).to(self.device)

    def randn_like(self, x: Tensor) -> Tensor:
        """Standard normal draws in the shape and dtype of `x` [B, ...]."""
        return self.randn(x.shape[1:], dtype=x.dtype)

    def randint(self, high: int) -> Tensor:
        """Integers in [0, high): int64 [B]."""
        size = [self.rows] if self.rows > 1 else []
        draws = [torch.randint(high, size, generator=g, device=self._source) for g in self._generators]
        return torch.stack(draws).reshape(len(self)).to(self.device)
