"""Pickles that attack their reader. {name: (canary path -> bytes)}; an attack that succeeds creates the canary.

`RUNS_ELSEWHERE` are those that Python's own Unpickler falls for (a test checks that they do), `OTHERS` the rest.
"""

from __future__ import annotations

import io
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path

import torch
from pickle_assembler import (
    BUILD,
    KWARGS,
    LOAD_STORAGE,
    MARK,
    MODULE_DICT,
    NEWOBJ,
    RECONSTRUCT,
    REDUCE,
    TENSOR,
    blob,
    call,
    float_storage,
    lst,
    name,
    network,
    num,
    obj,
    persistent,
    program,
    tensor,
    text,
    tup,
    with_tensor,
)

Payload = Callable[[Path], bytes]


class _Attack:
    """Pickles as a call of os.system."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (self.command,)


def touch(canary: Path) -> str:
    return f"touch {canary}"


def shell(canary: Path) -> bytes:
    return call(name("os", "system"), text(touch(canary)))


def python(canary: Path) -> bytes:
    return text(f"open({str(canary)!r}, 'w').close()")


def in_nested_storage(canary: Path, *, zipped: bool) -> bytes:
    out = io.BytesIO()
    torch.save({"storage": _Attack(touch(canary))}, out, _use_new_zipfile_serialization=zipped)
    return with_tensor(call(TENSOR, call(LOAD_STORAGE, blob(out.getvalue())), num(0), tup(num(1)), tup(num(1))))


def in_object_array(canary: Path) -> bytes:
    array = call(RECONSTRUCT, name("numpy", "ndarray"), tup(num(0)), blob(b"b"))
    dtype = call(name("numpy", "dtype"), text("O8"), b"\x89", b"\x88")
    dtype += tup(num(3), text("|"), b"NNN", num(-1), num(-1), num(63)) + BUILD
    return program(array + tup(num(1), tup(num(1)), dtype, b"\x89", lst(shell(canary))) + BUILD)


def in_object_scalar(canary: Path) -> bytes:
    dtype = call(name("numpy", "dtype"), text("O8"), b"\x89", b"\x88")
    scalar = name("numpy._core.multiarray", "scalar")
    return program(call(scalar, dtype, blob(pickle.dumps(_Attack(touch(canary)), 2))))


def setstate(function: bytes, argument: bytes) -> bytes:
    """An object that gets its own __setstate__ as a first state, and a second state for it."""
    easy = name("dnnlib.util", "EasyDict") + b")" + NEWOBJ
    return program(easy + obj(__setstate__=function) + BUILD + argument + BUILD)


def nested(canary: Path, *, zipped: bool) -> bytes:
    """What EDM's `_load_from_bytes` hands to an unrestricted torch.load."""
    out = io.BytesIO()
    torch.save(_Attack(touch(canary)), out, _use_new_zipfile_serialization=zipped)
    return blob(out.getvalue())


def import_os(c: Path) -> bytes:
    return call(name("importlib", "import_module"), text("os"))


def two(first: bytes, second: bytes) -> bytes:
    return program(tup(first, second))


def edm2(encoder: bytes = b"N", **changes: bytes) -> bytes:
    """An EDM2 network without its tensors, in the container with an encoder."""
    kwargs = obj(**{**KWARGS, "model_type": text("EDM2UNet"), **changes})
    state = obj(_parameters=b"}", _buffers=b"}", _modules=b"}", _init_args=b")", _init_kwargs=kwargs)
    return program(obj(encoder=encoder, ema=persistent("Precond", state)))


def vae(**state: bytes) -> bytes:
    return persistent("StabilityVAEEncoder", obj(**state))


def object_array(canary: Path) -> bytes:
    """A NumPy array of objects, as NumPy 2 spells it, that is filled by a command."""
    array = call(name("numpy._core.multiarray", "_reconstruct"), name("numpy", "ndarray"), tup(num(0)), blob(b"b"))
    dtype = call(name("numpy", "dtype"), text("O8"), b"\x89", b"\x88")
    dtype += tup(num(3), text("|"), b"NNN", num(-1), num(-1), num(63)) + BUILD
    return array + tup(num(1), tup(num(1)), dtype, b"\x89", lst(shell(canary))) + BUILD


