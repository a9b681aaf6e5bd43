"""A new task is one file and one entry of the registry: every command takes it, and so do the laws."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from exact import GOLDEN

from examples import own_task

ROOT = GOLDEN.parents[1]
REGISTERED = "from examples import own_task; from rods.bench.tasks import TASKS; TASKS['bars'] = own_task.task; "


def run(code: str, *args: object) -> str:
    command = [sys.executable, "-c", REGISTERED + code, *map(str, args)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_example_prints_its_audit(capsys):
    own_task.main()
    said = capsys.readouterr().out
    assert "real data, fresh: hallucinated 0 of 2000\n" in said
    assert "planted: two bars: hallucinated 500 of 500\n" in said


def test_commands_take_a_task_that_is_only_registered(tmp_path: Path):
    said = run("from scripts.make_data import main; main()", "bars", f"--dest={tmp_path / 'bars.zip'}", "--num=3")
    assert "3 images, 16x16 grey" in said
    bench = "from scripts.bench import main; main()"
    out = f"--out={tmp_path / 'results'}"
    assert "hallucinated" in run(bench, "audit", "--task=bars", out)
    assert "| heun " in run(bench, "--task=bars", "--samplers=heun", "--seeds=0-31", out)
