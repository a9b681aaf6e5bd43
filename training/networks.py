"""EDM's wire names of networks, as files and users spell them."""

from __future__ import annotations

from torch import nn

from training.blocks import UNetBlock
from training.precond import MODELS, PRECONDS, EDMPrecond, VEPrecond, VPPrecond, iDDPMPrecond
from training.unet import DhariwalUNet, SongUNet

NETWORKS: dict[str, type[nn.Module]] = {**PRECONDS, **MODELS}

__all__ = [
    "NETWORKS",
    "DhariwalUNet",
    "EDMPrecond",
    "SongUNet",
    "UNetBlock",
    "VEPrecond",
    "VPPrecond",
    "iDDPMPrecond",
]
