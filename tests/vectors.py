"""Where the reference vectors are: a few in tests/golden, all of them in ../shared/vectors or $EDM_VECTORS."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = ROOT / "tests" / "golden"
SHARED = Path(os.environ.get("EDM_VECTORS", ROOT.parent / "shared" / "vectors"))
CONFIGS: dict[str, dict[str, Any]] = json.loads((GOLDEN / "networks" / "configs.json").read_text())


def vector_file(relative: str) -> Path:
    """A file of the reference vectors; the calling test is skipped where it is missing."""
    for folder in (GOLDEN, SHARED):
        if (folder / relative).is_file():
            return folder / relative
    pytest.skip(f"no {relative} in {GOLDEN} or {SHARED}")


def tensors(relative: str) -> dict[str, torch.Tensor]:
    with np.load(vector_file(relative), allow_pickle=False) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


def relative_error(a: torch.Tensor, b: torch.Tensor) -> float:
    """max over samples of max|a - b| / max|b|, the measure of vectors/README.md."""
    assert a.shape == b.shape
    a, b = a.detach().flatten(1), b.flatten(1)
    return float(((a - b).abs().amax(1) / b.abs().amax(1)).max())
