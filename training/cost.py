"""What training costs: FLOPs, memory and traffic of a step, counted on the network itself without running it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from training.loss import EDMLoss
from training.networks import NETWORKS

UPDATE_BYTES = 48  # per parameter: zeroing, norm, Adam (weight, gradient, two moments) and one EMA, reads and writes


@dataclass(frozen=True)
class Activations:
    """Bytes that the forward pass keeps for the backward pass: `fixed` (weights cast to 16 bits) + `per_image` B."""

    fixed: int
    per_image: int


@dataclass(frozen=True)
class NetworkCost:
    """One network's share of a training step. A multiplication and an addition are two FLOPs."""

    parameters: int
    forward: int  # FLOPs per image
    backward: int  # FLOPs per image, to the weights
    operations: int  # of one forward and backward pass in 16 bits, each of them one kernel or more
    fp32: Activations
    half: Activations  # bf16 or fp16 autocast

    def activations(self, precision: str, batch_gpu: int) -> int:
        kept = self.fp32 if precision == "fp32" else self.half
        return kept.fixed + kept.per_image * batch_gpu


@dataclass(frozen=True)
class Gpu:
    """Figures of the maker's data sheet; rates are per second."""

    name: str
    half_flops: float  # dense fp16 or bf16 products with float32 sums
    memory: float  # bytes
    memory_bytes: float  # to and from its own memory
    node_bytes: float  # to the next GPU of the same machine, in one direction
    network_bytes: float  # of the network ports of its whole machine, in one direction


@dataclass(frozen=True)
class Assumptions:
    """What a data sheet does not say."""

    achieved: float = 0.15  # of `half_flops`: what EDM's published training time implies (docs/scaling.md)
    launch: float = 8e-6  # seconds from one kernel's start to the next one's, at least
    link: float = 0.7  # of the links' rate
    gpus_per_node: int = 8


def network_cost(class_name: str, init_kwargs: Mapping[str, Any]) -> NetworkCost:
    """Counted in fake tensors, which have shapes and no values: no memory, and no time that depends on the size.

    Activations are those of torch's autograd, each storage once, without weights; for 16 bits with CUDA's rules for
    autocast. What lives only within one operation (workspaces, the gradients that travel back) is not in it.
    """
    with FakeTensorMode():
        net = NETWORKS[class_name](**init_kwargs).train()
        with FlopCounterMode(display=False) as forward:
            loss = _loss(net, init_kwargs, 1)
        with FlopCounterMode(display=False) as backward:
            loss.backward()  # type: ignore[no-untyped-call]
        with _Operations() as operations, _autocast(enabled=True):  # type: ignore[no-untyped-call]
            _loss(net, init_kwargs, 1).backward()  # type: ignore[no-untyped-call]
        fp32, half = (_activations(net, init_kwargs, half=half) for half in (False, True))
        parameters = sum(p.numel() for p in net.parameters())
    return NetworkCost(parameters, forward.get_total_flops(), backward.get_total_flops(), operations.count, fp32, half)


def memory(cost: NetworkCost, *, precision: str, batch_gpu: int, num_emas: int = 1) -> dict[str, int]:
    """Bytes on one GPU in a step; all but the activations are float32, on every GPU, and there between steps too."""
    P = 4 * cost.parameters
    return {
        "weights": P,
        "gradients": P,
        "Adam": 2 * P,
        "EMA": num_emas * P,
        "activations": cost.activations(precision, batch_gpu),
    }


def largest_batch_gpu(cost: NetworkCost, gpu: Gpu, *, precision: str, spare: float = 0.15) -> int:
    """The largest power of two that fits with a share `spare` left for workspaces; 0 if none does."""
    kept = cost.activations(precision, 1) - cost.activations(precision, 0)
    room = gpu.memory * (1 - spare) - sum(memory(cost, precision=precision, batch_gpu=0).values())
    return 1 << int(math.log2(room / kept)) if room >= kept else 0


def all_reduce_bytes(parameters: int, ranks: int) -> int:
    """What each rank sends (and receives) to sum float32 gradients around a ring: 2 (n - 1) / n times their size."""
    return round(2 * (ranks - 1) / ranks * 4 * parameters)


@dataclass(frozen=True)
class StepTime:
    """Seconds of one optimiser step on each rank; nothing overlaps."""

    passes: float  # forward and backward
    update: float
    all_reduce: float

    @property
    def total(self) -> float:
        return self.passes + self.update + self.all_reduce


def step_time(cost: NetworkCost, gpu: Gpu, *, batch: int, batch_gpu: int, ranks: int, assumed: Assumptions) -> StepTime:
    """A step on `batch` images in rounds of `batch_gpu` on each rank, in 16 bits.

    A round takes what its FLOPs need, or what starting its kernels needs if that is longer. Between machines, the parts
    of the gradients go around several rings at once, one through each network port.
    """
    share = -(-batch // ranks)
    rounds = -(-share // batch_gpu)
    computing = share * (cost.forward + cost.backward) / (gpu.half_flops * assumed.achieved)
    link = gpu.node_bytes if ranks <= assumed.gpus_per_node else min(gpu.node_bytes, gpu.network_bytes)
    return StepTime(
        passes=max(computing, rounds * cost.operations * assumed.launch),
        update=UPDATE_BYTES * cost.parameters / gpu.memory_bytes,
        all_reduce=all_reduce_bytes(cost.parameters, ranks) / (link * assumed.link),
    )


def _loss(net: nn.Module, init_kwargs: Mapping[str, Any], B: int) -> Tensor:
    C, R, A = init_kwargs["img_channels"], init_kwargs["img_resolution"], init_kwargs.get("augment_dim", 0)
    draws = {"n": torch.zeros(B), "noise": torch.zeros(B, C, R, R)}
    labels = torch.zeros(B, L) if (L := init_kwargs.get("label_dim", 0)) else None
    augment_labels = torch.zeros(B, A) if A else None
    return EDMLoss()(net, torch.zeros(B, C, R, R), labels, **draws, augment_labels=augment_labels).sum()


def _activations(net: nn.Module, init_kwargs: Mapping[str, Any], *, half: bool) -> Activations:
    one, two = (_saved_bytes(net, init_kwargs, B, half=half) for B in (1, 2))
    return Activations(fixed=2 * one - two, per_image=two - one)


def _saved_bytes(net: nn.Module, init_kwargs: Mapping[str, Any], B: int, *, half: bool) -> int:
    own = {t.untyped_storage()._cdata for t in (*net.parameters(), *net.buffers())}
    kept: dict[int, torch.UntypedStorage] = {}  # the storages themselves, so that no address is used twice

    def keep(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t), _autocast(enabled=half):
        _loss(net, init_kwargs, B)
    return sum(storage.nbytes() for storage in kept.values())


@contextmanager
def _autocast(*, enabled: bool) -> Iterator[None]:
    """Autocast to 16 bits by CUDA's rules, of which the CPU lacks one that matters here: group norm in float32."""
    with torch.autocast("cpu", torch.bfloat16, enabled=enabled), _GroupNorm32() if enabled else nullcontext():
        yield


class _GroupNorm32(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.group_norm:
            args = tuple(a.float() if isinstance(a, Tensor) else a for a in args)
        return func(*args, **(kwargs or {}))


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what computes: views and questions about tensors start no kernel."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.namespace == "aten" and not func.is_view
        return func(*args, **(kwargs or {}))
