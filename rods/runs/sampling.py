"""Sampling runs that go to a folder: the job, its chunks, one record per image."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from math import inf, isfinite
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch import Tensor
from tqdm import tqdm

from dnnlib.errors import UserError
from rods.accept import sample_accepted
from rods.pipeline import Chunk, ChunkResult, SamplerConfig, sample_chunk
from rods.room import Room, is_out_of_memory
from rods.runs.images import contact_sheet, save_png, to_pil, to_uint8
from rods.runs.outputs import REJECTED, TRAJECTORIES, OutputFolder
from rods.runs.selection import Filter, Selection
from rods.runs.trajectories import Recorder
from rods.types import AnyDenoiser, Step
from torch_utils import distributed

DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}
CHANNELS = (1, 3)  # what a PNG of ours can hold
MAX_GRID = 256


@dataclass(frozen=True)
class Job:
    """Everything that one run needs."""

    denoiser: AnyDenoiser  # with img_channels, img_resolution and label_dim
    network_sha256: str
    config: SamplerConfig
    chunks: Sequence[Chunk]
    batch: int
    device: torch.device
    class_index: int | None
    dtype: str
    rng: str
    threads: int | None  # None off the CPU, where they do not matter
    subdirs: bool
    detect_eps: float | None = None  # the H from which a sample is held at risk, where eps 0 corrects all
    selection: Selection = field(default_factory=Selection)
    trajectory: tuple[int, ...] = ()  # the steps that a strip beside each image shows; none: no strips
    probe_batch: int | None = None  # rows of a backward pass, None: all at once
    channels_last: bool = False

    def risk_threshold(self) -> float:
        """The H from which a sample counts as at risk; inf where there is no such number."""
        eps = float(self.config.options.get("eps", inf))
        return eps if eps > 0 else inf if self.detect_eps is None else self.detect_eps

    def identity(self) -> dict[str, Any]:
        """What decides the images' names and bytes, seeds aside; a folder holds one identity."""
        return {
            "network_sha256": self.network_sha256,
            **self.config.describe(),
            "class": self.class_index,
            "device": self.device.type,
            "dtype": self.dtype,
            "rng": self.rng,
            "threads": self.threads,
            "batch": self.batch,
            "rows_per_seed": self.chunks[0].rows_per_seed,
            "subdirs": self.subdirs,
            **self.selection.identity(),
            **({"trajectory": ",".join(map(str, self.trajectory))} if self.trajectory else {}),
            **({} if self.probe_batch is None else {"probe_batch": self.probe_batch}),
            **({"channels_last": True} if self.channels_last else {}),
        }

    def names(self, chunk: Chunk) -> list[str]:
        """File names of a chunk's images, relative to the output folder."""
        names = []
        for seed, row in chunk.row_seeds():
            name = f"{seed:06d}.png" if chunk.rows_per_seed == 1 else f"{seed:06d}_{row:03d}.png"
            names.append(f"{seed - seed % 1000:06d}/{name}" if self.subdirs else name)
        return names


def sample_for_folder(job: Job, chunk: Chunk, folder: OutputFolder, room: Room) -> Callable[[], None]:
    """Sample a chunk; what is returned writes its files."""
    recorder = Recorder(job.trajectory)
    done = sample_job(job, chunk, watch=recorder.add if job.trajectory else None, room=room)
    return partial(write_chunk, job, done, recorder, folder)


def write_chunk(job: Job, done: ChunkResult, recorder: Recorder, folder: OutputFolder) -> None:
    """Write a sampled chunk; an image that is not finite is recorded and never becomes a picture."""
    lines, ok, chunk = record_lines(job, done), all_finite(done), done.chunk
    wanted = [fine and ("file" in line or not line.get("dropped")) for line, fine in zip(lines, ok, strict=True)]
    pixels = done.images.cpu().numpy()
    images = [to_pil(to_uint8(x)) if is_wanted else None for x, is_wanted in zip(pixels, wanted, strict=True)]
    strips = {}
    for b, line in enumerate(lines):
        if job.trajectory and wanted[b]:
            file = f"{TRAJECTORIES}/{line['name']}"
            line["trajectory"] = {"file": file, "steps": list(job.trajectory), "sigma": recorder.sigma}
            strips[file] = recorder.strip(b, done.images[b])
    folder.write(f"{chunk.seeds[0]:012d}-{len(chunk.seeds)}", images, lines, strips)


def all_finite(done: ChunkResult) -> list[bool]:
    """Which images have numbers only [B]."""
    found: list[bool] = done.images.isfinite().flatten(1).all(dim=1).tolist()
    return found


def sample_job(
    job: Job, chunk: Chunk, *, watch: Callable[[Step], None] | None = None, room: Room | None = None
) -> ChunkResult:
    """Sample a chunk as the job says, some of its images several times; `watch` sees the steps of those drawn once.

    `room` is what the chunks of a run share.
    """
    accept, limits = job.selection.accept, job.selection.limits()
    sample = partial(sample_accepted, accept=accept) if accept else partial(sample_chunk, watch=watch)
    return sample(
        job.denoiser,
        chunk,
        job.config,
        device=job.device,
        class_index=job.class_index,
        rng_on_cpu=job.rng == "cpu",
        dtype=DTYPES[job.dtype],
        limits=limits,
        room=room or Room(probe_batch=job.probe_batch),
    )