RUNS_ELSEWHERE: dict[str, Payload] = {
    "reduce os.system": lambda c: program(shell(c)),
    "reduce os.system inside a genuine layout": lambda c: program(obj(loss_fn=shell(c), ema=b"N")),
    "reduce posix.system, protocol 2": lambda c: b"\x80\x02cposix\nsystem\n" + tup(text(touch(c))) + b"R.",
    "reduce os.system, protocol 0": lambda c: f"cos\nsystem\n(V{touch(c)}\ntR.".encode(),
    "reduce subprocess.call": lambda c: program(call(name("subprocess", "call"), lst(text("touch"), text(str(c))))),
    "reduce builtins.exec": lambda c: program(call(name("builtins", "exec"), python(c))),
    "reduce builtins.eval": lambda c: program(call(name("builtins", "eval"), python(c))),
    "reduce os.mkdir": lambda c: program(call(name("os", "mkdir"), text(str(c)))),
    "reduce shutil.copyfile": lambda c: program(call(name("shutil", "copyfile"), text("/dev/null"), text(str(c)))),
    "reduce runpy._run_code": lambda c: program(call(name("runpy", "_run_code"), python(c), obj(x=num(1)))),
    "reduce timeit.timeit": lambda c: program(
        call(name("timeit", "timeit"), python(c), text(""), name("time", "time"), num(1))
    ),
    "reduce pickle.loads": lambda c: program(call(name("pickle", "loads"), blob(pickle.dumps(_Attack(touch(c)))))),
    "getattr of an imported module": lambda c: program(
        call(call(name("builtins", "getattr"), import_os(c), text("system")), text(touch(c)))
    ),
    "operator.methodcaller": lambda c: program(
        call(call(name("operator", "methodcaller"), text("system"), text(touch(c))), import_os(c))
    ),
    "functools.partial": lambda c: program(
        call(call(name("functools", "partial"), name("os", "system"), text(touch(c))))
    ),
    "map over commands": lambda c: program(
        call(name("builtins", "list"), call(name("builtins", "map"), name("os", "system"), lst(text(touch(c)))))
    ),
    "dotted name through a permitted module": lambda c: program(
        call(name("dnnlib.util", "os.system"), text(touch(c)))
    ),
    "dotted name through a permitted module's import": lambda c: program(
        call(name("dnnlib.util", "Path.touch"), call(name("dnnlib.util", "Path"), text(str(c))))
    ),
    "build with __setstate__ = os.system": lambda c: setstate(name("os", "system"), text(touch(c))),
    "build with __setstate__ from permitted names only": lambda c: setstate(LOAD_STORAGE, nested(c, zipped=False)),
    "nested storage, old format": lambda c: program(call(LOAD_STORAGE, nested(c, zipped=False))),
    "nested storage, zip format": lambda c: program(call(LOAD_STORAGE, nested(c, zipped=True))),
    "NumPy object array": in_object_array,
    "INST": lambda c: b"\x80\x02(" + text(touch(c)) + b"ios\nsystem\n.",
    "OBJ": lambda c: program(MARK + name("os", "system") + text(touch(c)) + b"o"),
    "EXT1": lambda c: program(b"\x82\xf0" + tup(text(touch(c))) + REDUCE),
    "EXT2": lambda c: program(b"\x83\xf0\x00" + tup(text(touch(c))) + REDUCE),
    "EXT4": lambda c: program(b"\x84\xf0\x00\x00\x00" + tup(text(touch(c))) + REDUCE),
    "EDM2 encoder that is a command": lambda c: program(obj(encoder=shell(c), ema=b"N")),
    "EDM2 encoder's scale that is an object array": lambda c: program(obj(scale=object_array(c))),
    "after a good object": lambda c: two(call(name("collections", "OrderedDict")), shell(c)),
}  # fmt: skip


def doubling(levels: int = 60) -> bytes:
    """A list of twice a list of twice a list ...: 2^60 numbers when walked."""
    body = lst(num(1))
    for i in range(levels):
        body = lst(body + b"q" + bytes([i]), b"h" + bytes([i]))
    return body


def module_web() -> bytes:
    """Modules that each hold one child under 300 names: 300^6 modules when walked."""
    child = persistent("Linear", obj(_parameters=b"}"))
    for level in range(6):
        put, get = b"q" + bytes([level]), b"h" + bytes([level])
        child = persistent("UNetBlock", obj(_modules=obj(m=child + put, **{f"m{i}": get for i in range(300)})))
    return network(modules=obj(model=child))


def itself() -> bytes:
    """A ModuleDict inside itself."""
    again = obj(_modules=obj(again=b"h\xc8"))
    return network(modules=obj(model=MODULE_DICT + b")" + NEWOBJ + b"q\xc8" + again + BUILD))


