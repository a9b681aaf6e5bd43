"""Runs methods on a task: chunk by chunk, taking turns, into result files that an interrupted run goes on from."""

from __future__ import annotations

import base64
import hashlib
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import adaptive_avg_pool2d
from tqdm import tqdm

from dnnlib.errors import UserError
from dnnlib.util import alone, atomic_write
from rods.bench.methods import BASELINE, Setting
from rods.bench.results import POOLED, ResultWriter
from rods.bench.task import LoadedNetwork, Task
from rods.detectors import curvature_index
from rods.eval.labels import Label
from rods.pipeline import Chunk, ChunkResult, cut_chunks, sample_chunk
from rods.runs.images import to_uint8
from rods.types import AnyDenoiser, SampleRecord
from torch_utils.machine import facts
from training.header import tool_version

F64 = NDArray[np.float64]
PICTURES = ".pictures"  # below --out: the samples themselves, to be looked at and not to be committed
MAX_STEP_ROWS = 2048  # of a file, whose scores at every step are kept
TIMED_AGAIN = 4  # where the baseline's chunks are there already, every so many of them is run once more for its time


@dataclass(frozen=True)
class Place:
    """Where the results of a task and a network lie."""

    out: Path
    task: str
    network: str

    @property
    def folder(self) -> Path:
        return self.out / self.task / self.network

    def results(self, setting: Setting) -> Path:
        return self.folder / setting.file_name

    def pictures(self, setting_file: str, chunk: Chunk | tuple[int, int]) -> Path:
        """The uint8 pictures of a chunk, given as such or by its first seed and its size."""
        first, n = (chunk.seeds[0], len(chunk.seeds)) if isinstance(chunk, Chunk) else chunk
        folder = self.out / PICTURES / self.task / self.network / setting_file.removesuffix(".jsonl")
        return folder / f"{first:08d}-{n}.npy"


def run_methods(
    task: Task, network: LoadedNetwork, settings: Sequence[Setting], seeds: Sequence[int], *, out: Path, batch: int
) -> None:
    """Sample all seeds with every setting, the baseline first, and append to their result files below `out`.

    Settings take turns chunk by chunk, so that a drift of the machine's speed hits all alike: a chunk's seconds stand
    beside the baseline's for the same chunk in the same run. What the files have is left alone.
    Raises UserError: no baseline among the settings, two settings with one file, files of another recipe, or another
    run on the same files.
    """
    if not settings or settings[0].name != BASELINE:
        raise UserError(f"--samplers: {BASELINE} comes first; every method is compared with it")
    names = [s.file_name for s in settings]
    if len(set(names)) < len(names):
        twice = next(s.name for s in settings if names.count(s.file_name) > 1)
        raise UserError(f"--samplers: {twice!r} is there twice, or like another but for signs that file names lack")
    place = Place(out, task.name, network.name)
    place.folder.mkdir(parents=True, exist_ok=True)
    with alone(place.folder, busy=f"--out={out}: another run is writing to {place.folder}; wait, or name another"):
        writers = [ResultWriter(place.results(s), recipe(task, network, s, batch)) for s in settings]
        _Run(task, network.denoiser, place, list(settings), writers, about(seeds)).sample(seeds, batch)


def recipe(task: Task, network: LoadedNetwork, setting: Setting, batch: int) -> dict[str, Any]:
    """What decides the samples of a method, as JSON."""
    return {
        "task": task.name,
        "network": network.name,
        "network_sha256": network.sha256,
        "method": setting.name,
        "is_score": setting.is_score,
        **setting.config.describe(),
        "batch": batch,
        "dtype": "float32",
    }