def sample_pixels(job: Job, chunk: Chunk) -> Tensor:
    """The images of a chunk as uint8 [B, C, H, W], the pixels that `write_chunk` saves.

    Raises UserError: one of them is not finite.
    """
    done = sample_job(job, chunk)
    if not all(ok := all_finite(done)):
        seed = chunk.row_seeds()[ok.index(False)][0]
        raise UserError(f"the image of seed {seed} is not finite; choose other noise levels")
    return torch.from_numpy(to_uint8(done.images.cpu().numpy()))


def record_lines(job: Job, done: ChunkResult) -> list[dict[str, Any]]:
    """One JSON-ready dict per image."""
    rows = zip(job.names(done.chunk), done.chunk.row_seeds(), done.classes, done.records, strict=True)
    lines, ok = [], all_finite(done)
    for b, (name, (seed, row), class_index, record) in enumerate(rows):
        line = {"name": name, "seed": seed, "class": class_index, **asdict(record)}
        if done.chunk.rows_per_seed > 1:
            line["row"] = row
        for key in ("H", "H_scaled", "scores"):
            line[key] = finite(line[key])
        if not record.scores:
            del line["scores"]
        for key in ("restart", "tries"):
            if line[key] is None:
                del line[key]
            else:
                line[key]["scores"] = finite(line[key]["scores"])
        if job.selection.filter:
            line |= filtered(job.selection.filter, name, done.risks[0][b], exists=ok[b])
        lines.append(line)
    return lines


def filtered(chosen: Filter, name: str, risk: float, *, exists: bool) -> dict[str, Any]:
    """What a filter says of an image: its score, whether it is dropped, and the file that it then goes to, if any.

    An image that could not be made (`exists` is False) is not dropped: there is nothing to drop.
    """
    said: dict[str, Any] = {"filter_score": finite([risk])[0], "dropped": exists and chosen.drops(risk)}
    if said["dropped"] and chosen.rejected:
        said["file"] = f"{REJECTED}/{name}"
    return said


def largest_score(line: dict[str, Any]) -> float:
    """The largest curvature index of an image; -inf where none was measured, inf for one beyond all numbers."""
    return max((inf if h is None else float(h) for h in line["H"]), default=-inf)


def finite(scores: Sequence[float]) -> list[float | None]:
    """Scores as JSON can hold them: None for what is no number, or has no end."""
    return [score if isfinite(score) else None for score in scores]


def write_grid(folder: OutputFolder, lines: Sequence[dict[str, Any]], path: Path, *, threshold: float) -> None:
    """A contact sheet of the run's first images: seed, largest H, and a red frame where it reaches `threshold`.

    After restarts: the score, and a red frame around what was restarted.
    """
    shown = [line for line in lines if line["sha256"] and not line.get("dropped")][:MAX_GRID]
    images, captions = [], []
    for line in shown:
        with PIL.Image.open(folder.outdir / line["name"]) as image:
            array = np.asarray(image)
        images.append(array[None] if array.ndim == 2 else array.transpose(2, 0, 1))
        captions.append(f"{line['seed']}{_score_of(line)}")
    save_png(contact_sheet(images, captions, marked=[is_at_risk(line, threshold) for line in shown]), path)


def is_at_risk(line: dict[str, Any], threshold: float) -> bool:
    """Whether the largest H of the image reaches `threshold`, or the image was restarted."""
    return (threshold < inf and largest_score(line) >= threshold) or was_restarted(line)


def was_restarted(line: dict[str, Any]) -> bool:
    return len(line.get("restart", {"scores": ()})["scores"]) > 1


def _score_of(line: dict[str, Any]) -> str:
    if "restart" in line:
        score = line["restart"]["scores"][line["restart"]["kept"]]
        return "" if score is None else f"  {score:.3g}"
    return f"  H {largest_score(line):.3g}" if line["H"] else ""


def run_chunks(job: Job, folder: OutputFolder, *, show_progress: bool) -> None:
    """The chunks of this rank that are not finished yet. UserError where one image does not fit in memory.

    Where a chunk does not fit, the network gets half as many of its rows at a time, and so on, from then on.
    """
    mine = [chunk for chunk in distributed.shard(job.chunks) if not folder.is_done(job.names(chunk))]
    total = sum(len(job.names(chunk)) for chunk in mine)
    room, said = Room(probe_batch=job.probe_batch), ""
    progress = tqdm(total=total, unit="img", disable=None if show_progress else True)
    # A thread writes a chunk's files while the next one is sampled; the block is not left before that is done.
    with progress, ThreadPoolExecutor(1) as writer:
        written: Future[None] | None = None
        for chunk in mine:
            try:
                write = sample_for_folder(job, chunk, folder, room)
            except (RuntimeError, MemoryError) as e:
                if not is_out_of_memory(e):
                    raise
                raise UserError(f"--batch={job.batch} does not fit in the memory of {job.device}; use less") from None
            if room.describe() != said:
                said = room.describe()
                tqdm.write(f"Rank {distributed.rank()}: {said}", file=sys.stderr)
            if written:
                written.result()
            written = writer.submit(write)
            progress.update(len(job.names(chunk)))
        if written:
            written.result()
