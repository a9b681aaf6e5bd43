"""The theory figures: they are drawn, and the same numbers give the same file."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

pytest.importorskip("matplotlib", reason="matplotlib is not installed")

from rods.bench.plots import theory


def test_figure_2_is_the_same_file_twice(tmp_path: Path) -> None:
    once, again = (theory.fig2(tmp_path / name, num_steps=4, num_samples=3) for name in "ab")
    assert once.read_bytes() == again.read_bytes()
    with Image.open(once) as image:
        assert len(set(image.convert("L").resize((64, 64)).tobytes())) > 20


def test_the_noise_levels_of_figure_2_end_at_the_data() -> None:
    assert theory.LEVELS[-1] == 0
    assert list(theory.LEVELS) == sorted(theory.LEVELS, reverse=True)
