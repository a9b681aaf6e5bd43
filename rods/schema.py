"""The fields of a sampler, detector or corrector as options, and the text of windows and numbers."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, fields
from types import NoneType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from rods.schedules import SigmaWindow, Window

REQUIRED: Any = MISSING


@dataclass(frozen=True)
class Option:
    """A field of a sampler, as an option."""

    name: str
    kind: Any  # float, int, bool, Window, Detector, Corrector, or a tuple of choices
    optional: bool  # None is a value
    default: Any  # `REQUIRED` where there is none
    help: str  # empty: a constant, which no command offers
    flag: str  # as on the command line
    least: int | None = None
    most: int | None = None

    def expected(self) -> str:
        """What a value must be, in words."""
        if isinstance(self.kind, tuple):
            return " or ".join(self.kind)
        if self.kind == Window:
            return "lo,hi such as .1,.5 or sigma:1,5"
        return {int: "a whole number", bool: "true or false", float: "a number"}.get(self.kind, "a name with options")


_KNOWN: dict[type[Any], dict[str, Option]] = {}  # by class and not by name, which may be registered anew


def options_of(kind: type[Any]) -> dict[str, Option]:
    """The options of a registered class, read from its fields once."""
    if kind in _KNOWN:
        return _KNOWN[kind]
    hints = get_type_hints(kind)
    found = {}
    for f in fields(kind):
        kinds = set(get_args(hints[f.name])) if _is_union(hints[f.name]) else {hints[f.name]}
        optional, main = NoneType in kinds, hints[f.name]
        if optional:
            (main,) = kinds - {NoneType}
        if get_origin(main) is Literal:
            main = get_args(main)
        flag = f.metadata.get("flag") or "--" + f.name.replace("_", "-")
        what, least, most = (f.metadata.get(key) for key in ("help", "least", "most"))
        found[f.name] = Option(f.name, main, optional, f.default, what or "", flag, least, most)
    _KNOWN[kind] = found
    return found


def _is_union(hint: Any) -> bool:
    return hint != Window and (get_origin(hint) is Union or type(hint).__name__ == "UnionType")


def window_from_text(text: str) -> Window:
    """`.1,.5` -> fractions of the steps; `sigma:1.2,5` -> noise levels. Raises ValueError for anything else."""
    body = text.removeprefix("sigma:")
    try:
        lo, hi = (float(part) for part in body.split(","))
    except ValueError:
        raise ValueError(f"window: {text!r} is not a window; give lo,hi such as .1,.5 or sigma:1,5") from None
    return SigmaWindow(lo, hi) if text.startswith("sigma:") else (lo, hi)


def window_to_text(window: Window) -> str:
    """The inverse of `window_from_text`."""
    if isinstance(window, SigmaWindow):
        return f"sigma:{digits(window.lo)},{digits(window.hi)}"
    return f"{digits(window[0])},{digits(window[1])}"


def digits(value: float | bool | str) -> str:
    """All the digits that a number has, and no more."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, str | int) else repr(float(value)).removesuffix(".0")
