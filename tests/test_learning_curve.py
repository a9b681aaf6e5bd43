"""Learning curves: what is read of a run, what is kept of it, and the command that draws it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from commands import generated, refusal, said
from PIL import Image
from tree import ROOT

sys.path.insert(0, str(ROOT / "scripts"))

import learning_curve as command

from dnnlib.errors import UserError
from rods.bench.plots.learning import Point, read_curve, thinned, write_curve

LINES = [{"kimg": 2.0 * i, "loss": 2 / i, "lr": 1e-3, **({"val_loss": 2.5 / i} if i % 2 else {})} for i in range(1, 8)]


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "00003-hands"
    folder.mkdir()
    (folder / "stats.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES))
    return folder


def test_a_curve_replaces_no_image_of_a_run_and_is_a_png(tmp_path: Path) -> None:
    assert "does not end in .png" in refusal(command.main, tmp_path, f"--out={tmp_path / 'curve.txt'}")
    generated(tmp_path / "run", "--sampler=euler", "--seeds=0")
    told = refusal(command.main, tmp_path, f"--out={tmp_path / 'run' / '000000.png'}")
    assert "is an image of the run" in told


def test_a_folder_and_its_file_hold_the_same_points(run_dir: Path) -> None:
    points = read_curve(run_dir)
    assert points == read_curve(run_dir / "stats.jsonl")
    assert points[:2] == [Point(2, 2, 2.5), Point(4, 1, None)]


def test_a_tick_without_a_good_step_has_no_loss_and_a_line_that_a_kill_cut_is_left_out(run_dir: Path) -> None:
    with open(run_dir / "stats.jsonl", "a") as f:
        f.write('{"kimg": 16.0, "loss": null}\n{"kimg": 18.0, "lo')
    assert read_curve(run_dir)[len(LINES) :] == [Point(16, None)]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "has no lines yet"),
        ("loss=.3\n", "line 1 is no record of a training run"),
        ('{"kimg": 1, "loss": 1}\n[1]\n', "line 2 is no record of a training run"),
        ('{"loss": 1}\n', "are not finite numbers"),
        ('{"kimg": 1, "loss": NaN}\n', "are not finite numbers"),
        ('{"kimg": "1", "loss": 1}\n', "are not finite numbers"),
    ],
)
def test_what_is_no_log_is_refused_by_name(tmp_path: Path, text: str, problem: str) -> None:
    (tmp_path / "stats.jsonl").write_text(text)
    with pytest.raises(UserError, match=f"stats.jsonl.*{problem}"):
        read_curve(tmp_path)


def test_other_files_and_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"stats.jsonl does not exist; name a run folder"):
        read_curve(tmp_path)
    (tmp_path / "net.safetensors").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(UserError, match="is no text file"):
        read_curve(tmp_path / "net.safetensors")


@pytest.mark.parametrize("most", [2, 3, 6, 7, 100])
def test_thinning_keeps_the_ends_and_the_order(most: int) -> None:
    points = [Point(float(i), 1.0) for i in range(7)]
    kept = thinned(points, most)
    assert len(kept) == min(most, 7)
    assert (kept[0], kept[-1]) == (points[0], points[-1])
    assert [points.index(p) for p in kept] == sorted({points.index(p) for p in kept})


def test_one_point_is_no_curve() -> None:
    with pytest.raises(ValueError, match="most=1"):
        thinned([Point(1, 1), Point(2, 1)], 1)


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    points = [Point(1.024, 0.123456, 0.2), Point(2.048, 3e-5), Point(3, None)]
    assert read_curve(write_curve(tmp_path / "a.jsonl", points)) == [
        Point(1.024, 0.1235, 0.2), Point(2.048, 3e-5), Point(3, None)
    ]  # fmt: skip


def test_the_command_draws_the_same_file_twice(run_dir: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    files = [run_dir / name for name in ("a.png", "b.png")]
    curve = run_dir / "few.jsonl"
    for file in files:
        printed = said(command.main, run_dir, f"--out={file}", f"--curve={curve}", "--points=3")
        assert printed.split() == [str(curve), str(file)]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert [p.kimg for p in read_curve(curve)] == [2, 8, 14]
    with Image.open(files[0]) as image:
        colours = {colour for _, colour in image.convert("RGB").getcolors(maxcolors=1 << 20) or ()}
    assert (31, 119, 180) in colours  # the first line's


def test_two_runs_need_two_names(run_dir: Path) -> None:
    for args, problem in {
        (run_dir, run_dir): "two runs would be called 00003-hands; tell them apart by --name",
        (run_dir, "--name=a", "--name=b"): "--name: 2 for 1 runs; give one for each, or none",
        (run_dir, run_dir, "--curve=c.jsonl"): "--curve=c.jsonl holds one run, and 2 are named",
    }.items():
        assert problem in refusal(command.main, *args)


@pytest.mark.parametrize("name", ["mnist-32", "shapes-64", "hands-64r", "hands-32-1"])
def test_the_embedded_networks_have_their_curves(name: str) -> None:
    points = read_curve(ROOT / "models" / f"{name}.curve.jsonl")
    card = (ROOT / "models" / f"{name}.md").read_text()
    assert points[0].loss is not None
    assert points[-1].loss is not None
    assert points[-1].loss < points[0].loss / 5
    assert f"{points[-1].kimg:.0f} thousand" in card
