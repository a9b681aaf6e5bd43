"""The JSON header of this project's snapshots: what a network file says about its network."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path, PureWindowsPath
from typing import Any

from dnnlib.errors import UserError, shown
from training.schema import check_init_kwargs

SCHEMA_VERSION = 1
_MAX_HEADER = 1 << 20


@dataclass(frozen=True)
class Header:
    """What a network file says about its network."""

    class_name: str
    init_kwargs: Mapping[str, Any]
    label_names: Sequence[str] = ()
    kimg: float | None = None  # thousands of images seen in training
    dataset: str | None = None
    tool_version: str | None = None
    schema_version: int = SCHEMA_VERSION
    extra: Mapping[str, Any] = field(default_factory=dict)


def format_header(header: Header) -> str:
    """The JSON text of a header; equal headers give equal text. Raises UserError for what JSON does not have."""
    try:
        return json.dumps(_json_value(asdict(header)), sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as e:
        raise UserError(f"the header of the snapshot holds a value that JSON does not have: {e}") from None


def parse_header(text: str | None) -> Header:
    """The header in a snapshot's metadata, its network arguments checked. Raises UserError."""
    if text is None:
        raise UserError("a safetensors file without this project's header; write one with scripts/convert.py")
    try:
        if len(text) > _MAX_HEADER:
            raise ValueError("it is absurdly long")
        fields = json.loads(text, parse_constant=_no_constant, parse_int=_short_int)
    except (ValueError, RecursionError) as e:
        raise UserError(f"the header of the snapshot is not JSON: {shown(str(e))}; fetch it again") from None
    match fields:
        case {"schema_version": int(version)} if version != SCHEMA_VERSION:
            raise UserError(f"the snapshot has schema version {version}; this program reads {SCHEMA_VERSION}")
        case {
            "schema_version": int(),
            "class_name": str(class_name),
            "init_kwargs": dict(init_kwargs),
            "label_names": list(label_names),
            "kimg": int() | float() | None as kimg,
            "dataset": str() | None as dataset,
            "tool_version": str() | None as tool_version,
            "extra": dict(extra),
        } if len(fields) == 8:
            kwargs = check_init_kwargs(class_name, init_kwargs)
            labels = checked_labels(label_names, kwargs)
            return Header(class_name, kwargs, labels, kimg, dataset, tool_version, extra=extra)
    raise UserError("the header of the snapshot lacks entries or has others than this program writes")


def checked_labels(names: list[Any], kwargs: Mapping[str, Any]) -> list[str]:
    """`names`, one for each of the `label_dim` classes or none. Raises UserError."""
    classes = kwargs.get("label_dim", 0)
    if not all(isinstance(name, str) for name in names) or len(names) not in (0, classes):
        raise UserError(f"label_names must name each of the {classes} classes, or none")
    return names


def _json_value(value: Any) -> Any:
    """`value` for JSON, which has no tuples of its own and no infinity; of a file's absolute path, the name."""
    match value:
        case dict():
            return {str(k): _json_value(v) for k, v in value.items()}
        case list() | tuple():
            return [_json_value(v) for v in value]
        case str() if "://" not in value and (Path(value).is_absolute() or PureWindowsPath(value).is_absolute()):
            return PureWindowsPath(value).name  # of this machine; a snapshot is handed on
        case float() if math.isinf(value) and value > 0:
            return "inf"
    return value


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is not JSON")


def _short_int(text: str) -> int:
    if len(text) > 18:
        raise ValueError("an absurdly large number")
    return int(text)


def tool_version() -> str | None:
    """The version of this project, where it is installed."""
    try:
        return metadata.version("rods-toolkit")
    except metadata.PackageNotFoundError:
        return None  # run from a folder that was not installed