def about(seeds: Sequence[int]) -> dict[str, Any]:
    """What a run line says: the machine, the versions and the seeds asked for."""
    return {
        "seeds": [min(seeds), max(seeds), len(seeds)],
        "version": tool_version(),
        **facts(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def warm_up_state(denoiser: AnyDenoiser, batch: int) -> torch.Tensor:
    """Any state [B, C, H, W] of the network's shape."""
    side: int = denoiser.img_resolution  # type: ignore[attr-defined]
    return torch.ones(batch, denoiser.img_channels, side, side)  # type: ignore[attr-defined]


@dataclass
class _Run:
    """One invocation on the files of one task and network."""

    task: Task
    denoiser: AnyDenoiser
    place: Place
    settings: list[Setting]
    writers: list[ResultWriter]
    about: dict[str, Any]

    def sample(self, seeds: Sequence[int], batch: int) -> None:
        missing = sum(len(set(seeds) - writer.done) for writer in self.writers)
        if not missing:
            return
        # Nothing is timed before the network has run once, forward and backward.
        curvature_index(self.denoiser, warm_up_state(self.denoiser, min(batch, len(seeds))), 1.0, rho=1.0)
        terminal = sys.stderr.isatty()  # elsewhere, a line now and then, and none for what is soon done
        every, delay = (0.1, 0) if terminal else (30, 10)
        with tqdm(total=missing, unit="img", mininterval=every, delay=delay, desc=self.task.name) as progress:
            for chunk in cut_chunks(seeds, batch=batch):
                for part in self._turns(chunk):
                    progress.update(part)

    def _turns(self, chunk: Chunk) -> Sequence[int]:
        """Every setting's turn at a chunk; how many samples each made."""
        turns = [
            (setting, writer, Chunk(chunk.index, tuple(s for s in chunk.seeds if s not in writer.done)))
            for setting, writer in zip(self.settings, self.writers, strict=True)
        ]
        made, base_seconds = [], None
        if not turns[0][2].seeds and any(part.seeds for _, _, part in turns) and chunk.index % TIMED_AGAIN == 0:
            base_seconds = self._timed(self.settings[0], chunk)[1]
        for setting, writer, part in turns:
            if not part.seeds:
                continue
            done, seconds = self._timed(setting, part)
            if setting is self.settings[0]:
                base_seconds = seconds
            same_work = base_seconds is not None and len(part.seeds) == len(chunk.seeds)
            self._write(setting, writer, done, seconds, base_seconds if same_work else None)
            made.append(len(part.seeds))
        return made

    def _timed(self, setting: Setting, chunk: Chunk) -> tuple[ChunkResult, float]:
        start = time.perf_counter()
        done = sample_chunk(self.denoiser, chunk, setting.config, device=torch.device("cpu"))
        return done, time.perf_counter() - start

    def _write(
        self, setting: Setting, writer: ResultWriter, done: ChunkResult, seconds: float, base_seconds: float | None
    ) -> None:
        x = done.images.double().numpy()  # [B, C, H, W]
        finite = np.isfinite(x).all(axis=(1, 2, 3))
        x = np.where(finite[:, None, None, None], x, 0.0)  # no picture; labelled bad below, whatever 0 looks like
        samples: dict[str, Sequence[Any]] = {"seed": list(done.chunk.seeds), **labelled(self.task, x, finite)}
        samples |= spent(done.records, room=MAX_STEP_ROWS - writer.kept_steps)
        chunk: dict[str, Any] = {"seconds": round(seconds, 4), "not_finite": int((~finite).sum())}
        if base_seconds is not None:
            chunk["baseline_seconds"] = round(base_seconds, 4)
        if "steps" in samples:
            chunk["sigma"] = [digits(s) for s in done.records[0].sigma]
        if self.task.is_picture:
            samples |= {"x": pooled(x), "sq": [round(float(s), 3) for s in (x.clip(-1, 1) ** 2).sum(axis=(1, 2, 3))]}
            pictures = to_uint8(x)
            samples["sha"] = [hashlib.sha256(p.tobytes()).hexdigest()[:12] for p in pictures]
            chunk["mean"] = base64.b64encode(x.clip(-1, 1).mean(axis=0).astype("<f2").tobytes()).decode()
            self._keep(self.place.pictures(setting.file_name, done.chunk), pictures)
        else:
            samples["x"] = np.round(x.reshape(len(x), -1), 4).tolist()
        writer.append(samples, chunk, self.about)

    def _keep(self, path: Path, pictures: NDArray[np.uint8]) -> None:
        """The pictures themselves, beside a .gitignore that keeps them out of commits."""
        path.parent.mkdir(parents=True, exist_ok=True)
        ignore = self.place.out / PICTURES / ".gitignore"
        if not ignore.is_file():
            ignore.write_text("*\n")
        with atomic_write(path) as temporary:
            np.save(temporary, pictures, allow_pickle=False)


def labelled(task: Task, x: F64, finite: NDArray[np.bool_]) -> Mapping[str, Sequence[int]]:
    """Labels and kinds of samples [B, C, H, W]; what is not finite is surely bad and of no kind."""
    labels = np.where(finite, task.label(x), np.int8(Label.BAD))
    if task.kinds is None:
        return {"label": labels.tolist()}
    return {"label": labels.tolist(), "kind": np.where(finite, task.kinds(x), -1).tolist()}


def spent(records: Sequence[SampleRecord], *, room: int) -> dict[str, Sequence[Any]]:
    """The columns that come from the records: passes, scores (at each step for the first `room`), what was done."""
    columns: dict[str, Sequence[Any]] = {"F": [r.forward for r in records], "B": [r.backward for r in records]}
    scores = [r.H or r.scores for r in records]
    if records[0].restart is not None:
        tried = [r.restart for r in records if r.restart is not None]
        columns["score"] = [digits(t.scores[0]) for t in tried]
        columns["restart"] = [[t.kept, *map(digits, t.scores)] for t in tried]
    elif scores[0]:
        columns["score"] = [digits(max(row)) for row in scores]
        columns["flagged"] = [len(r.flagged) for r in records]
        columns["steps"] = [[digits(s) for s in row] if i < room else None for i, row in enumerate(scores)]
    return columns


def digits(value: float) -> float | None:
    """Five digits; None for what JSON cannot hold."""
    return float(f"{value:.5g}") if np.isfinite(value) else None


def pooled(x: F64) -> list[str]:
    """8x8 means of the levels of pictures [B, C, H, W] as bytes in base64."""
    unit = torch.from_numpy((x.clip(-1, 1) + 1) / 2)
    means = adaptive_avg_pool2d(unit, POOLED).numpy()
    return [base64.b64encode(np.rint(255 * m).astype(np.uint8).tobytes()).decode() for m in means]
