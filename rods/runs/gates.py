"""Files of fitted detectors, the readouts of rods/gate.py: weights as safetensors beside a preset."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from dnnlib.errors import UserError
from dnnlib.util import atomic_write
from rods.gate import Readout

READOUT_SUFFIX = ".readout.safetensors"
_ARRAYS = ("mean", "scale", "linear", "quadratic")


def write_readout(path: Path, readout: Readout) -> None:
    """Writes a readout; `read_readout` reads back an equal one (its weights are float32 numbers)."""
    arrays = {name: np.array(getattr(readout, name), dtype=np.float32) for name in _ARRAYS}
    about = {"format": "rods-readout-1", "blocks": list(readout.blocks), "sigma": readout.sigma, "draws": readout.draws,
             "network": readout.network, "bias": readout.bias}  # fmt: skip
    with atomic_write(path) as temporary:
        temporary.write_bytes(save(arrays, metadata={"readout": json.dumps(about)}))  # one entry: their order is random


def read_readout(path: Path, *, option: str) -> Readout:
    """Raises UserError, in the name of that option: no such file, or not a readout."""
    try:
        with safe_open(path, framework="numpy") as file:
            about = json.loads((file.metadata() or {})["readout"])
            mean, scale, linear, quadratic = (tuple(file.get_tensor(name).tolist()) for name in _ARRAYS)
        blocks = tuple(map(str, about["blocks"]))
        numbers = float(about["sigma"]), int(about["draws"]), str(about["network"]), float(about["bias"])
        return Readout(blocks, *numbers, mean, scale, linear, quadratic)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as e:
        raise UserError(f"{option}: {path} is not a readout ({e}); scripts/fit_readout.py writes one") from None
