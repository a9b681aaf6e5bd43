"""Running on several processes under torchrun; with one process nothing is set up and nothing is needed."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import psutil
import torch
import torch.distributed as dist
from torch import Tensor

from dnnlib.errors import UserError

T = TypeVar("T")

# How long ranks wait for each other: as long as one chunk of images may take, which is far more than torch's default.
PATIENCE = timedelta(days=1)
_BROADCAST_BYTES = 1 << 26


def pick_device(name: str) -> torch.device:
    """The device for `auto|cpu|cuda|mps`; on CUDA the one of this process. UserError if there is none."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device=cuda: torch finds no CUDA device here; use --device=cpu")
    if name == "mps" and not torch.backends.mps.is_available():
        raise UserError("--device=mps: torch finds no MPS device here; use --device=cpu")
    if name != "cuda":
        return torch.device(name)
    index, count = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
    if index >= count:
        raise UserError(
            f"--device=cuda: local rank {index} has no GPU, for there are {count}; use --nproc_per_node={count}"
        )
    return torch.device(name, index)


def init(device: torch.device) -> None:
    """Join the process group that torchrun announces: nccl on CUDA, gloo elsewhere; nothing when alone."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if world_size() > 1 and not dist.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=_store(), rank=rank(), world_size=world_size(), timeout=PATIENCE)


def _store() -> Any:
    """Where ranks find each other's addresses, one for each restart of an elastic run.

    Some versions of torch (2.13) leave the last attempt's addresses in the launcher's store, and a rank that is early
    then waits at the door of a dead one.
    """
    from torch.distributed.distributed_c10d import PrefixStore  # not in every build of torch
    from torch.distributed.rendezvous import rendezvous

    store, _, _ = next(rendezvous("env://", timeout=PATIENCE))
    store.set_timeout(PATIENCE)
    return PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)


def close() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    return int(os.environ.get("RANK", 0))


def world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", 1))


def launched() -> bool:
    """Whether torchrun started this process: it then passes signals on, and each may arrive twice."""
    return "TORCHELASTIC_RUN_ID" in os.environ


@contextmanager
def _together() -> Iterator[None]:
    """The other ranks take part in this block. UserError if one of them is gone."""
    try:
        yield
    except RuntimeError:
        raise UserError(f"rank {rank()} stops because another rank has failed; its message says why") from None


def barrier() -> None:
    """Wait for all ranks. UserError if one of them is gone."""
    if dist.is_initialized():
        with _together():
            dist.barrier()


def all_sum(x: Tensor) -> None:
    """Adds up `x` over all ranks, in place; equal bits on every rank. UserError if one of them is gone."""
    if dist.is_initialized():
        with _together():
            dist.all_reduce(x)
            if x.is_cuda:
                torch.cuda.synchronize(x.device)  # nccl reports a lost rank no earlier


def from_rank0(data: bytes | None, device: torch.device) -> bytes:
    """The bytes that rank 0 gives, on every rank; the others give None. UserError if a rank is gone."""
    if not dist.is_initialized():
        assert data is not None
        return data
    with _together():
        length = torch.tensor([0 if data is None else len(data)], device=device)
        dist.broadcast(length, src=0)
        content = torch.empty(int(length), dtype=torch.uint8)
        if data is not None:
            content = torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else content
        for part in content.split(_BROADCAST_BYTES):  # type: ignore[no-untyped-call]
            on_device = part.to(device)
            dist.broadcast(on_device, src=0)
            part.copy_(on_device)
    return content.numpy().tobytes()


@contextmanager
def rank0_first() -> Iterator[None]:
    """Rank 0 runs the block before the others: it downloads, they find the file; its error is the only one."""
    if rank() != 0:
        barrier()
    yield
    if rank() == 0:
        barrier()


def shard(items: Sequence[T]) -> Sequence[T]:
    """The items of this rank: every world_size-th from its own rank on."""
    return items[rank() :: world_size()]


def usable_cores() -> int:
    """Cores that this process may use. The same for every rank, unlike torch's default under torchrun."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(allowed, psutil.cpu_count(logical=False) or allowed))


def oversubscription(threads: int) -> str | None:
    """What to say if the ranks of this machine run more threads than there are cores."""
    ranks, cores = int(os.environ.get("LOCAL_WORLD_SIZE", 1)), usable_cores()
    return (
        f"{ranks} ranks with {threads} threads share {cores} cores" if ranks > 1 and ranks * threads > cores else None
    )
