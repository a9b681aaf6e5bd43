"""The output folder of a sampling run: images by name, one JSON line each, resumable, never half-written."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import click
from PIL.Image import Image

from dnnlib.cli import Destination, shown_path
from dnnlib.errors import UserError
from dnnlib.run_folder import OPTIONS_NAME, PARTS_NAME, SAMPLES_NAME
from dnnlib.util import TEMPORARY, alone, atomic_write
from rods import legacy
from rods.runs.options import flag

REJECTED = "rejected"  # the folder of images that a filter has dropped, where they are kept
TRAJECTORIES = "trajectories"  # the folder of strips that show how an image came about, where they are wanted
CONTACT_SHEET = "grid.png"
_OURS = re.compile(r"\d{6,}(_\d{3,})?\.png|\d{6,}")  # an image, or a folder of --subdirs


class OutputFolder:
    """Images and their records in `outdir`; several ranks of one run may write different chunks at once.

    `identity` is what decides the images' bytes: a folder holds images of one identity. A finished chunk leaves its
    lines in a part file; `finish` merges the parts into `samples.jsonl`. Run again, finished images are left alone.
    `option` is what named the folder, for messages.

    Raises UserError: `outdir` holds images of another identity, or of another program.
    """

    def __init__(
        self, outdir: str | os.PathLike[str], *, identity: Mapping[str, Any], option: str = "--outdir"
    ) -> None:
        if not os.fspath(outdir):
            raise UserError(f"{option} is empty; name a folder")
        self.outdir, self.identity, self.option = Path(outdir), dict(identity), option
        if self.outdir.is_file():
            raise UserError(f"{option}={outdir} is a file; name a folder")
        old = read_identity(self.outdir / OPTIONS_NAME)
        if old is not None:
            old = legacy.identity(old)
        if old is None and (strange := _strangers(self.outdir)):
            raise UserError(
                f"{option}={outdir} holds {strange[0]} and no {OPTIONS_NAME} that says how it was made; "
                f"name another {option}"
            )
        if old is not None and (changed := [k for k in {**old, **identity} if old.get(k) != self.identity.get(k)]):
            k = changed[0]
            raise UserError(
                f"{option}={outdir} holds images made with {flag(k)}={old.get(k)}, not {self.identity.get(k)}; "
                f"repeat what made them, or name another {option}"
            )

    @contextmanager
    def open(self, about: Mapping[str, Any]) -> Iterator[None]:
        """Makes the folder, writes `options.json` and keeps other runs out of it; for one process, before any `write`.

        Raises UserError: the folder cannot be written, or another run is writing to it.
        """
        with self._remedy("name another folder"):
            self.outdir.mkdir(parents=True, exist_ok=True)
        busy = f"{self.option}={self.outdir}: another run is writing to it; wait, or name another {self.option}"
        with alone(self.outdir, busy=busy):
            with self._remedy("name another folder"):
                self._tidy()
                content = json.dumps({"identity": self.identity, **about}, indent=2) + "\n"
                _replace(self.outdir / OPTIONS_NAME, content.encode())
            yield

    def is_done(self, names: Iterable[str]) -> bool:
        """Whether all of these images are there, with their records. Not to be asked before one process did `open`."""
        return all(self._is_present(name) for name in names)

    def write(
        self,
        chunk: str,
        images: Sequence[Image | None],
        lines: Sequence[dict[str, Any]],
        strips: Mapping[str, Image] = MappingProxyType({}),
    ) -> None:
        """Writes the images that are missing, then the chunk's lines; `None` is an image that could not be made.

        Each line holds `name`, the image's path in the folder, or `file` where it goes elsewhere in it; its `sha256`
        is added here. An image that has a record keeps both; one without, left by a run that was interrupted, is
        replaced unless it is the same. A line that says `dropped` needs no image. `strips` are images of trajectories
        by the path in the folder that a line's `trajectory` names.
        """
        kept = []
        with self._remedy("when that is mended, run the same command again"):
            for image, line in zip(images, lines, strict=True):
                if self._is_present(line["name"]):
                    kept.append(self._known[line["name"]])
                    continue
                kept.append({**line, "sha256": None})
                if image is not None:
                    strip = line.get("trajectory", {}).get("file")
                    if strip is not None:
                        self._save(strip, _png(strips[strip]))
                    data = _png(image)
                    kept[-1]["sha256"] = hashlib.sha256(data).hexdigest()
                    self._save(line.get("file", line["name"]), data)
            _replace(self.outdir / PARTS_NAME / f"{chunk}.jsonl", _json_lines(kept))

    def _save(self, name: str, data: bytes) -> None:
        path = self.outdir / name
        path.parent.mkdir(parents=True, exist_ok=True)
        _replace(path, data)

    def finish(self) -> list[dict[str, Any]]:
        """Merges the parts into `samples.jsonl`, by name; returns its lines. For the process that did `open`."""
        with self._remedy("when that is mended, run the same command again"):
            lines = self._merge()
            shutil.rmtree(self.outdir / PARTS_NAME)
        return lines

    @cached_property
    def _known(self) -> dict[str, dict[str, Any]]:
        """The records of earlier runs, by image name."""
        return {line["name"]: line for line in read_lines(self.outdir / SAMPLES_NAME)}

    def _is_present(self, name: str) -> bool:
        line = self._known.get(name)
        if line is None:
            return False
        if line.get("x") is not None or (line.get("dropped") and "file" not in line):
            return True
        wanted = [line.get("file", name), *([line["trajectory"]["file"]] if "trajectory" in line else [])]
        return line["sha256"] is not None and all((self.outdir / file).is_file() for file in wanted)

    def _tidy(self) -> None:
        """Brings what an interrupted run left into the form of a finished one, and makes room for new parts."""
        folders = [self.outdir, self.outdir / REJECTED, self.outdir / TRAJECTORIES]
        folders += [path for folder in folders for path in folder.glob("*") if _OURS.fullmatch(path.name)]
        for path in [path for folder in folders if folder.is_dir() for path in folder.iterdir()]:
            if TEMPORARY.fullmatch(path.name):
                path.unlink()
        parts = self.outdir / PARTS_NAME
        if self._known or parts.is_dir():
            self._merge()
        if parts.is_dir():
            shutil.rmtree(parts)
        parts.mkdir()

    def _merge(self) -> list[dict[str, Any]]:
        merged = dict(self._known)
        for part in sorted((self.outdir / PARTS_NAME).glob("[0-9]*.jsonl")):
            merged.update({line["name"]: line for line in read_lines(part)})
        lines = [merged[name] for name in sorted(merged)]
        _replace(self.outdir / SAMPLES_NAME, _json_lines(lines))
        self._known = merged
        return lines

    @contextmanager
    def _remedy(self, remedy: str) -> Iterator[None]:
        try:
            yield
        except OSError as e:
            raise UserError(f"{self.option}={self.outdir} cannot be written: {e.strerror or e}; {remedy}") from None


def image_key(name: str) -> str:
    """The path of an image in a run's folder, the same with --subdirs and without."""
    folder, _, rest = name.partition("/")
    return rest if _OURS.fullmatch(folder) and _OURS.fullmatch(rest) and rest.endswith(".png") else name


