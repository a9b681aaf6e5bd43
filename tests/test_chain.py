"""The whole way as a user goes it: rendered photographs, a data set, a training that is killed, samples."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tree import ROOT

pytestmark = pytest.mark.slow

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


def run(script: str, *options: object) -> str:
    command = [sys.executable, str(ROOT / script), *map(str, options)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_rendered_hands_become_a_network_that_samples(tmp_path: Path) -> None:
    pytest.importorskip("anny", reason="anny is not installed")
    run("tools/rendered-hands/render_hands.py", f"--dest={tmp_path / 'rendered'}", "--num=6", "--resolution=64x48")
    data, runs = tmp_path / "hands-32.zip", tmp_path / "runs"
    said = run("scripts/prepare_hands.py", f"--source={tmp_path / 'rendered'}", f"--dest={data}", "--resolution=32")
    assert "6 images, 32x32 RGB" in said

    options = ["--preset=hands-64r", f"--data={data}", f"--outdir={runs}", "--cbase=4", "--batch=4", "--tick=.008"]
    command = [sys.executable, str(ROOT / "train.py"), *options, "--duration=1", "--threads=1"]
    with open(tmp_path / "log.txt", "w") as log:
        process = subprocess.Popen(command, env=ENVIRONMENT, stdout=log, stderr=log)
    deadline = time.monotonic() + 300
    while not list(runs.glob("*/training-state-*.pt")):
        assert process.poll() is None, (tmp_path / "log.txt").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait(60)

    (run_dir,) = runs.iterdir()
    seen = max(json.loads(line)["images_seen"] for line in (run_dir / "stats.jsonl").read_text().splitlines())
    end = seen + 40
    said = run("train.py", *options, f"--duration={end / 1e6}", "--threads=1")  # the length alone does not count
    assert f"Going on in {run_dir} at" in said
    lines = [json.loads(line)["images_seen"] for line in (run_dir / "stats.jsonl").read_text().splitlines()]
    assert lines == sorted(set(lines))
    assert lines[-1] == end
    (snapshot,) = run_dir.glob("network-snapshot-*.safetensors")
    assert said.splitlines()[-1] == f"Finished: {snapshot}"

    run("generate.py", f"--network={snapshot}", "--seeds=0-2", "--steps=3", "--batch=3", f"--outdir={tmp_path / 'out'}")
    assert len(list((tmp_path / "out").glob("*.png"))) == 3
