"""Which files of a sampling run's folder are its images: the one answer for all that read folders of images.

A run (rods/runs/folder.py writes it) is a folder with `options.json`, `samples.jsonl` and PNGs. Contact sheets, strips
of trajectories, rejected images and whatever else somebody put there are none of its images. Folders without these two
files are nobody's run, and everything in them counts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from dnnlib.errors import UserError

OPTIONS_NAME, SAMPLES_NAME, PARTS_NAME = "options.json", "samples.jsonl", ".parts"
_PART = re.compile(r"(?<![^/])" + re.escape(PARTS_NAME) + r"/\d[^/]*\.jsonl$")


def not_of_their_run(images: Collection[str], files: Collection[str], read: Callable[[str], bytes]) -> set[str]:
    """The `images` that lie in the folder of a run and are none of its images.

    Args:
        images: paths, with /, of what looks like an image.
        files: paths of all files there are, in the same folder or zip.
        read: the content of one of these files.
    Raises:
        UserError: the records of a run cannot be read.
    """
    runs = _runs(files, read)
    if not runs:
        return set()
    return {name for name in images if (root := _root_of(name, runs)) is not None and name not in runs[root]}


def runs_among(files: Collection[str], read: Callable[[str], bytes]) -> list[str]:
    """The folders of runs among these files, "" or ending in /. Arguments and errors as `not_of_their_run`."""
    return list(_runs(files, read))


def _runs(files: Collection[str], read: Callable[[str], bytes]) -> dict[str, set[str]]:
    """The images of each run, by its folder."""
    roots = [name.removesuffix(OPTIONS_NAME) for name in files if name.rsplit("/", 1)[-1] == OPTIONS_NAME]
    parts = _parts_by_root(files) if roots else {}
    return {root: names for root in roots if (names := _run_images(root, files, parts.get(root, []), read)) is not None}


def _root_of(name: str, runs: Collection[str]) -> str | None:
    """The innermost of these folders ("" or ending in /) that holds a file."""
    end = len(name)
    while (end := name.rfind("/", 0, end)) >= 0:
        if name[: end + 1] in runs:
            return name[: end + 1]
    return "" if "" in runs else None


def _parts_by_root(files: Collection[str]) -> dict[str, list[str]]:
    """The part files of unfinished runs, in order, by the folder of their run."""
    found: dict[str, list[str]] = {}
    for name in sorted(files):
        if part := _PART.search(name):
            found.setdefault(name[: part.start()], []).append(name)
    return found


def _run_images(
    root: str, files: Collection[str], parts: Sequence[str], read: Callable[[str], bytes]
) -> set[str] | None:
    """The images of the run in a folder; None where no run is."""
    records = [*(name for name in (root + SAMPLES_NAME,) if name in files), *parts]
    try:
        is_run = isinstance(json.loads(read(root + OPTIONS_NAME))["identity"], dict)
    except (ValueError, LookupError, TypeError, RecursionError):
        is_run = False
    if not is_run or not records:
        return None
    kept: dict[str, bool] = {}  # of a name in two files, the later record counts
    for record in records:
        kept |= {root + line["name"]: is_kept(line) for line in _lines(record, read)}
    return {name for name, is_image in kept.items() if is_image}


def is_kept(line: Mapping[str, Any]) -> bool:
    """Whether a record is of an image that was made and that no filter dropped."""
    return line.get("sha256") is not None and not line.get("dropped")


def _lines(record: str, read: Callable[[str], bytes]) -> Iterator[Mapping[str, Any]]:
    try:
        for text in read(record).splitlines():
            line = json.loads(text)
            if not isinstance(line["name"], str):
                raise TypeError
            yield line
    except (ValueError, LookupError, TypeError, RecursionError):
        raise UserError(
            f"{record} does not hold generate.py's records; mend it, or remove it and {OPTIONS_NAME}"
        ) from None
