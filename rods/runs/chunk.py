"""From seeds to images and records: chunks of seeds, one call per chunk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from rods.base_samplers import Sampler
from rods.config import name_of
from rods.denoiser import BoundDenoiser, bind
from rods.detectors import Detector, Follower
from rods.micro_batches import MicroBatches
from rods.restart import draws_of
from rods.types import AnyDenoiser, SampleRecord, Step, state_dtype
from torch_utils.rng import SeedStreams


class Observer(Protocol):
    """What is shown every finished step of a chunk."""

    def add(self, step: Step) -> None: ...


@dataclass(frozen=True)
class Chunk:
    """What is sampled in one batch. Chunks are cut before ranks are considered: equal chunks give equal bytes."""

    index: int
    seeds: tuple[int, ...]
    rows_per_seed: int = 1  # more than 1: a seed feeds a whole batch, as in the RODS paper

    def row_seeds(self) -> list[tuple[int, int]]:
        """(seed, row of that seed) for every row of the batch."""
        return [(seed, row) for seed in self.seeds for row in range(self.rows_per_seed)]


def cut_chunks(seeds: Sequence[int], *, batch: int, per_batch: bool = False) -> list[Chunk]:
    """Cut the seed list into chunks of `batch` rows; with `per_batch` every seed makes a chunk of its own."""
    if batch < 1:
        raise ValueError(f"batch: {batch} is too small; give 1 or more")
    if per_batch:
        return [Chunk(i, (seed,), batch) for i, seed in enumerate(seeds)]
    return [Chunk(i, tuple(seeds[start : start + batch])) for i, start in enumerate(range(0, len(seeds), batch))]


@dataclass(frozen=True, eq=False)
class ChunkResult:
    """Images of a chunk and what is known about each."""

    chunk: Chunk
    images: Tensor  # [B, C, H, W] float64, nominally in [-1, 1]
    classes: list[int | None]  # [B]
    records: tuple[SampleRecord, ...]  # [B]
    scores: tuple[tuple[float, ...], ...] = ()  # [detectors][B], of the detectors that were asked for


class ChunkRun:
    """A chunk of seeds while it is sampled: it may stop at a noise level, be judged, and go on with some of its images.

    The denoiser needs `img_channels`, `img_resolution` and `label_dim`. Per seed, draws come in the order of EDM's
    generate.py: latent, class (drawn even when `class_index` gives one for all or for each), then the noise of the
    steps, from the sampler's own stream. `dtype` other than float32 runs the network under autocast; the state stays
    float64. `detectors` score the images; their draws are from the third stream, so that no image depends on them.
    `observers` see every finished step of the whole batch. `micro_batches`, which chunks may share, says how many rows
    the network gets at once where not all fit in memory. Cost: that of the sampler and of the detectors.
    Raises ValueError: `class_index` outside the network's classes; a detector that needs what the sampler cannot show.
    """

    def __init__(
        self,
        denoiser: AnyDenoiser,
        chunk: Chunk,
        sampler: Sampler,
        *,
        device: torch.device,
        class_index: int | Sequence[int | None] | None = None,
        rng_on_cpu: bool = False,
        dtype: torch.dtype = torch.float32,
        detectors: Sequence[Detector] = (),
        observers: Sequence[Observer] = (),
        micro_batches: MicroBatches | None = None,
    ) -> None:
        streams, latents, labels, self.classes = drawn_start(denoiser, chunk, device, class_index, on_cpu=rng_on_cpu)
        noise = streams if sampler.stream == "first" else streams.second()
        self.chunk, self._observers = chunk, observers
        self._precision = partial(torch.autocast, device.type, dtype, enabled=dtype != torch.float32)
        self._denoise = bind(denoiser, len(latents), labels, randn_like=noise.randn_like, micro_batches=micro_batches,
                             keys=streams.keys())  # fmt: skip
        with self._precision():
            self._followers = [_follow(d, self._denoise, latents, sampler, streams) for d in detectors]
        self._recorder = sampler.recorder()
        self._steps = sampler.steps(self._denoise, latents)
        self._going_on: Tensor | None = None  # [b] the rows to keep from the next step on; None: all
        self.image = latents  # [b, C, H, W] what the run is now: D(x_t), and the finished image at its end

    def run_to(self, level: float) -> None:
        """Steps until the noise level is at most `level`, as `Restart.score_at`; 0: to the end."""
        with self._precision():
            while (step := self._next_step()) is not None:
                if level > 0 and step.rows is None and step.sigma_next <= level:
                    self.image = step.denoised
                    return
        self.image = self._recorder.images

    def _next_step(self) -> Step | None:
        """The next step, shown to all who watch; None: there is none."""
        try:
            step = self._steps.send(self._going_on)
        except StopIteration:
            return None
        if self._going_on is not None and step.rows is None and len(step.x) != len(self._going_on):
            raise ValueError("sampler: it does not let rows go; end its `along` by `yield from trajectory(...)`")
        self._going_on = None
        for observer in (self._recorder, *self._observers):
            observer.add(step)
        if step.rows is None:
            for follower in self._followers:
                follower.add(step)
        return step

    def judge(self) -> list[float]:
        """The scores [b] of `image` by the first detector, which then sees no more of this run."""
        with self._precision():
            scores: list[float] = self._followers.pop(0).score(self.image).tolist()
        return scores

    def keep(self, rows: Sequence[int]) -> None:
        """Only these images, of those that it has now, go on."""
        index = torch.tensor(rows, dtype=torch.int64, device=self.image.device)
        self._going_on = index
        self._denoise = self._denoise.rows(index)
        self._recorder = self._recorder.select(index)
        self._followers = [follower.select(index) for follower in self._followers]
        self.image = self.image[index]
        self.classes = [self.classes[row] for row in rows]

    def records(self) -> tuple[SampleRecord, ...]:
        """What is known of each image so far [b], with the evaluations that were spent on it."""
        return self._recorder.result(self._denoise).records

    def spent(self) -> list[tuple[int, int]]:
        """F and B of every image of the chunk [B], those that were let go too."""
        return list(zip(self._denoise.forward.tolist(), self._denoise.backward.tolist(), strict=True))

    def result(self) -> ChunkResult:
        """Images, records and the scores of the detectors that have not judged yet."""
        scores = []
        while self._followers:
            scores.append(tuple(self.judge()))
        return ChunkResult(self.chunk, self.image, self.classes, self.records(), tuple(scores))


def sample_chunk(
    denoiser: AnyDenoiser,
    chunk: Chunk,
    sampler: Sampler,
    *,
    device: torch.device,
    class_index: int | Sequence[int | None] | None = None,
    rng_on_cpu: bool = False,
    dtype: torch.dtype = torch.float32,
    detectors: Sequence[Detector] = (),
    observers: Sequence[Observer] = (),
    micro_batches: MicroBatches | None = None,
) -> ChunkResult:
    """Sample one chunk of seeds to its end: see `ChunkRun` for the arguments, the cost and the errors."""
    run = ChunkRun(
        denoiser,
        chunk,
        sampler,
        device=device,
        class_index=class_index,
        rng_on_cpu=rng_on_cpu,
        dtype=dtype,
        detectors=detectors,
        observers=observers,
        micro_batches=micro_batches,
    )
    run.run_to(0)
    return run.result()


def drawn_start(
    denoiser: AnyDenoiser,
    chunk: Chunk,
    device: torch.device,
    class_index: int | Sequence[int | None] | None = None,
    *,
    on_cpu: bool = False,
) -> tuple[SeedStreams, Tensor, Tensor | None, list[int | None]]:
    """Streams, latents [B, C, H, W], labels [B, label_dim] and classes that a chunk's seeds draw before the first step.

    The classes are `class_index` where that gives one. Raises ValueError: outside the network's classes.
    """
    shape = (denoiser.img_channels, denoiser.img_resolution, denoiser.img_resolution)  # type: ignore[attr-defined]
    label_dim: int = denoiser.label_dim  # type: ignore[attr-defined]
    given = class_index if isinstance(class_index, Sequence) else [class_index] * len(chunk.row_seeds())
    for wanted in set(given):
        check_class(wanted, label_dim)
    streams = SeedStreams(chunk.seeds, device, rows_per_seed=chunk.rows_per_seed, on_cpu=on_cpu)
    latents = streams.randn(shape)
    if not label_dim:
        return streams, latents, None, [None] * len(latents)
    chosen = [c if w is None else w for c, w in zip(streams.randint(label_dim).tolist(), given, strict=True)]
    return streams, latents, torch.eye(label_dim, device=device)[chosen], list(chosen)


def drawn_labels(denoiser: AnyDenoiser, chunk: Chunk, device: torch.device) -> Tensor | None:
    """The labels [B, label_dim] that a chunk's seeds draw; None, without a draw, for a network without classes."""
    return drawn_start(denoiser, chunk, device)[2] if denoiser.label_dim else None  # type: ignore[attr-defined]


