"""Labelling sessions: what is shown to raters, and their answers as one appended JSON line each (paper, appendix B.6).

An item is an image, or a pair of images of one name, one from each run; its key says nothing of the run. Answers go to
one file: a line with the session, then a line per answer. The last answer of a rater to an item counts.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dnnlib.errors import UserError
from dnnlib.run_folder import not_of_their_run
from dnnlib.util import file_sha256

NORMAL = "normal"
CATEGORIES: dict[str, tuple[str, ...]] = {
    "hands": (
        NORMAL,
        "extra fingers",
        "missing fingers",
        "incorrect finger structure",
        "abnormal palm",
        "multiple hands",
        "unrecognisable",
    ),
    "faces": (NORMAL, "hallucinated"),
}
SIDES = ("left better", "right better", "same", "unclear")  # what a rater says of a pair
VERDICTS = ("better", "worse", "same", "unclear")  # what it means for the second run against the first
CONSENSUS = "consensus"  # the rater who settles what the others disagree on
RATER = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
MAX_NOTE = 2000
SCHEMA = 1


@dataclass(frozen=True)
class Item:
    """What is judged at once: one image, or two side by side."""

    key: str
    mode: str  # "image" or "pair"
    name: str  # the file name in its run
    runs: tuple[str, ...]  # "A" or "B" of each image shown, from left to right
    images: tuple[str, ...]  # their keys


@dataclass(frozen=True)
class Session:
    """What is rated; `identity` is what the answers belong to."""

    identity: Mapping[str, Any]
    items: Mapping[str, Item]  # by key, in the order shown
    images: Mapping[str, Path]  # by the image's key

    def of_mode(self, mode: str) -> list[Item]:
        return [item for item in self.items.values() if item.mode == mode]

    def answers_to(self, mode: str) -> tuple[str, ...]:
        return CATEGORIES[self.identity["kind"]] if mode == "image" else SIDES


def open_session(folder_a: Path, folder_b: Path | None, *, kind: str, seed: int) -> Session:
    """Every image of both runs, and the pairs whose files differ, each shuffled by a hash of `seed`.

    Raises UserError: a folder without images, two runs that share no name.
    """
    runs = {"A": _images(folder_a, "--images")}
    if folder_b is not None:
        runs["B"] = _images(folder_b, "--against")
    sums = {(run, name): file_sha256(path) for run, found in runs.items() for name, path in found.items()}
    keys = {(run, name): _hash(seed, run, name) for run, found in runs.items() for name in found}
    items = [Item(_hash(seed, "image", *key), "image", key[1], key[:1], (keys[key],)) for key in keys]
    if folder_b is not None:
        common = [name for name in runs["A"] if name in runs["B"]]
        if not common:
            raise UserError(f"--against={folder_b} shares no file name with --images={folder_a}; give paired runs")
        for name in common:
            if sums["A", name] == sums["B", name]:
                continue
            sides = ("A", "B") if int(_hash(seed, "side", name), 16) % 2 else ("B", "A")
            shown = tuple(keys[side, name] for side in sides)
            items.append(Item(_hash(seed, "pair", name), "pair", name, sides, shown))
    identity = {
        "schema": SCHEMA,
        "kind": kind,
        "seed": seed,
        "images": _digest(sums, "A"),
        "against": _digest(sums, "B") if folder_b is not None else None,
    }
    images = {key: runs[run][name] for (run, name), key in keys.items()}
    return Session(identity, {item.key: item for item in sorted(items, key=lambda item: item.key)}, images)


def _images(folder: Path, option: str) -> dict[str, Path]:
    """Images by their name relative to the folder, a run's own alone; links that lead out of it are refused."""
    if not folder.is_dir():
        raise UserError(f"{option}={folder} is not a folder; give a folder of images")
    root, found = folder.resolve(), {}
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    images = [name for name, path in files.items() if path.suffix.lower() in SUFFIXES and path.name[0] != "."]
    strangers = not_of_their_run(images, files, lambda name: files[name].read_bytes())
    for name in images:
        path = files[name]
        if name in strangers:
            continue
        if not path.resolve().is_relative_to(root):
            raise UserError(f"{path} leads out of {option}={folder}; put the image itself there")
        found[name] = path.resolve()
    if not found:
        raise UserError(f"{option}={folder} holds no images ({' '.join(SUFFIXES)}); give a folder of images")
    return found


def _hash(seed: int, *parts: str) -> str:
    return hashlib.sha256(os.fsencode("\0".join([str(seed), *parts]))).hexdigest()[:20]


def _digest(sums: Mapping[tuple[str, str], str], run: str) -> str:
    """Names and contents of a run in one checksum: answers belong to these images, wherever they lie."""
    total = hashlib.sha256()
    for (of, name), checksum in sums.items():
        if of == run:
            total.update(os.fsencode(f"{name}\0{checksum}\n"))
    return total.hexdigest()


class ConflictError(ValueError):
    """The item was answered elsewhere, in another tab, after the page was loaded."""


