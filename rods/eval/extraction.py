"""Features of many images on any number of ranks: equal numbers, to the bit, for every number of them.

Images come in blocks that are cut before ranks are considered. In each round every rank makes the features of one
block, and rank 0 puts the round's blocks into their order; all sums are made there, over features in a fixed order.
A block's features cost 8 kB an image to send, where sums of squares would cost 33 MB a block.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor
from tqdm import tqdm

from rods.eval.features import F32, Extractor
from torch_utils import distributed
from torch_utils.machine import must_fit


@dataclass(frozen=True)
class FeatureSet:
    """Features of n images, by one extractor each, and a checksum of the images."""

    features: Sequence[F32]  # [n, d] for each extractor
    data_sha256: str  # of the images' sizes and pixels, in order

    @property
    def n(self) -> int:
        """The number of images."""
        return len(self.features[0])


def extract(
    num_blocks: int, load: Callable[[int], Tensor], extractors: Sequence[Extractor], *, num_images: int
) -> FeatureSet | None:
    """Features of the images of all blocks, on rank 0; None on the others. All ranks must call it.

    Args:
        load: block index -> images uint8 [b, C, H, W]; it is called once for each block, on one of the ranks.
        num_images: how many there are in all, for the progress bar.
    """
    blocks: list[tuple[list[F32], list[bytes]]] = []
    world, lead = distributed.world_size(), distributed.rank() == 0
    with tqdm(total=num_images, unit="img", disable=None if lead else True) as progress:
        for start in range(0, num_blocks, world):
            mine = start + distributed.rank()
            done = _block(load(mine), extractors) if mine < num_blocks else None
            arrived = [block for block in distributed.gather(done) if block is not None]
            if lead:
                blocks += arrived
            progress.update(sum(len(digests) for _, digests in arrived))
    if not lead:
        return None
    digest = hashlib.sha256(b"".join(d for _, digests in blocks for d in digests)).hexdigest()
    return FeatureSet([np.concatenate([f[i] for f, _ in blocks]) for i in range(len(extractors))], digest)


def _block(images: Tensor, extractors: Sequence[Extractor]) -> tuple[list[F32], list[bytes]]:
    digests = [hashlib.sha256(str(tuple(x.shape)).encode() + x.contiguous().numpy().tobytes()).digest() for x in images]
    with must_fit(f"--batch={len(images)} does not fit in the memory of {extractors[0].device}; use less"):
        return [extractor(images) for extractor in extractors], digests
