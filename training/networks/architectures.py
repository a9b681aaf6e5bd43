"""The architectures by the names that network files call them: a new one is a class in a file here, and its entry."""

from __future__ import annotations

from training.networks.architecture import Architecture
from training.networks.edm2 import EDM2UNet
from training.networks.mlp import MLP
from training.networks.unet import DhariwalUNet, SongUNet

ARCHITECTURES: dict[str, type[Architecture]] = {c.__name__: c for c in (SongUNet, DhariwalUNet, EDM2UNet, MLP)}