class Answers:
    """The answers file of a session: appended and flushed to the disk before an answer is acknowledged."""

    def __init__(self, path: Path, session: Session) -> None:
        """Raises UserError: the file holds another session's answers, or a line that is not ours."""
        self.path, self.session = path, session
        self._lock = threading.Lock()
        found: list[tuple[dict[str, Any], int]] = []
        if path.exists():
            found = _parse(path, session.identity)
            _end_whole(path, found[-1][1] if found else 0)
        self.lines = [line for line, _ in found[1:]]
        self._ids = {line["id"] for line in self.lines}
        self._counts = Counter((line["rater"], line["item"]) for line in self.lines)
        if not found:
            self._append({"session": dict(session.identity), "time": _now()})

    def record(self, rater: str, data: Mapping[str, Any]) -> None:
        """Append one answer; the same `id` twice is one answer. `answer` None takes an answer back.

        `seen` is how many answers of this rater to the item the page knew of. Raises ConflictError where there are
        others, and ValueError for what is not an answer to an item of this session.
        """
        key, answer, note, seen, ident = (data.get(k) for k in ("item", "answer", "note", "seen", "id"))
        item = self.session.items.get(key) if isinstance(key, str) else None
        if item is None or not RATER.fullmatch(rater):
            raise ValueError("no such item or rater")
        if answer is not None and answer not in self.session.answers_to(item.mode):
            raise ValueError("no such answer")
        if not isinstance(note, str) or len(note) > MAX_NOTE or not isinstance(seen, int):
            raise ValueError(f"a note of at most {MAX_NOTE} characters and a count are needed")
        if not isinstance(ident, str) or not re.fullmatch(r"[0-9a-f-]{8,64}", ident):
            raise ValueError("an id is needed")
        with self._lock:
            if ident in self._ids:
                return
            if seen != self._counts[rater, item.key]:
                raise ConflictError("answered in another tab")
            line: dict[str, Any] = {"id": ident, "rater": rater, "item": item.key, "mode": item.mode}
            line |= {"name": item.name, "runs": list(item.runs), "answer": answer, "note": note, "time": _now()}
            self._append(line)
            self._ids.add(ident)
            self._counts[rater, item.key] += 1
            self.lines.append(line)

    def view(self, rater: str, mode: str) -> list[dict[str, Any]]:
        """The items for a rater, in order, with his answers; for the consensus, what the others disagree on."""
        with self._lock:
            lines = list(self.lines)
        latest, others = latest_answers(lines), raters(lines)
        rows = []
        for item in self.session.of_mode(mode):
            said = [latest[r, item.key]["answer"] for r in others if (r, item.key) in latest]
            said = [answer for answer in said if answer is not None]
            if rater == CONSENSUS and len(set(said)) < 2:
                continue
            mine = latest.get((rater, item.key), {"answer": None, "note": ""})
            rows.append(
                {
                    "item": item.key,
                    "images": list(item.images),
                    "answer": mine["answer"],
                    "note": mine["note"],
                    "seen": self._counts[rater, item.key],
                    "said": said if rater == CONSENSUS else [],
                }
            )
        return rows

    def _append(self, line: Mapping[str, Any]) -> None:
        with open(self.path, "ab") as f:
            f.write(json.dumps(line, ensure_ascii=False).encode(errors="replace") + b"\n")
            f.flush()
            os.fsync(f.fileno())


def read_answers(path: Path, identity: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
    """The answers in a file, which is left as it is. A last line that a kill cut short was never acknowledged.

    Raises UserError: not such a file, or one of another session than `identity`.
    """
    return [line for line, _ in _parse(path, identity)][1:]


def _parse(path: Path, identity: Mapping[str, Any] | None) -> list[tuple[dict[str, Any], int]]:
    """The session and the answers of a file, each with where it ends in the file, its newline included."""
    content, start = path.read_bytes(), 0
    found: list[tuple[dict[str, Any], int]] = []
    try:
        for text in content.splitlines(keepends=True):
            start += len(text)
            try:
                line = json.loads(text)
            except ValueError:
                if start == len(content) and not text.endswith(b"\n") and (found or _begins_ours(text)):  # cut short
                    break
                raise
            if not isinstance(line["session" if not found else "answer"], dict | str | None):
                raise TypeError
            if found and not all(isinstance(line[k], str) for k in ("id", "rater", "item")):
                raise TypeError
            found.append((line, start))
        header = found[0][0]["session"] if found else None
        if header is not None and not {"kind", "seed", "images"} <= header.keys():
            raise TypeError
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise UserError(f"{path} is not an answers file; name another --answers") from None
    if header is not None and identity is not None and header != dict(identity):
        changed = next(k for k in {**header, **identity} if header.get(k) != identity.get(k))
        raise UserError(f"{path} holds answers to another {changed}; repeat its options, or name another --answers")
    return found


def _begins_ours(text: bytes) -> bool:
    """Whether a first line that was cut short is the beginning of ours."""
    ours = b'{"session": {'
    return text.startswith(ours) or ours.startswith(text)


def _end_whole(path: Path, end: int) -> None:
    """An answers file that ends with its last whole line, and that with a newline."""
    content = path.read_bytes()
    whole = content[:end] if content[:end].endswith(b"\n") or not end else content[:end] + b"\n"
    if whole != content:
        with open(path, "r+b") as f:
            f.write(whole)
            f.truncate(len(whole))


def latest_answers(lines: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str], Mapping[str, Any]]:
    """The answer that counts, by (rater, item)."""
    return {(line["rater"], line["item"]): line for line in lines}


def raters(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """Who has answered, the consensus aside."""
    return sorted({line["rater"] for line in lines} - {CONSENSUS})


def verdict(line: Mapping[str, Any]) -> str:
    """What the answer to a pair says of run B against run A."""
    if line["answer"] in ("same", "unclear"):
        return str(line["answer"])
    better = line["runs"][0 if line["answer"] == "left better" else 1]
    return "better" if better == "B" else "worse"


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
