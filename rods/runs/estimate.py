"""What a sampling run will take, measured on a few evaluations and one image: for generate.py's dry run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass

import torch
from torch import Tensor, nn

from dnnlib.errors import counted
from rods.denoiser import bind
from rods.latents import decoded
from rods.runs.chunk import Chunk, ChunkResult
from rods.runs.run import Job, sample_job
from torch_utils.machine import kept_for_backward, largest_measured, must_fit, peak_memory, size_text, timed
from training.execution import autocast_of
from training.logging import duration

PATIENCE = 20.0
"""Seconds that the steps of one image may take for it to be sampled; else they are only counted."""


def estimate(job: Job, *, ranks: int = 1) -> list[str]:
    """A line on the time of each rank and one on its memory. Nothing is written.

    Evaluations of 1, 2, 4, ... images are timed until one takes a second; the first image is sampled if that is cheap.
    """
    with torch.no_grad(), must_fit(f"--batch={job.batch} does not fit in the memory of {job.device}; use less"):
        at_once, seconds = largest_measured(lambda rows: evaluate(job, blank(job, rows)), job.batch, job.device)
        forward = evaluate(job, blank(job, 1))  # F of an evaluation: a guided network's are of two networks
        alone = timed(lambda: evaluate(job, blank(job, 1)), job.device)
    rate = seconds / at_once  # of an image among many, which is faster than one alone
    memory = [f"{size_text(peak_memory(job.device))} with {at_once} of {job.batch} images at once"]
    if alone * job.sampler.num_steps < PATIENCE:
        found: list[ChunkResult] = []
        first = Chunk(0, job.chunks[0].seeds[:1])

        def one_image() -> None:
            found.append(sample_job(job, first))
            decoded(job.denoiser, found[0].images)

        took = timed(one_image, job.device)
        spent, each = found[0].records[0], took * min(rate / alone, 1)
        how = f"the first took {took:.2g} s alone, {spent.forward} F + {spent.backward} B network evaluations"
        if spent.backward:
            rows = job.probe_batch or job.batch
            memory.append(f"{size_text(rows * kept_by_an_image(job))} for backward passes of {rows} at once")
    else:
        least = job.sampler.num_steps * forward
        each, how = job.sampler.num_steps * rate, f"{least} F at least, and no B; no image was sampled"
    images = -(-sum(len(job.names(chunk)) for chunk in job.chunks) // ranks)
    return [
        f"Time: about {duration(images * each)} for {counted(images, 'image')} on each rank ({how}; an F took "
        f"{alone / forward:.2g} s, with {at_once} images at once {rate / forward:.2g} s an image)",
        f"Memory: about {', and '.join(memory)} (measured)",
    ]


def kept_by_an_image(job: Job) -> int:
    """Bytes that a backward pass to one image needs."""
    with kept_for_backward(parameters(job.denoiser)) as kept:
        evaluate(job, blank(job, 1).requires_grad_(True))
    return kept()


def parameters(denoiser: object) -> Iterator[Tensor]:
    """Those of a network, or of all networks of which a denoiser is made."""
    if isinstance(denoiser, nn.Module):
        yield from denoiser.parameters()
    elif is_dataclass(denoiser):
        for part in fields(denoiser):
            yield from parameters(getattr(denoiser, part.name))


def blank(job: Job, rows: int) -> Tensor:
    net = job.denoiser
    shape = (net.img_channels, net.img_resolution, net.img_resolution)  # type: ignore[attr-defined]
    return torch.zeros(rows, *shape, device=job.device)


def evaluate(job: Job, x: Tensor) -> int:
    """D(x; 1), as the run evaluates it. Returns how many F an image took."""
    dtype, label_dim = autocast_of(job.dtype), int(job.denoiser.label_dim)  # type: ignore[attr-defined]
    denoise = bind(job.denoiser, len(x), torch.eye(label_dim, device=x.device)[[0] * len(x)] if label_dim else None)
    with torch.autocast(x.device.type, dtype, enabled=dtype != torch.float32):
        denoise(x, torch.ones([], device=x.device))
    return int(denoise.forward[0])
