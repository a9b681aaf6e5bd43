"""11k-hands (Afifi 2019): a folder of JPEGs and HandInfo.csv, read, filtered, and shaped into equal squares.

The columns are id, age, gender, skinColor, accessories, nailPolish, aspectOfHand, imageName, irregularities; others
(such as the ground truth of rendered hands) are passed over unless they are asked for as labels.
"""

from __future__ import annotations

import contextlib
import csv
import io
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from dnnlib.errors import UserError, shown
from dnnlib.util import atomic_write
from training.datasets.files import is_image
from training.datasets.images import WHITE, centre_crop, centre_on, encode_png, open_image, resize
from training.datasets.writer import write_dataset

CSV_NAME = "HandInfo.csv"
FULL_SET = 11_076
ASPECTS = ("dorsal left", "dorsal right", "palmar left", "palmar right")
ASPECT_COLUMN, IMAGE_COLUMN = "aspectOfHand", "imageName"


@dataclass(frozen=True)
class Hand:
    """A line of HandInfo.csv: the name of its image, its line in the file, and all its columns."""

    image: str
    line: int
    columns: dict[str, str]


@dataclass(frozen=True)
class Folder:
    """An 11k-hands folder: the hands that have an image, and what does not fit together.

    `missing` are images that HandInfo.csv names and the folder lacks; `extra` those it does not name.
    """

    path: Path
    hands: list[Hand]
    missing: list[str]
    extra: list[str]

    def file(self, hand: Hand) -> Path:
        return self.path / hand.image


def read_folder(source: Path, *, option: str = "--source") -> Folder:
    """The hands of `source`, in the order of HandInfo.csv, which is in it or beside it.

    Images may be in `Hands/`, or in `Hands/Hands/` as in Kaggle's archive, and their suffixes in another case.

    Raises UserError: no folder, no HandInfo.csv, one that cannot be read, a name listed twice, no image of those named.
    """
    where = f"{option}={source}"
    if not source.is_dir():
        raise UserError(f"{where} is not a folder; name the folder of the JPEGs and {CSV_NAME}")
    table = next((p for p in (source / CSV_NAME, source.parent / CSV_NAME) if p.is_file()), None)
    if table is None:
        raise UserError(
            f"{where} has no {CSV_NAME}, nor is one beside it; put the file there, as 11k-hands comes with it"
        )
    hands = _read_table(table)
    images = next(p for p in (source / "Hands" / "Hands", source / "Hands", source) if p.is_dir())
    present = {p.name for p in images.iterdir() if is_image(p.name)}
    on_disk = {name.lower(): name for name in present}  # Hand_1.JPG of a camera, Hand_1.jpg in the table
    hands = [hand if hand.image in present else replace(hand, image=on_disk.get(hand.image.lower(), hand.image))
             for hand in hands]  # fmt: skip
    named = {hand.image for hand in hands}
    if not named & present:
        raise UserError(
            f"{images} has none of the {len(hands):,} images that {table} names, such as {shown(hands[0].image)}; "
            f"name the folder of the JPEGs by {option}"
        )
    return Folder(images, [h for h in hands if h.image in present], sorted(named - present), sorted(present - named))


def _read_table(path: Path) -> list[Hand]:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise UserError(
            f"{path} is not a text in UTF-8 ({shown(str(e))}); save it as UTF-8, or fetch it again"
        ) from None
    try:
        first = text.partition("\n")[0]
        between = ";" if first.count(";") > first.count(",") else ","  # spreadsheets of some countries
        lines = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=between)
        header = [name.strip() for name in next(lines, [])]
        rows = [(lines.line_num, [cell.strip() for cell in row]) for row in lines]
    except csv.Error as e:
        raise UserError(f"{path} is not a CSV file ({shown(str(e))}); fetch it again") from None
    rows = [(line, row) for line, row in rows if any(row)]
    while header and not header[-1] and not any(row[len(header) - 1 :] and row[len(header) - 1] for _, row in rows):
        header.pop()  # a column that a spreadsheet left empty
        rows = [(line, row[: len(header)]) for line, row in rows]
    if not all(header):
        raise UserError(f"{path} has a column without a name that is not empty; name or remove it")
    if IMAGE_COLUMN not in header or len(set(header)) < len(header):
        raise UserError(
            f"{path} has the columns {shown(', '.join(header), 300)}; it needs {IMAGE_COLUMN}, and each one once"
        )
    hands: dict[str, Hand] = {}
    for line, row in rows:
        if len(row) != len(header):
            raise UserError(f"{path}, line {line}, has {len(row)} columns instead of {len(header)}; mend it")
        hand = Hand(row[header.index(IMAGE_COLUMN)], line, dict(zip(header, row, strict=True)))
        if not is_image(hand.image) or Path(hand.image).name != hand.image or "\\" in hand.image:
            raise UserError(f"{path}, line {line}: {shown(hand.image)} is not a name of an image; mend it")
        if hand.image in hands:
            raise UserError(
                f"{path}, line {line}: {shown(hand.image)} is on line {hands[hand.image].line} too; keep one"
            )
        hands[hand.image] = hand
    if not hands:
        raise UserError(f"{path} lists no hands; fetch it again")
    return list(hands.values())


