"""The folder of a training run: found again by its options, used by one process at a time."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dnnlib.errors import UserError
from dnnlib.util import TEMPORARY, alone, atomic_write
from training.config import different_options, same_options

OPTIONS_NAME = "training-options.json"
_LOCK_NAME = ".lock"


def find_run_dir(outdir: Path, options: Mapping[str, Any], *, desc: str, nosubdir: bool = False) -> Path:
    """`outdir` itself, else its newest run folder with equal options, else the next number. Creates nothing."""
    if nosubdir:
        return outdir
    numbered = []
    for path in outdir.glob("[0-9]*-*") if outdir.is_dir() else ():
        if found := re.match(r"(\d+)-", path.name):
            numbered.append((int(found[1]), path))
    if equal := [entry for entry in numbered if same_options(read_options(entry[1]) or {}, options)]:
        return max(equal)[1]
    return outdir / f"{max((n for n, _ in numbered), default=-1) + 1:05d}-{desc}"


def nearly_equal(outdir: Path, options: Mapping[str, Any], chosen: Path) -> str | None:
    """What to say of a run in `outdir` that differs from these options in its data's place or size alone, if any."""
    for path in sorted(outdir.glob("[0-9]*-*")) if outdir.is_dir() else ():
        found = read_options(path)
        if path == chosen or not found:
            continue
        match sorted(different_options(found, options)):
            case ["data"]:
                return f"Note: {path} differs in --data alone; to go on with it, say --data={found['data']}"
            case ["num_images"] | ["data", "num_images"]:
                return (
                    f"Note: {path} was trained on {found['num_images']} images, not {options['num_images']}, and is "
                    "not gone on with; to start from it, say --resume with its newest training-state"
                )
    return None


def read_options(run_dir: Path) -> dict[str, Any] | None:
    """The options of the run in `run_dir`, or None where there are none that can be read."""
    try:
        options = json.loads((run_dir / OPTIONS_NAME).read_text())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return options if isinstance(options, dict) else None


@contextmanager
def open_run_dir(run_dir: Path, options: Mapping[str, Any]) -> Iterator[None]:
    """Makes the folder with its options, and keeps other processes out of it until the block is left.

    Raises UserError: another process trains in it, or it holds a run with other options.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    lock = run_dir / _LOCK_NAME
    lock.touch()
    with alone(lock, busy=f"another process is training in {run_dir}; wait for it or choose another --outdir"):
        refuse_other_options(run_dir, read_options(run_dir), options)
        for leftover in run_dir.iterdir():  # of a process that was killed while it wrote
            if TEMPORARY.fullmatch(leftover.name) and leftover.is_file():
                leftover.unlink()
        with atomic_write(run_dir / OPTIONS_NAME) as temporary:
            temporary.write_text(json.dumps(options, indent=2) + "\n")
        yield


def refuse_other_options(run_dir: Path, found: Mapping[str, Any] | None, options: Mapping[str, Any]) -> None:
    """Raises UserError if the run in `run_dir` has options other than these; None is no run."""
    if found is not None and not same_options(found, options):
        raise UserError(
            f"{run_dir} holds a run with other options ({_difference(found, options)}); "
            "give its options to go on with it, or choose another --outdir"
        )


def _difference(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """The first entry that differs: `lr=0.001 instead of 0.002`."""
    k = next(iter(different_options(found, wanted)), "nothing")
    old, new = found.get(k), wanted.get(k)
    if isinstance(old, dict) and isinstance(new, dict):
        return _difference(old, new)
    return f"{k}={old} instead of {new}"
