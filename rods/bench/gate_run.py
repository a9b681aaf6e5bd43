"""What a gate is fitted to, measured: a network's own samples and real images. It goes on where it was interrupted."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from dnnlib.errors import UserError, counted
from dnnlib.util import atomic_write
from rods.base_samplers import Euler
from rods.bench.encoding import image_shape
from rods.bench.gate_fit import Features, FlightFeatures, Level, real_features
from rods.bench.restart_trial import Trial, run_trial
from rods.denoiser import bind
from rods.detectors import Detector
from rods.gate import ActivationDetector, activations
from rods.latents import codec_of
from rods.restart import Restart
from rods.runs.chunk import Chunk, ChunkResult, cut_chunks, drawn_labels, sample_chunk
from rods.runs.folder import OutputFolder
from rods.runs.run import Job, chunk_writer
from rods.runs.trajectories import Strips
from rods.types import Denoiser
from training.checkpoint import Snapshot
from training.dataset import ImageDataset
from training.header import tool_version

U8 = NDArray[np.uint8]
F64 = NDArray[np.float64]
FIRST_SEED, FIRST_TRIAL = 3_000_000, 3_500_000  # seeds that neither calibration, nor a readout, nor a report uses
LEAST_REAL, MOST_REAL = 64, 4096


@dataclass(frozen=True)
class Measuring:
    """A network with how it is run; `out` keeps what was measured."""

    snapshot: Snapshot
    sampler: Euler
    device: torch.device
    batch: int
    out: Path

    @property
    def net(self) -> Denoiser:
        return cast(Denoiser, self.snapshot.net)

    @property
    def folder(self) -> Path:
        return self.out / f"{self.snapshot.name}-{self.snapshot.sha256[:8]}"

    def own(
        self, samples: int, name: str, measure: Callable[[Chunk], tuple[ChunkResult, dict[str, F64]]]
    ) -> dict[str, F64]:
        """What `measure` finds in each chunk of the network's own samples, which are a run folder: arrays [M, ...]."""
        chunks = cut_chunks(range(FIRST_SEED, FIRST_SEED + samples), batch=self.batch)
        job = Job(denoiser=self.net, sampler=self.sampler, chunks=chunks, device=self.device,
                  network_sha256=self.snapshot.sha256, batch=self.batch)  # fmt: skip
        run = self.folder / f"euler-{self.sampler.num_steps}"
        folder = OutputFolder(run, identity=job.identity(), option="--out")
        about = {"network": self.snapshot.describe(), "torch": torch.__version__, "version": tool_version()}
        parts = []
        with folder.open(about), progress(samples, "samples") as bar:
            (run / f".{name}").mkdir(exist_ok=True)
            for chunk in chunks:
                path = run / f".{name}" / f"{chunk.seeds[0]}-{len(chunk.seeds)}.npz"
                if not path.is_file():
                    done, found = measure(chunk)
                    chunk_writer(job, done, Strips(()), folder)()
                    write_arrays(path, found)
                parts.append(read_arrays(path))
                bar.update(len(chunk.seeds))
            folder.finish()
        found = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
        check_finite(found, "samples of it")
        return found

    def features(
        self, images: U8, labels: Tensor | None, blocks: tuple[str, ...], levels: Sequence[Level], samples: int
    ) -> Features:
        """The activations of real images [N, C, H, W] with labels [N, label_dim] or None, and of own samples."""

        def in_flight(chunk: Chunk) -> tuple[ChunkResult, dict[str, F64]]:
            labels = drawn_labels(self.net, chunk, self.device)
            flight = FlightFeatures(self.net, labels, blocks, levels, chunk.seeds)
            done = sample_chunk(self.net, chunk, self.sampler, device=self.device, observers=[flight])
            return done, {str(t): p.numpy() for t, p in flight.found.items()}

        own = self.own(samples, "features", in_flight) if samples else {}
        what = images.tobytes() + (b"" if labels is None else labels.numpy().tobytes())
        what += repr((blocks, self.sampler.num_steps, self.device.type)).encode()
        what += codec.identity.encode() if (codec := codec_of(self.net)) else b""
        path = self.folder / f"real-{hashlib.sha256(what).hexdigest()[:12]}.npz"
        if not path.is_file():
            self.folder.mkdir(parents=True, exist_ok=True)
            with progress(len(images), "real images") as bar:
                found = real_features(self.net, images, labels, levels, blocks, batch=self.batch, device=self.device,
                                      report=bar.update)  # fmt: skip
            write_arrays(path, {str(t): p.numpy() for t, p in found.items()})
        C, H = self.net.img_channels, self.net.img_resolution
        x = torch.zeros(1, C, H, H, dtype=torch.float64, device=self.device)
        one = None if labels is None else labels[:1].to(self.device)
        shown = activations(bind(self.net, 1, one), x, x.new_tensor(1.0), x[None], blocks)
        widths = tuple(p.shape[1] for p in shown)
        real = read_arrays(path)
        check_finite(real, "real images")
        return Features(levels, blocks, widths, by_level(levels, real), by_level(levels, own) if own else {})

    def own_scores(self, samples: int, detector: Detector) -> F64:
        """The scores [M] of the network's own finished samples."""

        def scored(chunk: Chunk) -> tuple[ChunkResult, dict[str, F64]]:
            done = sample_chunk(self.net, chunk, self.sampler, device=self.device, detectors=[detector])
            return done, {"scores": np.array(done.scores[0])}

        key = hashlib.sha256(repr(detector).encode()).hexdigest()[:12]
        return self.own(samples, f"scores-{key}", scored)["scores"]

    def trial(self, restart: Restart, second: ActivationDetector | None, seeds: int) -> Trial:
        """Restarts of the trial's seeds; see `run_trial`."""
        chunks = cut_chunks(range(FIRST_TRIAL, FIRST_TRIAL + seeds), batch=self.batch)
        with progress(seeds, f"restart from {restart.sigma_r:g}") as bar:
            return run_trial(self.net, restart, second, chunks, self.device, report=bar.update)


