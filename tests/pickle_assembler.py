"""Pickles assembled opcode by opcode, as an attacker would: the parts that hostile_pickles.py is made of."""

from __future__ import annotations

import struct

MARK, TUPLE, REDUCE, BUILD, NEWOBJ = b"(", b"t", b"R", b"b", b"\x81"


def text(s: str) -> bytes:
    return b"X" + struct.pack("<I", len(s.encode())) + s.encode()


def blob(content: bytes) -> bytes:
    return b"B" + struct.pack("<I", len(content)) + content


def num(n: int | float) -> bytes:
    if isinstance(n, float):
        return b"G" + struct.pack(">d", n)
    return b"J" + struct.pack("<i", n) if -(2**31) <= n < 2**31 else b"\x8a\x10" + n.to_bytes(16, "little", signed=True)


def name(module: str, attribute: str) -> bytes:
    return text(module) + text(attribute) + b"\x93"


def tup(*items: bytes) -> bytes:
    return MARK + b"".join(items) + TUPLE


def lst(*items: bytes) -> bytes:
    return b"](" + b"".join(items) + b"e"


def obj(**items: bytes) -> bytes:
    return b"}(" + b"".join(text(k) + v for k, v in items.items()) + b"u"


def call(function: bytes, *arguments: bytes) -> bytes:
    return function + tup(*arguments) + REDUCE


def program(body: bytes) -> bytes:
    return b"\x80\x04" + body + b"."


PERSISTENT = name("torch_utils.persistence", "_reconstruct_persistent_obj")
MODULE_DICT = name("torch.nn.modules.container", "ModuleDict")
LOAD_STORAGE = name("torch.storage", "_load_from_bytes")
TENSOR = name("torch._utils", "_rebuild_tensor_v2")
RECONSTRUCT = name("numpy.core.multiarray", "_reconstruct")
KWARGS = {
    "img_resolution": num(8), "img_channels": num(1), "model_type": text("SongUNet"), "model_channels": num(4),
    "channel_mult": lst(num(1)), "num_blocks": num(1),
}  # fmt: skip


def persistent(class_name: str, state: bytes, source: str = "") -> bytes:
    meta = obj(type=text("class"), version=num(6), module_src=text(source), class_name=text(class_name), state=state)
    return call(PERSISTENT, meta)


def network(class_name: str = "EDMPrecond", *, modules: bytes = b"}", state: bytes = b"", **changes: bytes) -> bytes:
    kwargs = obj(**{**KWARGS, **changes})
    parts = obj(_parameters=b"}", _buffers=b"}", _modules=modules, _init_args=b")", _init_kwargs=kwargs)
    return program(obj(ema=persistent(class_name, parts + (MARK + state + b"u" if state else b""))))


def float_storage(numel: int, *, claimed: int | None = None) -> bytes:
    """A storage in torch's old format; `claimed` lies about its length."""
    head = [num(0x1950A86A20F9469CFC6C), num(1001), obj(little_endian=b"\x88")]
    pid = tup(text("storage"), name("torch", "FloatStorage"), text("0"), text("cpu"), num(claimed or numel), b"N")
    pickles = b"".join(program(part) for part in [*head, pid + b"Q", lst(text("0"))])
    return pickles + struct.pack("<q", claimed or numel) + bytes(4 * numel)


def tensor(numel: int, offset: int, size: list[int], stride: list[int], claimed: int | None = None) -> bytes:
    held = call(LOAD_STORAGE, blob(float_storage(numel, claimed=claimed)))
    return call(TENSOR, held, num(offset), tup(*map(num, size)), tup(*map(num, stride)), b"\x89", b"}")


def with_tensor(content: bytes) -> bytes:
    return network(modules=obj(model=persistent("SongUNet", obj(_parameters=obj(weight=content)))))
