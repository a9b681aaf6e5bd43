"""labels.jsonl: beside a run's samples.jsonl, a line per image and source.

    {"name": "000007.png", "label": "hallucinated", "source": "program hands-32", "mode": 6, "sha256": "..."}

`source` says who labelled: a program and its task, or a person. `label` is valid, hallucinated or uncertain. `mode` is
the mode, class or count that the source sees (-1: none), `fault` what is wrong in words; both may be left out. `sha256`
is the image file's, so that a label can be followed to an equal image in another run.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from dnnlib.errors import UserError
from dnnlib.util import atomic_write

LABELS_NAME = "labels.jsonl"
ANOTHER_CLASS = "another class"  # the fault of a valid image of a class that was not asked for
VERDICTS = ("uncertain", "valid", "hallucinated")  # in the order of the codes of rods.eval.labels.Label


@dataclass(frozen=True)
class ImageLabel:
    """What a source says of an image."""

    name: str  # of the image, as in samples.jsonl
    label: str  # one of `VERDICTS`
    source: str
    mode: int | None = None
    fault: str | None = None
    sha256: str | None = None

    def __post_init__(self) -> None:
        if self.label not in VERDICTS:
            raise ValueError(f"label: unknown label {self.label!r}; expected {', '.join(VERDICTS)}")


def read_labels(run: Path, *, source: str | None = None) -> dict[str, ImageLabel]:
    """The labels of one source by image name, in the order of the file; without a source, of the only one.

    Raises UserError: no such file or source, several sources and none named, or a line that is not a label.
    """
    path = run / LABELS_NAME
    if not path.is_file():
        raise UserError(f"{run} has no {LABELS_NAME}; label it, such as by scripts/bench.py label {run} --task=NAME")
    found = _parse(path)
    sources = list(dict.fromkeys(line.source for line in found))
    if source is None and len(sources) > 1:
        raise UserError(f"{path} has labels of {', '.join(map(repr, sources))}; name one by --labels")
    if source is not None and source not in sources:
        raise UserError(f"{path} has no labels of {source!r}, but of {', '.join(map(repr, sources)) or 'nobody'}")
    return {line.name: line for line in found if source in (None, line.source)}


def write_labels(run: Path, labels: Sequence[ImageLabel]) -> None:
    """Adds labels to the run's file; one of the same source for the same image takes the old one's place."""
    path = run / LABELS_NAME
    merged = {(line.source, line.name): line for line in [*(_parse(path) if path.is_file() else []), *labels]}
    ordered = sorted(merged.values(), key=lambda line: (line.source, line.name))
    with atomic_write(path) as temporary:
        temporary.write_text("".join(_json(line) + "\n" for line in ordered))


def _json(line: ImageLabel) -> str:
    return json.dumps({key: value for key, value in asdict(line).items() if value is not None})


def _parse(path: Path) -> list[ImageLabel]:
    lines: Iterable[Mapping[str, object]]
    try:
        lines = [json.loads(text) for text in path.read_text().splitlines()]
        return [ImageLabel(**line) for line in lines]  # type: ignore[arg-type]
    except (ValueError, TypeError):
        raise UserError(f"{path} is not a file of labels; move it away and label the run again") from None
