"""What a run says: lines on the terminal, and `stats.jsonl`, which follows the saved state through kills."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from dnnlib.util import atomic_write

STATS_NAME = "stats.jsonl"


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
    """Infinity for a line that is no whole record."""
    if not line.endswith("\n"):
        return float("inf")
    try:
        return int(json.loads(line)["images_seen"])
    except (ValueError, TypeError, LookupError):
        return float("inf")
