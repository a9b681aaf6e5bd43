"""The sensitivity picture and the Fréchet benchmark, in small."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from click.testing import CliRunner
from test_fid import PIXELS, run

from scripts import bench_frechet, metric_sensitivity


def labelled(folder: Path, n: int, *, seed: int) -> Path:
    """n smooth pictures of 16x16 in three classes, each a square in a place of its own."""
    folder.mkdir()
    rng, labels = np.random.default_rng(seed), []
    for i in range(n):
        x = np.zeros((16, 16), dtype=np.uint8)
        left = 5 * (i % 3)
        x[4:10, left : left + 5] = rng.integers(100, 256)
        PIL.Image.fromarray(x).save(folder / f"{i:04d}.png")
        labels.append([f"{i:04d}.png", i % 3])
    (folder / "dataset.json").write_text(json.dumps({"labels": labels}))
    return folder


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    run("ref", f"--data={labelled(tmp_path / 'a', 60, seed=0)}", f"--dest={tmp_path / 'a.npz'}", *PIXELS)
    held_out = labelled(tmp_path / "b", 45, seed=1)
    return [f"--ref={tmp_path / 'a.npz'}", f"--held-out={held_out}", "--num=15", "--draws=2", "--blur=1,3",
            "--noise=10,60", "--lost=1,2", *PIXELS, f"--out={tmp_path / 'picture.png'}"]  # fmt: skip


def test_each_change_is_seen(arguments: list[str], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    result = CliRunner().invoke(metric_sensitivity.main, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    recipe, *points = [json.loads(line) for line in (tmp_path / "picture.jsonl").read_text().splitlines()]
    assert recipe["detector"].startswith("pixels")
    by_change: dict[str, list[float]] = {}
    for point in points:
        by_change.setdefault(point["change"], []).append(point["frechet"])
        assert (point["n"], point["n_ref"]) == (15, 60)
    floor = max(by_change.pop(metric_sensitivity.FLOOR))
    assert set(by_change) == {metric_sensitivity.BLUR, metric_sensitivity.NOISE, metric_sensitivity.LOST}
    for values in by_change.values():
        assert floor < values[1]  # the larger change is above real against real
        assert values[0] < values[1]
    with PIL.Image.open(tmp_path / "picture.png") as picture:
        assert picture.width > 500


def test_without_matplotlib_nothing_is_measured(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = CliRunner().invoke(metric_sensitivity.main, arguments)
    assert result.exit_code == 2
    assert "pip install -e '.[plots]'" in result.output
    assert result.output.count("\n") == 1


def test_too_few_classes_and_another_detector(arguments: list[str]) -> None:
    pytest.importorskip("matplotlib")
    result = CliRunner().invoke(metric_sensitivity.main, [*arguments, "--lost=3"])
    assert "has 45 images of 3 classes; give a smaller --num or --lost" in result.output
    assert result.exit_code == 2


def test_both_ways_to_the_frechet_distance_agree() -> None:
    result = CliRunner().invoke(bench_frechet.main, ["--dim=24", "--num=100"], catch_exceptions=False)
    lines = result.output.splitlines()
    assert lines[0] == "24 features, 100 samples, 1 repeats"
    ours, theirs = (float(line.split()[-1]) for line in lines[1:3])
    assert ours == pytest.approx(theirs, rel=1e-6)
    assert lines[3].startswith("symmetric eigenvalues are ")
