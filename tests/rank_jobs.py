"""Training jobs of several ranks, run by test_train_ranks.py in a process of its own that forks and never computes.

Prints one line of JSON: what became of each job. Arguments: a folder, then the numbers of ranks to train with.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "tools")]

import torch  # noqa: E402
from crash_test import PATIENCE, Job, make_data  # noqa: E402

COMMON = [
    "--cbase=4", "--cres=1", "--blocks=1", "--batch=4", "--lr-rampup=0", "--ema=1e-5", "--augment=.5", "--dropout=0",
    "--threads=1", "--nosubdir", "--tick=.004", "--cond=1",
]  # fmt: skip


def main(folder: Path, worlds: list[int]) -> None:
    torch.set_num_threads(1)
    make_data(folder / "data")
    args, log = [*COMMON, f"--data={folder / 'data'}", f"--val={folder / 'data'}"], folder / "log.txt"
    results = {}
    for ranks in worlds:
        job = Job([*args, f"--outdir={folder / f'ranks-{ranks}'}", "--duration=12e-6"], ranks=ranks, log=log)
        job.wait(PATIENCE)
        results[f"train-{ranks}"] = job.codes
        job.end()

    stopped = folder / "stopped"
    job = Job([*args, f"--outdir={stopped}", "--duration=1"], ranks=2, log=log)
    deadline = time.monotonic() + PATIENCE
    while not (stopped / "stats.jsonl").is_file() and not job.poll() and time.monotonic() < deadline:
        time.sleep(0.005)
    job.send(signal.SIGTERM, rank=1)
    job.wait(PATIENCE)
    results["one rank is told to stop"] = job.codes
    job.end()
    print(json.dumps({**results, "log": log.read_text()}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), [int(n) for n in sys.argv[2:]])
