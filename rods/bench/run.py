"""Runs methods on a task: run folders as generate.py makes them, chunk by chunk in turns, and labels beside them."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from dnnlib.errors import UserError, counted, of_option
from dnnlib.run_folder import SAMPLES_NAME
from rods.bench.labelled import TIMING_NAME, is_finite
from rods.bench.methods import BASELINE, Method
from rods.bench.pooled import values_of
from rods.bench.task import LoadedNetwork, Task
from rods.detectors import curvature_index
from rods.eval.labels import Label
from rods.labels.labels import ANOTHER_CLASS, LABELS_NAME, VERDICTS, ImageLabel, read_labels, write_labels
from rods.micro_batches import MicroBatches
from rods.runs.chunk import Chunk, cut_chunks
from rods.runs.folder import OutputFolder, read_lines
from rods.runs.guidance import guided_network
from rods.runs.images import read_png
from rods.runs.run import Job, sample_for_folder
from rods.runs.select import Selection
from rods.types import AnyDenoiser
from torch_utils import distributed
from torch_utils.machine import facts
from training.header import tool_version

F64 = NDArray[np.float64]
LABELLED_AT_ONCE = 512


@dataclass(frozen=True)
class Place:
    """Where the runs of a task and network lie."""

    out: Path
    task: str
    network: str

    @property
    def folder(self) -> Path:
        return self.out / self.task / self.network

    def run(self, method: Method) -> Path:
        return self.folder / method.folder


@dataclass(frozen=True)
class _Run:
    """A method's job and folder, and the samples that it has already."""

    method: Method
    job: Job
    folder: OutputFolder
    labelled: frozenset[str]

    def is_labelled(self, chunk: Chunk) -> bool:
        return set(self.job.names(chunk)) <= self.labelled

    def is_done(self, chunk: Chunk) -> bool:
        return self.is_labelled(chunk) or self.folder.is_done(self.job.names(chunk))


def run_methods(
    task: Task,
    network: LoadedNetwork,
    methods: Sequence[Method],
    seeds: Sequence[int],
    *,
    out: Path,
    batch: int,
    device: torch.device | None = None,
) -> None:
    """Sample all seeds with every method, the baseline first, into run folders below `out`, and label them.

    Methods take turns chunk by chunk, so that a drift of the machine's speed hits all alike: a chunk's seconds stand
    beside the baseline's for the same chunk in the same run. What the folders have is left alone. On several ranks,
    each calls it, and chunks are shared out.
    Raises UserError: no baseline among the methods, two methods of one folder, folders of other settings, or another
    run in them.
    """
    if not methods or methods[0].name != BASELINE:
        raise UserError(f"--samplers: {BASELINE} comes first; every method is compared with it")
    names = [m.folder for m in methods]
    if len(set(names)) < len(names):
        twice = next(m.name for m in methods if names.count(m.folder) > 1)
        raise UserError(f"--samplers: {twice!r} is there twice; give each run a name of its own in an experiment")
    place, chunks = Place(out, task.name, network.name), cut_chunks(seeds, batch=batch)
    runs = [_prepared(place.run(m), network, m, chunks, batch, device or torch.device("cpu")) for m in methods]
    lead = distributed.rank() == 0
    lacking = [run for run in runs if not all(map(run.is_labelled, chunks))]  # the others' folders are not touched
    with ExitStack() as open_folders:
        for run in lacking if lead else ():
            open_folders.enter_context(run.folder.open(_about(task, network, run.method, seeds)))
        distributed.barrier()
        _sample(task, runs, distributed.shard(chunks), show=lead)
        distributed.barrier()
        for run in lacking if lead else ():
            run.folder.finish()
    for run in runs if lead else ():
        label_run(task, run.folder.outdir)
    distributed.barrier()


def _prepared(
    path: Path, network: LoadedNetwork, method: Method, chunks: Sequence[Chunk], batch: int, device: torch.device
) -> _Run:
    if isinstance(network.denoiser, torch.nn.Module):
        network.denoiser.to(device)
    guided = guided_network(network.denoiser, method.guidance, device=device)
    guided.check(method.sampler)
    selection = Selection(method.accept)
    with of_option(f"--samplers: {method.name}"):
        selection.check(method.sampler, chunks, guided.denoiser)
    job = Job(denoiser=guided.denoiser, sampler=method.sampler, chunks=chunks, device=device,
              network_sha256=network.sha256, batch=batch, guidance=guided.identity, selection=selection)  # fmt: skip
    labelled = frozenset(read_labels(path)) if (path / LABELS_NAME).is_file() else frozenset()
    return _Run(method, job, OutputFolder(path, identity=job.identity()), labelled)


def _about(task: Task, network: LoadedNetwork, method: Method, seeds: Sequence[int]) -> dict[str, Any]:
    """What options.json says beside the identity."""
    return {
        "method": method.name,
        "is_score": method.is_score,
        "task": task.name,
        "network": network.name,
        "seeds": f"{counted(len(seeds), 'seed')}, {min(seeds)} to {max(seeds)}",
    }


