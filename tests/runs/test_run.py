"""generate.py in several processes: equal files for any number of ranks, and ranks that fail."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import RODS, SMALL, files, generated, ranked, torchrun
from overridden import last_of_each
from vectors import ROOT

RUN = ["--seeds=0-6", "--batch=2", *RODS, "--steps=3", "--grid", "--threads=1", f"--network={SMALL}"]


@pytest.mark.parametrize("ranks", [3, pytest.param(1, marks=pytest.mark.slow)])
def test_ranks_give_the_files_of_one_process(ranks: int, tmp_path: Path) -> None:
    generated(tmp_path / "alone", *RUN, network=None, steps=None)
    run = ranked(ranks, ROOT / "generate.py", *RUN, f"--outdir={tmp_path / 'ranks'}")
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("7 images in") == 1
    assert files(tmp_path / "ranks") == files(tmp_path / "alone")


def test_a_rank_that_fails_does_not_hang_the_others(tmp_path: Path) -> None:
    """Rank 1 breaks at its second chunk; the same command on one process completes what is missing."""
    script = tmp_path / "broken.py"
    script.write_text(
        "import generate, rods.runs.run as run\n"
        "from torch_utils.distributed import rank\n"
        "real = run.sample_for_folder\n"
        "def broken(job, chunk, folder, micro_batches):\n"
        "    assert rank() == 0 or chunk.index < 2, 'this rank breaks'\n"
        "    return real(job, chunk, folder, micro_batches)\n"
        "run.sample_for_folder = broken\n"
        "generate.main()\n"
    )
    run = torchrun(2, script, *RUN, f"--outdir={tmp_path / 'out'}")
    assert run.returncode != 0
    assert "this rank breaks" in run.stderr
    assert "ChildFailedError" in run.stderr  # torchrun's own words: it saw the failure, and nothing timed out
    generated(tmp_path / "out", *RUN, network=None, steps=None)
    generated(tmp_path / "alone", *RUN, network=None, steps=None)
    assert files(tmp_path / "out") == files(tmp_path / "alone")


@pytest.mark.slow
def test_an_error_of_all_ranks_is_said_once(tmp_path: Path) -> None:
    options = last_of_each([*RUN, "--network=nowhere.pkl", f"--outdir={tmp_path / 'out'}"])
    run = torchrun(2, ROOT / "generate.py", *options)
    assert run.returncode != 0
    said = "Error: --network: nowhere.pkl: there is no such file; check the path"
    assert run.stderr.count(said) == 2, "by us, and at the end of torchrun's own page"
    assert run.stderr.startswith(said)
    assert not (tmp_path / "out").exists()