def real_images(path: str, net: Denoiser) -> tuple[U8, Tensor | None]:
    """The images [N, C, H, W] of a folder or zip, at most MOST_REAL, and labels [N, label_dim] for a net with classes.

    Raises UserError: too few, of another shape, or without the network's classes.
    """
    needed = "the network has classes" if net.label_dim else ""
    dataset = ImageDataset(path, cond=net.label_dim > 0, cache=False, option="--real", labels_needed=needed)
    shape = image_shape(net)
    index = list(range(len(dataset)))
    if len(index) < LEAST_REAL:
        raise UserError(f"--real={path} has {counted(len(index), 'image')}; a gate needs {LEAST_REAL} or more")
    if dataset.label_dim != net.label_dim:
        raise UserError(f"--real={path} has {dataset.label_dim} classes, and the network has {net.label_dim}")
    if len(index) > MOST_REAL:
        index = sorted(np.random.default_rng(0).choice(len(index), MOST_REAL, replace=False).tolist())
    pixels, labels = dataset.batch(index)
    images = pixels.numpy()
    if images.shape[1:] != shape:
        raise UserError(f"--real={path}: images of shape {list(images.shape[1:])}, and the network makes {list(shape)}")
    return cast(U8, images), labels if net.label_dim else None


def check_finite(arrays: Mapping[str, F64], what: str) -> None:
    """UserError where a row of an array has a value that is not finite: nothing can be fitted to it."""
    for values in arrays.values():
        if broken := int((~np.isfinite(values.reshape(len(values), -1)).all(axis=1)).sum()):
            raise UserError(f"--network: what it makes of {broken} of {len(values)} {what} is not finite; use another")


def progress(total: int, what: str) -> tqdm[None]:
    """A bar that counts images, or a line where nobody looks: what comes next takes minutes."""
    if not sys.stderr.isatty():
        print(f"{what}: {counted(total, 'image')} ...", file=sys.stderr, flush=True)
    return tqdm(total=total, unit="img", desc=what, disable=not sys.stderr.isatty())


def by_level(levels: Sequence[Level], arrays: Mapping[str, F64]) -> dict[float, Tensor]:
    return {level.score_at: torch.from_numpy(arrays[str(level.score_at)]) for level in levels}


def write_arrays(path: Path, arrays: Mapping[str, F64]) -> None:
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def read_arrays(path: Path) -> dict[str, F64]:
    with np.load(path) as saved:
        return {name: saved[name] for name in saved.files}
