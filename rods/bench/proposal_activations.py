"""What `label.py serve --next --network` reads of a network: pooled activations of images, at one F each."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from dnnlib.errors import UserError, of_option
from rods.bench.readout_fit import decoder_blocks, pooled_activations
from rods.runs.images import read_png
from rods.types import Denoiser
from training.checkpoint import load_snapshot

SIGMA = 0.25  # the noise level: a finished image that is noised a little
BATCH = 64


def proposal_activations(network: Path, files: Sequence[Path]) -> NDArray[np.float64]:
    """Activations [N, K] of the last half of the decoder's blocks for image files. Cost: 1 F an image.

    Raises UserError: a network with classes or without decoder blocks, or an image of another size.
    """
    with of_option("--network"):
        net = load_snapshot(str(network), device=torch.device("cpu")).net
    if net.label_dim:
        raise UserError(f"--network={network} needs class labels, which image files do not have; leave --network out")
    shape, images = (net.img_channels, net.img_resolution, net.img_resolution), []
    for path in files:
        images.append(read_png(path))
        if images[-1].shape != shape:
            raise UserError(f"{path} is of shape {list(images[-1].shape)} and --network={network} draws {list(shape)}; "
                            "give the network that sampled the images")  # fmt: skip
    blocks = decoder_blocks(cast(torch.nn.Module, net), remedy="leave --network out")
    blocks = blocks[len(blocks) // 2 :]
    with tqdm(total=len(images), unit="img", desc="activations", disable=not sys.stderr.isatty()) as bar:
        found = pooled_activations(
            cast(Denoiser, net), np.stack(images), SIGMA, blocks, draws=1, batch=BATCH, report=bar.update
        )
    return np.concatenate([found[block] for block in blocks], axis=1)
