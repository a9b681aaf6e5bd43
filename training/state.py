"""The resumable training state: one self-contained file, written atomically, read without running code."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dnnlib.errors import UserError, shown
from dnnlib.util import atomic_write

STATE_NAME = "training-state.pt"
SCHEMA = 2


@dataclass
class TrainingState:
    """Everything that a run needs to go on. Noise, data order and dropout derive from `images_seen` and the seed."""

    net: dict[str, Tensor]
    ema: dict[str, Tensor]
    optimizer: dict[str, Any]
    images_seen: int
    options: dict[str, Any]


def save_state(path: Path, state: TrainingState) -> None:
    """Replaces the file as a whole: a kill or a full disk leaves the old one. Raises UserError if it cannot."""
    try:
        with atomic_write(path) as temporary:
            torch.save({"schema": SCHEMA, **vars(state)}, temporary)
    except (OSError, RuntimeError) as e:  # torch's writer reports a full disk as RuntimeError
        reason = e.strerror if isinstance(e, OSError) else str(e)
        raise UserError(
            f"{path} cannot be saved ({shown(reason)}); make room and run the command again: "
            "it goes on from the last state that was saved"
        ) from e


def load_state(path: Path) -> TrainingState:
    """Raises UserError: not a state file, or one of another schema."""
    with open(path, "rb") as f:
        try:
            data = torch.load(f, map_location="cpu", weights_only=True)
            schema = data.pop("schema")
            state = TrainingState(**data) if schema == SCHEMA else None
        except Exception as e:  # torch raises nearly anything for damaged bytes, OSError among it
            raise UserError(f"{path} is no training state ({shown(str(e))}); remove it to start over") from None
    if state is None:
        raise UserError(f"{path} has schema {shown(schema)}, not {SCHEMA}; remove it to start over")
    return state
