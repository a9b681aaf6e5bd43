"""Configurations and states of tiny training runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from training import state
from training.config import TrainConfig

NETWORK = {
    "img_resolution": 16,
    "img_channels": 1,
    "model_type": "SongUNet",
    "model_channels": 4,
    "channel_mult": [1],
    "num_blocks": 1,
    "dropout": 0.1,
}


def newest(run_dir: Path) -> state.TrainingState:
    return state.load_state(state.saved_states(run_dir)[0])


def config_for(data: Path, **changes: Any) -> TrainConfig:
    network = {"class_name": "EDMPrecond", "init_kwargs": NETWORK}
    options: dict[str, Any] = {"batch": 4, "lr_rampup": 0, "ema_halflives": (10,), **changes}
    return TrainConfig(str(data), 10, network, **options)
