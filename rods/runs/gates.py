"""Files of fitted detectors, the readouts of rods/gate.py: weights as safetensors beside a preset."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from dnnlib.errors import UserError
from dnnlib.util import atomic_write
from rods.config import FITTED
from rods.gate import ActivationDetector

_ARRAYS = ("mean", "scale", "linear", "quadratic")


def gate_suffix(kind: str) -> str:
    """What the name of a gate's file ends with, beside the preset NAME.preset.json."""
    return f".{kind}.safetensors"


def gate_kind(gate: ActivationDetector) -> str:
    """The name of `FITTED` that a gate has."""
    return next(name for name, cls in FITTED.items() if type(gate) is cls)


def write_gate(path: Path, gate: ActivationDetector) -> None:
    """Writes a gate; `read_gate` reads back an equal one."""
    kind = gate_kind(gate)
    arrays = {name: np.array(getattr(gate, name), dtype=np.float64) for name in _ARRAYS}
    # Most readouts have float32 numbers; a quadratic form of many features cancels too much for them.
    with np.errstate(over="ignore"):
        short = {name: array.astype(np.float32) for name, array in arrays.items()}
    if kind == "readout" and all((short[name] == array).all() for name, array in arrays.items()):
        arrays = short  # type: ignore[assignment]
    about = {"format": f"rods-{kind}-1", "blocks": list(gate.blocks), "sigma": gate.sigma, "draws": gate.draws,
             "network": gate.network, "bias": gate.bias}  # fmt: skip
    with atomic_write(path) as temporary:
        temporary.write_bytes(save(arrays, metadata={kind: json.dumps(about)}))  # one entry: their order is random


def read_gate(path: Path, kind: str, *, option: str) -> ActivationDetector:
    """The gate of this kind, a name of `FITTED`. Raises UserError, naming that option: no such file, or not a gate."""
    try:
        with safe_open(path, framework="numpy") as file:
            about = json.loads((file.metadata() or {})[kind])
            mean, scale, linear, quadratic = (tuple(file.get_tensor(name).tolist()) for name in _ARRAYS)
        blocks = tuple(map(str, about["blocks"]))
        numbers = float(about["sigma"]), int(about["draws"]), str(about["network"]), float(about["bias"])
        return FITTED[kind](blocks, *numbers, mean, scale, linear, quadratic)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as e:
        script = {"readout": "fit_readout", "density-ratio": "fit_gate"}[kind]
        raise UserError(f"{option}: {path} is not a {kind} ({e}); scripts/{script}.py writes one") from None
