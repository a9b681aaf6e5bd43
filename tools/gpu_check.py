"""Checks and measures this project on one GPU, in one command and without internet; writes one JSON and a short table.

    python tools/gpu_check.py --out=gpu.json                      # about four minutes on one GPU
    python tools/gpu_check.py --full --out=gpu.json               # torch.compile too: about ten
    python tools/gpu_check.py --device=cpu --quick --out=cpu.json # the same code on a CPU, tiny networks

Each section runs in a process of its own with a time limit; what fails is recorded, and the others go on. The JSON is
written after every section (its schema is in docs/gpu.md). The exit code is 1 if a check failed. Needs the core
packages alone; pytest, where it is there, runs the tests that are marked gpu.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a plain checkout, installed or not

from dnnlib.cli import Command, Destination

HERE = Path(__file__).resolve().parent
SCHEMA = 1
PATIENCE = 10  # times the limit of a section, on a CPU that others may use


@dataclass(frozen=True)
class Plan:
    """How long a section may take, and whether it has the machine for itself."""

    limit: float  # seconds
    alone: bool = False
    full: bool = False  # only with --full: torch.compile takes minutes


SECTIONS = {  # the most valuable first; those that are not alone run side by side, before the others
    "environment": Plan(60),
    "agreement": Plan(150),
    "options": Plan(200),
    "memory": Plan(90),
    "nccl": Plan(90),
    "tests": Plan(120),
    "ceilings": Plan(60, alone=True),
    "ffhq": Plan(150, alone=True),
    "hands-128": Plan(150, alone=True),
    "profile": Plan(90, alone=True),
    "layers": Plan(60, alone=True),
    "training": Plan(120, alone=True),
    "compiled options": Plan(300, full=True),
    "ffhq compiled": Plan(400, alone=True, full=True),
    "training compiled": Plan(400, alone=True, full=True),
}


class Running:
    """The process of a section."""

    def __init__(self, name: str, folder: Path, *, device: str, quick: bool) -> None:
        self.name, self.start = name, time.monotonic()
        self.limit = SECTIONS[name].limit * (1 if device == "cuda" else PATIENCE)
        self.path, self.log = (folder / f"{name.replace(' ', '-')}.{end}" for end in ("json", "log"))
        command = [sys.executable, str(HERE / "gpu_check.py"), f"--section={name}", f"--device={device}"]
        command += [f"--out={self.path}", *(["--quick"] if quick else [])]
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=HERE.parent)

    def poll(self, *, stop: bool = False) -> dict[str, Any] | None:
        """What became of it; None while it runs within its limit. With `stop` it ends now."""
        seconds, code = time.monotonic() - self.start, self.process.poll()
        late = code is None and (stop or seconds > self.limit)
        if code is None and not late:
            return None
        if late:
            self.process.kill()
            self.process.wait()
        found = json.loads(self.path.read_text()) if self.path.exists() else {"results": {}, "checks": []}
        found |= {"ok": code == 0 and all(c["ok"] for c in found["checks"]), "seconds": round(seconds, 1)}
        if late:
            found["error"] = f"stopped after {seconds:.0f} seconds"
        elif code:
            found["error"] = "\n".join(self.log.read_text().splitlines()[-12:])[-1500:]
        return found


class Check:
    """A run of the sections."""

    def __init__(self, out: Path, *, device: str, quick: bool, workers: int, budget: float) -> None:
        self.out, self.device, self.quick, self.workers = out, device, quick, workers
        self.start, self.budget = time.monotonic(), budget
        self.live: list[Running] = []
        self.report: dict[str, Any] = {"schema": SCHEMA, "device": device, "quick": quick, "sections": {}}

    def note(self, name: str, found: dict[str, Any]) -> None:
        self.report["sections"][name] = found
        self.report["seconds"] = round(time.monotonic() - self.start, 1)
        temporary = self.out.with_suffix(".part")
        temporary.write_text(json.dumps(self.report, indent=1) + "\n")
        os.replace(temporary, self.out)
        click.echo(f"{name:<20} {summary(found)}")

    def run(self, names: list[str]) -> None:
        """The sections side by side, some at a time, then those alone, one by one. Ctrl-C keeps what was found."""
        with tempfile.TemporaryDirectory() as folder:
            try:
                self.wait([name for name in names if not SECTIONS[name].alone], self.workers, Path(folder))
                self.wait([name for name in names if SECTIONS[name].alone], 1, Path(folder))
            except KeyboardInterrupt:
                for process in self.live:
                    self.note(process.name, process.poll(stop=True) or {})

    def wait(self, names: list[str], workers: int, folder: Path) -> None:
        waiting = list(names)
        while waiting or self.live:
            while waiting and len(self.live) < workers:
                name = waiting.pop(0)
                if time.monotonic() - self.start > self.budget:
                    self.note(name, {"ok": False, "error": f"left out: --budget={self.budget:.0f} is spent"})
                    continue
                self.live.append(Running(name, folder, device=self.device, quick=self.quick))
            for process in list(self.live):
                if found := process.poll():
                    self.live.remove(process)
                    self.note(process.name, found)
            time.sleep(0.05)


def summary(found: dict[str, Any]) -> str:
    """A line on a section."""
    failed = [c for c in found.get("checks", []) if not c["ok"]]
    word, count = "ok" if found["ok"] else "FAILED", len(found.get("checks", []))
    line = f"{word:<7}{found.get('seconds', 0):6.1f} s  {count} checks"
    for c in failed:
        line += f"\n    {c['name']}: " + (c["error"] if "error" in c else f"{c['value']} beside {c['limit']}")
    if "error" in found:
        line += "\n    " + found["error"].replace("\n", "\n    ")
    return line


def run_section(name: str, out: Path, device: str, quick: bool) -> None:
    """One section in this process."""
    import torch

    from tools.gpu_sections import agreement, options, profiled, speed, system, trained
    from tools.gpu_sections.common import THREADS, Section

    run = {
        "environment": system.environment,
        "agreement": agreement.agreement,
        "options": options.options,
        "memory": system.memory,
        "nccl": system.nccl,
        "tests": system.tests,
        "ceilings": system.ceilings,
        "ffhq": speed.ffhq,
        "hands-128": speed.hands128,
        "profile": profiled.profile,
        "layers": profiled.layers,
        "training": trained.training,
        "compiled options": options.compiled_options,
        "ffhq compiled": speed.compiled_ffhq,
        "training compiled": trained.compiled_training,
    }[name]
    torch.set_num_threads(THREADS)  # sections side by side, each with all cores, would wait for each other's threads
    section = Section(torch.device(device), quick, out)
    section.save()
    run(section)
    section.save()


@click.command(cls=Command, context_settings={"show_default": True})
@click.option("--device", type=click.Choice(["cuda", "cpu"]), default="cuda", help="Where to run.")
@click.option("--quick", is_flag=True, help="Tiny networks and few steps: the code, not the numbers.")
@click.option("--full", is_flag=True, help="Also torch.compile of whole networks, which takes minutes.")
@click.option("--only", metavar="NAME,...", help=f"These sections alone, of: {', '.join(SECTIONS)}.")
@click.option("--workers", type=click.IntRange(1), default=5, help="Sections at a time where nothing is timed.")
@click.option(
    "--budget",
    type=click.FloatRange(min=0),
    default=1200.0,
    metavar="SECONDS",
    help="No section is started after so long.",
)
@click.option("--out", type=Destination(dir_okay=False), default="gpu.json", help="The JSON.")
@click.option("--section", hidden=True, type=click.Choice(list(SECTIONS)))
def main(
    device: str,
    quick: bool,
    full: bool,
    only: str | None,
    workers: int,
    budget: float,
    out: Path,
    section: str | None,
) -> None:
    """Check and measure this project on one GPU."""
    if section:
        run_section(section, out, device, quick)
        return
    names = [name for name, plan in SECTIONS.items() if full or not plan.full]
    if only:
        names = [name.strip() for name in only.split(",")]
    if unknown := [name for name in names if name not in SECTIONS]:
        raise click.UsageError(f"--only={only}: there is no section {unknown[0]}; use some of {', '.join(SECTIONS)}")
    check = Check(out.resolve(), device=device, quick=quick, workers=workers, budget=budget)
    check.run(names)
    click.echo(f"wrote {out} after {check.report['seconds']} s")
    if not all(found["ok"] for found in check.report["sections"].values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
