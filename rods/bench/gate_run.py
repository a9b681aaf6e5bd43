"""What a gate is fitted to, measured: a network's own samples and real images. It goes on where it was interrupted."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import cast
from zipfile import BadZipFile

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dnnlib.errors import UserError, counted
from dnnlib.util import atomic_write
from rods.base_samplers import Euler
from rods.bench.encoding import image_shape
from rods.bench.gate_fit import Features, FlightFeatures, Level, levels_of, real_features
from rods.bench.real import open_real, some_of
from rods.bench.restart_trial import ChunkTrial, Trial, joined, try_chunk
from rods.denoiser import bind
from rods.detectors import Detector
from rods.gate import ActivationDetector, activations
from rods.latents import codec_of
from rods.restart import Restart
from rods.runs.chunk import Chunk, ChunkResult, cut_chunks, drawn_labels, sample_chunk
from rods.runs.folder import OutputFolder
from rods.runs.guidance import GuidedNetwork, forwards
from rods.runs.progress import progress
from rods.runs.run import Job, chunk_writer
from rods.runs.trajectories import Strips
from rods.types import Denoiser, state_dtype
from torch_utils import distributed
from training.checkpoint import Snapshot
from training.header import tool_version

U8 = NDArray[np.uint8]
F64 = NDArray[np.float64]
FIRST_SEED, FIRST_TRIAL = 3_000_000, 3_500_000  # seeds that neither calibration, nor a readout, nor a report uses
LEAST_REAL, MOST_REAL = 64, 4096


@dataclass(frozen=True)
class Measuring:
    """A network with how it is run, guided where it is; `out` keeps what was measured."""

    snapshot: Snapshot
    guided: GuidedNetwork
    sampler: Euler
    device: torch.device
    batch: int
    out: Path

    @property
    def net(self) -> Denoiser:
        return cast(Denoiser, self.guided.denoiser)

    @property
    def euler_cost(self) -> int:
        """F of a sample without restarts or scores."""
        return forwards(self.net, self.sampler.levels(self.net))

    @property
    def folder(self) -> Path:
        guidance = self.guided.identity
        suffix = f"-guided-{hashlib.sha256(repr(guidance).encode()).hexdigest()[:8]}" if guidance else ""
        return self.out / f"{self.snapshot.name}-{self.snapshot.sha256[:8]}{suffix}"

    @property
    def run_folder(self) -> Path:
        """The run of the network's own samples."""
        return self.folder / f"euler-{self.sampler.num_steps}"

    def chunks(self, samples: int) -> list[Chunk]:
        return cut_chunks(range(FIRST_SEED, FIRST_SEED + samples), batch=self.batch)

    def job(self, chunks: Sequence[Chunk]) -> Job:
        return Job(denoiser=self.net, sampler=self.sampler, chunks=chunks, device=self.device,
                   network_sha256=self.snapshot.sha256, batch=self.batch, guidance=self.guided.identity)  # fmt: skip

    def part(self, name: str, chunk: Chunk) -> Path:
        """Where what is measured of a chunk is kept."""
        return self.run_folder / f".{name}" / f"{chunk.seeds[0]}-{len(chunk.seeds)}.npz"

    def own(
        self, samples: int, name: str, measure: Callable[[Chunk], tuple[ChunkResult, dict[str, F64]]]
    ) -> dict[str, F64]:
        """What `measure` finds in each chunk of the network's own samples, which are a run folder: arrays [M, ...].

        Ranks share the chunks, and each reads what all have found.
        """
        chunks, lead = self.chunks(samples), distributed.rank() == 0
        job = self.job(chunks)
        with distributed.rank0_first():
            folder = OutputFolder(self.run_folder, identity=job.identity(), option="--out")
        about = {"network": self.snapshot.describe(), "torch": torch.__version__, "version": tool_version()}
        with folder.open(about) if lead else nullcontext(), progress(samples, "samples", shown=lead) as bar:
            if lead:
                (self.run_folder / f".{name}").mkdir(exist_ok=True)
            distributed.barrier()
            for chunk in distributed.shard(chunks):
                if not (path := self.part(name, chunk)).is_file():
                    done, found = measure(chunk)
                    chunk_writer(job, done, Strips(()), folder)()
                    write_arrays(path, found)
                bar.update(len(chunk.seeds))
            distributed.barrier()
            if lead:
                folder.finish()
        distributed.barrier()
        parts = [read_arrays(self.part(name, chunk)) for chunk in chunks]
        found = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
        check_finite(found, "samples of it")
        return found

    def own_features(self, blocks: tuple[str, ...], levels: Sequence[Level], samples: int) -> dict[float, Tensor]:
        """The activations [M, K] of the network's own samples in flight, by `score_at`; none for no samples."""

        def in_flight(chunk: Chunk) -> tuple[ChunkResult, dict[str, F64]]:
            labels = drawn_labels(self.net, chunk, self.device)
            flight = FlightFeatures(self.net, labels, blocks, levels, chunk.seeds)
            done = sample_chunk(self.net, chunk, self.sampler, device=self.device, observers=[flight])
            return done, {str(t): p.numpy() for t, p in flight.found.items()}

        return by_level(levels, self.own(samples, f"features{self.other_levels(levels)}", in_flight)) if samples else {}

    def other_levels(self, levels: Sequence[Level]) -> str:
        """In the names of what is kept, where levels were asked for; empty for those to choose from."""
        usual = list(levels) == levels_of(self.sampler.levels(self.net))
        return "" if usual else "-" + ",".join(f"{level.score_at:g}" for level in levels)

    def image_file(self, images: U8, labels: Tensor | None, blocks: tuple[str, ...], levels: Sequence[Level]) -> Path:
        """Where the activations of these images are kept."""
        what = images.tobytes() + (b"" if labels is None else labels.numpy().tobytes())
        what += repr((blocks, self.sampler.num_steps, self.device.type)).encode()
        what += codec.identity.encode() if (codec := codec_of(self.net)) else b""
        what += self.other_levels(levels).encode()
        return self.folder / f"real-{hashlib.sha256(what).hexdigest()[:12]}.npz"

    def image_features(
        self, images: U8, labels: Tensor | None, blocks: tuple[str, ...], levels: Sequence[Level], what: str
    ) -> dict[float, Tensor]:
        """By `score_at`, the activations [N, K] of images [N, C, H, W] with labels [N, label_dim] or None.

        Noised to the level and denoised once; `what` they are is for messages. Ranks share the batches.
        """
        path = self.image_file(images, labels, blocks, levels)
        if not all(distributed.gather(path.is_file())):
            mine: dict[int, dict[float, Tensor]] = {}
            with progress(len(images), what, shown=distributed.rank() == 0) as bar:
                for start in distributed.shard(range(0, len(images), self.batch)):
                    end = start + self.batch
                    own = None if labels is None else labels[start:end]
                    mine[start] = real_features(self.net, images[start:end], own, levels, blocks, first=start,
                                                device=self.device)  # fmt: skip
                    bar.update(len(images[start:end]))
            parts = {start: part for found in distributed.gather(mine) for start, part in found.items()}
            if distributed.rank() == 0:
                self.folder.mkdir(parents=True, exist_ok=True)
                rows = [parts[start] for start in sorted(parts)]
                write_arrays(path, {str(t): torch.cat([part[t] for part in rows]).numpy() for t in rows[0]})
            distributed.barrier()
        found = read_arrays(path)
        check_finite(found, what)
        return by_level(levels, found)

    def widths(self, labels: Tensor | None, blocks: tuple[str, ...]) -> tuple[int, ...]:
        """How many numbers each block gives; of `labels` [N, label_dim] of a network with classes one is used."""
        C, H = self.net.img_channels, self.net.img_resolution
        x = torch.zeros(1, C, H, H, dtype=state_dtype(self.device), device=self.device)
        one = None if labels is None else labels[:1].to(self.device)
        return tuple(p.shape[1] for p in activations(bind(self.net, 1, one), x, x.new_tensor(1.0), x[None], blocks))

    def features(
        self, images: U8, labels: Tensor | None, blocks: tuple[str, ...], levels: Sequence[Level], samples: int
    ) -> Features:
        """The activations of real images [N, C, H, W] with labels [N, label_dim] or None, and of own samples."""
        own = self.own_features(blocks, levels, samples)
        real = self.image_features(images, labels, blocks, levels, "real images")
        return Features(levels, blocks, self.widths(labels, blocks), real, own)

    def check_folder(self) -> None:
        """UserError where the folder of samples holds others than these."""
        OutputFolder(self.run_folder, identity=self.job(self.chunks(1)).identity(), option="--out")

    @staticmethod
    def scores_name(detector: Detector) -> str:
        """What the scores of samples by a detector are kept as."""
        return f"scores-{hashlib.sha256(repr(detector).encode()).hexdigest()[:12]}"

    def own_scores(self, samples: int, detector: Detector) -> F64:
        """The scores [M] of the network's own finished samples."""

        def scored(chunk: Chunk) -> tuple[ChunkResult, dict[str, F64]]:
            done = sample_chunk(self.net, chunk, self.sampler, device=self.device, detectors=[detector])
            return done, {"scores": np.array(done.scores[0])}

        return self.own(samples, self.scores_name(detector), scored)["scores"]

    def trial(self, restart: Restart, second: ActivationDetector | None, seeds: int) -> Trial:
        """Restarts of the trial's seeds; ranks share the chunks."""
        chunks = cut_chunks(range(FIRST_TRIAL, FIRST_TRIAL + seeds), batch=self.batch)
        mine: dict[int, ChunkTrial] = {}
        shown = distributed.rank() == 0
        with progress(seeds, f"restart from {restart.sigma_r:g}", shown=shown) as bar:
            for chunk in distributed.shard(chunks):
                mine[chunk.index] = try_chunk(self.net, restart, second, chunk, self.device)
                bar.update(len(chunk.seeds))
        parts = {index: part for found in distributed.gather(mine) for index, part in found.items()}
        return joined(self.net, restart, [parts[chunk.index] for chunk in chunks])


