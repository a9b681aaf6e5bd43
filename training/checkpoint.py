"""The one place that builds networks from files: EDM's and EDM2's pickles, and this project's safetensors snapshots.

A snapshot is a safetensors file whose metadata holds one entry, "header": JSON with the class, its constructor
arguments, label names, training length, data set, tool and schema version. Nothing in either kind of file is run, and
nothing is allocated for a description that does not fit the tensors in the file.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from dnnlib.errors import UserError, shown
from dnnlib.util import atomic_write, check_sha256, looks_like_html, open_url
from torch_utils.persistence import PersistentObject, module_tensors, read_pickle
from training.encoder import pickled_encoder
from training.header import Header, checked_labels, format_header, parse_header, tool_version
from training.model_zoo import locate
from training.networks import PICKLED_PRECONDS, PRECONDS, Precond, iDDPMPrecond
from training.schema import check_init_kwargs

DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}  # of files, and inside a network, by their options' names
_READABLE = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Snapshot:
    """A network ready for use, and where it came from."""

    net: Precond
    header: Header
    source: str  # as given: a path or an address
    name: str  # the file's name without its suffix, by which presets are recognised
    sha256: str

    def describe(self) -> str:
        """One line: name, class, size and checksum."""
        k = self.header.init_kwargs
        millions = sum(p.numel() for p in self.net.parameters()) / 1e6
        size = f"{k['img_resolution']}x{k['img_resolution']}x{k['img_channels']}"
        what = f"{self.header.class_name} on {k['model_type']}, {size}, {millions:.1f} M parameters"
        return f"{self.name}: {what}, sha256 {self.sha256}, from {self.source}"


def load_denoiser(
    source: str | os.PathLike[str], *, device: str | torch.device = "cpu", sha256: str | None = None
) -> Precond:
    """The denoiser in a file, in eval mode and without gradients for its parameters.

    It is called as D(x, sigma, class_labels=None, augment_labels=None) with x [B, C, H, W] in float32.

    Args:
        source: a path or an https address of an EDM or EDM2 pickle or a safetensors snapshot, told apart by content;
            or the name of a published network (`training.model_zoo.PUBLISHED`).
        sha256: what the file's checksum must be.
    Raises:
        UserError: one line that says what is wrong with the file. Nothing that a file carries is run.
    """
    return load_snapshot(source, device=device, sha256=sha256).net


def load_snapshot(
    source: str | os.PathLike[str], *, device: str | torch.device = "cpu", sha256: str | None = None
) -> Snapshot:
    """Like `load_denoiser`, with the file's header, name and checksum."""
    source = os.fspath(source)
    if published := locate(source):
        source, sha256 = published.url, sha256 or published.sha256
    path = open_url(source, sha256=sha256) if "://" in source else Path(source)
    try:
        if not path.is_file():
            raise UserError(f"there is no such file{' (it is a folder)' if path.is_dir() else ''}; check the path")
        digest = check_sha256(path, sha256, name="this file")
        header, tensors = _read(path)
        net = _construct(header, tensors)
    except UserError as e:
        raise UserError(f"{source}: {e}") from None
    except OSError as e:
        raise UserError(f"{source}: cannot be read: {e.strerror or e}") from None
    net = net.to(device).eval().requires_grad_(False)
    return Snapshot(net, header, source, Path(source.split("?")[0]).stem, digest)


def save_snapshot(
    path: str | os.PathLike[str],
    net: nn.Module,
    *,
    init_kwargs: Mapping[str, Any],
    label_names: Sequence[str] = (),
    kimg: float | None = None,
    dataset: str | None = None,
    extra: Mapping[str, Any] | None = None,
    dtype: str = "float32",
) -> Header:
    """Writes a network as safetensors, atomically: equal arguments give equal bytes.

    Args:
        init_kwargs: the constructor arguments of `net`; they are checked and must describe its tensors.
        label_names: one name per class, or none.
        extra: more JSON for the header.
        dtype: how parameters are stored, "float32" or "bf16" (half the size, 3 significant digits); buffers,
            such as the frequencies of an embedding, always keep float32.
    Raises:
        UserError: arguments that do not describe the network, or a value that JSON does not have.
    """
    if dtype not in DTYPES:
        raise UserError(f"dtype={dtype!r} cannot be stored; use one of {', '.join(DTYPES)}")
    kwargs = check_init_kwargs(type(net).__name__, init_kwargs)
    labels = checked_labels(list(label_names), kwargs)
    header = Header(type(net).__name__, kwargs, labels, kimg, dataset, tool_version(), extra=dict(extra or {}))
    text = format_header(header)
    parameters = {name for name, _ in net.named_parameters()}
    tensors = {
        name: t.detach().to("cpu", DTYPES[dtype] if name in parameters else torch.float32).contiguous()
        for name, t in net.state_dict().items()
    }
    _build(header, tensors)  # refuses arguments that are not those of this network
    with atomic_write(path) as temporary:
        temporary.write_bytes(save(tensors, metadata={"header": text}))  # save_file would hide the file from others
    return header


