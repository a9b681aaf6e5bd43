"""Result files: one JSON-lines file per task, network and method, which a run appends to and goes on from.

The first line is the header: the recipe (what decides the samples) and the names of the columns. Then come lines of
three kinds: an array is a sample, with the header's columns; `{"run": ...}` says which machine and versions wrote what
follows; `{"chunk": ...}` closes the samples of a chunk, with its seconds. What a chunk line does not close was cut off,
and is dropped and sampled again. Columns that no sample of a method has are left out:

    seed, label (codes of rods.eval.labels.Label), kind (mode, class or count; -1 none)
    F, B       network passes
    score      the first score of a restart, else the largest of the trajectory
    flagged    steps that were corrected
    restart    [which image was kept, score of the baseline's image, score of each new image ...]
    steps      scores at the probed steps, whose noise levels the chunk line has as `sigma`; of the first samples only
    x          points: their coordinates; pictures: 8x8 means of their levels, base64 of bytes [C, 8, 8]
    sq, sha    pictures: the sum of their squared pixels, and the start of the SHA-256 of their bytes
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dnnlib.errors import UserError
from rods.eval.labels import Label
from rods.readout import shortened

F64 = NDArray[np.float64]
FORMAT = 1
POOLED = 8  # pixels on a side of the means that stand for a picture


@dataclass(frozen=True, eq=False)
class Results:
    """What a result file says. Arrays are in the order of the file, N samples."""

    path: Path
    recipe: Mapping[str, Any]
    columns: tuple[str, ...]
    rows: list[list[Any]]
    runs: list[Mapping[str, Any]]
    chunks: list[Mapping[str, Any]]

    def __len__(self) -> int:
        return len(self.rows)

    def column(self, name: str) -> list[Any]:
        """The values of a column; ValueError where the method has none."""
        if name not in self.columns:
            raise ValueError(f"{self.path}: no column {name}; it has {', '.join(self.columns)}")
        k = self.columns.index(name)
        return [row[k] for row in self.rows]

    @cached_property
    def seeds(self) -> NDArray[np.int64]:
        return np.array(self.column("seed"), dtype=np.int64)  # [N]

    @cached_property
    def labels(self) -> NDArray[np.int8]:
        return np.array(self.column("label"), dtype=np.int8)  # [N]

    @cached_property
    def kinds(self) -> NDArray[np.int64] | None:
        return np.array(self.column("kind"), dtype=np.int64) if "kind" in self.columns else None  # [N]

    @cached_property
    def passes(self) -> F64:
        """F and B of each sample [N, 2]."""
        return np.stack([np.array(self.column(name), dtype=np.float64) for name in ("F", "B")], axis=1)

    @cached_property
    def scores(self) -> F64 | None:
        """[N]; a score that JSON could not hold is inf. None where the method measures none."""
        if "score" not in self.columns:
            return None
        return np.array([np.inf if s is None else s for s in self.column("score")], dtype=np.float64)

    @cached_property
    def own_scores(self) -> F64 | None:
        """Of the file's own samples [N]: a restart's of the image it kept, else `scores`."""
        if "restart" not in self.columns:
            return self.scores
        kept = [tried[1 + tried[0]] for tried in self.column("restart")]
        return np.array([np.inf if s is None else s for s in kept], dtype=np.float64)

    @cached_property
    def step_scores(self) -> tuple[F64, F64] | None:
        """Noise levels [S] and scores [M, S] of the first M samples at the probed steps; None where there are none."""
        if "steps" not in self.columns or not self.rows:
            return None
        kept = [row for row in self.column("steps") if row is not None]
        scores = np.array([[np.inf if s is None else s for s in row] for row in kept], dtype=np.float64)
        return np.array(self.chunks[0]["sigma"], dtype=np.float64), scores

    @cached_property
    def features(self) -> F64:
        """Coordinates of points, or the pooled levels of pictures in 0..1 [N, d]."""
        x = self.column("x")
        if x and isinstance(x[0], str):
            levels = np.stack([np.frombuffer(base64.b64decode(t), dtype=np.uint8) for t in x])
            return np.asarray(levels / 255.0, dtype=np.float64)
        return np.array(x, dtype=np.float64)

    def groups(self) -> tuple[F64, F64, F64]:
        """Size [K], sum of values [K, D] and sum of squares [K] of groups of samples: what total variances need.

        A point is a group of its own; pictures come in the chunks of the run, whose mean picture the file has.
        """
        if "sq" not in self.columns:
            return np.ones(len(self)), self.features, (self.features**2).sum(axis=1)
        sizes = np.array([c["n"] for c in self.chunks], dtype=np.float64)
        means = np.stack([np.frombuffer(base64.b64decode(c["mean"]), dtype="<f2") for c in self.chunks])
        starts = (sizes.cumsum() - sizes).astype(int)
        squares = np.add.reduceat(np.array(self.column("sq"), dtype=np.float64), starts)
        return sizes, sizes[:, None] * means, squares

    def only(self, seeds: set[int]) -> Results:
        """The samples of these seeds, in whole chunks: one with any other seed is left out."""
        if set(self.seeds.tolist()) <= seeds:
            return self
        rows: list[list[Any]] = []
        chunks, start, place = [], 0, self.columns.index("seed")
        for chunk in self.chunks:
            own = self.rows[start : start + chunk["n"]]
            start += chunk["n"]
            if all(row[place] in seeds for row in own):
                rows += own
                chunks.append(chunk)
        return Results(self.path, self.recipe, self.columns, rows, self.runs, chunks)

    def position(self) -> dict[int, int]:
        """Where each seed is in the file."""
        return {int(seed): i for i, seed in enumerate(self.seeds)}


def read_results(path: Path) -> Results:
    """Raises UserError: not a result file, or one that was changed by hand."""
    return _parse(path, path.read_bytes())[0]


class ResultWriter:
    """Appends to a result file, which it makes with the first chunk; see the module.

    `done` holds the seeds that the file has. Raises UserError: the file was made by another recipe.
    """

    def __init__(self, path: Path, recipe: Mapping[str, Any]) -> None:
        self.path, self.recipe = path, dict(recipe)
        self.done: set[int] = set()
        self.kept_steps = 0  # samples whose scores at every step are in the file
        self._columns: tuple[str, ...] | None = None
        self._announced = False
        if not path.is_file():
            return
        found, complete = _parse(path, path.read_bytes())
        changed = [k for k in {**found.recipe, **self.recipe} if found.recipe.get(k) != self.recipe.get(k)]
        if changed:
            k = changed[0]
            raise UserError(
                f"{path} was made with {k} {shortened(str(found.recipe.get(k)))}, "
                f"not {shortened(str(self.recipe.get(k)))}; repeat what made it, "
                "remove it, or name another output folder"
            )
        if complete < path.stat().st_size:
            with open(path, "rb+") as f:
                f.truncate(complete)
        self._columns = found.columns
        self.done = set(found.seeds.tolist())
        self.kept_steps = 0 if found.step_scores is None else len(found.step_scores[1])

    def append(self, samples: Mapping[str, Sequence[Any]], chunk: Mapping[str, Any], run: Mapping[str, Any]) -> None:
        """Writes the samples of a chunk, by column, in one piece that survives a crash or leaves no trace."""
        columns = tuple(samples)
        lines: list[Any] = []
        if self._columns is None:
            lines.append({"format": FORMAT, "recipe": self.recipe, "columns": columns})
        elif columns != self._columns:
            raise ValueError(f"{self.path}: columns {columns} in a file with {self._columns}")
        if not self._announced:
            lines.append({"run": run})
        lines += [*zip(*samples.values(), strict=True), {"chunk": samples["seed"][0], **chunk}]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "ab") as f:
            f.write("".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines).encode())
            f.flush()
            os.fsync(f.fileno())
        self._columns, self._announced = columns, True
        self.done.update(samples["seed"])
        self.kept_steps += sum(row is not None for row in samples.get("steps", ()))


def _parse(path: Path, content: bytes) -> tuple[Results, int]:
    """The complete part of a file, and its length in bytes."""
    try:
        header, complete, at = None, 0, 0
        rows: list[list[Any]] = []
        pending: list[list[Any]] = []
        runs: list[Mapping[str, Any]] = []
        chunks: list[Mapping[str, Any]] = []
        for line in content.splitlines(keepends=True):
            at += len(line)
            if not line.endswith(b"\n"):
                break
            value = json.loads(line)
            if isinstance(value, list):
                pending.append(value)
                continue
            if header is None:
                header = value
            elif "run" in value:
                runs.append(value["run"])
            else:
                rows += pending
                chunks.append({**value, "n": len(pending)})
                pending, complete = [], at
        assert header is not None
        columns = tuple(header["columns"])
        known = header["format"] == FORMAT and all(len(row) == len(columns) for row in rows)
        results = Results(path, header["recipe"], columns, rows, runs, chunks)
        if not known or not set(results.labels.tolist()) <= set(map(int, Label)):
            raise ValueError
    except (ValueError, KeyError, TypeError, AssertionError, AttributeError, OverflowError, RecursionError):
        raise UserError(
            f"{path} is no result file of scripts/bench.py; remove it, or name another output folder"
        ) from None
    if not chunks:
        raise UserError(f"{path} holds no finished chunk; remove it and run again")
    return results, complete
