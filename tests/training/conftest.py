"""Fixtures of the training tests."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """10 images, half of them dark, half light, with their class and noise."""
    path = tmp_path_factory.mktemp("data") / "shades"
    path.mkdir()
    rng = np.random.default_rng(0)
    for i in range(10):
        image = 40 + 150 * (i % 2) + rng.integers(0, 40, (16, 16))
        PIL.Image.fromarray(image.astype(np.uint8)).save(path / f"{i}.png")
    (path / "dataset.json").write_text(json.dumps({"labels": [[f"{i}.png", i % 2] for i in range(10)]}))
    return path
