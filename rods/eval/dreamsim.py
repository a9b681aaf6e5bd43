"""DreamSim's unit features, through its package (the extra `dreamsim`); the diversity needs no more than these.

Source: Fu et al. 2023 (arXiv 2306.09344). The package fetches its weights (about 1 GB) on first use and brings
torchvision along. Other unit features give the same diversity by `rods.eval.diversity.cosine_diversity`.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from dnnlib.errors import UserError, install, shown
from rods.eval.features import Extractor


def dreamsim_extractor(*, device: torch.device, cache_dir: Path | None = None) -> Extractor:
    """DreamSim's ensemble on images resized to 224 x 224.

    Args:
        cache_dir: where the package keeps its weights; by default "dreamsim" in $DNNLIB_CACHE_DIR or ~/.cache/dnnlib.
    Raises:
        UserError: the extra is not installed, or its weights are neither there nor to be had.
    """
    try:
        from dreamsim import dreamsim
    except ImportError:
        raise UserError(f"--metrics=dreamsim needs a package: {install('dreamsim')}") from None
    folder = cache_dir or Path(os.environ.get("DNNLIB_CACHE_DIR") or "~/.cache/dnnlib").expanduser() / "dreamsim"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        model, _ = dreamsim(pretrained=True, device=str(device), cache_dir=str(folder))
    except Exception as e:  # the package downloads by several libraries, each with errors of its own
        raise UserError(
            f"--metrics=dreamsim: its weights cannot be loaded ({shown(str(e) or type(e).__name__)}); without "
            f"internet, run it once on another machine and copy what it downloads to {folder}"
        ) from None

    def extract(images: Tensor) -> Tensor:
        x = F.interpolate(images.float(), size=(224, 224), mode="bicubic", align_corners=False, antialias=True)
        features: Tensor = model.embed(x.clamp(0, 255) / 255)
        return features

    with torch.inference_mode():
        dim = extract(torch.zeros(1, 3, 224, 224, dtype=torch.uint8, device=device)).shape[1]
    return Extractor("dreamsim", "DreamSim", dim, "", "bicubic-224", device, extract)
