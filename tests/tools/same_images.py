"""Does this tree make the images of another commit, byte for byte? Runs generate.py in both trees and compares.

    python tests/tools/same_images.py OLD_COMMIT [--only=restart]

Compared are the sha256 of every PNG of the output folder and the fields that both trees' samples.jsonl have. The
command lines are those that both commits must know.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shlex
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).resolve().parents[2]
CAS = "--sampler=rods-cas --steps=10 --rho=4 --window=.3,.7"
SAS = "--sampler=rods-sas --steps=10 --rho=8 --window=.1,.5 --eps=.00015"
RESTART = "--sampler=restart --steps=10 --sigma-r=5.38 --rounds=2"
CLASSES = "--network=tests/golden/pickles/edm-ncsnpp-cond.pkl"  # 16x16x1, 4 classes
RUNS = f"""
--sampler=edm --steps=8
--sampler=edm --steps=8 --S_churn=20 --S_min=.05 --S_max=50 --S_noise=1.003
--steps=8 --sigma_min=.01 --sigma-max=50 --time-rho=5
--sampler=euler --steps=10
--disc=vp --schedule=vp --scaling=vp --solver=euler --steps=10
--sampler=ablation --disc=ve --schedule=ve --solver=heun --steps=8
--disc=iddpm --schedule=linear --scaling=none --S_churn=10 --steps=8
--sampler=rods-cas --steps=10
{CAS} --eps=.5
{CAS} --eps=inf
{CAS} --eps=0 --detect=false
{CAS} --eps=.02 --ascent-steps=3
{CAS} --eps=.02 --gradient=difference --probe-every=2
{CAS} --eps=.07 --solver=heun --S_churn=5 --S_min=.1
{CAS} --eps=.5 --dtype=bf16
{CAS} --eps=.5 --probe-batch=3 --checkpoint-blocks --channels-last
{CAS} --eps=.5 --trajectory=0,4,9 --grid
{SAS} --sas-sign=uphill
{SAS} --sas-sign=downhill
--sampler=rods-sas --steps=10 --rho=8 --window=.1,.5 --eps=0 --detect=false --solver=heun
--sampler=overshoot --steps=10
--sampler=overshoot --steps=10 --rho=5 --window=sigma:.5,10
--sampler=sigma-offset --steps=10 --kappa=.4 --window=.1,.5
--sampler=iq --steps=10 --strength=.2 --threshold=15 --window=sigma:.3,3 --lid-sigma=.625 --draws=2
--sampler=tag --steps=10 --eta=1.1
--sampler=random --steps=10 --rho=8 --window=.2,.6
--sampler=laplacian --steps=10 --strength=.1 --probes=2 --window=.2,.8
--sampler=restart --steps=10
--network=models/mnist-32.safetensors --sampler=restart --steps=10
{RESTART} --detector=readout --score-at=0 --threshold=.1 --margin=.1
{RESTART} --detector=lid:sigma=1.2,draws=4 --score-at=0 --threshold=16
{RESTART} --detector=tvf:sigma=2 --score-at=0 --threshold=0
{RESTART} --detector=h-index:rho=4,lo=.6,hi=5,mean=true --score-at=.47 --threshold=.001
{RESTART} --detector=lambda-max --score-at=0 --threshold=0
{RESTART} --detector=lmi --score-at=0 --threshold=0
{RESTART} --threshold=.01 --inside=cas:rho=2,ascent_steps=2
{RESTART} --threshold=.003 --inside=overshoot:rho=4 --solver=heun
--sampler=euler --steps=10 --filter=lid --filter-threshold=15
{RESTART} --threshold=.1 --filter=lid:sigma=1.2,draws=2 --filter-threshold=13 --rejected
--sampler=euler --steps=10 --accept=lid<13 --max-tries=3
{CLASSES} --sampler=edm --steps=8 --S_churn=10
{CLASSES} --sampler=rods-cas --steps=8 --class=2 --eps=.05 --rho=2 --window=0,1
{CLASSES} --sampler=restart --steps=8 --sigma-r=3 --threshold=0 --rounds=1
{CLASSES} --sampler=edm --steps=6 --S_churn=10 --seeding=per-batch
{CLASSES} --sampler=edm --steps=6 --S_churn=10 --rng=cpu --subdirs
""".strip().splitlines()
RANKED = [f"{CAS} --eps=.5 --batch=2 --grid", f"{RESTART} --threshold=.01 --batch=2"]  # on two ranks

# One process per tree that has imported everything, and forks for each command: importing torch takes most of the time.
SERVER = """
import json, os, runpy, sys
sys.path.insert(0, os.getcwd())
import generate
for line in sys.stdin:
    if (child := os.fork()) == 0:
        sys.argv = ["generate.py", *json.loads(line)]
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        runpy.run_path("generate.py", run_name="__main__")
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def arguments(line: str, outdir: Path) -> list[str]:
    return [f"--outdir={outdir}", "--threads=1", "--device=cpu", "--seeds=0-3", *shlex.split(line)]


