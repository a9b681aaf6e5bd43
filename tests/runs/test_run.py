"""Several processes: equal files for any number of ranks, devices, and ranks that fail."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from commands import RODS, SMALL, files, generated
from vectors import ROOT

from dnnlib.errors import UserError
from torch_utils import distributed

RUN = ["--seeds=0-6", "--batch=2", *RODS, "--steps=3", "--grid", "--threads=1", f"--network={SMALL}"]


def torchrun(ranks: int, script: Path, *options: str) -> subprocess.CompletedProcess[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [*launcher, str(script), *options], env=environment, capture_output=True, text=True, check=False, timeout=90
    )


@pytest.mark.parametrize("ranks", [2, pytest.param(3, marks=pytest.mark.slow), pytest.param(1, marks=pytest.mark.slow)])
def test_ranks_give_the_files_of_one_process(ranks: int, tmp_path: Path) -> None:
    generated(tmp_path / "alone", *RUN, network=None, steps=None)
    run = torchrun(ranks, ROOT / "generate.py", *RUN, f"--outdir={tmp_path / 'ranks'}")
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("7 images in") == 1
    assert files(tmp_path / "ranks") == files(tmp_path / "alone")


def test_a_rank_that_fails_does_not_hang_the_others(tmp_path: Path) -> None:
    """Rank 1 breaks at its second chunk; the same command on one process completes what is missing."""
    script = tmp_path / "broken.py"
    script.write_text(
        "import generate, rods.runs.sampling as sampling\n"
        "from torch_utils.distributed import rank\n"
        "real = sampling.sample_for_folder\n"
        "def broken(job, chunk, folder, room):\n"
        "    assert rank() == 0 or chunk.index < 2, 'this rank breaks'\n"
        "    return real(job, chunk, folder, room)\n"
        "sampling.sample_for_folder = broken\n"
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
    run = torchrun(2, ROOT / "generate.py", *RUN, "--network=nowhere.pkl", f"--outdir={tmp_path / 'out'}")
    assert run.returncode != 0
    assert run.stderr.count("Error: nowhere.pkl: there is no such file; check the path") == 1
    assert not (tmp_path / "out").exists()


# -- without processes ------------------------------------------------------------------------------------------------


def test_alone_nothing_is_needed() -> None:
    distributed.init(torch.device("cpu"))
    assert not torch.distributed.is_initialized()
    distributed.barrier()
    with distributed.rank0_first():
        pass
    distributed.close()
    assert (distributed.rank(), distributed.world_size()) == (0, 1)
    assert distributed.shard([1, 2, 3]) == [1, 2, 3]
    assert distributed.oversubscription(1000) is None


def test_a_rank_that_waits_for_a_lost_one_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def lost() -> None:
        raise RuntimeError("Connection closed by peer [127.0.0.1]:1")

    monkeypatch.setenv("RANK", "2")
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "barrier", lost)
    with pytest.raises(UserError, match=r"^rank 2 stops because another rank has failed; its message says why$"):
        distributed.barrier()


def test_rank_0_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    for rank, order in (("0", ["block", "barrier"]), ("1", ["barrier", "block"])):
        happened: list[str] = []
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setattr(distributed, "barrier", lambda happened=happened: happened.append("barrier"))
        with distributed.rank0_first():
            happened.append("block")
        assert happened == order


def test_ranks_share_out_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    shares = []
    monkeypatch.setenv("WORLD_SIZE", "3")
    for rank in "012":
        monkeypatch.setenv("RANK", rank)
        shares.append(list(distributed.shard(range(8))))
    assert shares == [[0, 3, 6], [1, 4, 7], [2, 5]]


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert distributed.pick_device("auto") == distributed.pick_device("cpu") == torch.device("cpu")
    for name in ("cuda", "mps"):
        with pytest.raises(UserError, match=f"^--device={name}: torch finds no {name.upper()} device here"):
            distributed.pick_device(name)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert distributed.pick_device("auto") == torch.device("cuda", 0)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert distributed.pick_device("cuda") == torch.device("cuda", 1)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(UserError, match="local rank 2 has no GPU, for there are 2; use --nproc_per_node=2"):
        distributed.pick_device("cuda")


def test_too_many_threads_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "usable_cores", lambda: 4)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert distributed.oversubscription(2) is None
    assert distributed.oversubscription(3) == "2 ranks with 3 threads share 4 cores"