def _replace(path: Path, content: bytes) -> None:
    """The file with this content; one that has it already is not touched."""
    if not path.is_file() or path.read_bytes() != content:
        with atomic_write(path) as temporary:
            temporary.write_bytes(content)


def _png(image: Image) -> bytes:
    data = io.BytesIO()
    image.save(data, format="PNG")
    return data.getvalue()


def _strangers(folder: Path) -> list[str]:
    """What looks like a run's output in a folder, without the options that made it."""
    if not folder.is_dir():
        return []
    return sorted(p.name for p in folder.iterdir() if _OURS.fullmatch(p.name) or p.name == SAMPLES_NAME)


def _json_lines(lines: Iterable[Mapping[str, Any]]) -> bytes:
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


def read_identity(path: Path) -> dict[str, Any] | None:
    """What made the images beside an `options.json`; None where there is no such file."""
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text())
    except (ValueError, RecursionError):
        found = None
    match found:
        case {"identity": dict(identity)} if is_identity(identity):
            return identity
    raise UserError(f"{path} was not written by generate.py; name another --outdir")


def is_identity(identity: Mapping[str, Any]) -> bool:
    """Whether what others read of a run's identity is of the kinds that we write."""
    checksum, level = identity.get("network_sha256"), identity.get("score_at")
    return isinstance(checksum, str | None) and isinstance(level, int | float | None)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a samples.jsonl; none where there is no such file."""
    if not path.is_file():
        return []
    try:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        _check_records(lines)
        return lines
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise UserError(f"{path} does not hold generate.py's records; remove it to make its images again") from None


class Sheet(Destination):
    """A PNG to draw, which is refused where it would replace an image, a strip or the grid of a run."""

    def __init__(self, *, folder_exists: bool = False) -> None:
        super().__init__(dir_okay=False, ending=".png", folder_exists=folder_exists)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        path = super().convert(value, param, ctx)
        place = path.resolve()
        if place.name == CONTACT_SHEET and (place.parent / OPTIONS_NAME).is_file():
            self.fail(f"{shown_path(path)} is the grid of the run {place.parent}; name another file", param, ctx)
        for folder in place.parents[:3]:  # as deep as images lie: rejected/000000/000001.png
            name = place.relative_to(folder).as_posix()
            for line in read_lines(folder / SAMPLES_NAME):
                if name in (line["name"], line.get("file"), line.get("trajectory", {}).get("file")):
                    self.fail(f"{shown_path(path)} is an image of the run {folder}; name another file", param, ctx)
        return path


def _check_records(lines: Sequence[Any]) -> None:
    """Raises TypeError, KeyError or AttributeError for what is no file of ours; old records may lack scores."""
    for line in lines:
        _check_record(line)
    sizes = {len(line.get("x") or ()) for line in lines if line["sha256"] or line.get("x")}  # 0: images
    if len(sizes) > 1 or any(len({key in line for line in lines}) > 1 for key in ("restart", "tries")):
        raise TypeError
    if len({line["name"] for line in lines}) < len(lines):
        raise TypeError


def _check_record(line: Any) -> None:
    tried = [line[key] for key in ("restart", "tries") if key in line]
    scores = [line.get(key) or () for key in ("H", "scores", "sigma", "x")] + [part["scores"] for part in tried]
    numbers = [line.get("largest"), line.get("filter_score"), *(score for row in scores for score in row)]
    whole = [line["seed"], line["forward"], line["backward"], line.get("class") or 0, *(part["kept"] for part in tried)]
    texts = [line["name"], line.get("file") or "", line["sha256"] or ""]
    if not all(isinstance(text, str) for text in texts) or not all(isinstance(n, int) for n in whole):
        raise TypeError
    if not all(n is None or isinstance(n, int | float) for n in numbers) or min(line["forward"], line["backward"]) < 0:
        raise TypeError
    if not all(0 <= part["kept"] < len(part["scores"]) for part in tried):
        raise TypeError
    if "tries" in line:
        _check_tries(line["tries"])
    if any(text.startswith("/") or ".." in text.split("/") for text in texts):  # leads out of the folder
        raise TypeError


def _check_tries(part: Any) -> None:
    spent = [part[key] for key in ("forward", "backward") if key in part]
    if len(spent) == 1 or any(len(row) != len(part["scores"]) for row in [part["seeds"], *spent]):
        raise TypeError
    if not isinstance(part["accepted"], bool) or not all(isinstance(n, int) and n >= 0 for row in spent for n in row):
        raise TypeError