def without(hands: Sequence[Hand], column: str) -> list[Hand]:
    """The hands whose `column` (accessories or irregularities) is 0. Raises UserError for values but 0 and 1."""
    for hand in hands:
        if _value(hand, column) not in ("0", "1"):
            raise UserError(
                f"{CSV_NAME}, line {hand.line}: {column} is {shown(_value(hand, column))}, not 0 or 1; "
                f"mend it or say --{column}=keep"
            )
    return [hand for hand in hands if _value(hand, column) == "0"]


def classes(hands: Sequence[Hand], column: str) -> tuple[list[int], list[str]]:
    """(class of each hand, name of each class) by a column of HandInfo.csv.

    The classes of aspectOfHand are always the four `ASPECTS`; those of another column are its values, numbers by size
    and words by alphabet. Raises UserError: no such column, an aspect that is none, an empty value.
    """
    values = [" ".join(_value(hand, column).split()) for hand in hands]
    if column == ASPECT_COLUMN:
        values = [value.lower() for value in values]
    known = set(ASPECTS) if column == ASPECT_COLUMN else set(values) - {""}
    for hand, value in zip(hands, values, strict=True):
        if value not in known:
            wanted = f"none of {', '.join(ASPECTS)}" if column == ASPECT_COLUMN else "no label"
            raise UserError(f"{CSV_NAME}, line {hand.line}: {column} is {shown(value)}, {wanted}; mend it")
    try:
        names = sorted(known, key=float)
    except ValueError:
        names = sorted(known)
    return [names.index(value) for value in values], names


def _value(hand: Hand, column: str) -> str:
    if column not in hand.columns:
        raise UserError(f"{CSV_NAME} has no column {column}; it has {', '.join(hand.columns)}")
    return hand.columns[column]


def of_held_out_persons(hands: Sequence[Hand], every: int) -> list[bool]:
    """Whether each hand is of a person held out: the last of each `every` persons, in the order of their ids as text.

    All photographs of a person are on one side, for two of them are nearly equal. Raises UserError without ids.
    """
    persons = sorted({_value(hand, "id") for hand in hands})
    held = {person for i, person in enumerate(persons) if i % every == every - 1}
    return [_value(hand, "id") in held for hand in hands]


@dataclass(frozen=True)
class Shape:
    """What photographs become: squares of `resolution` pixels across.

    `fit` is `crop` (the largest centred square of the photograph) or `white` (all of it, with white bars around).
    """

    resolution: int
    fit: str

    def png(self, file: Path) -> bytes:
        """The RGB square of a photograph. Raises UserError: damaged, or smaller than the result."""
        image = open_image(file.read_bytes(), file.name).convert("RGB")
        side = max(image.size)
        square = centre_crop(image) if self.fit == "crop" else centre_on(image, (side, side), WHITE)
        if square.width < self.resolution:
            raise UserError(f"{file.name} is only {image.width}x{image.height} pixels")
        return encode_png(resize(square, (self.resolution, self.resolution)))


def finish(file: Path, done: Path, shape: Shape) -> str | None:
    """Writes the PNG of one photograph to `done`, unless it is there; what is wrong, if it cannot be read."""
    if not done.exists():
        try:
            png = shape.png(file)
        except UserError as e:
            return str(e).split(";")[0]  # without the remedy, which is the same for all
        with atomic_write(done) as temporary:
            temporary.write_bytes(png)
    return None


def done_file(work: Path, file: Path, shape: Shape) -> Path:
    """Where the PNG of a photograph is kept until all are done; another photograph or shape has another name."""
    stat = file.stat()
    return work / f"{file.name}-{stat.st_size:x}-{stat.st_mtime_ns:x}-{shape.resolution}-{shape.fit}.png"


def finish_all(files: Sequence[Path], done: Sequence[Path], shape: Shape, *, workers: int) -> Iterator[str | None]:
    """`finish` of every photograph, in order, in `workers` threads (Pillow leaves Python free to run meanwhile)."""
    with ThreadPoolExecutor(workers) as pool:
        try:
            yield from pool.map(finish, files, done, [shape] * len(files))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)  # or the pool would first finish what is queued
            raise


def pack(
    pngs: Sequence[Path],
    labels: Sequence[int] | None,
    held: Sequence[bool],
    *,
    dest: Path,
    held_out: Path | None,
    label_names: Sequence[str],
) -> list[str]:
    """Writes finished PNGs to `dest`, or to `held_out` where `held`; what each holds, in a line."""
    with contextlib.ExitStack() as stack:
        kept = stack.enter_context(write_dataset(dest, label_names=label_names))
        writers = [kept]
        if held_out is not None:
            writers.append(stack.enter_context(write_dataset(held_out, option="--held-out", label_names=label_names)))
        for i, png in enumerate(pngs):
            writers[held[i]].add_png(png.read_bytes(), None if labels is None else labels[i], source=png.name)
    return [f"{path}: {writer.summary()}" for path, writer in zip((dest, held_out), writers, strict=False)]


def mismatches(folder: Folder) -> Iterator[str]:
    """What does not fit together in a folder, a line each."""
    if len(folder.hands) != FULL_SET:
        yield f"{len(folder.hands):,} hands; the full set has {FULL_SET:,}"
    if folder.missing:
        yield f"missing images of {CSV_NAME}, {len(folder.missing):,}: {_listed(folder.missing)}"
    if folder.extra:
        yield f"images not in {CSV_NAME}, left out, {len(folder.extra):,}: {_listed(folder.extra)}"


def _listed(names: Sequence[str], limit: int = 100) -> str:
    more = f", and {len(names) - limit:,} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
