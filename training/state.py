"""The resumable training state: one self-contained file, written atomically, read without running code."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dnnlib.util import atomic_write

STATE_NAME = "training-state.pt"
SCHEMA = 1


@dataclass
class TrainingState:
    """Everything that a run needs to go on. Noise, data order and dropout derive from `images_seen` and the seed."""

    net: dict[str, Tensor]
    ema: dict[str, Tensor]
    optimizer: dict[str, Any]
    images_seen: int
    options: dict[str, Any]


def save_state(path: Path, state: TrainingState) -> None:
    with atomic_write(path) as temporary:
        torch.save({"schema": SCHEMA, **vars(state)}, temporary)


def load_state(path: Path) -> TrainingState:
    """Raises ValueError: not a state file, or one of another schema."""
    try:
        data = torch.load(path, map_location="cpu", weights_only=True)
        if data.pop("schema") != SCHEMA:
            raise KeyError("schema")
        return TrainingState(**data)
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{path} is no training state of this version; remove it to start over") from None