def many_storages() -> bytes:
    """A megabyte of bytes, made into a storage a thousand times."""
    held = blob(float_storage(250_000)) + b"q\x01"
    return program(tup(held, (LOAD_STORAGE + b"h\x01\x85" + REDUCE) * 1000))


def shared_memory() -> bytes:
    """A thousand tensors over one storage, which looks like a network a thousand times as large."""
    held = call(LOAD_STORAGE, blob(float_storage(1000))) + b"q\x01"
    rest = [num(0), tup(num(1000)), tup(num(1)), b"\x89", b"}"]
    weights = {f"w{i}": call(TENSOR, b"h\x01" if i else held, *rest) for i in range(1000)}
    return network(modules=obj(model=persistent("SongUNet", obj(_parameters=obj(**weights)))))


def array(shape: list[int], code: str = "f8", raw: bytes = b"12345678") -> bytes:
    dtype = call(name("numpy", "dtype"), text(code)) + tup(num(3), text("<"), b"NNN", num(-1), num(-1), num(0)) + BUILD
    held = call(RECONSTRUCT, name("numpy", "ndarray"), tup(num(0)), blob(b"b"))
    return program(held + tup(num(1), tup(*map(num, shape)), dtype, b"\x89", blob(raw)) + BUILD)


OTHERS: dict[str, Payload] = {
    "source text of an unknown class": lambda c: program(
        persistent("Evil", obj(_init_kwargs=b"}"), source=f"open({str(c)!r}, 'w')")
    ),
    "NumPy object scalar": in_object_scalar,
    "NumPy type with fields": lambda c: program(
        call(name("numpy", "dtype"), text("f8")) + tup(num(3), text("|"), b"N", tup(text("a")), b"}", num(1)) + BUILD
    ),
    "NumPy reconstruction of another class": lambda c: program(
        call(RECONSTRUCT, name("collections", "OrderedDict"), tup(num(0)), blob(b"b"))
    ),
    "NEWOBJ with a command": lambda c: program(name("subprocess", "Popen") + tup(text(touch(c))) + NEWOBJ),
    "NEWOBJ with arguments": lambda c: program(name("collections", "OrderedDict") + tup(lst()) + NEWOBJ),
    "NEWOBJ_EX": lambda c: program(name("subprocess", "Popen") + b")" + obj(args=text(touch(c))) + b"\x92"),
    "PERSID": lambda c: program(b"Pos.system\n"),
    "BINPERSID": lambda c: program(text(touch(c)) + b"Q"),
    "out-of-band buffer": lambda c: b"\x80\x05\x97.",
    "build that replaces a function's defaults": lambda c: program(
        TENSOR + b"N" + obj(__defaults__=tup(num(1))) + b"\x86" + BUILD
    ),
    "build that changes a class": lambda c: program(
        name("dnnlib.util", "EasyDict") + obj(__getattr__=LOAD_STORAGE) + BUILD
    ),
    "build of an OrderedDict's class": lambda c: program(
        call(name("collections", "OrderedDict")) + obj(__class__=MODULE_DICT) + BUILD
    ),
    "call of a result": lambda c: program(call(call(name("collections", "OrderedDict")), text(touch(c)))),
    "storage inside a storage": lambda c: program(call(LOAD_STORAGE, blob(program(call(LOAD_STORAGE, blob(b"x")))))),
    "global with no end": lambda c: b"\x80\x02c" + b"a" * 500_000,
    "global that is not text": lambda c: program(num(1) + num(2) + b"\x93"),
    "bytes of absurd length": lambda c: program(b"\x8e" + struct.pack("<Q", 2**62)),
    "text of absurd length": lambda c: program(b"\x8d" + struct.pack("<Q", 2**62)),
    "frame of absurd length": lambda c: b"\x80\x04\x95" + struct.pack("<Q", 2**63) + b"N.",
    "number of 255 bytes": lambda c: program(b"\x8a\xff" + b"\x7f" * 255),
    "number of a gigabyte": lambda c: program(b"\x8b" + struct.pack("<i", 2**30)),
    "memo of absurd index": lambda c: program(b"Nr" + struct.pack("<I", 2**32 - 1)),
    "memo that was not set": lambda c: program(b"h\x05"),
    "a million steps": lambda c: program(b"N" * 1_000_000),
    "deep lists": lambda c: program(b"]" * 140_000 + b"a" * 139_999),
    "deep tuples as a key": lambda c: program(b"}" + b")" + b"\x85" * 200_000 + b"Ns"),
    "doubling lists as an argument": lambda c: network(channel_mult=doubling()),
    "doubling lists as a label": lambda c: network(label_dim=doubling()),
    "stack that is empty": lambda c: program(b"R"),
    "group without a beginning": lambda c: program(b"e"),
    "items for a number": lambda c: program(num(1) + MARK + num(1) + b"e"),
    "text that is not UTF-8": lambda c: program(b"X\x02\x00\x00\x00\xff\xfe"),
    "modules by the billion": lambda c: module_web(),
    "module inside itself": lambda c: itself(),
    "storages beyond the file's size": lambda c: many_storages(),
    "tensors that share memory": lambda c: shared_memory(),
    "tensor beyond its storage": lambda c: with_tensor(tensor(4, 0, [5], [1])),
    "tensor with a long stride": lambda c: with_tensor(tensor(4, 0, [2, 2], [1000, 1])),
    "tensor with a negative offset": lambda c: with_tensor(tensor(4, -1, [2], [1])),
    "tensor of 2^60 values by stride 0": lambda c: with_tensor(tensor(4, 0, [2**30, 2**30], [0, 0])),
    "storage that lies about its size": lambda c: with_tensor(tensor(4, 0, [4], [1], claimed=2**40)),
    "array beyond its bytes": lambda c: array([2**30, 2**30]),
    "array of text": lambda c: array([1], "U2"),
    "array of no size": lambda c: array([0, 2**39, 2**39], raw=b""),
    "resolution of a billion": lambda c: network(img_resolution=num(10**9)),
    "a billion blocks": lambda c: network(num_blocks=num(10**9)),
    "a trillion parameters": lambda c: network(model_channels=num(4096), channel_mult=lst(*[num(64)] * 3)),
    "a list of 150,000 levels": lambda c: network(channel_mult=lst(*[num(1)] * 150_000)),
    "negative channels": lambda c: network(model_channels=num(-4)),
    "levels that do not divide": lambda c: network(img_resolution=num(9), channel_mult=lst(num(1), num(1))),
    "model_type os.system": lambda c: network(model_type=text("os.system")),
    "use_fp16 as text": lambda c: network(use_fp16=text("yes")),
    "sigma_data not a number": lambda c: network(sigma_data=num(float("nan"))),
    "an unknown argument": lambda c: network(exec=text(touch(c))),
    "an argument with control characters": lambda c: network(**{"\x1b[2J\nError: all is well": num(1)}),
    "iDDPM with a billion levels": lambda c: network("iDDPMPrecond", M=num(10**9)),
    "EDM2 encoder whose VAE is a command": lambda c: edm2(vae(_vae=shell(c))),
    "EDM2 encoder whose scale is a command": lambda c: edm2(vae(scale=object_array(c))),
    "EDM2 encoder of another class": lambda c: edm2(persistent("Evil", obj(_vae=b"N"), source=f"open({str(c)!r},'w')")),
    "EDM2 with a vast encoder": lambda c: edm2(vae(scale=lst(*[num(1)] * 400_000))),
    "EDM2 without tensors": lambda c: edm2(),
    "EDM2 with a trillion parameters": lambda c: edm2(model_channels=num(4096), channel_mult=lst(*[num(64)] * 3)),
    "EDM2 with an embedding of a trillion": lambda c: edm2(model_channels=num(4096), channel_mult_emb=num(10**9)),
    "EDM2 with a trillion labels": lambda c: edm2(label_dim=num(10**12)),
    "EDM2 with a billion log-variance channels": lambda c: edm2(logvar_channels=num(10**9)),
    "EDM2 with a balance that is not a number": lambda c: edm2(concat_balance=num(float("nan"))),
    "EDM2 with a balance of two": lambda c: edm2(res_balance=num(2)),
    "EDM2 with heads of no channels": lambda c: edm2(channels_per_head=num(0)),
    "EDM2 that clips at less than nothing": lambda c: edm2(clip_act=num(-1)),
    "EDM2 with the U-Net alone": lambda c: network("UNet"),
    "no denoiser but a loss": lambda c: network("EDMLoss"),
    "no network at all": lambda c: pickle.dumps({"ema": None}),
    "no tensors": lambda c: network(),
    "positional arguments": lambda c: program(persistent("EDMPrecond", obj(_init_args=tup(num(1)), _init_kwargs=b"}"))),
}  # fmt: skip
