"""Labelling sessions: what is shown to raters, and their answers as lines of a file of labels (paper, appendix B.6).

An item is an image, or a pair of images of one name, one from each run. Equal files are one image, whatever runs they
are in, and are asked once. An item's key says nothing of the run. What the file has of these images already counts,
whichever folders it was labelled in. The last answer of a rater to an item counts.
"""

from __future__ import annotations

import hashlib
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
from rods.labels.folders import Folder
from rods.labels.growing_file import Line, append_lines, end_whole
from rods.labels.label_set import LabelSet
from rods.labels.labels import CONSENSUS, PERSON, read_label_lines

SIDES = ("left better", "right better", "same", "unclear")  # what a rater says of a pair
RATER = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")
MAX_NOTE = 2000
SHUFFLED = "shuffled"


@dataclass(frozen=True)
class Item:
    """What is judged at once: one image, or two side by side."""

    key: str
    mode: str  # "image" or "pair"
    name: str  # the file name in its folder
    sums: tuple[str, ...]  # checksum of each image shown, from left to right
    images: tuple[str, ...]  # their keys
    round: int = 1  # 2: an image that is asked a second time

    @property
    def subject(self) -> tuple[str, ...]:
        """What lines of the file say which item they answer."""
        return (*sorted(self.sums), str(self.round))


@dataclass(frozen=True)
class Order:
    """Which images come first, and why: checksums, the first one first. Those that it lacks are not shown."""

    name: str  # such as "score lid"
    sums: Sequence[str]


@dataclass(frozen=True)
class Session:
    """What is rated."""

    items: Mapping[str, Item]  # by key, in the order shown
    images: Mapping[str, Path]  # by the image's key
    labels: LabelSet
    order: str = SHUFFLED

    def of_mode(self, mode: str) -> list[Item]:
        return [item for item in self.items.values() if item.mode == mode]

    def answers_to(self, mode: str) -> tuple[str, ...]:
        return self.labels.answers if mode == "image" else SIDES


def open_session(
    folders: Sequence[Folder],
    against: Folder | None = None,
    *,
    labels: LabelSet,
    seed: int = 0,
    repeat: int = 0,
    order: Order | None = None,
) -> Session:
    """Every image of the folders once, `repeat` of them again at the end, and the pairs that differ.

    Pairs are of the first folder and `against`. All are shuffled by a hash of `seed`, but for images that have an
    `order`. Raises UserError: two runs that share no name.
    """
    found: dict[str, tuple[str, Path]] = {}  # by checksum
    for folder in [*folders, *([against] if against else [])]:
        for name, path in folder.files.items():
            found.setdefault(folder.sums[name], (name, path))
    images: dict[str, Path] = {}

    def item(checksum: str, round: int) -> Item:
        name, path = found[checksum]
        shown = _hash(seed, "shown", checksum, str(round))
        images[shown] = path
        return Item(_hash(seed, "image", checksum, str(round)), "image", name, (checksum,), (shown,), round)

    firsts = [item(checksum, 1) for checksum in (found if order is None else order.sums)]
    if order is None:
        firsts.sort(key=lambda item: item.key)
    chosen = sorted(firsts, key=lambda item: _hash(seed, "again", *item.sums))[:repeat]
    seconds = sorted((item(one.sums[0], 2) for one in chosen), key=lambda item: item.key)
    pairs = [] if against is None else _pairs(folders[0], against, seed, images)
    items = [*firsts, *seconds, *sorted(pairs, key=lambda item: item.key)]
    return Session({item.key: item for item in items}, images, labels, SHUFFLED if order is None else order.name)


def _pairs(first: Folder, second: Folder, seed: int, images: dict[str, Path]) -> list[Item]:
    common = [name for name in first.files if name in second.files]
    if not common:
        raise UserError(f"--against={second.path} shares no file name with --images={first.path}; give paired runs")
    found = []
    for name in common:
        if first.sums[name] == second.sums[name]:
            continue
        one, two = (first, second) if int(_hash(seed, "side", name), 16) % 2 else (second, first)
        sums = one.sums[name], two.sums[name]
        shown = tuple(_hash(seed, "side", name, checksum) for checksum in sums)
        images |= {shown[0]: one.files[name], shown[1]: two.files[name]}
        found.append(Item(_hash(seed, "pair", *sums), "pair", name, sums, shown))
    return found


