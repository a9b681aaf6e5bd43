"""Training on several ranks: any split of the batch is the same step, and all ranks stop at the same one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from training_runs import config_for, newest
from vectors import ROOT

from dnnlib.errors import UserError
from torch_utils import distributed
from training.checkpoint import load_denoiser
from training.config import Execution
from training.dataset import ImageDataset
from training.feed import Batch, draw_batch, feed, share
from training.trainer import Gradients, Trainer

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


# --- any split of the batch is the same step, in one process ---------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 4, 7, 64])
@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("at_most", [None, 1, 5])
def test_the_shares_are_the_batch(batch: int, ranks: int, at_most: int | None) -> None:
    rounds = [r for rank in range(ranks) for r in share(100, batch, rank=rank, ranks=ranks, at_most=at_most)]
    assert [i for r in rounds for i in r] == list(range(100, 100 + batch))
    assert all(0 < len(r) <= (at_most or batch) for r in rounds)


def split_config(data: Path, **changes: Any) -> Any:
    config = config_for(data, batch=8, cond=True, augment=0.5, xflip=True, **changes)
    kwargs = {**config.network["init_kwargs"], "dropout": 0.0, "augment_dim": 9, "label_dim": 2}
    config.network["init_kwargs"] = kwargs
    return config


def rounds_of_all(dataset: ImageDataset, run: Trainer, ranks: int, at_most: int | None) -> list[Batch]:
    """The rounds of every rank one after the other: their sum is what the all-reduce makes of it."""
    start = run.images_seen
    rounds = [r for rank in range(ranks) for r in share(start, 8, rank=rank, ranks=ranks, at_most=at_most)]
    return [draw_batch(dataset, run.config, r, [(i * 3) % len(dataset) for i in r]) for r in rounds]


def test_any_split_of_the_batch_gives_the_same_step(data: Path) -> None:
    """The gradients, and the networks after two steps. (Adam turns the rounding of gradients that are exactly 0 into
    whole steps, as for the biases of attention keys, so weights on which nothing depends may differ.)"""
    dataset = ImageDataset(data, cond=True)
    x, s = torch.randn(4, 1, 16, 16, generator=torch.Generator().manual_seed(1)), torch.tensor([0.1, 0.5, 2, 20])
    found = {}
    for ranks, at_most in ((1, None), (1, 5), (2, None), (4, 1)):
        run = Trainer(split_config(data), torch.device("cpu"))
        gradients, losses = [], []
        for _ in range(2):
            losses.append(run.step(rounds_of_all(dataset, run, ranks, at_most)).loss)
            gradients.append(run.gradients.values.clone())
        with torch.no_grad():
            found[ranks, at_most] = (gradients[0], losses, run.net.eval()(x, s, torch.eye(2)[[0, 1, 0, 1]]))
    gradient, losses, D = found[1, None]
    for split, (its_gradient, its_losses, its_D) in found.items():
        assert (its_gradient - gradient).norm() <= 1e-5 * gradient.norm(), split
        assert its_losses == pytest.approx(losses, rel=1e-5), split
        assert (its_D - D).norm() <= 1e-5 * D.norm(), split


def test_batches_made_ahead_are_the_same(data: Path) -> None:
    dataset, config = ImageDataset(data, cond=True), split_config(data)
    found = []
    for workers in (0, 3):
        with feed(dataset, config, 16, rank=1, ranks=2, batch_gpu=3, workers=workers) as steps:
            found.append([next(steps) for _ in range(4)])
    for a, b in zip(*found, strict=True):
        assert [x.counters for x in a] == [x.counters for x in b]
        for x, y in zip(a, b, strict=True):
            for name in ("images", "labels", "n", "noise", "flipped", "augment_labels"):
                assert torch.equal(getattr(x, name), getattr(y, name)), name
    assert [list(r.counters) for r in found[0][1]] == [[28, 29, 30], [31]]


def test_an_error_in_a_thread_reaches_the_run(data: Path) -> None:
    dataset = ImageDataset(data, cond=True)

    def broken(indices: list[int]) -> Any:
        raise UserError("the image is gone")

    dataset.batch = broken  # type: ignore[method-assign]
    with pytest.raises(UserError, match="the image is gone"), feed(dataset, split_config(data), 0, workers=2) as steps:
        next(steps)


# --- precision, layout, clipping --------------------------------------------------------------------------------------


def gradient_after_a_step(
    data: Path, execution: Execution | None = None, **changes: Any
) -> tuple[Trainer, torch.Tensor]:
    run = Trainer(split_config(data, **changes), torch.device("cpu"), execution)
    run.step(rounds_of_all(ImageDataset(data, cond=True), run, 1, None))
    return run, run.gradients.values.clone()


def test_channels_last_and_loss_scaling_change_nothing_but_rounding(data: Path) -> None:
    reference, plain = gradient_after_a_step(data)
    run, last = gradient_after_a_step(data, Execution(channels_last=True))
    assert run.net.get_parameter("model.dec.16x16_block0.conv0.weight").is_contiguous(memory_format=torch.channels_last)
    for (name, p), q in zip(run.net.named_parameters(), reference.net.parameters(), strict=True):
        assert (p.grad - q.grad).norm() <= 1e-5 * plain.norm(), name
    assert last.norm() == pytest.approx(float(plain.norm()), rel=1e-5)
    _, scaled = gradient_after_a_step(data, loss_scale=1024.0)  # a power of two: exact
    assert torch.equal(scaled, plain)


def test_gradients_are_clipped_to_a_norm(data: Path) -> None:
    _, plain = gradient_after_a_step(data)
    norm = float(plain.norm())
    _, clipped = gradient_after_a_step(data, grad_clip=norm / 4)
    torch.testing.assert_close(clipped, plain / 4)
    _, untouched = gradient_after_a_step(data, grad_clip=norm * 1.01)
    assert torch.equal(untouched, plain)


def test_fp16_scales_its_gradients_and_backs_off_when_they_overflow(data: Path) -> None:
    """The command allows fp16 on CUDA alone; the arithmetic is the same here, where it can be tested."""
    _, plain = gradient_after_a_step(data)
    run = Trainer(split_config(data, precision="fp16"), torch.device("cpu"))
    run.scaler.load_state_dict({**run.scaler.state_dict(), "scale": 16.0})
    rounds = rounds_of_all(ImageDataset(data, cond=True), run, 1, None)
    assert run.step(rounds).good
    assert (run.gradients.values - plain).norm() <= 0.02 * plain.norm()
    weights = {k: t.clone() for k, t in run.net.state_dict().items()}
    run.scaler.update(2.0**60)
    result = run.step(rounds)
    assert (result.good, run.bad_steps, run.state().scaler["scale"]) == (False, 1, 2.0**59)
    assert all(torch.equal(t, weights[k]) for k, t in run.net.state_dict().items())


# --- what ranks tell each other ---------------------------------------------------------------------------------------


def test_one_sum_carries_gradients_loss_and_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = torch.nn.Linear(2, 1, bias=False)
    gradients = Gradients(layer.parameters())
    layer(torch.tensor([[1.0, 2.0]])).sum().backward()
    other = torch.tensor([10.0, float("nan"), 0.25, 1.0])  # what another rank has: one gradient is lost, it stops

    def add(x: torch.Tensor) -> None:
        x += other

    monkeypatch.setattr(distributed, "all_sum", add)
    assert gradients.reduce(torch.tensor(0.5), stop=False) == (0.75, True)
    assert layer.weight.grad is not None
    assert float(layer.weight.grad[0, 0]) == 11
    assert not gradients.norm() < float("inf")


def test_other_options_on_another_rank_are_refused(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lead, other = (Trainer(split_config(data, seed=seed), torch.device("cpu")) for seed in (0, 1))
    sent: list[bytes] = []

    def from_rank0(content: bytes, device: torch.device) -> bytes:
        if distributed.rank() == 0:
            sent.append(content)
        return sent[0]

    monkeypatch.setattr(distributed, "from_rank0", from_rank0)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    lead.images_seen = 40
    lead.share()
    monkeypatch.setenv("RANK", "1")
    same = Trainer(split_config(data), torch.device("cpu"))
    same.share()
    assert same.images_seen == 40
    with pytest.raises(UserError, match="rank 1 has other options or data than rank 0"):
        other.share()


# --- real processes ---------------------------------------------------------------------------------------------------


def run_jobs(folder: Path, *worlds: int) -> dict[str, Any]:
    script = [sys.executable, str(ROOT / "tests" / "rank_jobs.py"), str(folder), *map(str, worlds)]
    done = subprocess.run(script, env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("worlds", [(1, 2), pytest.param((1, 2, 4), marks=pytest.mark.slow)])
def test_processes_train_the_network_of_one_and_stop_together(tmp_path: Path, worlds: tuple[int, ...]) -> None:
    found = run_jobs(tmp_path, *worlds)
    x, s = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(1)), torch.tensor([0.2, 2])
    outputs, losses = [], []
    for ranks in worlds:
        assert found[f"train-{ranks}"] == {str(rank): 0 for rank in range(ranks)}, found["log"]
        run_dir = tmp_path / f"ranks-{ranks}"
        net = load_denoiser(run_dir / "network-snapshot-000000.safetensors")
        outputs.append(net(x, s, torch.eye(2)))
        lines = [json.loads(line) for line in (run_dir / "stats.jsonl").read_text().splitlines()]
        losses += [[line["loss"] for line in lines] + [lines[-1]["val_loss"]]]
        assert {line["ranks"] for line in lines} == {ranks}
    for D, its_losses in zip(outputs, losses, strict=True):
        assert (D - outputs[0]).norm() <= 1e-5 * outputs[0].norm()
        assert its_losses == pytest.approx(losses[0], rel=1e-5)
    assert found["one rank is told to stop"] == {"0": 0, "1": 0}, found["log"]
    assert found["log"].count("Stopped at ") == 1
    assert newest(tmp_path / "stopped").images_seen % 4 == 0


def crash_test(*options: str) -> None:
    script = [sys.executable, str(ROOT / "tests" / "tools" / "crash_test.py"), *options]
    done = subprocess.run(script, env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=1500)
    assert done.returncode == 0, done.stderr + done.stdout
    (last,) = (line for line in done.stdout.splitlines() if line.startswith("all "))
    assert last.split()[1:] == [options[0].removeprefix("--kills="), "0", "0"]


@pytest.mark.parametrize("arch", ["ddpmpp", "edm2"])
def test_killed_runs_end_with_the_same_bits(arch: str) -> None:
    crash_test("--kills=2", "--steps=4", f"--arch={arch}")


@pytest.mark.slow
def test_runs_killed_in_every_way_end_with_the_same_bits() -> None:
    crash_test("--kills=12")


@pytest.mark.slow
def test_an_elastic_run_goes_on_after_a_worker_is_killed(data: Path, tmp_path: Path) -> None:
    options = [f"--data={data}", f"--outdir={tmp_path / 'run'}", "--nosubdir", "--cbase=4", "--cres=1", "--blocks=1"]
    options += ["--batch=4", "--tick=.008", "--threads=1", "--augment=0", "--duration=1"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--max-restarts=2"]
    log, stats = tmp_path / "log.txt", tmp_path / "run" / "stats.jsonl"
    with open(log, "w") as f:
        process = subprocess.Popen([*launcher, str(ROOT / "train.py"), *options], env=ENVIRONMENT, stdout=f, stderr=f)
    try:
        wait_for(lambda: stats.is_file() and stats.read_text().count("\n") >= 2, log)
        children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True)
        os.kill(int(children.stdout.split()[-1]), signal.SIGKILL)
        wait_for(lambda: "Going on in" in log.read_text(), log)
        seen = stats.read_text().count("\n")
        wait_for(lambda: stats.read_text().count("\n") > seen, log)
        process.send_signal(signal.SIGTERM)
        wait_for(lambda: "Stopped at" in log.read_text(), log)
    finally:
        process.terminate()
        process.wait(60)


def wait_for(condition: Any, log: Path) -> None:
    deadline = time.monotonic() + 240
    while not condition():
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.02)
