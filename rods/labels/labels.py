"""Labels of images: one file that grows, beside a run (labels.jsonl) or anywhere, whoever gave them.

A line per answer to an image, by people

    {"id": "...", "source": "person alice", "name": "000007.png", "sha256": "...", "label": "hallucinated",
     "answer": "extra fingers", "note": "", "order": "shuffled", "time": "..."}

or by a program:

    {"name": "000007.png", "label": "hallucinated", "source": "program hands-32", "mode": 6, "sha256": "..."}

`label` is valid, hallucinated or uncertain; null takes an answer back. `sha256` is the image file's, and what a label
belongs to: runs and later seeds pool. Lines without it, and runs whose records have none, go by the name. `mode` is the
mode, class or count that a program sees (-1: none), `fault` what is wrong in words. `answer` is the rater's own word,
`round` 2 that of an image that was asked a second time, `order` why it was asked. A line with `pair` is an answer to
two images side by side, and no label. The last line of a source, round and image counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from dnnlib.errors import UserError
from dnnlib.run_folder import SAMPLES_NAME
from rods.labels.growing_file import Line, append_lines, end_whole, read_lines
from rods.runs.folder import read_lines as read_records

LABELS_NAME = "labels.jsonl"
ANOTHER_CLASS = "another class"  # the fault of a valid image of a class that was not asked for
VERDICTS = ("uncertain", "valid", "hallucinated")  # in the order of the codes of rods.eval.labels.Label
PERSON = "person "  # begins the source of what a rater says
PEOPLE = "people"  # all raters of a file together
CONSENSUS = "consensus"  # the rater who settles what the others disagree on


@dataclass(frozen=True)
class ImageLabel:
    """What a source says of an image."""

    name: str  # of the image, as in samples.jsonl
    label: str  # one of `VERDICTS`
    source: str
    mode: int | None = None
    fault: str | None = None
    sha256: str | None = None
    answer: str | None = None
    note: str | None = None
    id: str | None = None
    round: int | None = None  # 2: asked a second time
    order: str | None = None  # why it was asked: shuffled, score NAME, next NAME
    time: str | None = None

    def __post_init__(self) -> None:
        if self.label not in VERDICTS:
            raise ValueError(f"label: unknown label {self.label!r}; expected {', '.join(VERDICTS)}")

    @property
    def key(self) -> str:
        """The image: its checksum, or its name where there is none."""
        return self.sha256 or self.name

    @property
    def is_of_person(self) -> bool:
        return self.source.startswith(PERSON)


_FIELDS = tuple(field.name for field in fields(ImageLabel))


def labels_in(lines: Iterable[Line]) -> list[ImageLabel]:
    """The labels that count, the last of each source, round and image; pairs and what was taken back left out."""
    last = {(line["source"], line.get("round"), line.get("sha256") or line["name"]): line
            for line in lines if "pair" not in line}  # fmt: skip
    return [ImageLabel(**{key: line[key] for key in _FIELDS if key in line})
            for line in last.values() if line["label"] is not None]  # fmt: skip


def settle(labels: Iterable[ImageLabel]) -> dict[str, ImageLabel]:
    """One label for each image, by its key: what all answers agree on; the consensus' where there is one.

    Where they do not agree on the verdict it is uncertain, and where only the words differ there is no `answer`.
    """
    found: dict[str, list[ImageLabel]] = {}
    for label in labels:
        found.setdefault(label.key, []).append(label)
    return {key: _settled(given) for key, given in found.items()}


def _settled(given: Sequence[ImageLabel]) -> ImageLabel:
    final = [label for label in given if label.source == PERSON + CONSENSUS] or list(given)
    verdicts, answers = {label.label for label in final}, {label.answer for label in final}
    return replace(
        final[0],
        label=final[0].label if len(verdicts) == 1 else VERDICTS[0],
        source=given[0].source if len({label.source for label in given}) == 1 else PEOPLE,
        answer=final[0].answer if len(answers) == 1 else None,
        round=None,
    )


def read_labels(run: Path, *, source: str | None = None) -> dict[str, ImageLabel]:
    """The labels of a run's images by their names.

    Args:
        run: the folder, with a labels.jsonl unless `source` is a file.
        source: a source in it such as `program hands-32`; `people`, what all its raters agree on; or the path of a file
            of labels, which may be of many runs, alone or as FILE:SOURCE. By default the only one there is, all raters
            being one.
    Raises:
        UserError: no such file or source, several sources and none named, or a line that is not a label.
    """
    labels = list(settle(read_answers(run, source=source)).values())
    sums = image_sums(run)
    if named_file(source):
        names = _by_sum(sums)
        return {name: replace(label, name=name) for label in labels for name in names.get(label.sha256 or "", ())}
    return _own(labels, sums)


def read_answers(run: Path, *, source: str | None = None) -> list[ImageLabel]:
    """All answers that `read_labels` settles, of other runs too where they are of a file that has such."""
    path, whose = named_file(source) or (run / LABELS_NAME, source)
    if not path.is_file():
        remedy = f"label it, such as by scripts/bench.py label {run} --task=NAME or by scripts/label.py"
        missing = "" if source is None else f", and there is no file of labels {source!r}"
        raise UserError(f"{run} has no {LABELS_NAME}{missing}; {remedy}")
    return of_source(labels_in(read_label_lines(path)), whose, path, pooled=path != run / LABELS_NAME)


def named_file(source: str | None) -> tuple[Path, str | None] | None:
    """The file of labels that a text names and whose labels in it: FILE, or FILE:SOURCE; None: it names no file."""
    if source is None:
        return None
    file, colon, whose = source.rpartition(":")
    found = [(Path(source), None), *([(Path(file), whose)] if colon else [])]
    return next(((path, one) for path, one in found if path.is_file()), None)


def read_label_lines(path: Path) -> list[Line]:
    """All lines of a file of labels. Raises UserError: another file, or one of the form before version 0.2."""
    lines = read_lines(path)
    if lines and "session" in lines[0]:
        raise UserError(f"{path} is of the form before version 0.2; scripts/label.py import reads it")
    return lines


def of_source(
    labels: Sequence[ImageLabel], source: str | None, path: Path, *, pooled: bool = False
) -> list[ImageLabel]:
    """The labels of one source, all raters being one; without a source, of the only one. UserError: none.

    `pooled`: the file was named, and is not that of a run.
    """
    if not labels:
        raise UserError(f"{path} has no labels yet; label some images first, such as by scripts/label.py")
    people = [label for label in labels if label.is_of_person]
    others = list(dict.fromkeys(label.source for label in labels if not label.is_of_person))
    known = [*others, *([PEOPLE] if people else [])]
    if source is None:
        if len(known) > 1:
            example = f"{path}:{known[-1]}" if pooled else known[-1]
            raise UserError(
                f"{path} has labels of {', '.join(map(repr, known))}; name one by --labels, such as "
                f"--labels='{example}'"
            )
        source = known[0]
    if source == PEOPLE and people:
        return people
    own = [label for label in labels if label.source == source]
    if not own:
        everybody = dict.fromkeys([*known, *(label.source for label in people)])
        raise UserError(
            f"{path} has no labels of {source!r}, but of {', '.join(map(repr, everybody))}; "
            "name one of these, or a file of labels"
        )
    return own


def image_sums(run: Path) -> dict[str, str | None]:
    """The checksum of each image that a run's records name; empty for a folder without records."""
    return {line["name"]: line["sha256"] for line in read_records(run / SAMPLES_NAME)}


def _by_sum(sums: Mapping[str, str | None]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, checksum in sums.items():
        if checksum:
            found.setdefault(checksum, []).append(name)
    return found


def _own(labels: Sequence[ImageLabel], sums: Mapping[str, str | None]) -> dict[str, ImageLabel]:
    """The labels of the file beside a run: by checksum, and by name where either side has no checksum."""
    names, found = _by_sum(sums), {}
    for label in labels:
        if label.sha256 and (equal := names.get(label.sha256)):
            found.update({name: replace(label, name=name) for name in equal})
        elif not label.sha256 or not sums.get(label.name, "" if not sums else label.sha256):
            found[label.name] = label
    return found


def write_labels(run: Path, labels: Sequence[ImageLabel]) -> None:
    """Adds labels to the run's file; one of the same source for the same image takes the old one's place."""
    end_whole(run / LABELS_NAME)
    append_lines(run / LABELS_NAME, [_line(label) for label in labels])


def _line(label: ImageLabel) -> dict[str, Any]:
    return {key: value for key, value in asdict(label).items() if value is not None}
