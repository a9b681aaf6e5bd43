"""The output folder of a sampling run: images by name, one JSON line each, resumable, never half-written."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL.Image import Image

from dnnlib.errors import UserError
from dnnlib.util import atomic_write

OPTIONS_NAME, SAMPLES_NAME, PARTS_NAME = "options.json", "samples.jsonl", ".parts"


class OutputFolder:
    """Images and their records in `outdir`; several processes may write different chunks at once.

    `identity` is what decides the images' bytes: a folder holds images of one identity. A finished chunk leaves its
    lines in a part file; `finish` merges the parts into `samples.jsonl`. Run again, finished images are left alone.

    Raises UserError: `outdir` cannot be written, or holds images of another identity.
    """

    def __init__(self, outdir: str | os.PathLike[str], *, identity: Mapping[str, Any]) -> None:
        self.outdir, self.identity = Path(outdir), dict(identity)
        found = _read_json(self.outdir / OPTIONS_NAME)
        if found is not None and found.get("identity") != self.identity:
            old = found.get("identity", {})
            changed = [k for k in {**old, **self.identity} if old.get(k) != self.identity.get(k)]
            k = changed[0]
            raise UserError(
                f"--outdir={outdir} holds images made with {k}={old.get(k)}, not {self.identity.get(k)}; "
                f"name another --outdir or remove that one"
            )
        self._known = {line["name"]: line for line in _read_lines(self.outdir / SAMPLES_NAME)}
        for part in sorted((self.outdir / PARTS_NAME).glob("*.jsonl")):
            self._known.update({line["name"]: line for line in _read_lines(part)})

    def begin(self, about: Mapping[str, Any]) -> None:
        """Makes the folder and writes `options.json`; to be called by one process, before any `write`."""
        try:
            (self.outdir / PARTS_NAME).mkdir(parents=True, exist_ok=True)
            with atomic_write(self.outdir / OPTIONS_NAME) as temporary:
                temporary.write_text(json.dumps({"identity": self.identity, **about}, indent=2) + "\n")
        except OSError as e:
            raise UserError(f"--outdir={self.outdir} cannot be written: {e.strerror}; name another folder") from None

    def is_done(self, names: Iterable[str]) -> bool:
        """Whether all of these images are there, with their records."""
        return all(name in self._known and self._present(self._known[name]) for name in names)

    def write(self, chunk: str, images: Sequence[Image | None], lines: Sequence[dict[str, Any]]) -> None:
        """Writes the images that are missing, then the chunk's lines; `None` is an image that could not be made.

        Each line holds `name`, the image's path in the folder; its `sha256` is added here.
        """
        for image, line in zip(images, lines, strict=True):
            path = self.outdir / line["name"]
            line["sha256"] = None
            if image is None:
                continue
            data = io.BytesIO()
            image.save(data, format="PNG")
            line["sha256"] = hashlib.sha256(data.getvalue()).hexdigest()
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                with atomic_write(path) as temporary:
                    temporary.write_bytes(data.getvalue())
        with atomic_write(self.outdir / PARTS_NAME / f"{chunk}.jsonl") as temporary:
            temporary.write_text("".join(json.dumps(line) + "\n" for line in lines))

    def finish(self) -> list[dict[str, Any]]:
        """Merges all parts into `samples.jsonl`, ordered by name; returns the lines. To be called by one process."""
        for part in sorted((self.outdir / PARTS_NAME).glob("*.jsonl")):
            self._known.update({line["name"]: line for line in _read_lines(part)})
        lines = [self._known[name] for name in sorted(self._known)]
        with atomic_write(self.outdir / SAMPLES_NAME) as temporary:
            temporary.write_text("".join(json.dumps(line) + "\n" for line in lines))
        shutil.rmtree(self.outdir / PARTS_NAME)
        return lines

    def _present(self, line: Mapping[str, Any]) -> bool:
        return line["sha256"] is not None and (self.outdir / line["name"]).is_file()


def _read_json(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        found: dict[str, Any] = json.loads(path.read_text())
        return found
    except ValueError:
        raise UserError(f"{path} is not JSON; it is not this program's folder: name another --outdir") from None


def _read_lines(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    try:
        return [json.loads(line) for line in path.read_text().splitlines()]
    except ValueError:
        raise UserError(f"{path} is not JSON lines; remove it to make its images again") from None
