"""Networks by EDM's wire names, as files and users spell them: what train.py, loading and conversion ask.

A new architecture is a class in a file of this package and its entry in `architectures.py`; a new preconditioning is a
class in `precond.py` and its entry here. What else is known of either (its arguments and their bounds, its names at
`--arch` and `--precond`, its loss) are fields of its class.
"""

from __future__ import annotations

from typing import Any

from training.networks.architectures import ARCHITECTURES
from training.networks.blocks import UNetBlock
from training.networks.edm2 import EDM2UNet
from training.networks.mlp import MLP
from training.networks.precond import EDM2Precond, EDMPrecond, Precond, VEPrecond, VPPrecond, iDDPMPrecond
from training.networks.unet import DhariwalUNet, SongUNet

PRECONDS: dict[str, type[Precond]] = {
    c.__name__: c for c in (VPPrecond, VEPrecond, EDMPrecond, iDDPMPrecond, EDM2Precond)
}
"""The denoisers by the class names of this project's network files."""

PICKLED_PRECONDS: dict[str, type[Precond]] = {c.wire_name or name: c for name, c in PRECONDS.items()}
"""The denoisers by the class names of EDM's and EDM2's pickles."""

PRECOND_OPTIONS: dict[str, type[Precond]] = {c.option: c for c in PRECONDS.values() if c.option}
"""Those that can be trained, by their names at train.py --precond."""

ARCH_OPTIONS: dict[str, dict[str, Any]] = {
    name: {"model_type": model_type, **arguments}
    for model_type, c in ARCHITECTURES.items()
    for name, arguments in c.variants.items()
}
"""What each train.py --arch passes to the denoiser's constructor."""

__all__ = [
    "ARCHITECTURES",
    "ARCH_OPTIONS",
    "MLP",
    "PICKLED_PRECONDS",
    "PRECONDS",
    "PRECOND_OPTIONS",
    "DhariwalUNet",
    "EDM2Precond",
    "EDM2UNet",
    "EDMPrecond",
    "Precond",
    "SongUNet",
    "UNetBlock",
    "VEPrecond",
    "VPPrecond",
    "iDDPMPrecond",
]