def real_images(path: str, net: Denoiser) -> tuple[U8, Tensor | None]:
    """The images [N, C, H, W] of a folder or zip, at most MOST_REAL, and labels [N, label_dim] for a net with classes.

    Raises UserError: too few, of another shape, or without the network's classes.
    """
    needed = "the network has classes" if net.label_dim else ""
    dataset = open_real(path, cond=net.label_dim > 0, labels_needed=needed)
    shape = image_shape(net)
    if len(dataset) < LEAST_REAL:
        raise UserError(f"--real={path} has {counted(len(dataset), 'image')}; a gate needs {LEAST_REAL} or more")
    if dataset.label_dim != net.label_dim:
        raise UserError(f"--real={path} has {dataset.label_dim} classes, and the network has {net.label_dim}")
    pixels, labels = dataset.batch(some_of(len(dataset), MOST_REAL))
    images = pixels.numpy()
    if images.shape[1:] != shape:
        mode = {1: " --mode=grey", 3: " --mode=rgb"}.get(shape[0], "")
        raise UserError(
            f"--real={path}: images of shape {list(images.shape[1:])}, and the network makes {list(shape)}; convert "
            f"them: python scripts/dataset_tool.py --source={path} --dest=converted.zip "
            f"--resolution={shape[1]}x{shape[2]}{mode}"
        )
    return cast(U8, images), labels if net.label_dim else None


def check_finite(arrays: Mapping[str, F64], what: str) -> None:
    """UserError where a row of an array has a value that is not finite: nothing can be fitted to it."""
    for values in arrays.values():
        if broken := int((~np.isfinite(values.reshape(len(values), -1)).all(axis=1)).sum()):
            raise UserError(f"--network: what it makes of {broken} of {len(values)} {what} is not finite; use another")


def by_level(levels: Sequence[Level], arrays: Mapping[str, F64]) -> dict[float, Tensor]:
    return {level.score_at: torch.from_numpy(arrays[str(level.score_at)]) for level in levels}


def write_arrays(path: Path, arrays: Mapping[str, F64]) -> None:
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def read_arrays(path: Path) -> dict[str, F64]:
    """UserError: the file is damaged."""
    try:
        with np.load(path) as saved:
            return {name: saved[name] for name in saved.files}
    except (OSError, ValueError, EOFError, BadZipFile):
        raise UserError(f"{path} is damaged; delete it, and the same command measures it again") from None