def _hash(seed: int, *parts: str) -> str:
    return hashlib.sha256(os.fsencode("\0".join([str(seed), *parts]))).hexdigest()[:20]


class ConflictError(ValueError):
    """The item was answered elsewhere, in another tab, after the page was loaded."""


class Answers:
    """The file of a session: appended and flushed to the disk before an answer is acknowledged."""

    def __init__(self, path: Path, session: Session) -> None:
        """Raises UserError: the file is not one of labels."""
        self.path, self.session = path, session
        self._lock = threading.Lock()
        lines = read_label_lines(path) if path.exists() else []
        end_whole(path)
        self.lines: list[Line] = [line for line in lines if line["source"].startswith(PERSON)]
        self._ids = {line.get("id") for line in self.lines}
        self._counts = Counter((line["source"], subject(line)) for line in self.lines)

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
            counted = PERSON + rater, item.subject
            if seen != self._counts[counted]:
                raise ConflictError("answered in another tab")
            line = {"id": ident, "source": PERSON + rater, "name": item.name, **self._said(item, answer)}
            line |= {"note": note, "time": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
            append_lines(self.path, [line])
            self._ids.add(ident)
            self._counts[counted] += 1
            self.lines.append(line)

    def _said(self, item: Item, answer: str | None) -> dict[str, Any]:
        """What a line says of the images, and what of the answer."""
        if item.mode == "pair":
            return {"pair": list(item.sums), "answer": answer}
        label = None if answer is None else self.session.labels.verdict(answer)
        again = {"round": item.round} if item.round > 1 else {}
        return {"sha256": item.sums[0], "label": label, "answer": answer, **again, "order": self.session.order}

    def view(self, rater: str, mode: str) -> list[dict[str, Any]]:
        """The items for a rater, in order, with his answers; for the consensus, what the others disagree on."""
        with self._lock:
            lines = list(self.lines)
        latest = latest_answers(lines)
        said_of: dict[tuple[str, ...], list[str]] = {}
        for (source, where), line in latest.items():
            if source != PERSON + CONSENSUS and (said := answer_of(line)) is not None:
                said_of.setdefault(where[:-1], []).append(said)  # of both rounds
        rows = []
        for item in self.session.of_mode(mode):
            others = said_of.get(item.subject[:-1], [])
            if rater == CONSENSUS and (len(set(others)) < 2 or item.round > 1):
                continue
            mine = latest.get((PERSON + rater, item.subject), {"answer": None})
            rows.append(
                {
                    "item": item.key,
                    "images": list(item.images),
                    "answer": answer_of(mine, item.sums),
                    "note": mine.get("note", ""),
                    "seen": self._counts[PERSON + rater, item.subject],
                    "said": others if rater == CONSENSUS else [],
                }
            )
        return rows


def subject(line: Line) -> tuple[str, ...]:
    """Which item a line answers: the images' checksums and the round."""
    sums = line.get("pair") or [line.get("sha256") or line["name"]]
    return (*sorted(sums), str(line.get("round", 1)))


def answer_of(line: Line, sums: Sequence[str] | None = None) -> str | None:
    """The answer of a line, a label where it has no word for it; None where one was taken back.

    Of a pair that was shown with its sides exchanged against `sums`, the answer is exchanged, too.
    """
    answer: str | None = line.get("answer") or line.get("label")
    if sums is not None and answer in SIDES[:2] and list(sums) != line["pair"]:
        return SIDES[1 - SIDES.index(answer)]
    return answer


def latest_answers(lines: Iterable[Line]) -> dict[tuple[str, tuple[str, ...]], Line]:
    """The answer that counts, by source and subject."""
    return {(line["source"], subject(line)): line for line in lines}


def raters(lines: Iterable[Line]) -> list[str]:
    """Who has answered, the consensus aside."""
    return sorted({line["source"].removeprefix(PERSON) for line in lines} - {CONSENSUS})
