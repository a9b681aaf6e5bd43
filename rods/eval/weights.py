"""Reading the weights of feature extractors: no code in a file is run, and every tensor is checked.

The exception is TorchScript, which is a program: it runs only where the user names its checksum.
"""

from __future__ import annotations

import io
import os
import pickletools
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from dnnlib.errors import UserError, shown
from dnnlib.util import check_sha256, looks_like_html, open_url

_MAX_FILE = 2 << 30
_COUNTER = ".num_batches_tracked"  # of batch normalisation in training; some files have it, some do not


def local_file(source: str | os.PathLike[str], *, option: str) -> tuple[Path, str]:
    """(path, sha256) of a local file or an address. Raises UserError, naming the option, where there is none."""
    text = os.fspath(source)
    path = open_url(text) if "://" in text else Path(text)
    if not path.is_file():
        raise UserError(f"{option}={text}: there is no such file; check the path")
    if not 0 < path.stat().st_size <= _MAX_FILE:
        raise UserError(f"{option}={text} has {path.stat().st_size} bytes, so it holds no weights; fetch it again")
    return path, check_sha256(path, None)


def read_weights(path: Path, *, where: str) -> dict[str, Tensor]:
    """{name: tensor} of a safetensors file or a state dict of torch.save, on the CPU.

    Raises UserError: TorchScript, damaged, or something else than named tensors.
    """
    with open(path, "rb") as f:
        start = f.read(1024)
    if looks_like_html(start):
        raise UserError(f"{where} is a web page, not a file of weights; open its address in a browser to see why")
    if is_torchscript(path):
        raise UserError(
            f"{where} holds TorchScript, which is a program and runs when it is read; use "
            "pt_inception-2015-12-05-6726825d.pth, or, if you know the file, add --trust-detector=ITS-SHA256"
        )
    try:
        if start[:2] == b"PK" or start[:1] == b"\x80":
            found: Any = torch.load(path, map_location="cpu", weights_only=True)
        else:
            found = load_file(path)
    except SafetensorError as e:
        raise UserError(f"{where} is not a file of weights ({shown(str(e))}); fetch it again") from None
    except Exception as e:  # readers of damaged files raise nearly anything: RuntimeError, EOFError, KeyError, ...
        reason = str(e).split("\n")[0].split(". ")[0] or type(e).__name__
        raise UserError(f"{where} cannot be read as weights ({shown(reason)}); fetch it again") from None
    if not (isinstance(found, dict) and found and all(_is_named_tensor(k, v) for k, v in found.items())):
        raise UserError(f"{where} does not hold named tensors, so it is not a state dict; name another file")
    return dict(found)


def load_into(net: nn.Module, weights: dict[str, Tensor], *, where: str) -> None:
    """Copies weights into a network. Raises UserError: a missing, unknown, misshapen or not finite tensor, by name."""
    wanted = {name: t for name, t in net.state_dict().items() if not name.endswith(_COUNTER)}
    given = {name: t for name, t in weights.items() if not name.endswith(_COUNTER)}
    for verb, names in (("lacks", wanted.keys() - given.keys()), ("has the unknown", given.keys() - wanted.keys())):
        if names:
            others = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise UserError(f"{where} {verb} tensor {shown(min(names))}{others}; it holds another network")
    for name, tensor in given.items():
        if tensor.shape != wanted[name].shape:
            shapes = f"{list(tensor.shape)}, not {list(wanted[name].shape)}"
            raise UserError(f"{where}: {name} has shape {shapes}; it holds another network")
        if not tensor.is_floating_point() or not tensor.isfinite().all():
            raise UserError(f"{where}: {name} has values that are not finite numbers; fetch the file again")
    net.load_state_dict(given, strict=False)


def is_torchscript(path: Path) -> bool:
    """Whether a file is a TorchScript archive, or a pickle with one inside."""
    with open(path, "rb") as f:
        start = f.read(2)
        if start == b"PK":
            return _has_code(f)
    return start[:1] == b"\x80" and any(True for _ in _archives(path))


def load_torchscript(path: Path, device: torch.device, *, where: str) -> torch.jit.ScriptModule:
    """The TorchScript module in an archive, or in a pickle that carries one as bytes. It runs code of the file.

    The pickle itself is only searched and never run. Raises UserError where there is no such module.
    """
    with open(path, "rb") as f:
        archives = iter([path.read_bytes()]) if f.read(2) == b"PK" else _archives(path)
    for archive in archives:
        try:
            module: torch.jit.ScriptModule = torch.jit.load(io.BytesIO(archive), map_location=device)  # type: ignore[no-untyped-call]
        except RuntimeError as e:
            raise UserError(f"{where}: its TorchScript cannot be read ({shown(str(e))}); fetch it again") from None
        return module.eval()
    raise UserError(f"{where} holds no TorchScript; leave out --trust-detector, or name another file")


def _is_named_tensor(name: object, value: object) -> bool:
    return isinstance(name, str) and isinstance(value, Tensor) and value.layout == torch.strided


def _archives(path: Path) -> Iterator[bytes]:
    """The byte strings in a pickle that are TorchScript archives; the pickle is scanned, not run."""
    try:
        with open(path, "rb") as f:
            for _, argument, _ in pickletools.genops(f):
                if (
                    isinstance(argument, bytes | bytearray)
                    and argument[:2] == b"PK"
                    and _has_code(io.BytesIO(argument))
                ):
                    yield bytes(argument)
    except Exception:  # not a pickle after all, or cut short: genops raises ValueError, IndexError, UnicodeError, ...
        return


def _has_code(file: Any) -> bool:
    try:
        with zipfile.ZipFile(file) as archive:
            return any(name.split("/")[1:2] == ["code"] for name in archive.namelist())
    except zipfile.BadZipFile:
        return False
