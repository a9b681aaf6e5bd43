"""Kills training runs at random moments and inside of saves, gives the same command again, and compares every bit."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import PIL.Image
import torch
import torch._dynamo  # which Adam imports when it is made: 1.5 s in each forked process
from forked_ranks import environment, free_port, run_and_exit

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # works from a plain checkout, installed or not

import training.loop  # what train.py imports, so that the forked processes need not
import training.options
import training.validation  # noqa: F401
from dnnlib.cli import Command
from training.state import load_state, saved_states

TRAIN = Path(__file__).resolve().parents[2] / "train.py"

BATCH, TICK_STEPS, SNAP_TICKS = 4, 2, 2
OPTIONS = (  # whatever draws, counts or averages
    "--cbase=4", "--cres=1", "--blocks=1", "--cond=1", "--xflip=1", "--dropout=.1",
    f"--batch={BATCH}", "--batch-gpu=2", "--lr-rampup=4e-5", f"--tick={BATCH * TICK_STEPS / 1000}",
    f"--snap={SNAP_TICKS}", "--threads=1", "--nosubdir",
)  # fmt: skip
OF_ARCH = {  # two averages each
    "ddpmpp": ("--augment=.3", "--ema=2e-5,4e-5"),
    "edm2": ("--lr-decay=1e-5", "--ema-std=.05,.2"),
}
MOMENT, WRITE, BEFORE, AFTER = "at a random moment", "in a write", "before a rename", "after a rename"
CASES = ((1, MOMENT), (1, WRITE), (1, BEFORE), (1, AFTER), (2, MOMENT), (2, WRITE))  # ranks, kill
PATIENCE = 600  # seconds until a run counts as hung; machines can be busy
GRACE = 3  # seconds for the other rank to notice; then it is killed too, as torchrun would do


@dataclass(frozen=True)
class Death:
    """Where a process ends itself by SIGKILL: at its `nth` atomic write, `fraction` of whose bytes are there."""

    where: str
    nth: int
    fraction: float

    def arm(self) -> None:
        """From now on, in this process."""
        fsync, replace, count = os.fsync, os.replace, itertools.count()

        def dying_fsync(handle: int) -> None:
            last = next(count) == self.nth
            if last and self.where == WRITE:
                os.ftruncate(handle, int(os.fstat(handle).st_size * self.fraction))
                os.kill(os.getpid(), signal.SIGKILL)
            fsync(handle)
            if last and self.where == BEFORE:
                os.kill(os.getpid(), signal.SIGKILL)

        def dying_replace(source: Any, target: Any) -> None:
            replace(source, target)
            if self.where == AFTER and next(after) == self.nth:
                os.kill(os.getpid(), signal.SIGKILL)

        after = itertools.count()
        os.fsync, os.replace = dying_fsync, dying_replace


class Job:
    """One start of train.py as `ranks` processes, forked from this one, which never computes: a start costs little."""

    def __init__(self, args: Sequence[str], *, ranks: int, log: Path, death: Death | None = None) -> None:
        port = free_port()
        self.waiting: dict[int, int] = {}  # process: rank
        self.codes: dict[int, int] = {}  # rank: exit status, negative for a signal
        for rank in range(ranks):
            if not (pid := os.fork()):
                before = partial(prepare, log, death if rank == 0 else None)
                run_and_exit(TRAIN, list(args), environment(rank, ranks, port), before)
            self.waiting[pid] = rank

    def poll(self) -> bool:
        """Whether every rank has ended."""
        for pid, rank in list(self.waiting.items()):
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                self.codes[rank] = os.waitstatus_to_exitcode(status)
                del self.waiting[pid]
        return not self.waiting

    def wait(self, seconds: float) -> bool:
        """Waits for all ranks; whether they have ended in this time."""
        deadline = time.monotonic() + seconds
        while not (ended := self.poll()) and time.monotonic() < deadline:
            time.sleep(0.005)
        return ended

    def send(self, number: signal.Signals, rank: int) -> None:
        for pid, of_rank in self.waiting.items():
            if of_rank == rank:
                os.kill(pid, number)

    def end(self) -> None:
        """Kills what is left."""
        for rank in list(self.waiting.values()):
            self.send(signal.SIGKILL, rank)
        self.wait(PATIENCE)


def prepare(log: Path, death: Death | None) -> None:
    """What a forked process says goes to the log, and it may have a time to die."""
    with open(log, "a") as f:
        os.dup2(f.fileno(), 1)
        os.dup2(f.fileno(), 2)
    if death:
        death.arm()


def make_data(folder: Path) -> None:
    """12 images of 16x16 with two classes."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(12):
        image = 40 + 120 * (i % 2) + rng.integers(0, 60, (16, 16))
        PIL.Image.fromarray(image.astype(np.uint8)).save(folder / f"{i:02d}.png")
    (folder / "dataset.json").write_text(json.dumps({"labels": [[f"{i:02d}.png", i % 2] for i in range(12)]}))


