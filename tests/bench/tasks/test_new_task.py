"""A new task is one file and one entry of the registry: every command takes it, and so do the laws."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from exact import GOLDEN

from examples import own_task
from rods import Euler
from rods.eval.labels import Label

ROOT = GOLDEN.parents[1]
# The choices of --task are made when a command is imported, so this takes a process of its own.
PROGRAM = """
import json, sys
from examples import own_task
from rods.bench.tasks import TASKS
TASKS["bars"] = own_task.task
from scripts import bench, make_data
for arguments in json.loads(sys.argv[1]):
    command = make_data if arguments[0] == "bars" else bench
    try:
        command.main.main(arguments)
    except SystemExit as end:
        assert not end.code
"""


def test_the_example_prints_its_audit(capsys):
    own_task.main()
    said = capsys.readouterr().out
    assert "real data, fresh: hallucinated 0 of 2000\n" in said
    assert "planted: two bars: hallucinated 500 of 500\n" in said


def test_the_example_keeps_the_law_of_no_images():
    assert own_task.label(np.zeros((0, 1, own_task.SIZE, own_task.SIZE))).shape == (0,)


def test_the_example_has_something_to_repair():
    """Else its benchmark would compare nothing, and no score would have an AUROC."""
    task = own_task.task()
    latents = torch.randn(64, 1, own_task.SIZE, own_task.SIZE, generator=torch.Generator().manual_seed(0))
    done = Euler(num_steps=task.num_steps).sample(task.networks["bars-exact"]().denoiser, latents)
    found = task.label(done.images.numpy())
    assert (found == Label.HALLUCINATED).sum() > 1
    assert (found == Label.VALID).sum() > 32


def test_commands_take_a_task_that_is_only_registered(tmp_path: Path):
    out = f"--out={tmp_path / 'results'}"
    given = [
        ["bars", f"--dest={tmp_path / 'bars.zip'}", "--num=3"],
        ["audit", "--task=bars", out],
        ["run", "--task=bars", "--samplers=heun", "--seeds=0-31", out],
        ["run", "--task=bars", "--samplers=tvf", "--seeds=0-63", out],
        ["run", "--task=bars", "--samplers=tvf", "--seeds=0", out],
    ]
    command = [sys.executable, "-c", PROGRAM, json.dumps(given)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for said in ("3 images, 16x16 grey", "hallucinated", "| heun ", "| tvf ", "hallucinated and valid images"):
        assert said in done.stdout
