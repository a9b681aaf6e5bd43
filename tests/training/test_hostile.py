"""Hostile, broken and absurd files: none runs anything, each is one clear line, quickly and in little memory."""

from __future__ import annotations

import contextlib
import copyreg
import json
import os
import pickle
import pickletools
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hostile_files import ALL, FILES, genuine
from hostile_pickles import OTHERS, RUNS_ELSEWHERE
from vectors import ROOT

from dnnlib.errors import UserError
from scripts.convert import main as convert
from training.checkpoint import load_denoiser

OPCODES_AT = [position for _, _, position in pickletools.genops(genuine(1.0))]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """One process with a limit on its memory loads every file; a crash would cut the report short."""
    folder = tmp_path_factory.mktemp("hostile")
    run = subprocess.run(
        [sys.executable, "-W", "error", ROOT / "tests" / "hostile_files.py", folder],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    return {line["name"]: line for line in map(json.loads, run.stdout.splitlines())}


def test_there_are_enough_attacks() -> None:
    assert len(ALL) == len(RUNS_ELSEWHERE) + len(OTHERS) + len(FILES) >= 35


@pytest.mark.parametrize("name", ALL)
def test_nothing_runs_and_the_error_is_one_clear_line(name: str, report: dict[str, dict[str, Any]]) -> None:
    result = report[name]
    assert not result["ran"]
    assert result["kind"] == "UserError", result
    assert len(result["message"]) < 500
    assert result["message"].isprintable(), result["message"]
    assert result["seconds"] < 2, result


@pytest.mark.parametrize("name", RUNS_ELSEWHERE)
def test_the_attack_is_real(name: str, tmp_path: Path) -> None:
    """Python's Unpickler falls for each of these, so refusing them means something."""
    canary = tmp_path / "canary"
    content = RUNS_ELSEWHERE[name](canary)
    copyreg.add_extension("os", "system", 0xF0)
    try:
        with contextlib.suppress(Exception):
            pickle.loads(content)
    finally:
        copyreg.remove_extension("os", "system", 0xF0)
    assert canary.exists()


@pytest.mark.parametrize("seed", range(30))
def test_damaged_files_never_give_a_traceback(seed: int, tmp_path: Path) -> None:
    """A real pickle with a few opcodes or lengths changed, bytes lost or bytes added."""
    draw = random.Random(seed)
    content = bytearray(genuine(1.0))
    for _ in range(draw.choice([1, 2, 5])):
        at = draw.choice(OPCODES_AT) + draw.choice([0, 0, 1, 2])
        lost = draw.choice([0, 1, 1, 9])
        content[at : at + lost] = draw.choices(
            b"NKMJGhjqr}])tuseaRb\x81Q\x85\x94\x93XC\x8c\x8a.\xff", k=draw.choice([0, 1, 1, 3])
        )
    path = tmp_path / "net.pkl"
    path.write_bytes(content)
    with contextlib.suppress(UserError):  # a change may be harmless; any other exception is a bug
        load_denoiser(path)


@pytest.mark.parametrize("name", ["reduce os.system", "a trillion parameters", "web page", "offsets that overlap"])
def test_the_command_exits_with_code_2_and_one_line(name: str, tmp_path: Path) -> None:
    source = tmp_path / "net.pkl"
    source.write_bytes(ALL[name](tmp_path / "canary"))
    result = CliRunner().invoke(convert, [f"--source={source}", f"--dest={tmp_path / 'out.safetensors'}"])
    assert result.exit_code == 2
    assert result.output.startswith(f"Error: --source: {source}: ")
    assert result.output.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["net.pkl"]


def test_the_command_as_users_run_it(tmp_path: Path) -> None:
    source = tmp_path / "net.pkl"
    source.write_bytes(RUNS_ELSEWHERE["reduce os.system"](tmp_path / "canary"))
    command = [
        sys.executable,
        ROOT / "scripts" / "convert.py",
        "--source",
        source,
        "--dest",
        tmp_path / "a.safetensors",
    ]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
    assert run.returncode == 2
    assert run.stdout == ""
    assert run.stderr == (
        f"Error: --source: {source}: refused: the pickle asks for 'os.system', "
        "which no network needs; nothing was run\n"
    )


def test_missing_files_and_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.pkl: there is no such file; check the path"):
        load_denoiser(tmp_path / "nowhere.pkl")
    with pytest.raises(UserError, match="it is a folder"):
        load_denoiser(tmp_path)
    result = CliRunner().invoke(convert, ["--source=x", "--dest=y.safetensors", "--nonsense"])
    assert (result.exit_code, result.output) == (2, "Error: No such option '--nonsense'.\n")
