"""Answers files of before version 0.2, which belonged to one set of folders: read, never written.

A line with the session, {"session": {"kind", "seed", "images", "against"}} with checksums of the folders, then a line
per answer, which names its run ("A" or "B") and the image in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dnnlib.errors import UserError
from rods.labels.folders import Folder
from rods.labels.growing_file import Line, read_lines
from rods.labels.label_set import PAPER, label_set
from rods.labels.labels import PERSON

RUNS = ("A", "B")


def read_any(path: Path, folders: Mapping[str, Folder] | None = None) -> list[Line]:
    """The lines of a file of labels; those of an old one in today's form, with the checksums of `folders`.

    Args:
        path: the file.
        folders: "A" and "B" of an old file, either or both; lines of others are left out. Without any, `run_key` stands
            for the checksum of an image.
    Raises:
        UserError: not such a file, or an old one of other images than those of `folders`.
    """
    lines = read_lines(path)
    if not lines or "session" not in lines[0]:
        return lines
    session = lines[0]["session"]
    kind = str(session["kind"])
    if kind not in PAPER:
        raise UserError(f"{path} has answers of the unknown kind {kind!r}; expected {', '.join(PAPER)}")
    for run, key in zip(RUNS, ("images", "against"), strict=True):
        if folders and run in folders and folders[run].digest != session.get(key):
            raise UserError(f"{path} has answers to other images than those of --{key}={folders[run].path}; "
                            "give the folders that were labelled")  # fmt: skip
    labels = label_set(kind)
    return [line for old in lines[1:] if (line := _line(old, folders, labels.verdicts)) is not None]


def run_key(run: str, name: str) -> str:
    """What stands for the checksum of an image of an old file without its folders."""
    return f"{run}:{name}"


def _line(old: Line, folders: Mapping[str, Folder] | None, verdicts: Mapping[str, str]) -> Line | None:
    """An old line as it would be written today; None where its images are not in the folders."""
    sums = []
    for run in old["runs"]:
        known = folders.get(run) if folders else None
        if folders and known is None:
            return None
        sums.append(known.sums[old["name"]] if known else run_key(run, old["name"]))
    line: dict[str, Any] = {"id": old["id"], "source": PERSON + old["rater"], "name": old["name"]}
    if old["mode"] == "pair":
        line["pair"] = sums
    else:
        line |= {"sha256": sums[0], "label": None if old["answer"] is None else verdicts.get(old["answer"])}
    return line | {"answer": old["answer"], "note": old.get("note", ""), "time": old.get("time")}
