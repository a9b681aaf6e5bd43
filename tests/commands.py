"""Running generate.py in this process or a command in several, and looking at what was written."""

from __future__ import annotations

import atexit
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import click
import torch
from click.testing import CliRunner
from overridden import last_of_each
from vectors import GOLDEN, ROOT

from generate import main
from training.checkpoint import save_snapshot
from training.networks import EDMPrecond

PLAIN = GOLDEN / "pickles" / "edm-ddpmpp-uncond.pkl"  # 16x16x3
LABELLED = GOLDEN / "pickles" / "edm-ncsnpp-cond.pkl"  # 16x16x1, 4 classes


def tiny(path: Path, *, channels: int = 1, first_weight: float | None = None) -> Path:
    """Writes a network for 8x8 images that costs next to nothing; `first_weight` replaces a layer's weights."""
    kwargs = {
        "img_resolution": 8, "img_channels": channels, "model_type": "SongUNet", "model_channels": 4,
        "channel_mult": [1], "num_blocks": 1, "attn_resolutions": [],
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = EDMPrecond(**kwargs)
        for weight in net.parameters():  # a fresh network's last layer is near 0, and its H with it
            torch.nn.init.normal_(weight, std=0.3)
    if first_weight is not None:
        torch.nn.init.constant_(next(net.parameters()), first_weight)
    save_snapshot(path, net, init_kwargs=kwargs)
    return path


_FOLDER = Path(tempfile.mkdtemp())
atexit.register(shutil.rmtree, _FOLDER)
SMALL = tiny(_FOLDER / "small.safetensors")  # 8x8x1
RODS = ("--sampler=rods-cas", "--eps=.1", "--rho=1", "--window=0,1")
RESTART = ("--sampler=restart", "--threshold=1", "--sigma-r=2")


def generate(outdir: Path, *options: str, network: Path | None = SMALL, steps: int | None = 2) -> tuple[int, str]:
    """Exit code and output of `generate.py --outdir=... OPTIONS`; anything but a clean exit is raised."""
    always = [f"--outdir={outdir}", "--threads=1"]
    always += [f"--network={network}"] if network else []
    always += [f"--steps={steps}"] if steps else []
    result = CliRunner().invoke(main, last_of_each([*always, *options]))
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def generated(outdir: Path, *options: str, network: Path | None = SMALL, steps: int | None = 2) -> str:
    code, output = generate(outdir, *options, network=network, steps=steps)
    assert code == 0, output
    return output


def refused(outdir: Path, *options: str, network: Path | None = SMALL, steps: int | None = 2) -> str:
    """What `generate.py` says, in one line, where it refuses its options."""
    code, output = generate(outdir, *options, network=network, steps=steps)
    assert (code, output.startswith("Error: "), output.count("\n")) == (2, True, 1), output
    return output


def said(command: click.Command, *arguments: object, code: int = 0) -> str:
    """All that a command prints in this process; anything but an exit with `code` is raised."""
    result = CliRunner().invoke(command, [str(a) for a in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result.output


def refusal(command: click.Command, *arguments: object) -> str:
    """The one line of a user's error."""
    output = said(command, *arguments, code=2)
    assert (output.startswith("Error: "), output.count("\n")) == (True, 1), output
    return output


def files(outdir: Path) -> dict[str, str]:
    """The checksum of every file under a folder, hidden ones too."""
    return {
        path.relative_to(outdir).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(outdir.rglob("*"))
        if path.is_file()
    }


def records(outdir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (outdir / "samples.jsonl").read_text().splitlines()]


def options_json(outdir: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((outdir / "options.json").read_text())
    return found


def torchrun(ranks: int, script: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """The command as `ranks` processes."""
    return _python(["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"], script, options)


def ranked(ranks: int, script: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """The same in less than half of the time, without torchrun."""
    return _python([str(ROOT / "tests" / "tools" / "forked_ranks.py"), str(ranks)], script, options)


def _python(launcher: list[str], script: Path, options: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *launcher, str(script), *options],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False, timeout=90,
    )  # fmt: skip
