"""A file of labels on the disk: JSON lines that are only ever appended, and are whole after a kill."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dnnlib.errors import UserError
from rods.eval.labels import Label

Line = Mapping[str, Any]
_LABELS = (*(label.verdict for label in Label), None)
_BEGINNINGS = (b'{"id": "', b'{"name": "', b'{"session": {')  # of a line of ours


def read_lines(path: Path) -> list[Line]:
    """The lines of a file, which is left as it is. A last line that a kill cut short was never acknowledged.

    Raises UserError: not a file of labels.
    """
    return [line for line, _ in _parse(path)]


def ident(line: Line) -> str:
    """What tells a line from others: its id, or all that it says where it has none, as those of programs."""
    return str(line.get("id") or json.dumps(line, sort_keys=True))


def append_lines(path: Path, lines: Sequence[Line]) -> None:
    """Adds whole lines at the end of a file, or makes it; they are on the disk when this returns."""
    data = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode(errors="replace")
    with open(path, "ab") as f:
        f.write(data)
        f.flush()
        os.fsync(f.fileno())


def end_whole(path: Path) -> None:
    """Brings a file, if there is one, to its last whole line with its newline, before anything is added to it.

    Raises UserError: not a file of labels.
    """
    if not path.is_file():
        return
    end, content = max((end for _, end in _parse(path)), default=0), path.read_bytes()
    whole = content[:end] if content[:end].endswith(b"\n") or not end else content[:end] + b"\n"
    if whole != content:
        with open(path, "r+b") as f:
            f.write(whole)
            f.truncate(len(whole))


def _parse(path: Path) -> list[tuple[Line, int]]:
    """The lines of a file, each with where it ends, its newline included."""
    content, end = path.read_bytes(), 0
    found: list[tuple[Line, int]] = []
    try:
        for text in content.splitlines(keepends=True):
            end += len(text)
            try:
                line = json.loads(text)
            except ValueError:
                if end == len(content) and not text.endswith(b"\n") and (found or _begins_ours(text)):  # cut short
                    break
                raise
            _check(line, is_old=bool(found) and "session" in found[0][0], is_first=not found)
            found.append((line, end))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise UserError(f"{path} is not a file of labels; name another file") from None
    return found


_TEXTS, _NUMBERS = ("id", "note", "fault"), ("round", "mode")  # of what a line may have


def _check(line: Any, *, is_old: bool, is_first: bool) -> None:
    """Raises TypeError, LookupError or AttributeError for what is no line of ours."""
    if is_first and "session" in line:
        strings: tuple[Any, ...] = (line["session"]["kind"], line["session"]["images"])
    elif is_old:
        strings = (line["id"], line["rater"], line["item"], line["name"], line["answer"] or "")
    elif "pair" in line:
        left, right = line["pair"]
        strings = (line["id"], line["source"], left, right, line["name"], line["answer"] or "")
    else:
        strings = (line["source"], line["name"], line.get("sha256") or "", line.get("answer") or "")
        if line["label"] not in _LABELS:
            raise TypeError
    strings += tuple(line.get(name) or "" for name in _TEXTS)
    numbers = () if is_old or "session" in line else (line.get(name) or 0 for name in _NUMBERS)
    if not all(isinstance(text, str) for text in strings) or not all(map(_is_number, numbers)):
        raise TypeError


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and abs(value) < 2**31


def _begins_ours(text: bytes) -> bool:
    """Whether a first line that was cut short is the beginning of ours."""
    return any(text.startswith(ours) or ours.startswith(text) for ours in _BEGINNINGS)