def outcome(run_dir: Path) -> dict[str, Any]:
    """Everything that has to be equal: the last state's tensors, the snapshots' bytes, the losses that were logged."""
    state = load_state(saved_states(run_dir)[0])
    nets = {f"{i}.{k}": t for i, net in enumerate((state.net, *state.emas)) for k, t in net.items()}
    moments = {f"{i}.{k}": t for i, entry in state.optimizer["state"].items() for k, t in entry.items()}
    lines = [json.loads(line) for line in (run_dir / "stats.jsonl").read_text().splitlines()]
    return {
        "tensors": {k: t.numpy().tobytes() for k, t in {**nets, **moments}.items()},
        "images seen": state.images_seen,
        "snapshots": {p.name: p.read_bytes() for p in run_dir.glob("*.safetensors")},
        "losses": [(line["images_seen"], line["loss"], line["grad_norm"]) for line in lines],
        "leftovers": [p.name for p in run_dir.glob(".tmp-*")],
    }


class Trials:
    """Runs that are killed once each, beside a run of as many ranks that was not."""

    def __init__(self, folder: Path, *, steps: int, seed: int, arch: str) -> None:
        self.folder, self.steps, self.rng = folder, steps, random.Random(seed)
        make_data(folder / "data")
        self.options = [f"--data={folder / 'data'}", f"--duration={steps * BATCH * 1e-6}", *OPTIONS]
        self.options += [f"--arch={arch}", *OF_ARCH[arch]]
        self.whole: dict[int, dict[str, Any]] = {}  # by ranks
        self.seconds: dict[int, float] = {}
        self.log = folder / "log.txt"

    def reference(self, ranks: int) -> None:
        """The run that is not killed. Raises RuntimeError if it does not end well."""
        start, job = time.monotonic(), self._start(f"whole-{ranks}", ranks)
        if not job.wait(PATIENCE) or set(job.codes.values()) != {0}:
            job.end()
            raise RuntimeError(f"a run that nobody killed failed:\n{self.log.read_text()[-3000:]}")
        self.seconds[ranks] = time.monotonic() - start
        self.whole[ranks] = outcome(self.folder / f"whole-{ranks}")

    def trial(self, name: str, ranks: int, where: str) -> str:
        """`same`, `different` or `lost`."""
        if ranks not in self.whole:
            self.reference(ranks)
        while not self._killed(name, ranks, where):  # the run was over before its time to die
            pass
        job = self._start(name, ranks)
        if not job.wait(PATIENCE) or set(job.codes.values()) != {0}:
            job.end()
            return "lost"
        return "same" if outcome(self.folder / name) == self.whole[ranks] else "different"

    def _start(self, name: str, ranks: int, death: Death | None = None) -> Job:
        return Job([f"--outdir={self.folder / name}", *self.options], ranks=ranks, log=self.log, death=death)

    def _killed(self, name: str, ranks: int, where: str) -> bool:
        """Starts a run and has one of its ranks killed; whether that came before its end."""
        ticks = self.steps // TICK_STEPS
        writes = 2 + ticks + 2 * (ticks // SNAP_TICKS)  # options, states, two EMAs at snapshots; the end
        death = None if where == MOMENT else Death(where, self.rng.randrange(writes), self.rng.random())
        job = self._start(name, ranks, death)
        if death is None and not job.wait(self.rng.random() * self.seconds[ranks]):
            job.send(signal.SIGKILL, self.rng.randrange(ranks))
        while not job.poll() and not job.codes:
            time.sleep(0.005)
        job.wait(GRACE)
        job.end()
        return -signal.SIGKILL in job.codes.values()


def table(counts: dict[tuple[int, str], Counter[str]]) -> str:
    lines = [f"{'killed':<28}{'kills':>7}{'runs lost':>11}{'weights different':>19}"]
    total: Counter[str] = Counter()
    for (ranks, where), count in counts.items():
        total.update(count)
        lines.append(_row(f"{ranks} rank{'s' if ranks > 1 else ''}, {where}", count))
    return "\n".join([*lines, _row("all", total)])


def _row(name: str, count: Counter[str]) -> str:
    return f"{name:<28}{sum(count.values()):>7}{count['lost']:>11}{count['different']:>19}"


@click.command(cls=Command, context_settings={"show_default": True})
@click.option("--kills", type=click.IntRange(min=1), default=48, help="How many runs to kill.")
@click.option("--steps", type=click.IntRange(min=TICK_STEPS), default=8, help="Training steps of a run.")
@click.option("--seed", type=int, default=0, help="Of the moments and places of the kills.")
@click.option("--arch", type=click.Choice(list(OF_ARCH)), default="ddpmpp", help="The network that is trained.")
def main(kills: int, steps: int, seed: int, arch: str) -> int:
    """Kill tiny training runs on one and two ranks by SIGKILL; each goes on by the same command and must end equal.

    Equal means: every bit of weights, EMAs, moments, snapshots and logged losses of a run that was not killed. The exit
    code is 1 if a run was lost or differs.
    """
    torch.set_num_threads(1)  # before a fork there must be no threads
    counts = {case: Counter[str]() for case in CASES[:kills]}
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        trials = Trials(Path(folder), steps=steps, seed=seed, arch=arch)
        for i in range(kills):
            ranks, where = CASES[i % len(CASES)]
            result = trials.trial(f"run-{i}", ranks, where)
            counts[ranks, where][result] += 1
            if result != "same":
                click.echo(f"run {i}, {ranks} ranks, {where}: {result}\n{trials.log.read_text()[-3000:]}", err=True)
    click.echo(table(counts))
    click.echo(f"{time.monotonic() - start:.0f} s, seed {seed}, {steps} steps a run of {arch}")
    return int(any(set(count) - {"same"} for count in counts.values()))


if __name__ == "__main__":
    main()
