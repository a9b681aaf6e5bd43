"""What a run says: lines on the terminal, `stats.jsonl`, which follows the saved state through kills, TensorBoard."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from dnnlib.util import atomic_write

STATS_NAME = "stats.jsonl"
TENSORBOARD_NAME = "tensorboard"
_NOT_SHOWN = ("images_seen", "time", "val_images", "val_sigma", "val_loss_by_sigma")
_NOT_PLOTTED = ("images_seen", "kimg", "time", "eta_s")


def say(text: str) -> None:
    """A line on stdout above any progress bar, at once also into files and pipes."""
    tqdm.write(text)
    sys.stdout.flush()


def append_stats(path: Path, line: Mapping[str, Any]) -> None:
    with open(path, "a") as f:
        f.write(json.dumps(line) + "\n")


def trim_stats(path: Path, images_seen: int) -> None:
    """Drops what was logged after the state at `images_seen` was saved: it will be trained, and logged, again.

    A last line that was cut short by a kill goes too.
    """
    if not path.is_file():
        return
    text = path.read_text()
    kept = "".join(line for line in text.splitlines(keepends=True) if _images_seen(line) <= images_seen)
    if kept != text:
        with atomic_write(path) as temporary:
            temporary.write_text(kept)


def _images_seen(line: str) -> float:
    """Infinity for a line that is not a whole record."""
    if not line.endswith("\n"):
        return float("inf")
    try:
        return int(json.loads(line)["images_seen"])
    except (ValueError, TypeError, LookupError):
        return float("inf")


class RunLog:
    """Writes a record to the terminal, to `stats.jsonl` and, where TensorBoard is installed, to `tensorboard/`."""

    def __init__(self, run_dir: Path, images_seen: int) -> None:
        self._path = run_dir / STATS_NAME
        trim_stats(self._path, images_seen)
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            self._board = None
        else:  # what was plotted after the saved state is hidden
            self._board = SummaryWriter(str(run_dir / TENSORBOARD_NAME), purge_step=images_seen)

    def write(self, record: Mapping[str, Any]) -> None:
        append_stats(self._path, record)
        shown = {k: v for k, v in record.items() if k not in _NOT_SHOWN}
        if "eta_s" in shown:
            shown["eta"] = duration(shown.pop("eta_s"))
        say(" ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in shown.items()))
        if self._board is not None:
            for name, value in record.items():
                if isinstance(value, int | float) and name not in _NOT_PLOTTED:
                    self._board.add_scalar(name, value, record["images_seen"])
            self._board.flush()

    def close(self) -> None:
        if self._board is not None:
            self._board.close()


def duration(seconds: float) -> str:
    """As days, hours, minutes or seconds, the two largest: `3d04h`, `2h05m`, `1m30s`."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    days, h = divmod(hours, 24)
    if days:
        return f"{days}d{h:02d}h"
    return f"{h}h{m:02d}m" if h else f"{m}m{s:02d}s"
