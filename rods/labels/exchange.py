"""Labels from and to what other tools read: CSV files, and folders named as the labels."""

from __future__ import annotations

import csv
import hashlib
import io
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dnnlib.errors import UserError, counted, shown
from dnnlib.util import SHA256, atomic_write, file_sha256
from rods.labels.agreement import people_in
from rods.labels.folders import Folder, image_files
from rods.labels.growing_file import Line
from rods.labels.label_set import LabelSet
from rods.labels.labels import PERSON, settle
from rods.labels.session import RATER

COLUMNS = ("name", "sha256", "label", "answer", "rater", "round", "note", "time")
ROUND = re.compile("[1-9][0-9]{0,2}")
NAME_COLUMNS = ("name", "file", "filename", "image", "path")


def read_csv(path: Path, folders: Sequence[Folder], labels: LabelSet, rater: str) -> list[Line]:
    """The rows of a CSV with the columns label, and name or sha256; rater, answer, note, round and time if it has them.

    A name is that of an image in `folders`; its folders may be left out where one image alone has it.
    Raises UserError: other columns, an unknown word, or a name that no image or several have.
    """
    columns, rows = _table(path)
    naming = next((column for column in NAME_COLUMNS if column in columns), None)
    if "label" not in columns or (naming is None and "sha256" not in columns):
        has = ", ".join(map(shown, columns)) or "none"
        raise UserError(f"{path} has the columns {has}; it needs label, and name or sha256, in its first line")
    if naming is not None and not folders and "sha256" not in columns:
        raise UserError(f"{path} names images; give their folder by --images")
    known = _by_name(folders)
    found: dict[tuple[str, str, str], tuple[Line, str]] = {}  # the label of a rater, round and image, and where it is
    for where, row in rows:
        name, again, by = row.get(naming or "", ""), row.get("round") or "1", row.get("rater") or rater
        checksum = _checksum(row["sha256"], where) if row.get("sha256") else _only(known.get(name, ()), name, where)
        if name in known and checksum not in known[name]:
            raise UserError(f"{where}: the image {shown(name)} of --images has another checksum; leave one of them out")
        answer = row.get("answer") or row["label"]
        if not RATER.fullmatch(by):
            raise UserError(f"{where}: rater {by!r} must be small letters, digits, - and _")
        if not ROUND.fullmatch(again):
            raise UserError(f"{where}: round {shown(again)} must be a number, such as 2 for an image asked again")
        given: dict[str, Any] = {"note": row.get("note", ""), "time": row.get("time") or None}
        given |= {"round": int(again)} if again != "1" else {}
        line = _line(by, name, checksum, answer, labels, where, given)
        first, there = found.setdefault((by, again, checksum), (line, where))
        if first["answer"] != line["answer"]:
            raise UserError(
                f"{where}: {by} says {line['answer']!r} of the image that {there.removeprefix(f'{path}, ')} calls "
                f"{first['answer']!r}; leave one of them"
            )
    return [line for line, _ in found.values()]


def _table(path: Path) -> tuple[list[str], list[tuple[str, dict[str, str]]]]:
    """The columns of a CSV, and its rows with where each is. UserError: no text, no row, or one that does not fit."""
    try:
        reader = csv.reader(io.StringIO(path.read_text(encoding="utf-8-sig"), newline=""), strict=True)
    except ValueError:
        raise UserError(f"{path} is not a CSV file of text; save it as UTF-8") from None
    columns: list[str] = []
    rows = []
    try:
        for fields in reader:
            where = f"{path}, line {reader.line_num}"
            if not any(fields):
                continue
            if not columns:
                columns = [field.strip().lower() for field in fields]
                continue
            if len(fields) != len(columns):
                raise UserError(f"{where}: {counted(len(fields), 'field')}, and the first line has {len(columns)}")
            rows.append((where, dict(zip(columns, map(str.strip, fields), strict=True))))
    except csv.Error as e:
        raise UserError(f"{path}, line {reader.line_num}: not a row of a CSV ({e}); is a quote not closed?") from None
    if twice := sorted(column for column in set(columns) if column and columns.count(column) > 1):
        raise UserError(f"{path} has the column {shown(twice[0])} twice; leave one of them")
    if columns and not rows:
        raise UserError(f"{path} has columns and no row below them; give one for each label")
    return columns, rows


