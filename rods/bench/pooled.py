"""What is kept of images beside a run: features.jsonl, by which runs are compared where their PNGs are not.

A line is of a group of images, {"names", "x", "sq", "mean"}, with 8x8 means of their levels in base64 (bytes
[C, 8, 8]), the sums of their squared values, and their mean image (float16). The file is written when it is first
needed.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import adaptive_avg_pool2d

from dnnlib.errors import UserError
from dnnlib.util import atomic_write
from rods.runs.images import SEVERAL_KINDS, U8, read_png, stacked

F64 = NDArray[np.float64]
FEATURES_NAME = "features.jsonl"
POOLED = 8  # pixels on a side of the means that stand for an image
GROUP = 32  # images of a line of features.jsonl; their total variance is drawn again by groups


def values_of(pixels: U8) -> F64:
    """Pixels as a sampler's values in [-1, 1]: the inverse of `images.to_uint8`, to its rounding."""
    return np.asarray((pixels.astype(np.float64) - 128) / 127.5)


def feature_lines(run: Path, files: Mapping[str, str]) -> list[Mapping[str, Any]]:
    """The lines of features.jsonl for files by image name; images that it lacks are read and added (see `grouped`)."""
    path = run / FEATURES_NAME
    found: list[Mapping[str, Any]] = []
    try:
        found = [json.loads(text) for text in (path.read_text() if path.is_file() else "").splitlines()]
        if len({_sizes(group) for group in found}) > 1:
            raise ValueError
    except (ValueError, TypeError, KeyError, RecursionError):
        raise UserError(f"{path} is damaged; delete it, and it is made again of the images") from None
    known = {name for group in found for name in group["names"]}
    missing = {name: file for name, file in files.items() if name not in known}
    if not missing:
        return found
    if absent := sorted(file for file in missing.values() if not (run / file).is_file()):
        raise UserError(f"{run}: {absent[0]} is missing, and {FEATURES_NAME} does not have it; sample it again")
    found += grouped(run, missing)
    if len({_sizes(group) for group in found}) > 1:
        raise UserError(f"{run} {SEVERAL_KINDS}")
    with atomic_write(path) as temporary:
        temporary.write_text("".join(json.dumps(line, separators=(",", ":")) + "\n" for line in found))
    return found


def _sizes(group: Mapping[str, Any]) -> tuple[int, int]:
    """How many bytes an image's levels and the mean image have. TypeError, KeyError or ValueError: no line of ours."""
    names, texts, squares = group["names"], group["x"], group["sq"]
    if not all(isinstance(name, str) for name in names) or not len(names) == len(texts) == len(squares):
        raise TypeError
    levels = {len(base64.b64decode(text, validate=True)) for text in texts}
    mean = len(base64.b64decode(group["mean"], validate=True))
    if len(levels) != 1 or (size := levels.pop()) % POOLED**2 or mean % 2 or not math.isfinite(sum(squares)):
        raise ValueError
    return size, mean


def grouped(run: Path, files: Mapping[str, str]) -> list[Mapping[str, Any]]:
    """Lines of features.jsonl for the files of a run by image name, by groups in the order of the names."""
    names = sorted(files)
    parts = [names[start : start + GROUP] for start in range(0, len(names), GROUP)]
    return [group_line(part, stacked([read_png(run / files[name]) for name in part], of=run)) for part in parts]


def group_line(names: Sequence[str], images: U8) -> dict[str, Any]:
    """What features.jsonl says of a group of images [n, C, H, W]."""
    x = values_of(images).clip(-1, 1)
    return {
        "names": list(names),
        "x": [base64.b64encode(levels.tobytes()).decode() for levels in pooled_levels(x)],
        "sq": [round(float(s), 3) for s in (x**2).sum(axis=(1, 2, 3))],
        "mean": base64.b64encode(x.mean(axis=0).astype("<f2").tobytes()).decode(),
    }


def pooled_levels(x: F64) -> U8:
    """8x8 means of the levels of images [N, C, H, W] in [-1, 1], as bytes [N, C, 8, 8]."""
    unit = torch.from_numpy((x.clip(-1, 1) + 1) / 2)
    return np.asarray(np.rint(255 * adaptive_avg_pool2d(unit, POOLED).numpy()).astype(np.uint8))
