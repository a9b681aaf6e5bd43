"""Does this tree make the images of an older commit, byte for byte? Runs generate.py in both trees and compares.

    python tests/tools/same_images.py OLD_COMMIT [--only=restart] [--jobs=2]

Compared are the sha256 of every PNG of the output folder and the fields of samples.jsonl that `FIELDS` names. The old
commit's results are kept by commit, torch version and machine; a second call runs this tree alone.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import queue
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch

ROOT = Path(__file__).resolve().parents[2]
FIELDS = (
    "seed", "row", "class", "probed", "sigma", "H", "H_scaled", "flagged", "scores", "forward", "backward", "restart",
    "tries", "filter_score", "dropped",
)  # fmt: skip
REMOVED = "removed"  # a second spelling: this tree has no such command any more


@dataclass(frozen=True)
class Run:
    """A command line; `new` is how this tree spells it, where it differs, or REMOVED."""

    name: str
    old: str
    new: str | None = None
    ranks: int = 0  # torchrun with so many processes; 0: plain python


CAS = "--sampler=rods-cas --steps=10 --rho=4 --window=.3,.7"
SAS = "--sampler=rods-sas --steps=10 --rho=8 --window=.1,.5"
RESTART = "--sampler=restart --steps=10 --sigma-r=5.38 --rounds=2"
CLASSES = "--network={tiny}"  # 16x16x3, 4 classes, random weights
RUNS = [
    # the samplers of EDM
    Run("edm", "--sampler=edm --steps=8"),
    Run("edm, churn", "--sampler=edm --steps=8 --S_churn=20 --S_min=.05 --S_max=50 --S_noise=1.003"),
    Run("edm by default, noise grid", "--steps=8 --sigma_min=.01 --sigma-max=50 --time-rho=5"),
    Run("edm, EDM's pickle with classes", "--network={pickle} --sampler=edm --steps=8"),
    Run("euler", "--sampler=euler --steps=10"),
    Run("ablation by its options, vp", "--disc=vp --schedule=vp --scaling=vp --solver=euler --steps=10"),
    Run("ablation, vp, heun", "--sampler=ablation --disc=vp --schedule=vp --scaling=vp --solver=heun --steps=8"),
    Run("ablation, ve", "--sampler=ablation --disc=ve --schedule=ve --solver=heun --steps=8"),
    Run("ablation, iddpm, churn", "--disc=iddpm --schedule=linear --scaling=none --S_churn=10 --steps=8"),
    Run("ablation, edm, time scaled", "--sampler=ablation --disc=edm --schedule=linear --scaling=vp --steps=8"),
    # RODS
    Run("rods-cas, preset", "--sampler=rods-cas --steps=10"),
    Run("rods-cas, some flagged", f"{CAS} --eps=.5"),
    Run("rods-cas, eps=inf", f"{CAS} --eps=inf"),
    Run("rods-cas, no detection", f"{CAS} --eps=0 --detect=false"),
    Run("rods-cas, window in noise levels", f"{CAS} --eps=.1 --window=sigma:.2,5"),
    Run("rods-cas, probe-every=2", f"{CAS} --eps=.02 --window=0,1 --probe-every=2"),
    Run("rods-cas, three ascent steps", f"{CAS} --eps=.02 --ascent-steps=3"),
    Run("rods-cas, gradient by differences", f"{CAS} --eps=.02 --gradient=difference"),
    Run("rods-cas, churn", f"{CAS} --eps=.3 --S_churn=10 --S_noise=1.003"),
    Run("rods-cas, heun and churn", f"{CAS} --eps=.07 --solver=heun --S_churn=5 --S_min=.1"),
    Run("rods-cas, heun, no preset", f"{CAS} --eps=.3 --solver=heun --preset=none"),
    Run("rods-sas, uphill", f"{SAS} --eps=.00015 --sas-sign=uphill"),
    Run("rods-sas, downhill", f"{SAS} --eps=.00015 --sas-sign=downhill"),
    Run("rods-sas, no detection", f"{SAS} --eps=0 --detect=false --solver=heun"),
    # its rivals and controls
    Run("overshoot, preset", "--sampler=overshoot --steps=10"),
    Run("overshoot, window in noise levels", "--sampler=overshoot --steps=10 --rho=5 --window=sigma:.5,10"),
    Run("sigma-offset", "--sampler=sigma-offset --steps=10 --kappa=.4 --window=.1,.5"),
    Run("iq", "--sampler=iq --steps=10 --strength=.2 --threshold=15 --window=sigma:.3,3 --lid-sigma=.625 --draws=2"),
    Run("tag", "--sampler=tag --steps=10 --eta=1.1"),
    Run("random", "--sampler=random --steps=10 --rho=8 --window=.2,.6"),
    Run("laplacian", "--sampler=laplacian --steps=10 --strength=.1 --probes=2 --window=.2,.8"),
    # restart: scores of finished images and in flight
    Run("restart, preset: readout in flight", "--sampler=restart --steps=10"),
    Run("restart, preset of mnist-32", "--network=models/mnist-32.safetensors --sampler=restart --steps=10"),
    Run(
        "restart, preset of hands-64r", "--network=models/hands-64r.safetensors --sampler=restart --steps=8 --seeds=0-1"
    ),
    Run("restart, readout, finished", f"{RESTART} --detector=readout --score-at=0 --threshold=.1 --margin=.1"),
    Run(
        "restart, lid, finished",
        f"{RESTART} --detector=lid --score-at=0 --lid-sigma=1.2 --draws=4 --threshold=16",
        f"{RESTART} --detector=lid:sigma=1.2,draws=4 --score-at=0 --threshold=16",
    ),
    Run(
        "restart, lid in two stages",
        f"{RESTART} --detector=lid:draws=4,first=2,near=.3 --score-at=.5 --threshold=16",
        REMOVED,
    ),
    Run(
        "restart, tvf",
        f"{RESTART} --detector=tvf --tvf-sigma=2 --score-at=0 --threshold=0 --rounds=1",
        f"{RESTART} --detector=tvf:sigma=2 --score-at=0 --threshold=0 --rounds=1",
    ),
    Run("restart, h-index, finished", f"{RESTART} --detector=h-index:rho=4,lo=.3,hi=2 --score-at=0 --threshold=.01"),
    Run(
        "restart, h-index in flight",
        f"{RESTART} --detector=h-index:rho=4,lo=.6,hi=5,mean=true --score-at=.47 --threshold=.001",
    ),
    Run("restart, lambda-max", f"{RESTART} --detector=lambda-max --score-at=0 --threshold=0 --rounds=1"),
    Run("restart, lmi", f"{RESTART} --detector=lmi --score-at=0 --threshold=0 --rounds=1"),
    Run("restart, learned", f"{RESTART} --detector=learned --score-at=0 --threshold=.3", REMOVED),
    Run(
        "restart, screen",
        f"{RESTART} --detector=screen(tvf:sigma=.5>1e-5;lid:draws=2) --score-at=0 --threshold=14",
        REMOVED,
    ),
    Run(
        "restart, cas inside",
        f"{RESTART} --threshold=.01 --rho=2 --inside=cas --ascent-steps=2",
        f"{RESTART} --threshold=.01 --inside=cas:rho=2,ascent_steps=2",
    ),
    Run(
        "restart, sas inside",
        f"{RESTART} --threshold=.01 --rho=2 --inside=sas --sas-sign=downhill",
        f"{RESTART} --threshold=.01 --inside=sas:rho=2,sas_sign=downhill",
    ),
    Run(
        "restart, overshoot inside, heun inside",
        f"{RESTART} --threshold=.01 --rho=4 --inside=overshoot --solver=heun",
        f"{RESTART} --threshold=.01 --inside=overshoot:rho=4 --solver=heun",
    ),
    Run("restart on heun", f"{RESTART} --threshold=.003 --solver=heun"),
    # what becomes of finished images
    Run("filter", "--sampler=euler --steps=10 --filter=lid --filter-threshold=15"),
    Run(
        "filter, by the preset",
        "--sampler=euler --steps=40 --filter=readout --filter-threshold=.1 --rejected --seeds=0-2",
    ),
    Run(
        "filter of restart, rejected",
        f"{RESTART} --threshold=.1 --filter=lid:sigma=1.2,draws=2 --filter-threshold=13 --rejected",
    ),
    Run("accept", "--sampler=euler --steps=10 --accept=lid<13 --max-tries=3"),
    Run(
        "accept with a filter, classes",
        f"{CLASSES} --sampler=edm --steps=5 --accept=tvf<1 --max-tries=2 --filter=lid --filter-threshold=inf",
    ),
    Run("trajectory, grid", f"{CAS} --eps=.5 --trajectory=0,4,9 --grid"),
    Run("grid of restart", f"{RESTART} --threshold=.01 --grid --trajectory=0,9"),
    # classes, seeds, random numbers
    Run("classes: by seed", f"{CLASSES} --sampler=edm --steps=8 --S_churn=10"),
    Run("classes: one", f"{CLASSES} --sampler=rods-cas --steps=8 --class=2 --eps=.05 --rho=2 --window=0,1"),
    Run("classes: restart", f"{CLASSES} --sampler=restart --steps=8 --sigma-r=3 --threshold=0 --rounds=1"),
    Run(
        "seeding per batch",
        f"{CLASSES} --sampler=edm --steps=6 --S_churn=10 --seeds=0-1 --batch=3 --seeding=per-batch",
    ),
    Run("seeding per batch, rods", f"{CAS} --eps=.5 --seeds=0-1 --batch=2 --seeding=per-batch --window=.3,.5"),
    Run("rng on the CPU", f"{CLASSES} --sampler=edm --steps=6 --S_churn=10 --rng=cpu"),
    Run("subfolders, chunks", f"{CLASSES} --sampler=euler --steps=6 --seeds=998-1001 --batch=3 --subdirs"),
    # how the network is carried out
    Run("bf16", f"{CAS} --eps=.5 --dtype=bf16"),
    Run("memory", f"{CAS} --eps=.5 --probe-batch=3 --checkpoint-blocks --channels-last"),
    Run("one rank", f"{RESTART} --threshold=.01 --rounds=1 --batch=2", ranks=1),
    Run("two ranks", f"{CAS} --eps=.5 --batch=2 --grid", ranks=2),
]

# One process per tree that has imported everything, and forks for each command: importing torch takes most of the time.
SERVER = """
import contextlib, json, os, runpy, sys, traceback
sys.path.insert(0, os.getcwd())
with contextlib.suppress(Exception):  # the command itself then says what is wrong
    import generate