def _checksum(text: str, where: str) -> str:
    if not SHA256.fullmatch(text):
        raise UserError(f"{where}: {shown(text)} is not a SHA-256; give the 64 hexadecimal digits of the image's file")
    return text.lower()


def _by_name(folders: Sequence[Folder]) -> Mapping[str, set[str]]:
    """The checksums of the images that have a name, with their folders or without."""
    known: dict[str, set[str]] = {}
    for folder in folders:
        for name, checksum in folder.sums.items():
            for key in {name, name.rsplit("/", 1)[-1], f"{folder.path}/{name}"}:
                known.setdefault(key, set()).add(checksum)
    return known


def _only(sums: set[str] | tuple[()], name: str, where: str) -> str:
    if not name:
        raise UserError(f"{where} has neither the name of an image nor its sha256; give one of them")
    if len(sums) != 1:
        many = "several different images" if sums else "no image"
        raise UserError(f"{where}: {many} of --images {'have' if sums else 'has'} the name {name!r}; "
                        "give the one folder that was labelled")  # fmt: skip
    return next(iter(sums))


def read_class_folders(root: Path, labels: LabelSet, rater: str) -> list[Line]:
    """The images of folders that are named as their labels.

    Raises UserError: no image in such a folder, a folder of another name, or one image in two of them.
    """
    found: dict[str, Line] = {}
    for name, path in image_files(root, option="import").items():
        answer, _, rest = name.partition("/")
        checksum = file_sha256(path)
        if not rest:
            raise UserError(f"{path} is in no folder that is named as a label; put it into one")
        if checksum in found and found[checksum]["answer"] != answer:
            raise UserError(
                f"{path} is the same file as one in {found[checksum]['answer']}; leave it in one of the folders"
            )
        found[checksum] = _line(rater, rest, checksum, answer, labels, str(root / answer), {"note": "", "time": None})
    if not found:
        raise UserError(f"{root} has no images in folders that are named as labels, such as {labels.answers[0]}/")
    return list(found.values())


def _line(
    rater: str, name: str, checksum: str, answer: str, labels: LabelSet, where: str, given: Mapping[str, Any]
) -> Line:
    """A line of a file of labels, whose id comes from what it says: the same import twice adds nothing."""
    verdict = labels.verdict(answer)
    if verdict is None:
        known = ", ".join(labels.answers)
        raise UserError(f"{where}: {shown(answer)} is none of the labels {known}; name them by --labels")
    said = {"source": PERSON + rater, "name": name, "sha256": checksum, "label": verdict, "answer": answer, **given}
    ident = hashlib.sha256(repr(sorted(said.items())).encode()).hexdigest()[:32]
    return {"id": ident, **said}


def write_csv(lines: Sequence[Line], dest: Path) -> int:
    """A row for each answer that counts: how many."""
    labels = people_in(lines)
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for one in labels:
        rater, again = one.source.removeprefix(PERSON), one.round or ""
        writer.writerow(
            [one.name, one.sha256 or "", one.label, one.answer or "", rater, again, one.note or "", one.time or ""]
        )
    with atomic_write(dest) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8", errors="replace")
    return len(labels)


def write_class_folders(lines: Sequence[Line], folders: Sequence[Folder], dest: Path) -> dict[str, int]:
    """Copies the labelled images of `folders` to DEST/valid, DEST/hallucinated and DEST/uncertain: how many to each.

    The label is what the raters agree on. UserError where DEST is not empty.
    """
    if dest.exists() and (not dest.is_dir() or any(dest.iterdir())):
        raise UserError(f"--dest={dest} is not an empty folder; name a new one")
    settled = settle(people_in(lines))
    counts: dict[str, int] = {}
    done: set[str] = set()
    for folder in folders:
        for name, path in folder.files.items():
            checksum = folder.sums[name]
            if checksum not in settled or checksum in done:
                continue
            done.add(checksum)
            label = settled[checksum].label
            target = dest / label / Path(name).name
            if target.exists():  # the same seed of another run
                target = target.with_name(f"{target.stem}-{checksum[:8]}{target.suffix}")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
            counts[label] = counts.get(label, 0) + 1
    return counts
