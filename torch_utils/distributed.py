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

from dnnlib.errors import OtherRankError, UserError, counted, shown

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
    index, count = _local_rank(), torch.cuda.device_count()
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
        if missing := [name for name in ("MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]:
            raise UserError(f"WORLD_SIZE={world_size()} is set without {missing[0]}; {_REMEDY}")
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=_store(), rank=rank(), world_size=world_size(), timeout=PATIENCE)


def begin(device: str, threads: int | None) -> torch.device:
    """How a command that samples begins: its device and threads (None: `own_cores`), the group of its ranks.

    Denormals are flushed, for they slow a CPU down. UserError as `pick_device` and `init`.
    """
    where = pick_device(device)
    torch.set_num_threads(threads or own_cores())
    torch.set_flush_denormal(True)
    init(where)
    return where


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


_REMEDY = "start the ranks with torchrun, or unset WORLD_SIZE for one process"


def rank() -> int:
    """The number of this process among those of the run. A RANK without a WORLD_SIZE is another program's, left over.

    Raises UserError: WORLD_SIZE says that there are several, and RANK is none of them.
    """
    world = world_size()
    if world == 1:
        return 0
    found = _number("RANK", least=0)
    if found is None or found >= world:
        said = "is set without RANK" if found is None else f"has no rank {found}"
        raise UserError(f"WORLD_SIZE={world} {said}; {_REMEDY}")
    return found


def world_size() -> int:
    """How many processes the run has. UserError for a WORLD_SIZE that is no number."""
    return _number("WORLD_SIZE", least=1) or 1


def _local_rank() -> int:
    """The number of this process on its machine."""
    return (_number("LOCAL_RANK", least=0) or 0) if world_size() > 1 else 0


def _local_world_size() -> int:
    """How many of the run's processes are on this machine."""
    return (_number("LOCAL_WORLD_SIZE", least=1) or 1) if world_size() > 1 else 1


def _number(name: str, *, least: int) -> int | None:
    """A variable that torchrun sets; None where it is not set, or empty."""
    text = os.environ.get(name, "").strip()
    if not text:
        return None
    if not text.isdecimal() or int(text) < least:
        raise UserError(f"{name}={shown(text)} in the environment is no number from {least} on; {_REMEDY}")
    return int(text)


def launched() -> bool:
    """Whether torchrun started this process: it then passes signals on, and each may arrive twice."""
    return "TORCHELASTIC_RUN_ID" in os.environ


@contextmanager
def _together() -> Iterator[None]:
    """The other ranks take part in this block. UserError if one of them is gone."""
    try:
        yield
    except RuntimeError:
        raise OtherRankError(f"rank {rank()} stops because another rank has failed; its message says why") from None


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


def gather(item: T) -> list[T]:
    """What each rank gives, by rank, on every rank. UserError if one of them is gone."""
    if not dist.is_initialized():
        return [item]
    items: list[Any] = [None] * world_size()
    with _together():
        dist.all_gather_object(items, item)
    return items


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


def own_cores() -> int:
    """The cores that fall to this process where the ranks of its machine share them; one at least."""
    return max(1, usable_cores() // _local_world_size())


def oversubscription(threads: int) -> str | None:
    """What to say if the ranks of this machine run more threads than there are cores."""
    ranks, cores = _local_world_size(), usable_cores()
    if ranks == 1 or ranks * threads <= cores:
        return None
    remedy = f"leave --threads out, or give --threads={own_cores()}" if threads > 1 else f"--nproc_per_node={cores}"
    return f"Slow: {counted(ranks, 'rank')} with {counted(threads, 'thread')} each share {cores} cores; {remedy}"
