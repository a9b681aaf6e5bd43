"""Files that are no networks, or say so wrongly; and, as a program, the report of loading every hostile file.

Run as `python tests/hostile_files.py FOLDER`: writes one JSON line per file, under a limit on memory.
"""

from __future__ import annotations

import copyreg
import json
import os
import resource
import struct
import sys
import time
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from hostile_pickles import OTHERS, RUNS_ELSEWHERE, Payload
from safetensors.torch import save
from vectors import GOLDEN

MEMORY = 400 << 20  # bytes on top of what Python and torch have mapped
HEADER: dict[str, Any] = {
    "schema_version": 1, "class_name": "EDMPrecond", "label_names": [], "kimg": None, "dataset": None,
    "tool_version": None, "extra": {}, "init_kwargs": {
        "img_resolution": 8, "img_channels": 1, "model_type": "SongUNet", "model_channels": 4, "channel_mult": [1],
        "num_blocks": 1,
    },
}  # fmt: skip


def snapshot(header: object, tensors: dict[str, torch.Tensor] | None = None) -> bytes:
    text = header if isinstance(header, str) else json.dumps(header)
    return save(tensors or {"model.map_layer0.bias": torch.zeros(16)}, metadata={"header": text})


def with_kwargs(**kwargs: object) -> bytes:
    return snapshot({**HEADER, "init_kwargs": {**HEADER["init_kwargs"], **kwargs}})


def layout(entries: object, data: bytes = bytes(64), length: int | None = None) -> bytes:
    """A safetensors file written by hand, where nothing needs to be true."""
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(begin: int, end: int, dtype: str = "F32", shape: tuple[int, ...] = (8,)) -> dict[str, object]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def genuine(keep: float | int) -> bytes:
    """The beginning of a real pickle: a fraction, or all but some bytes."""
    content = (GOLDEN / "pickles" / "edm-ncsnpp-cond.pkl").read_bytes()
    return content[: int(len(content) * keep)] if isinstance(keep, float) else content[:keep]


def a_zip() -> bytes:
    out = BytesIO()
    with zipfile.ZipFile(out, "w") as z:
        z.writestr("archive/data.pkl", RUNS_ELSEWHERE["reduce os.system"](Path("canary")))
    return out.getvalue()


FILES: dict[str, Payload] = {
    "empty file": lambda c: b"",
    "web page": lambda c: b"\n<!DOCTYPE html>\n<html><body>Sign in to download</body></html>",
    "zip of torch.save": lambda c: a_zip(),
    "text": lambda c: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
    "zeros": lambda c: bytes(100_000),
    "one byte": lambda c: b"\x80",
    "protocol 9": lambda c: b"\x80\x09N.",
    "pickle cut after 10 bytes": lambda c: genuine(10),
    "pickle cut in half": lambda c: genuine(0.5),
    "pickle without its last byte": lambda c: genuine(-1),
    "header longer than the file": lambda c: layout({"a": entry(0, 32)}, length=10**6),
    "header of 2^62 bytes": lambda c: layout({"a": entry(0, 32)}, length=2**62),
    "header shorter than its JSON": lambda c: layout({"a": entry(0, 32)}, length=10),
    "header that is not JSON": lambda c: layout(b"{not json at all}"),
    "header that is not UTF-8": lambda c: layout(b'{"\xff\xfe": 1}'),
    "header with a list for a tensor": lambda c: layout({"a": []}),
    "offsets that overlap": lambda c: layout({"a": entry(0, 32), "b": entry(16, 48)}),
    "offsets beyond the file": lambda c: layout({"a": entry(0, 4000, shape=(1000,))}),
    "offsets that run backwards": lambda c: layout({"a": entry(32, 0)}),
    "shape that does not fit its bytes": lambda c: layout({"a": entry(0, 64, shape=(2**40, 2**40))}),
    "unknown type": lambda c: layout({"a": entry(0, 32, dtype="PY_OBJECT")}),
    "bytes behind the tensors": lambda c: layout({"a": entry(0, 32)}, data=bytes(1000)),
    "no metadata": lambda c: save({"a": torch.zeros(4)}),
    "foreign metadata": lambda c: save({"a": torch.zeros(4)}, metadata={"format": "pt"}),
    "metadata that is no text": lambda c: layout({"__metadata__": {"header": 7}, "a": entry(0, 64, shape=(16,))}),
    "network header that is not JSON": lambda c: snapshot("{"),
    "network header that is a list": lambda c: snapshot([1, 2]),
    "network header nested without end": lambda c: snapshot("[" * 100_000),
    "network header of 2 MB": lambda c: snapshot(json.dumps(["x" * 2_000_000])),
    "network header with NaN": lambda c: snapshot('{"kimg": NaN}'),
    "network header with a huge number": lambda c: snapshot('{"kimg": ' + "9" * 100_000 + "}"),
    "network header of schema 99": lambda c: snapshot({**HEADER, "schema_version": 99}),
    "network header with more entries": lambda c: snapshot({**HEADER, "__reduce__": "os.system"}),
    "network header without arguments": lambda c: snapshot({**HEADER, "init_kwargs": None}),
    "class os.system": lambda c: snapshot({**HEADER, "class_name": "os.system"}),
    "class that is a U-Net": lambda c: snapshot({**HEADER, "class_name": "SongUNet"}),
    "labels for no classes": lambda c: snapshot({**HEADER, "label_names": ["a"] * 5}),
    "snapshot with absurd resolution": lambda c: with_kwargs(img_resolution=2**40),
    "snapshot with absurd channels": lambda c: with_kwargs(model_channels=4096, channel_mult=[64]),
    "snapshot with absurd blocks": lambda c: with_kwargs(num_blocks=16),
    "snapshot with an unknown argument": lambda c: with_kwargs(__init__="x"),
    "snapshot with a nested list": lambda c: with_kwargs(attn_resolutions=[[8]]),
    "snapshot with missing tensors": lambda c: snapshot(HEADER),
    "snapshot with integer tensors": lambda c: integers(),
}  # fmt: skip


def integers() -> bytes:
    """Every tensor in place, but as whole numbers."""
    from training.networks import EDMPrecond

    net = EDMPrecond(**HEADER["init_kwargs"])
    return snapshot(HEADER, {k: t.to(torch.int32).contiguous() for k, t in net.state_dict().items()})


ALL = {**RUNS_ELSEWHERE, **OTHERS, **FILES}


def main(folder: Path) -> None:
    from training.checkpoint import load_denoiser

    torch.set_num_threads(1)
    copyreg.add_extension("os", "system", 0xF0)
    payloads = {name: payload(folder / f"canary-{i}") for i, (name, payload) in enumerate(ALL.items())}
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (mapped + MEMORY, mapped + MEMORY))
    for i, (name, content) in enumerate(payloads.items()):
        path = folder / f"payload-{i}"
        path.write_bytes(content)
        start, kind, message = time.process_time(), "loaded", ""
        try:
            load_denoiser(path)
        except Exception as e:
            kind, message = type(e).__name__, str(e)
        seconds = time.process_time() - start
        ran = (folder / f"canary-{i}").exists()
        print(json.dumps({"name": name, "kind": kind, "message": message, "seconds": seconds, "ran": ran}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
