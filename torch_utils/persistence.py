"""Reads EDM's and EDM2's network pickles without running anything that they carry.

Persistent objects become inert `PersistentObject` records: class name and state, without the embedded source text.
Storages and arrays are checked against their bytes before anything is allocated; all tensors are on the CPU.
"""

from __future__ import annotations

import itertools
import math
import struct

import numpy as np
import torch
from torch import Tensor

from dnnlib.errors import UserError, shown
from torch_utils.pickle_arrays import NUMPY_NAMES, DType, naturals
from torch_utils.pickle_machine import Budget, Global, Machine, Record

MAX_OPERATIONS = 300_000  # the largest published networks need about 90,000
MAX_DEPTH = 8  # modules inside modules; EDM's reach five
MAX_MODULES = 20_000  # the largest published network has about 1,500
WIRE_CLASSES = frozenset(
    (
        *("EDMPrecond", "VPPrecond", "VEPrecond", "iDDPMPrecond", "SongUNet", "DhariwalUNet", "UNetBlock", "Linear"),
        *("Conv2d", "GroupNorm", "PositionalEmbedding", "FourierEmbedding", "EDMLoss", "VELoss", "VPLoss"),
        "AugmentPipe",
        *("Precond", "UNet", "Block", "MPConv", "MPFourier", "EDM2Loss"),  # of EDM2, as those below
        *("StandardRGBEncoder", "StabilityVAEEncoder"),
    )
)
_DTYPES = {
    "FloatStorage": torch.float32, "DoubleStorage": torch.float64, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
}  # fmt: skip
_STORAGE_NAMES = {("torch", name): Global(f"torch.{name}") for name in _DTYPES}
_LEGACY_MAGIC, _LEGACY_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001


class PersistentObject(Record):
    """A network, loss, encoder ... as the file describes it: nothing but its class name and its `__dict__`."""

    def __init__(self, class_name: str, state: dict[object, object]) -> None:
        self.class_name, self.state = class_name, state


class ModuleDictStub(PersistentObject):
    """Stands for torch.nn.ModuleDict: only its `_modules` matter."""

    def __init__(self) -> None:
        super().__init__("ModuleDict", {})

    def build(self, state: object) -> None:
        if not isinstance(state, dict):
            raise UserError("damaged or hostile pickle: a ModuleDict whose state is not a dictionary")
        self.state = state


class Reader:
    """The constructors that a network pickle may call, and the budget that they share."""

    def __init__(self, data: memoryview) -> None:
        self.data = data
        self.budget = Budget(operations=MAX_OPERATIONS, nbytes=len(data))
        scalar = Global("numpy.scalar", self.scalar)
        self.names = {
            **NUMPY_NAMES,
            ("collections", "OrderedDict"): Global("OrderedDict", _empty_dict, dict),
            ("dnnlib.util", "EasyDict"): Global("EasyDict", _empty_dict, dict),
            ("numpy.core.multiarray", "scalar"): scalar,
            ("numpy._core.multiarray", "scalar"): scalar,
            ("torch._utils", "_rebuild_parameter"): Global("_rebuild_parameter", self.parameter),
            ("torch._utils", "_rebuild_tensor_v2"): Global("_rebuild_tensor_v2", self.tensor),
            ("torch.nn.modules.container", "ModuleDict"): Global("ModuleDict", new=ModuleDictStub),
            ("torch.storage", "_load_from_bytes"): Global("_load_from_bytes", self.storage),
            ("torch_utils.persistence", "_reconstruct_persistent_obj"): Global("persistent object", self.persistent),
        }

    def read(self) -> object:
        return Machine(self.data, self.names, self.budget).run()

    def persistent(self, arguments: tuple[object, ...]) -> PersistentObject:
        match arguments:
            case (
                {"type": str(kind), "version": int(version), "class_name": str(class_name), "state": dict(state)},
            ) if (kind, version) == ("class", 6):
                pass
            case _:
                raise UserError("not a persistent object of EDM's version 6; the file is damaged or of another kind")
        if class_name not in WIRE_CLASSES:
            raise UserError(f"refused: the pickle has an object of class {shown(class_name)}, unknown in networks")
        return PersistentObject(class_name, state)

    def scalar(self, arguments: tuple[object, ...]) -> object:
        match arguments:
            case (DType() as dtype, memoryview() as raw) if len(raw) == dtype.numpy.itemsize:
                return np.frombuffer(raw, dtype.numpy)[0].item()
        raise UserError("refused: the pickle has a NumPy scalar that is not a plain number")

    def parameter(self, arguments: tuple[object, ...]) -> Tensor:
        if not arguments or not isinstance(arguments[0], Tensor):
            raise UserError("damaged or hostile pickle: a parameter that is not a tensor")
        return arguments[0]

    def tensor(self, arguments: tuple[object, ...]) -> Tensor:
        """torch._utils._rebuild_tensor_v2(storage, offset, size, stride, ...): a view that stays inside its storage."""
        match arguments:
            case (Tensor() as storage, int(offset), tuple() as size, tuple() as stride, *_) if len(size) == len(stride):
                pass
            case _:
                raise UserError("damaged or hostile pickle: a tensor that is not described as torch describes one")
        size, stride = naturals(size, "the size of a tensor"), naturals(stride, "the stride of a tensor")
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if offset < 0 or not 0 < math.prod(size) <= len(storage) or last >= len(storage):
            raise UserError("refused: the pickle has a tensor that reaches outside of its storage")
        return torch.as_strided(storage, size, stride, offset)

    def storage(self, arguments: tuple[object, ...]) -> Tensor:
        """torch.storage._load_from_bytes: the bytes of one storage in torch's old format, here read as data.

        torch.load(weights_only=True) would do for a good file; this reader allocates nothing before the sizes have
        been compared with the bytes at hand, and does not stand or fall with the safety of the installed torch.
        """
        match arguments:
            case (memoryview() as raw,):
                pass
            case _:
                raise UserError("damaged or hostile pickle: a storage without bytes")
        at = 0
        parts: list[object] = []
        for _ in range(5):  # magic number, protocol, system, the storage, the list of keys
            machine = Machine(raw, _STORAGE_NAMES, self.budget, start=at, persistent=_storage_id)
            parts.append(machine.run())
            at = machine.at
        magic, protocol, system, found, keys = parts
        if magic != _LEGACY_MAGIC or protocol != _LEGACY_PROTOCOL or not isinstance(found, _StorageId):
            raise UserError("damaged or hostile pickle: not a storage in torch's format")
        if not isinstance(system, dict) or system.get("little_endian") is not True:
            raise UserError("the file was written on a big-endian machine; convert it there")
        dtype = _DTYPES[found.kind]
        start, nbytes = at + 8, found.numel * dtype.itemsize
        if keys != [found.key] or len(raw) != start + nbytes or raw[at:start] != struct.pack("<q", found.numel):
            raise UserError("damaged or hostile pickle: a storage whose size does not fit its bytes")
        self.budget.take(nbytes)
        return torch.frombuffer(bytearray(raw[start:]), dtype=dtype)


