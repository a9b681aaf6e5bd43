"""Sampling runs that go to a folder: the job, its chunks, one record per image, what is said at the end."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch import Tensor
from tqdm import tqdm

from dnnlib.errors import UserError
from rods.base_samplers import Sampler
from rods.config import to_json
from rods.latents import codec_of, decoded
from rods.micro_batches import MicroBatches
from rods.runs.accept import sample_accepted, sample_filtered
from rods.runs.chunk import Chunk, ChunkResult, ChunkRun, sample_chunk
from rods.runs.folder import TRAJECTORIES, OutputFolder
from rods.runs.images import contact_sheet, save_png, to_pil, to_uint8
from rods.runs.progress import progress
from rods.runs.records import is_at_risk, largest_score, record_lines
from rods.runs.select import Selection
from rods.runs.trajectories import Strips
from rods.types import AnyDenoiser
from torch_utils import distributed
from torch_utils.machine import must_fit
from training.execution import autocast_of

MAX_GRID = 256


@dataclass(frozen=True, kw_only=True)
class Job:
    """Everything that one run needs."""

    denoiser: AnyDenoiser  # with img_channels, img_resolution and label_dim
    sampler: Sampler
    chunks: Sequence[Chunk]
    device: torch.device
    network_sha256: str = ""
    batch: int = 64  # rows of a chunk; the last one may have fewer
    class_index: int | None = None
    dtype: str = "float32"
    rng: str = "device"
    threads: int | None = None  # None off the CPU, where they do not matter
    subdirs: bool = False
    detect_eps: float | None = None  # the H from which a sample counts as at risk, where eps 0 corrects all
    selection: Selection = field(default_factory=Selection)
    trajectory: tuple[int, ...] = ()  # the steps that a strip beside each image shows; none: no strips
    probe_batch: int | None = None  # rows of a backward pass, None: all at once
    channels_last: bool = False
    guidance: Mapping[str, Any] = field(default_factory=dict)  # what guides the denoiser; empty where nothing does
    compiled: bool = False  # whether the denoiser is: its images differ by rounding

    def risk_threshold(self) -> float:
        """The H from which a sample counts as at risk; inf where there is no such number."""
        eps = float(getattr(self.sampler, "eps", inf))
        return eps if eps > 0 else inf if self.detect_eps is None else self.detect_eps

    def identity(self) -> dict[str, Any]:
        """What decides the images' names and bytes, seeds aside; a folder holds one identity."""
        return {
            "network_sha256": self.network_sha256,
            **to_json(self.sampler),
            **self.guidance,
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
            **({"compile": True} if self.compiled else {}),
            **({"decoder": codec.identity} if (codec := codec_of(self.denoiser)) else {}),
        }

    def names(self, chunk: Chunk) -> list[str]:
        """File names of a chunk's images, relative to the output folder."""
        names = []
        for seed, row in chunk.row_seeds():
            name = f"{seed:06d}.png" if chunk.rows_per_seed == 1 else f"{seed:06d}_{row:03d}.png"
            names.append(f"{seed - seed % 1000:06d}/{name}" if self.subdirs else name)
        return names


def sample_for_folder(job: Job, chunk: Chunk, folder: OutputFolder, micro_batches: MicroBatches) -> Callable[[], None]:
    """Sample a chunk; what is returned writes its files."""
    strips = Strips(job.trajectory, job.denoiser)
    done = sample_job(job, chunk, strips=strips if job.trajectory else None, micro_batches=micro_batches)
    return chunk_writer(job, done, strips, folder, micro_batches)


def chunk_writer(
    job: Job, done: ChunkResult, strips: Strips, folder: OutputFolder, micro_batches: MicroBatches | None = None
) -> Callable[[], None]:
    """Decode the images of a sampled chunk that are kept; what is returned writes its files.

    An image that is not finite is recorded and never becomes a PNG.
    """
    part, ok = f"{done.chunk.seeds[0]:012d}-{len(done.chunk.seeds)}", all_finite(done.images)
    lines = record_lines(done, job.names(done.chunk), job.selection.filter, ok)
    if codec_of(job.denoiser) is None and is_points(done.images.shape):
        for line, x, is_fine in zip(lines, done.images.cpu().numpy(), ok, strict=True):
            line["x"] = x.ravel().tolist() if is_fine else None
        return partial(folder.write, part, [None] * len(lines), lines, {})
    rows = [b for b, line in enumerate(lines) if ok[b] and ("file" in line or not line.get("dropped"))]
    images = decoded(job.denoiser, done.images[rows], micro_batches=micro_batches).cpu()
    strips.decode(rows, micro_batches)
    made = {b: image for b, image, is_fine in zip(rows, images, all_finite(images), strict=True) if is_fine}
    if broken := set(rows) - set(made):  # by the decoder
        exists = [is_fine and b not in broken for b, is_fine in enumerate(ok)]
        lines = record_lines(done, job.names(done.chunk), job.selection.filter, exists)
    return partial(_write, job, part, lines, made, strips, folder)


