"""Images for the metrics, in blocks: from a folder or zip, from two of them in pairs, or from a network.

A block is a batch. Blocks are cut before ranks are considered, so that an image has the same batch, and the same
features to the bit, whatever the number of ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dnnlib.errors import UserError, counted, user_errors
from rods.base_samplers import Sampler
from rods.config import to_json
from rods.guidance import Guidance
from rods.runs.chunk import check_class, cut_chunks
from rods.runs.decode import check_channels
from rods.runs.folder import image_key
from rods.runs.guidance import guidance_text, guided_network
from rods.runs.options import respell
from rods.runs.run import Job, sample_pixels
from training.checkpoint import Snapshot
from training.dataset import ImageDataset


@dataclass(frozen=True)
class Source:
    """Images in blocks."""

    what: str
    num: int
    num_blocks: int
    load: Callable[[int], Tensor]  # block -> uint8 [b, C, H, W]
    left_out: int = 0  # images without a partner
    passed_over: str | None = None  # files that may be missed, and why


def image_source(
    path: str,
    *,
    option: str,
    batch: int,
    num: int | None = None,
    most: int | None = None,
    seed: int = 0,
    names: Sequence[str] | None = None,
) -> Source:
    """The images of a folder or zip in EDM's format, or of a run of generate.py.

    Args:
        option: the option that named `path`, for messages.
        names: these images and no others, in their order in the folder; None for all.
        num: how many; None for all, or for `most` of them. Where there are more, a random choice by `seed`.
    Raises:
        UserError: no such images, fewer than `num`, or fewer than two.
    """
    dataset = ImageDataset(path, cache=False, option=option)
    wanted_names = None if names is None else set(names)
    indices = [i for i, name in enumerate(dataset.names) if wanted_names is None or name in wanted_names]
    if num is not None and num > len(indices):
        raise UserError(
            f"--num={num}: {option}={path} has {counted(len(indices), 'image')}; give --num={len(indices)} or fewer"
        )
    if len(indices) < 2:
        raise UserError(f"{option}={path} has one image; a spread needs two or more")
    wanted = num or min(most or len(indices), len(indices))
    if wanted < len(indices):
        chosen = np.random.default_rng(seed).choice(len(indices), wanted, replace=False)
        indices = [indices[i] for i in np.sort(chosen)]
    return _source(dataset, indices, batch)


def paired_sources(a: str, b: str, *, batch: int) -> tuple[Source, Source]:
    """The images of equal names in two folders or zips, in one order. Raises UserError for fewer than 4 pairs.

    A name is the path in the folder or zip, but for the subfolders that generate.py --subdirs makes.
    """
    sides = [ImageDataset(path, cache=False, option=option) for path, option in ((a, "A"), (b, "B"))]
    tables = [{image_key(name): i for i, name in enumerate(dataset.names)} for dataset in sides]
    common = sorted(tables[0].keys() & tables[1].keys())
    if len(common) < 4:
        raise UserError(
            f"A={a} and B={b} have {counted(len(common), 'image')} of equal names (paths in their folders); "
            "compare runs of the same 4 seeds or more"
        )
    one, two = (
        _source(dataset, [table[name] for name in common], batch, left_out=len(dataset) - len(common))
        for dataset, table in zip(sides, tables, strict=True)
    )
    return one, two


def network_source(
    snapshot: Snapshot,
    sampler: Sampler,
    seeds: Sequence[int],
    *,
    batch: int,
    device: torch.device,
    class_index: int | None = None,
    guidance: Guidance | None = None,
) -> Source:
    """The samples of a network, made when they are needed and never written: the pixels that generate.py saves.

    Raises UserError: options that do not suit the network.
    """
    made = snapshot.header.init_kwargs
    check_channels(snapshot.net, option="--from-network")
    network = guided_network(snapshot.net, guidance, device=device)
    with user_errors(spelled=respell):
        check_class(class_index, made.get("label_dim", 0))
        sampler.check(network.denoiser)
    network.check(sampler)
    chunks = cut_chunks(seeds, batch=batch)
    job = Job(denoiser=network.denoiser, sampler=sampler, chunks=chunks, device=device, network_sha256=snapshot.sha256,
              batch=batch, class_index=class_index, guidance=network.identity)  # fmt: skip
    guided_by = f", {guidance_text(guidance)}" if guidance else ""
    seeded = f"{counted(len(seeds), 'seed')}, {seeds[0]} to {seeds[-1]}"
    what = f"{snapshot.describe()}, {to_json(sampler)}{guided_by}, {seeded}"
    return Source(what, len(seeds), len(chunks), lambda block: sample_pixels(job, chunks[block]))


def _source(dataset: ImageDataset, indices: list[int], batch: int, *, left_out: int = 0) -> Source:
    blocks = [indices[i : i + batch] for i in range(0, len(indices), batch)]
    return Source(
        str(dataset.path),
        len(indices),
        len(blocks),
        lambda k: dataset.batch(blocks[k])[0],
        left_out,
        dataset.left_out,
    )
