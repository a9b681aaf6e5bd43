"""rods.bench.unlabelled and `bench.py compare` without labels: what changed, what it cost, how near to real images."""

from __future__ import annotations

import base64
import json
import shutil
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from commands import generated, refusal, said

from rods.bench.labelled import read_run
from rods.bench.real import some_of
from rods.bench.unlabelled import changes, pairs_sheet, read_real
from rods.labels.labels import ImageLabel, write_labels
from scripts.bench import main as bench
from training.model_zoo import find_model


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Euler and a restart of the same eight seeds, some of which change."""
    folder = tmp_path_factory.mktemp("runs")
    generated(folder / "euler", "--sampler=euler", "--seeds=0-7", steps=4)
    generated(folder / "scores", "--sampler=restart", "--threshold=inf", "--sigma-r=5", "--seeds=0-7", steps=4)
    lines = [json.loads(line) for line in (folder / "scores" / "samples.jsonl").read_text().splitlines()]
    middle = sorted(line["restart"]["scores"][0] for line in lines)[4]
    generated(folder / "restart", "--sampler=restart", f"--threshold={middle}", "--sigma-r=5", "--seeds=0-7", steps=4)
    return folder / "euler", folder / "restart"


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("real")
    rng = np.random.default_rng(0)
    for i in range(12):
        PIL.Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(folder / f"{i:02d}.png")
    return folder


def test_what_changed_and_what_it_cost(runs: tuple[Path, Path], real: Path) -> None:
    base, run = (read_run(path, labelled=False) for path in runs)
    found = changes(base, run, read_real(str(real), (1, 8, 8)))
    differ = sum((runs[0] / f"{i:06d}.png").read_bytes() != (runs[1] / f"{i:06d}.png").read_bytes() for i in range(8))
    assert 0 < found.changed.k == differ < 8
    assert found.above is not None
    assert found.above[0].k == 3
    assert found.above[1].k <= found.above[0].k
    assert found.nfe[1] > found.nfe[0] == 4
    pixels = np.stack([np.asarray(PIL.Image.open(p)) for p in sorted(real.iterdir())])
    before = np.stack([np.asarray(PIL.Image.open(runs[0] / f"{i:06d}.png")) for i in range(8)])
    assert found.nearness is not None
    wanted = before.astype(float).var(axis=0).sum() / pixels.astype(float).var(axis=0).sum()
    assert found.nearness.variance[0] == pytest.approx(wanted, rel=0.02), "group means are kept in 16 bits"
    same = changes(base, base)
    assert (same.changed.k, same.variance_kept.value, same.above, same.nearness) == (0, 1.0, None, None)


def test_pairs_are_framed_by_their_labels(runs: tuple[Path, Path], tmp_path: Path) -> None:
    base, run = (read_run(path, labelled=False) for path in runs)
    sheet = pairs_sheet(base, run)
    assert sheet is not None
    plain = sheet.convert("RGB")
    assert plain.width > plain.height
    green = (40, 150, 70)
    assert green not in {colour for _, colour in plain.getcolors(1 << 16)}
    for path, label in zip(runs, ("hallucinated", "valid"), strict=True):
        write_labels(path, [ImageLabel(f"{i:06d}.png", label, "person 1") for i in range(8)])
    try:
        framed = pairs_sheet(*(read_run(path) for path in runs)).convert("RGB")
        assert green in {colour for _, colour in framed.getcolors(1 << 16)}
        assert "relative reduction" in said(bench, "compare", *runs)
    finally:
        for path in runs:
            (path / "labels.jsonl").unlink()


def test_the_command_without_labels(runs: tuple[Path, Path], real: Path, tmp_path: Path) -> None:
    output = said(bench, "compare", *runs, f"--real={real}", f"--pairs={tmp_path / 'sheets' / 'pairs.png'}")
    for part in ("No labels", "images changed", "NFE an image", "Fréchet"):
        assert part in output
    with PIL.Image.open(tmp_path / "sheets" / "pairs.png") as sheet:
        assert sheet.size[0] > 128


def test_only_images_that_both_runs_have_are_compared(runs: tuple[Path, Path], real: Path, tmp_path: Path) -> None:
    """Other seeds, a folder for every thousand, images that a filter dropped or put aside."""
    euler = ("--sampler=euler", "--preset=none")
    generated(tmp_path / "later", *euler, "--seeds=4-40", "--subdirs", steps=4)
    output = said(bench, "compare", runs[0], tmp_path / "later", f"--real={real}")
    assert "4 seeds: 0 images changed" in output
    assert "variance kept: 1.000" in output, "of the four alone, and not of the 37"

    generated(tmp_path / "scored", *euler, "--filter=tvf", "--filter-threshold=inf", "--seeds=0-7", steps=4)
    lines = [json.loads(line) for line in (tmp_path / "scored" / "samples.jsonl").read_text().splitlines()]
    some = ("--filter=tvf", f"--filter-threshold={sorted(line['filter_score'] for line in lines)[4]}", "--seeds=0-7")
    generated(tmp_path / "aside", *euler, *some, "--rejected", steps=4)
    assert (tmp_path / "aside" / "rejected").is_dir()
    assert "8 seeds: 0 images changed" in said(bench, "compare", runs[0], tmp_path / "aside", f"--real={real}")
    generated(tmp_path / "dropped", *euler, *some, steps=4)
    output = said(bench, "compare", tmp_path / "dropped", runs[0], f"--real={real}")
    assert "5 seeds: 0 images changed" in output
    assert "left out: 3 seeds" in output


def test_rows_of_a_seed_that_draws_a_batch_are_compared_one_by_one(tmp_path: Path) -> None:
    rows = ("--seeding=per-batch", "--batch=4", "--seeds=0-1")
    for name in ("a", "b"):
        generated(tmp_path / name, "--sampler=euler", *rows, steps=2)
    assert " 0 images changed" in said(bench, "compare", tmp_path / "a", tmp_path / "b")
    generated(tmp_path / "alone", "--sampler=euler", "--seeds=0-1", steps=2)
    assert "no seed in common" in refusal(bench, "compare", tmp_path / "a", tmp_path / "alone")


def test_what_cannot_be_compared_is_one_line(runs: tuple[Path, Path], real: Path, tmp_path: Path) -> None:
    PIL.Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    PIL.Image.new("RGB", (8, 8)).save(tmp_path / "b.png")
    for options, names in (
        ([str(runs[0]), str(runs[1]), f"--real={tmp_path}"], "--real"),
        ([str(runs[0]), str(runs[1]), "--labels=person 1"], "labels.jsonl"),
    ):
        assert names in refusal(bench, "compare", *options)
    shutil.copytree(runs[0], tmp_path / "same")
    assert "No image changed" in said(bench, "compare", runs[0], tmp_path / "same", f"--pairs={tmp_path / 'p.png'}")
    assert not (tmp_path / "p.png").exists()
    generated(tmp_path / "one", "--sampler=euler", "--seeds=3", steps=4)
    assert "--real" in refusal(bench, "compare", tmp_path / "one", runs[0], f"--real={real}")
    assert "nan" not in said(bench, "compare", tmp_path / "one", runs[0])
    points = find_model("grid25-0", made_by="-")
    generated(tmp_path / "points", "--sampler=euler", "--seeds=0-3", network=points, steps=4)
    shutil.copytree(tmp_path / "points", tmp_path / "again")
    for option, wrong in (("--real", real), ("--pairs", tmp_path / "p.png")):
        told = refusal(bench, "compare", tmp_path / "points", tmp_path / "again", f"{option}={wrong}")
        assert option in told
        assert "points" in told
    assert "different shapes" in refusal(bench, "compare", tmp_path / "points", runs[0])
    generated(tmp_path / "none", "--sampler=euler", "--filter=tvf", "--filter-threshold=-1", "--seeds=0-3", steps=4)
    assert "images of no seed" in refusal(bench, "compare", tmp_path / "none", runs[0])


def test_samples_of_a_network_are_no_real_images(runs: tuple[Path, Path], real: Path, tmp_path: Path) -> None:
    shutil.copytree(real, tmp_path / "mixed")
    shutil.copytree(runs[1], tmp_path / "mixed" / "out" / "run")
    for folder, names in ((tmp_path / "mixed", "'out/run/' in it is a run"), (runs[1], "that is a run")):
        assert names in refusal(bench, "compare", *runs, f"--real={folder}")


def test_some_of_many_real_images_are_of_all_classes() -> None:
    assert some_of(3, 3) == [0, 1, 2]
    found = some_of(1000, 100)
    assert found == some_of(1000, 100), "the same each time"
    assert len(set(found)) == 100
    assert {i // 100 for i in found} == set(range(10)), "of images that lie class by class"


LEVELS, *MEANS = (base64.b64encode(bytes(n)).decode() for n in (64, 2, 4))  # of images of two sizes


@pytest.mark.parametrize(
    "text",
    [
        "x",
        "[" * 100_000,
        '{"names": 1}',
        '{"names": ["000000.png"], "x": ["!!"], "sq": [1], "mean": "AAAA"}',
        json.dumps({"names": ["000000.png"], "x": [LEVELS], "sq": [], "mean": MEANS[0]}),
        "\n".join(
            json.dumps({"names": [f"{i:06d}.png"], "x": [LEVELS], "sq": [1], "mean": mean})
            for i, mean in enumerate(MEANS)
        ),
    ],
    ids=range(6),
)
def test_damaged_features_are_one_line(text: str, runs: tuple[Path, Path], tmp_path: Path) -> None:
    shutil.copytree(runs[0], tmp_path / "run")
    (tmp_path / "run" / "features.jsonl").write_text(text + "\n")
    assert "features.jsonl is damaged; delete it" in refusal(bench, "compare", tmp_path / "run", runs[1])
    (tmp_path / "run" / "features.jsonl").unlink()
    assert "8 seeds" in said(bench, "compare", tmp_path / "run", runs[1])


def test_the_first_image_of_a_group_may_be_the_one_of_another_size(runs: tuple[Path, Path], tmp_path: Path) -> None:
    """Images are kept by groups, and the 33rd of 33 is alone in its own."""
    generated(tmp_path / "run", "--sampler=euler", "--seeds=0-32", steps=2)
    shutil.copytree(tmp_path / "run", tmp_path / "again")
    PIL.Image.new("L", (9, 9)).save(tmp_path / "run" / "000032.png")
    told = refusal(bench, "compare", tmp_path / "run", tmp_path / "again")
    assert f"{tmp_path / 'run'} has images of several sizes or modes" in told
    assert not (tmp_path / "run" / "features.jsonl").exists()


def test_numbers_of_a_palette_are_no_levels(runs: tuple[Path, Path], tmp_path: Path) -> None:
    shutil.copytree(runs[0], tmp_path / "run")
    (tmp_path / "run" / "features.jsonl").unlink(missing_ok=True)
    for mode in ("P", "1", "LA", "RGBA"):
        PIL.Image.new("L", (8, 8), 200).convert(mode).save(tmp_path / "run" / "000003.png")
        told = refusal(bench, "compare", tmp_path / "run", runs[1])
        assert "000003.png is not an image of 8-bit grey or RGB" in told