def _follow(
    detector: Detector, denoise: BoundDenoiser, latents: Tensor, sampler: Sampler, streams: SeedStreams
) -> Follower:
    """A detector on a run of the whole batch, with draws from the beginning of the third stream."""
    check_detector(detector, sampler)
    state = latents.to(state_dtype(latents.device))
    third = bind(denoise, len(latents), randn_like=streams.third().randn_like)
    return detector.follow(denoise, draws_of(third, state, detector.num_draws), solver=sampler.base_solver)


def check_detector(detector: Detector, sampler: Sampler) -> None:
    """ValueError where a detector reads a run's steps and the sampler takes some of them again."""
    if detector.needs != "image" and sampler.restarts:
        raise ValueError(
            f"detector: {type(detector).__name__} reads a run's steps, and {name_of(sampler)} takes some of them "
            "again; score its images by lid, or restart by this detector (--detector)"
        )


def check_class(class_index: int | None, label_dim: int) -> None:
    """ValueError unless `class_index` is None or a class of the network."""
    if class_index is None:
        return
    if not label_dim:
        raise ValueError(f"class: {class_index} given, but the network is unconditional; leave --class out")
    if not 0 <= class_index < label_dim:
        raise ValueError(f"class: {class_index} is out of range; this network has classes 0 to {label_dim - 1}")