class _StorageId:
    def __init__(self, kind: str, key: str, numel: int) -> None:
        self.kind, self.key, self.numel = kind, key, numel


def _storage_id(pid: object) -> _StorageId:
    match pid:
        case ("storage", Global(name=name), str(key), str(), int(numel), None) if numel > 0:
            return _StorageId(name.removeprefix("torch."), key, numel)
    raise UserError("damaged or hostile pickle: a storage that is not described as torch describes one")


def _empty_dict(arguments: tuple[object, ...]) -> dict[str, object]:
    if arguments:
        raise UserError("refused: the pickle fills a dictionary in a way that no network needs")
    return {}


def read_pickle(data: memoryview) -> object:
    """What a network pickle holds, as dicts, lists, numbers, text, tensors and records. Raises UserError.

    Time and memory are bounded by the size of `data` and by MAX_OPERATIONS.
    """
    return Reader(data).read()


def module_tensors(module: PersistentObject) -> dict[str, Tensor]:
    """The parameters and buffers of a module by their names ("model.enc.16x16_conv.weight"), found in `_modules`.

    Raises UserError where the tree is malformed, too deep, or larger than the storages behind it.
    """
    tensors: dict[str, Tensor] = {}
    storages: dict[int, int] = {}
    waiting: list[tuple[str, int, PersistentObject]] = [("", 1, module)]
    for visited in itertools.count():
        if not waiting:
            break
        prefix, depth, parent = waiting.pop()
        if depth > MAX_DEPTH or visited > MAX_MODULES:  # one object may occur in many places, or inside itself
            raise UserError("refused: the pickle has modules inside modules without end")
        for name, tensor in (*_entries(parent, "_parameters"), *_entries(parent, "_buffers")):
            if isinstance(tensor, Tensor):
                storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
                tensors[prefix + name] = tensor
            elif tensor is not None:
                raise UserError(f"damaged or hostile pickle: {shown(prefix + name)} is not a tensor")
        for name, child in _entries(parent, "_modules"):
            if isinstance(child, PersistentObject):
                waiting.append((f"{prefix}{name}.", depth + 1, child))
            elif child is not None:
                raise UserError(f"damaged or hostile pickle: {shown(prefix + name)} is not a module")
        if len(waiting) + len(tensors) > 5 * MAX_MODULES:
            raise UserError("refused: the pickle has far more parts than any network")
    if sum(t.nbytes for t in tensors.values()) > sum(storages.values()):
        raise UserError("refused: the pickle has tensors that share their memory, to look larger than they are")
    return tensors


def _entries(module: PersistentObject, group: str) -> list[tuple[str, object]]:
    entries = module.state.get(group, {})
    if not isinstance(entries, dict) or not all(isinstance(name, str) and "." not in name for name in entries):
        raise UserError(f"damaged or hostile pickle: {group} of a {shown(module.class_name)} is malformed")
    return [(str(name), value) for name, value in entries.items()]