for line in sys.stdin:
    options, log = json.loads(line)
    if (child := os.fork()) == 0:
        for stream in (1, 2):
            os.dup2(os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT), stream)
        sys.argv, code = ["generate.py", *options], 0
        try:
            runpy.run_path("generate.py", run_name="__main__")
        except SystemExit as e:
            code = e.code or 0
        except BaseException:
            traceback.print_exc()
            code = 1
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
MAKE_TINY = """
import sys, torch
from training.checkpoint import save_snapshot
from training.precond import EDMPrecond
kwargs = {"img_resolution": 16, "img_channels": 3, "label_dim": 4, "model_type": "SongUNet", "model_channels": 8,
          "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [8]}
torch.manual_seed(0)
net = EDMPrecond(**kwargs).eval().requires_grad_(False)
for weight in net.parameters():
    torch.nn.init.normal_(weight, std=0.15)
save_snapshot(sys.argv[1], net, init_kwargs=kwargs)
"""
PICKLE = "tests/golden/pickles/edm-ncsnpp-cond.pkl"

Found = dict[str, Any]  # {"images": {file: sha256}, "lines": {image: {field: value}}}, or {"error": message}


def environment() -> dict[str, str]:
    """One thread, and no other tree on the path than the one that generate.py lies in."""
    left_out = ("PYTHONPATH", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    return {**{k: v for k, v in os.environ.items() if k not in left_out}, "OMP_NUM_THREADS": "1"}


class Tree:
    """A folder with a generate.py, and processes that wait to carry out its commands."""

    def __init__(self, root: Path, networks: dict[str, Path]) -> None:
        self.root, self.networks, self.idle = root, networks, queue.SimpleQueue[subprocess.Popen[str]]()

    def carry_out(self, run: Run, line: str) -> Found:
        """Runs a command line, and reads what it wrote."""
        options = [p.format(**self.networks) if p.startswith("--network=") else p for p in shlex.split(line)]
        options = list({p.partition("=")[0]: p for p in options}.values())  # the last of each: twice is an error by now
        with tempfile.TemporaryDirectory() as folder:
            outdir, log = Path(folder) / "out", Path(folder) / "log"
            given = [f"--outdir={outdir}", "--threads=1", "--device=cpu", *options]
            given += [] if "--seeds=" in line else ["--seeds=0-3"]
            code = self.torchrun(run.ranks, given, log) if run.ranks else self.fork(given, log)
            if code != 0:
                said = log.read_text().strip().splitlines() if log.is_file() else []
                return {"error": said[-1] if said else f"exit code {code}"}
            return read_folder(outdir)

    def torchrun(self, ranks: int, options: list[str], log: Path) -> int:
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}", "generate.py"]
        with log.open("w") as file:
            command = [sys.executable, *launcher, *options]
            return subprocess.run(
                command, cwd=self.root, env=environment(), stdout=file, stderr=file, check=False
            ).returncode

    def fork(self, options: list[str], log: Path) -> int:
        try:
            server = self.idle.get_nowait()
        except queue.Empty:
            command = [sys.executable, "-c", SERVER]
            server = subprocess.Popen(
                command, cwd=self.root, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        assert server.stdin is not None
        assert server.stdout is not None
        print(json.dumps([options, str(log)]), file=server.stdin, flush=True)
        code = int(server.stdout.readline() or -1)
        self.idle.put(server)
        return code

    def close(self) -> None:
        while not self.idle.empty():
            self.idle.get().communicate()


def read_folder(outdir: Path) -> Found:
    images = {
        path.relative_to(outdir).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(outdir.rglob("*.png"))
    }
    lines = {}
    for text in (outdir / "samples.jsonl").read_text().splitlines():
        line = json.loads(text)
        lines[line["name"]] = {field: line[field] for field in FIELDS if field in line}
    return {"images": images, "lines": lines}


def difference(old: Found, new: Found) -> str:
    """What differs, in words; empty where nothing does."""
    for which, found in (("old", old), ("new", new)):
        if "error" in found:
            return f"failed in the {which} tree: {found['error']}"
    said = []
    for kind, change in (
        ("missing", old["images"].keys() - new["images"]),
        ("new", new["images"].keys() - old["images"]),
    ):
        if change:
            said.append(f"{kind} images {listed(sorted(change))}")
    if changed := [name for name in old["images"].keys() & new["images"] if old["images"][name] != new["images"][name]]:
        said.append(f"images {listed(sorted(changed))}")
    if old["lines"].keys() != new["lines"].keys():
        said.append(f"records of {listed(sorted(old['lines'].keys() ^ new['lines'].keys()))}")
    both = sorted(old["lines"].keys() & new["lines"])
    for field in FIELDS:
        if seeds := [name for name in both if old["lines"][name].get(field) != new["lines"][name].get(field)]:
            said.append(f"{field} of {listed([name.removesuffix('.png') for name in seeds])}")
    return "; ".join(said)


def listed(names: Sequence[str], most: int = 4) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


class OldTree:
    """A commit's results, from the cache folder or from a copy of its files that is made when it is first needed."""

    def __init__(self, commit: str, cache: Path) -> None:
        self.commit = git("rev-parse", "--verify", f"{commit}^{{commit}}").decode().strip()
        self.folder = cache / f"{self.commit[:12]}-torch-{torch.__version__}-{platform.machine()}"
        self.networks = {"tiny": self.folder / "tiny.safetensors", "pickle": self.folder / Path(PICKLE).name}
        self.tree = Tree(self.folder / "tree", self.networks)

    def prepare(self, runs: Sequence[Run]) -> None:
        """Files of the old commit, where any of these runs is not in the cache, and the networks of both trees."""
        made = all(path.is_file() for path in self.networks.values())
        if made and all(self.path_of(run).is_file() for run in runs):
            return
        if not (self.tree.root / "generate.py").is_file():
            shutil.rmtree(self.tree.root, ignore_errors=True)
            with tarfile.open(fileobj=io.BytesIO(git("archive", self.commit))) as files:
                files.extractall(self.tree.root, filter="data")
        if not made:
            shutil.copy(self.tree.root / PICKLE, self.networks["pickle"])
            command = [sys.executable, "-c", MAKE_TINY, str(self.networks["tiny"])]
            subprocess.run(command, cwd=self.tree.root, env=environment(), check=True)

    def path_of(self, run: Run) -> Path:
        key = hashlib.sha256(json.dumps([run.old, run.ranks, FIELDS, MAKE_TINY]).encode()).hexdigest()[:16]
        return self.folder / f"{key}.json"

    def found(self, run: Run) -> Found:
        path = self.path_of(run)
        if path.is_file():
            known: Found = json.loads(path.read_text())
            return known
        found: Found = self.tree.carry_out(run, run.old)
        if "error" not in found:
            path.write_text(json.dumps(found))
        return found


def git(*arguments: str) -> bytes:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, check=False)
    if done.returncode != 0:
        raise click.ClickException(done.stderr.decode().strip())
    return done.stdout


