"""From images to features: what an extractor is, and the one that needs no file.

A number carries the name of its extractor, and only the TF-Inception of 2015-12-05 makes a FID.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from dnnlib.errors import UserError

F32 = NDArray[np.float32]


@dataclass(frozen=True)
class Extractor:
    """A network (or a rule) that makes features of images; numbers of two extractors cannot be compared."""

    name: str  # as --detector names it
    suffix: str  # what the names of its numbers end in; empty for the genuine Inception
    dim: int
    sha256: str  # of its weights; empty where it has none
    resize: str  # how images reach its input
    device: torch.device
    extract: Callable[[Tensor], Tensor]  # uint8 [B, 3, H, W] -> [B, d]

    def __call__(self, images: Tensor) -> F32:
        """Features float32 [B, d] of images uint8 [B, C, H, W], C = 1 (repeated) or 3.

        Raises:
            ValueError: images of other channels.
            UserError: another number of features than `dim`, or features that are not finite.
        """
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
            raise ValueError(f"images: {images.dtype} of shape {list(images.shape)}; pass uint8 [B, 1 or 3, H, W]")
        with torch.inference_mode():
            features = self.extract(images.to(self.device).expand(-1, 3, -1, -1)).float().cpu().numpy()
        if features.shape != (len(images), self.dim):
            raise UserError(
                f"--detector={self.name} gives features of shape {list(features.shape)}, not [B, {self.dim}]"
            )
        if not np.isfinite(features).all():
            raise UserError(f"--detector={self.name} gives features that are not finite; its file may be damaged")
        return np.asarray(features)

    @property
    def frechet_name(self) -> str:
        """FID for the genuine Inception, FD-... for every other extractor."""
        return f"FD-{self.suffix}" if self.suffix else "FID"

    @property
    def kernel_name(self) -> str:
        """KID for the genuine Inception, KD-... for every other extractor."""
        return f"KD-{self.suffix}" if self.suffix else "KID"

    @property
    def variance_name(self) -> str:
        """Inception-Var for the genuine Inception, Var-... for every other extractor."""
        return f"Var-{self.suffix}" if self.suffix else "Inception-Var"

    def describe(self) -> str:
        """One line: name, checksum, resize and size."""
        checksum = f" sha256 {self.sha256}," if self.sha256 else ""
        return f"{self.name},{checksum} resize {self.resize}, {self.dim} features"


def pixel_extractor(device: torch.device) -> Extractor:
    """The mean colours of an 8x8 grid, in [0, 1]: 192 features that need no file and see only tone and layout."""

    def extract(images: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(images.float() / 255, 8).flatten(1)

    return Extractor("pixels", "Pixels", 192, "", "mean-8", device, extract)