def _write(
    job: Job, part: str, lines: list[dict[str, Any]], images: dict[int, Tensor], strips: Strips, folder: OutputFolder
) -> None:
    """Write a chunk's records, its images [C, H, W] by their row, and their strips."""
    drawn = {}
    for b, image in images.items():
        if job.trajectory:
            file = f"{TRAJECTORIES}/{lines[b]['name']}"
            lines[b]["trajectory"] = {"file": file, "steps": list(job.trajectory), "sigma": strips.sigma}
            drawn[file] = strips.strip(b, image)
    pictures = [to_pil(to_uint8(images[b].numpy())) if b in images else None for b in range(len(lines))]
    folder.write(part, pictures, lines, drawn)


def is_points(shape: Sequence[int]) -> bool:
    """Whether samples [B, C, H, W] are points: of one pixel, and recorded as numbers instead of a PNG."""
    return tuple(shape[2:]) == (1, 1)


def all_finite(images: Tensor) -> list[bool]:
    """Which images have numbers only [B]."""
    found: list[bool] = images.isfinite().flatten(1).all(dim=1).tolist()
    return found


def sample_job(
    job: Job, chunk: Chunk, *, strips: Strips | None = None, micro_batches: MicroBatches | None = None
) -> ChunkResult:
    """Sample a chunk as the job says, some of its images several times; `strips` see the steps of those drawn once.

    `micro_batches` is what the chunks of a run share.
    """
    micro_batches = micro_batches or MicroBatches(probe_batch=job.probe_batch)
    begin = partial(ChunkRun, job.denoiser, sampler=job.sampler, device=job.device, rng_on_cpu=job.rng == "cpu",
                    dtype=autocast_of(job.dtype), micro_batches=micro_batches)  # fmt: skip
    accept, chosen, detectors = job.selection.accept, job.selection.filter, job.selection.detectors()
    if accept:
        return sample_accepted(begin, chunk, accept, class_index=job.class_index, detectors=detectors)
    if chosen and chosen.level:
        return sample_filtered(begin, chunk, chosen, class_index=job.class_index)
    return sample_chunk(
        job.denoiser,
        chunk,
        job.sampler,
        device=job.device,
        class_index=job.class_index,
        rng_on_cpu=job.rng == "cpu",
        dtype=autocast_of(job.dtype),
        detectors=detectors,
        observers=[] if strips is None else [strips],
        micro_batches=micro_batches,
    )


def sample_pixels(job: Job, chunk: Chunk) -> Tensor:
    """The images of a chunk as uint8 [B, C, H, W], the pixels that `chunk_writer` saves.

    Raises UserError: one of them is not finite.
    """
    micro_batches = MicroBatches(probe_batch=job.probe_batch)
    images = decoded(job.denoiser, sample_job(job, chunk, micro_batches=micro_batches).images,
                     micro_batches=micro_batches)  # fmt: skip
    if not all(ok := all_finite(images)):
        seed = chunk.row_seeds()[ok.index(False)][0]
        raise UserError(f"the image of seed {seed} is not finite; choose other noise levels")
    return torch.from_numpy(to_uint8(images.cpu().numpy()))


def write_grid(folder: OutputFolder, lines: Sequence[dict[str, Any]], path: Path, *, threshold: float) -> str | None:
    """A contact sheet of the run's first images: seed, class, largest H, and a red frame where it reaches `threshold`.

    After restarts: the score, and a red frame around what was restarted. Returns what to say of images left out.
    """
    written = [line for line in lines if line["sha256"] and not line.get("dropped")]
    if not written:
        return f"No {path.name}: no image was kept"
    shown = written[:MAX_GRID]
    images, captions = [], []
    for line in shown:
        with PIL.Image.open(folder.outdir / line["name"]) as image:
            array = np.asarray(image)
        images.append(array[None] if array.ndim == 2 else array.transpose(2, 0, 1))
        captions.append(_caption(line))
    save_png(contact_sheet(images, captions, marked=[is_at_risk(line, threshold) for line in shown]), path)
    return f"{path.name} shows the first {len(shown)} of {len(written):,} images" if shown != written else None


def _caption(line: dict[str, Any]) -> str:
    """The seed and the score; of a conditional network, the class between them."""
    if line.get("class") is None:
        return f"{line['seed']}{_score_of(line)}"
    return f"{line['seed']}  class {line['class']}\n{_score_of(line).strip()}"


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
    micro_batches, said = MicroBatches(probe_batch=job.probe_batch), ""
    shown = progress(total, "samples", shown=show_progress, announce=False)
    # A thread writes a chunk's files while the next one is sampled; the block is not left before that is done.
    with shown as bar, ThreadPoolExecutor(1) as writer:
        written: Future[None] | None = None
        for chunk in mine:
            with must_fit(f"--batch={job.batch} does not fit in the memory of {job.device}; use less"):
                write = sample_for_folder(job, chunk, folder, micro_batches)
            if micro_batches.describe() != said:
                said = micro_batches.describe()
                tqdm.write(f"Rank {distributed.rank()}: {said}", file=sys.stderr)
            if written:
                written.result()
            written = writer.submit(write)
            bar.update(len(job.names(chunk)))
        if written:
            written.result()