def read_header(path: str | os.PathLike[str]) -> Header:
    """What a safetensors snapshot says of its network, without its tensors. Raises UserError."""
    try:
        with safe_open(path, framework="pt") as f:
            return parse_header((f.metadata() or {}).get("header"))
    except UserError as e:
        raise UserError(f"{path}: {e}") from None
    except (SafetensorError, OSError) as e:
        raise UserError(f"{path}: not a valid safetensors file: {shown(str(e), 160)}; fetch it again") from None


def _read(path: Path) -> tuple[Header, dict[str, Tensor]]:
    with open(path, "rb") as f:
        start = f.read(1024)
    if not start:
        raise UserError("the file is empty; fetch it again")
    if looks_like_html(start):
        raise UserError("this is a web page, not a network; download the file itself")
    # A snapshot starts with the length of its JSON in 8 bytes, whose first may be that of a pickle.
    if start[8:9] == b"{" and (start[:1] != b"\x80" or start[4:8] == bytes(4)):
        return _read_safetensors(path)
    if start[:1] == b"\x80":
        return _read_pickle(path)
    if start[:4] == b"PK\x03\x04":
        raise UserError("this is a zip file (of torch.save?), not a network; an EDM pickle or safetensors is needed")
    raise UserError("this is neither an EDM pickle nor a safetensors snapshot")


def _read_pickle(path: Path) -> tuple[Header, dict[str, Tensor]]:
    with open(path, "rb") as f:
        content = read_pickle(memoryview(mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)))
    ema = content.get("ema") if isinstance(content, dict) else content
    if not isinstance(ema, PersistentObject) or ema.class_name not in PICKLED_PRECONDS:
        what = f"it is a {ema.class_name}" if isinstance(ema, PersistentObject) else "there is none under 'ema'"
        raise UserError(f"the pickle holds no denoiser: {what}; known are {', '.join(PICKLED_PRECONDS)}")
    class_name = PICKLED_PRECONDS[ema.class_name].__name__
    init_args, init_kwargs = ema.state.get("_init_args", ()), ema.state.get("_init_kwargs")
    if not isinstance(init_args, tuple) or init_args or not isinstance(init_kwargs, dict):
        raise UserError("the pickle does not say by which keyword arguments its network was built")
    data = content.get("dataset_kwargs") if isinstance(content, dict) else None
    data_path = data.get("path") if isinstance(data, dict) else None
    kwargs = check_init_kwargs(class_name, init_kwargs)
    name = Path(data_path).stem if isinstance(data_path, str) else None
    extra = pickled_encoder(content.get("encoder")) if isinstance(content, dict) else {}
    return Header(class_name, kwargs, dataset=name, extra=extra), module_tensors(ema)


def _read_safetensors(path: Path) -> tuple[Header, dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as f:
            header = parse_header((f.metadata() or {}).get("header"))
            return header, {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118  (not a mapping)
    except SafetensorError as e:
        raise UserError(f"not a valid safetensors file: {shown(str(e), 160)}; fetch it again") from None


def _construct(header: Header, tensors: Mapping[str, Tensor]) -> Precond:
    """The network of `header` with the values of `tensors`, in float32."""
    net = _build(header, tensors)
    net.load_state_dict({name: t.to(torch.float32) for name, t in tensors.items()}, strict=True)
    if isinstance(net, iDDPMPrecond):  # its range is that of the file's u, which may differ from ours by a rounding
        net.sigma_min, net.sigma_max = float(net.u[net.M - 1]), float(net.u[0])
    return net


def _build(header: Header, tensors: Mapping[str, Tensor]) -> Precond:
    """A new network as `header` describes it. Raises UserError unless `tensors` have its names and shapes.

    A description that needs more than `tensors` hold is refused before anything is allocated, by a lower bound. (The
    meta device would be exact, but its first product imports torch's compiler: two seconds for every program.)
    """
    if odd := [f"{name} is {t.dtype}" for name, t in tensors.items() if t.dtype not in _READABLE]:
        raise UserError(f"{odd[0]}; a network's tensors are float32, float16 or bfloat16")
    held = sum(t.numel() for t in tensors.values())
    needed, blocks = PRECONDS[header.class_name].least_size(header.init_kwargs)
    if needed > held or blocks > len(tensors):
        raise UserError(
            f"it describes a network of more than {needed:,} parameters in {blocks:,} blocks, "
            f"and holds {held:,} values in {len(tensors):,} tensors"
        )
    try:
        with torch.random.fork_rng(devices=[]):  # initial values will be overwritten: leave the caller's stream alone
            net = PRECONDS[header.class_name](**header.init_kwargs)
    except ValueError as e:
        raise UserError(f"it describes a network that cannot be built: {e}") from None
    if wrong := _differences(net.state_dict(), tensors):
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise UserError(f"its tensors do not fit the network that it describes: {'; '.join(wrong[:3])}{more}")
    return net


def _differences(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[str]:
    missing = [f"{name} is missing" for name in expected if name not in found]
    unknown = [f"{shown(name)} is unknown" for name in found if name not in expected]
    shapes = [
        f"{name} is {list(found[name].shape)} instead of {list(t.shape)}"
        for name, t in expected.items()
        if name in found and found[name].shape != t.shape
    ]
    return missing + unknown + shapes
