"""The resumable training state: self-contained files, written atomically, read without running code.

`training-state-{kimg:06d}.{images:03d}.pt` are the last few of a run; `training-state-{kimg:06d}.pt` are kept for good.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from dnnlib.errors import UserError, shown
from dnnlib.util import atomic_write

SCHEMA = 3
_ROLLING = re.compile(r"training-state-(\d{6,})\.(\d{3})\.pt")


@dataclass
class TrainingState:
    """Everything that a run needs to go on. Noise, data order and dropout derive from `images_seen` and the seed."""

    net: dict[str, Tensor]
    emas: list[dict[str, Tensor]]  # in the order of the options' half-lives
    optimizer: dict[str, Any]
    scaler: dict[str, Any]  # of fp16, else empty
    images_seen: int
    bad_steps: int  # steps whose gradients were not finite
    bad_in_a_row: int
    options: dict[str, Any]


def state_name(images_seen: int) -> str:
    """The name of a run's state after so many images, in thousands."""
    return f"training-state-{images_seen // 1000:06d}.{images_seen % 1000:03d}.pt"


def dump_name(images_seen: int) -> str:
    """The name of a state that is kept for good."""
    return f"training-state-{images_seen // 1000:06d}.pt"


def saved_states(run_dir: Path) -> list[Path]:
    """The last states of a run, newest first."""
    found = {path: _ROLLING.fullmatch(path.name) for path in run_dir.glob("training-state-*.pt")}
    seen = {path: int(m[1]) * 1000 + int(m[2]) for path, m in found.items() if m}
    return sorted(seen, key=lambda path: seen[path], reverse=True)


def write_state(target: Path | IO[bytes], state: TrainingState) -> None:
    torch.save({"schema": SCHEMA, **vars(state)}, target)


def save_state(path: Path, state: TrainingState) -> None:
    """Replaces the file as a whole: a kill or a full disk leaves the old one. Raises UserError if it cannot."""
    try:
        with atomic_write(path) as temporary:
            write_state(temporary, state)
    except (OSError, RuntimeError) as e:  # torch's writer reports a full disk as RuntimeError
        reason = e.strerror if isinstance(e, OSError) else str(e)
        raise UserError(
            f"{path} cannot be saved ({shown(reason)}); make room and run the command again: "
            "it goes on from the last state that was saved"
        ) from e


def keep_newest(run_dir: Path, count: int) -> None:
    """Removes all but the last `count` states; those kept for good are not counted."""
    for path in saved_states(run_dir)[count:]:
        path.unlink(missing_ok=True)


def read_state(source: IO[bytes]) -> TrainingState:
    """Raises ValueError for another schema, and nearly anything else for damaged bytes."""
    data = torch.load(source, map_location="cpu", weights_only=True)
    schema = data.pop("schema")
    if schema != SCHEMA:
        raise ValueError(f"schema {shown(schema)} instead of {SCHEMA}")
    return TrainingState(**data)


def load_state(path: Path) -> TrainingState:
    """Raises UserError: not a state file, or one of another schema."""
    with open(path, "rb") as f:
        try:
            return read_state(f)
        except Exception as e:  # torch raises nearly anything for damaged bytes, OSError among it
            raise UserError(f"{path} is not a training state ({shown(str(e))}); remove it to go on") from None


def load_newest(run_dir: Path) -> tuple[TrainingState | None, list[str]]:
    """The newest state of a run that can be read (None: the run has none), and what is wrong with newer ones.

    Raises UserError: there are states, and none can be read.
    """
    problems: list[str] = []
    for path in saved_states(run_dir):
        try:
            return load_state(path), problems
        except UserError as e:
            problems.append(str(e))
    if problems:
        raise UserError(problems[0])
    return None, problems