def compare(run: Run, old: OldTree, tree: Tree) -> tuple[bool, str]:
    """Whether nothing differs, and the line that says so."""
    if run.new == REMOVED:
        return True, f"removed    {run.name}: {run.old}"
    new, found = tree.carry_out(run, run.old if run.new is None else run.new), old.found(run)
    if words := difference(found, new):
        return False, f"DIFFERENT  {run.name}: {run.old}\n           {words}"
    return True, f"equal      {run.name}: {len(found['images'])} images"


@click.command()
@click.argument("old_commit")
@click.option("--only", default="", metavar="TEXT", help="Only commands whose name or options contain this.")
@click.option("--jobs", default=1, show_default=True, type=click.IntRange(1), help="Commands at a time.")
@click.option("--tree", type=click.Path(path_type=Path), default=ROOT, help="The new tree [default: this one].")
@click.option(
    "--cache",
    type=click.Path(path_type=Path),
    default=Path(tempfile.gettempdir()) / ".cache" / "same_images",
    show_default=True,
    help="Where results of old commits are kept.",
)
def main(old_commit: str, only: str, jobs: int, tree: Path, cache: Path) -> None:
    """Compare the images of OLD_COMMIT's generate.py with this tree's; exit code 1 where any differs."""
    runs = [run for run in RUNS if only in run.name or only in run.old]
    if not runs:
        raise click.ClickException(f"--only={only} selects no command")
    old = OldTree(old_commit, cache)
    old.folder.mkdir(parents=True, exist_ok=True)
    old.prepare([run for run in runs if run.new != REMOVED])
    new, failed = Tree(tree.resolve(), old.networks), 0
    with ThreadPoolExecutor(jobs) as pool:
        for is_equal, said in pool.map(lambda run: compare(run, old, new), runs):
            failed += not is_equal
            click.echo(said)
    removed = sum(run.new == REMOVED for run in runs)
    click.echo(f"{len(runs)} commands: {len(runs) - failed - removed} equal, {failed} not, {removed} removed")
    new.close()
    old.tree.close()
    shutil.rmtree(old.tree.root, ignore_errors=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