def run_all(tree: Path, lines: list[str], folder: Path) -> list[int]:
    """The exit code of each command line, its images in folder/NUMBER."""
    left_out = ("PYTHONPATH", "RANK", "WORLD_SIZE")
    about: dict[str, Any] = {
        "cwd": tree, "env": {**{k: v for k, v in os.environ.items() if k not in left_out}, "OMP_NUM_THREADS": "1"},
        "stdout": subprocess.PIPE, "text": True, "check": False,
    }  # fmt: skip
    given = [json.dumps(arguments(line, folder / str(i))) for i, line in enumerate(lines) if line not in RANKED]
    done = subprocess.run([sys.executable, "-c", SERVER], input="\n".join(given), **about).stdout.split()
    codes = iter(map(int, done))
    ranked = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "generate.py"]
    return [
        subprocess.run([*ranked, *arguments(line, folder / str(i))], **about).returncode
        if line in RANKED
        else next(codes, -1)
        for i, line in enumerate(lines)
    ]


def difference(old: Path, new: Path) -> str:
    """What differs between two output folders; empty where nothing does."""
    one, two = ({p.relative_to(d): hashlib.sha256(p.read_bytes()).hexdigest() for p in d.rglob("*.png")}
                for d in (old, new))  # fmt: skip
    if changed := sorted(str(name) for name in {*one, *two} if one.get(name) != two.get(name)):
        return f"images {', '.join(changed[:4])}"
    lines = [[json.loads(line) for line in (d / "samples.jsonl").read_text().splitlines()] for d in (old, new)]
    for a, b in zip(*lines, strict=True):
        if fields := [key for key in a.keys() & b if a[key] != b[key]]:
            return f"{', '.join(sorted(fields))} of {a['name']}"
    return ""


@click.command()
@click.argument("old_commit")
@click.option("--only", default="", metavar="TEXT", help="Only command lines that contain this.")
def main(old_commit: str, only: str) -> None:
    """Compare the images of OLD_COMMIT's generate.py with this tree's; exit code 1 where any differs."""
    lines, failed = [line for line in [*RUNS, *RANKED] if only in line], 0
    files = subprocess.run(["git", "archive", old_commit], cwd=ROOT, capture_output=True, check=True).stdout
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with tarfile.open(fileobj=io.BytesIO(files)) as archive:
            archive.extractall(folder / "tree", filter="data")
        codes = zip(run_all(folder / "tree", lines, folder / "old"), run_all(ROOT, lines, folder / "new"), strict=True)
        for i, (line, both) in enumerate(zip(lines, codes, strict=True)):
            said = f"exit codes {both}" if any(both) else difference(folder / "old" / str(i), folder / "new" / str(i))
            failed += bool(said)
            click.echo(f"DIFFERENT  {line}\n           {said}" if said else f"equal      {line}")
    click.echo(f"{len(lines)} commands: {len(lines) - failed} equal, {failed} not")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