def _sample(task: Task, runs: Sequence[_Run], chunks: Sequence[Chunk], *, show: bool) -> None:
    """Every chunk of this rank with every method that lacks it."""
    todo = [[run for run in runs if not run.is_done(chunk)] for chunk in chunks]
    missing = sum(len(chunk.seeds) * len(lacking) for chunk, lacking in zip(chunks, todo, strict=True))
    if not missing:
        return
    # Nothing is timed before the network has run once, forward and backward.
    job = runs[0].job
    curvature_index(job.denoiser, warm_up_state(job.denoiser, len(chunks[0].seeds)).to(job.device), 1.0, rho=1.0)
    terminal = sys.stderr.isatty()  # elsewhere, a line now and then, and none for what is soon done
    every, delay = (0.1, 0) if terminal else (30, 10)
    said: set[Path] = set()
    with tqdm(total=missing, unit="img", mininterval=every, delay=delay, desc=task.name, disable=not show) as progress:
        for chunk, lacking in zip(chunks, todo, strict=True):
            base_seconds = None
            for run in lacking:
                seconds = _timed(run, chunk)
                if run is runs[0]:
                    base_seconds = seconds
                line = {"seeds": list(chunk.seeds), "seconds": round(seconds, 4)}
                if base_seconds is not None:
                    line["baseline_seconds"] = round(base_seconds, 4)
                path = run.folder.outdir / TIMING_NAME
                _append(path, ([] if path in said else [_machine()]) + [line])
                said.add(path)
                progress.update(len(chunk.seeds))


def _timed(run: _Run, chunk: Chunk) -> float:
    """Samples and writes a chunk; the seconds that the sampling took."""
    start = time.perf_counter()
    write = sample_for_folder(run.job, chunk, run.folder, MicroBatches())
    if run.job.device.type == "cuda":
        torch.cuda.synchronize(run.job.device)
    seconds = time.perf_counter() - start
    write()
    return seconds


def _machine() -> dict[str, Any]:
    return {"version": tool_version(), **facts(), "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}


def _append(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Lines in one write, which ranks may make to one file."""
    data = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines).encode()
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, data)
    finally:
        os.close(descriptor)


def warm_up_state(denoiser: AnyDenoiser, batch: int) -> torch.Tensor:
    """Any state [B, C, H, W] of the network's shape."""
    side: int = denoiser.img_resolution  # type: ignore[attr-defined]
    return torch.ones(batch, denoiser.img_channels, side, side)  # type: ignore[attr-defined]


# -- labels -----------------------------------------------------------------------------------------------------------


def source_of(task: Task) -> str:
    """What labels of the task's program are from."""
    return f"program {task.name}"


def label_run(task: Task, run: Path) -> int:
    """Labels the samples of a run folder that the task's program has not labelled: how many there were.

    Images are read from their PNGs, points from samples.jsonl. What is not finite is hallucinated and of no mode.
    Raises UserError: no samples, or images that are missing.
    """
    samples = [line for line in read_lines(run / SAMPLES_NAME) if not line.get("dropped")]
    if not samples:
        raise UserError(f"{run} has no samples; give a folder that generate.py made")
    known = _labelled_by(task, run)
    todo = [line for line in samples if line["name"] not in known]
    found: list[ImageLabel] = []
    for start in range(0, len(todo), LABELLED_AT_ONCE):
        found += _labels(task, run, todo[start : start + LABELLED_AT_ONCE])
    if found:
        write_labels(run, found)
    return len(found)


def _labelled_by(task: Task, run: Path) -> set[str]:
    try:
        return set(read_labels(run, source=source_of(task)))
    except UserError:
        return set()


def _labels(task: Task, run: Path, lines: Sequence[Mapping[str, Any]]) -> list[ImageLabel]:
    finite = [line for line in lines if is_finite(line)]
    found = []
    if finite:
        x = samples_of(run, finite)
        codes, modes = task.label(x), None if task.kinds is None else task.kinds(x)
        others = _of_another_class(task, finite, codes, modes)
        bad_ones = np.flatnonzero(codes == Label.HALLUCINATED)
        told = task.faults(x[bad_ones]) if task.faults is not None and len(bad_ones) else ()
        faults = dict(zip(bad_ones.tolist(), told, strict=False))
        faults |= {i: f"{ANOTHER_CLASS}: {seen}" for i, seen in others.items()}
        for i, line in enumerate(finite):
            found.append(ImageLabel(
                line["name"],
                VERDICTS[Label.HALLUCINATED if i in others else codes[i]],
                source_of(task),
                None if modes is None else int(modes[i]),
                faults.get(i) or None,
                line["sha256"],
            ))  # fmt: skip
    mode = None if task.kinds is None else -1
    bad = VERDICTS[Label.HALLUCINATED]
    return found + [ImageLabel(line["name"], bad, source_of(task), mode) for line in lines if not is_finite(line)]


def _of_another_class(
    task: Task, lines: Sequence[Mapping[str, Any]], codes: NDArray[np.int8], modes: NDArray[np.int64] | None
) -> dict[int, int]:
    """The valid samples that show another class than their record's, and the class that they show."""
    if not task.kinds_are_classes or modes is None:
        return {}
    asked = [line.get("class") for line in lines]
    valid = np.flatnonzero(codes == Label.VALID).tolist()
    return {i: int(modes[i]) for i in valid if asked[i] is not None and modes[i] != asked[i]}


def samples_of(run: Path, lines: Sequence[Mapping[str, Any]]) -> F64:
    """The samples [N, C, H, W] of records, as a sampler returns them, to the rounding of a PNG.

    Raises UserError: an image is missing.
    """
    if lines[0].get("x") is not None:
        return np.array([line["x"] for line in lines], dtype=np.float64)[:, :, None, None]
    missing = [line["name"] for line in lines if not (run / line["name"]).is_file()]
    if missing:
        raise UserError(f"{run}: {missing[0]} is missing; sample the run again by the command that made it")
    return values_of(np.stack([read_png(run / line["name"]) for line in lines]))
