"""The Makefile's environment: made once, made again after a change or an interruption, and clear when it cannot be."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from tree import ROOT

from rods.bench.methods import METHODS, read_experiments
from rods.bench.tasks import TASKS

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="no make on this machine")

# A python3 that notes what it is asked to do; `-m venv` makes an environment whose python is this script again.
FAKE = """#!/bin/sh
echo "$*" >> "$LOG"
case "$*" in
  *"version_info"*) exit ${TOO_OLD:-0} ;;
  *"find_spec"*) exit ${NO_FOREIGN:-0} ;;
  *"ensurepip"*) exit ${NO_VENV:-0} ;;
  "-m venv --clear .venv") rm -rf .venv; mkdir -p .venv/bin; cp "$0" .venv/bin/python ;;
  "scripts/bench.py"*) exit ${BENCH:-0} ;;
  "-m pip install"*) exit ${PIP:-0} ;;
esac
"""


class Checkout:
    """A folder with the Makefile, the files it depends on, and the fake python3."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.log = folder, folder / "log"
        for name in ("Makefile", "pyproject.toml", "constraints.txt"):
            shutil.copy(ROOT / name, folder / name)
        self.python = folder / "python3"
        self.python.write_text(FAKE)
        self.python.chmod(0o755)

    def make(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Runs make; `self.calls` are then what python was asked to do, version checks aside."""
        self.log.write_text("")
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}
        run = subprocess.run(
            ["make", f"PYTHON={self.python}", *arguments],
            cwd=self.folder,
            env={**clean, "LOG": str(self.log), **environment},
            capture_output=True,
            text=True,
            check=False,
        )
        self.all_calls = self.log.read_text().splitlines()
        self.calls = [line for line in self.log.read_text().splitlines() if line.startswith("-m")]
        return run


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


MAKE_VENV, TEST = "-m venv --clear .venv", "-m pytest -n logical --maxprocesses=8"
INSTALL = "-m pip install --quiet --disable-pip-version-check -c constraints.txt -e .[dev]"


def test_setup_installs_and_does_nothing_else(checkout: Checkout) -> None:
    assert checkout.make("setup").returncode == 0
    assert [c for c in checkout.calls if "--version" not in c] == [MAKE_VENV, INSTALL]
    assert checkout.make("setup").returncode == 0
    assert checkout.calls == []


def test_it_installs_once_and_then_only_runs(checkout: Checkout) -> None:
    assert checkout.make("test").returncode == 0
    assert [c for c in checkout.calls if "--version" not in c] == [MAKE_VENV, INSTALL, TEST]
    assert checkout.make("test").returncode == 0
    assert checkout.calls == [TEST]


@pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt"])
def test_a_changed_requirement_installs_into_the_same_environment(checkout: Checkout, name: str) -> None:
    checkout.make("test")
    stamp = (checkout.folder / ".venv" / ".installed").stat().st_mtime
    os.utime(checkout.folder / name, (stamp + 5, stamp + 5))
    checkout.make("test")
    assert INSTALL in checkout.calls
    assert MAKE_VENV not in checkout.calls


def test_an_interrupted_install_is_made_anew(checkout: Checkout) -> None:
    assert checkout.make("test", PIP="1").returncode != 0
    assert TEST not in checkout.calls
    assert checkout.make("test").returncode == 0
    assert [c for c in checkout.calls if "--version" not in c] == [MAKE_VENV, INSTALL, TEST]


FOREIGN = "-m pip install --quiet --disable-pip-version-check --retries=1 -c constraints.txt -e .[foreign]"


def test_the_foreign_packages_are_installed_where_they_can_be_and_missed_with_a_line(checkout: Checkout) -> None:
    checkout.make("setup")
    assert checkout.make("foreign").returncode == 0
    assert checkout.calls == [], "they are there"
    run = checkout.make("foreign", NO_FOREIGN="1")
    assert (run.returncode, checkout.calls, run.stdout) == (0, [FOREIGN], "")
    run = checkout.make("foreign", NO_FOREIGN="1", PIP="1")
    assert (run.returncode, checkout.calls) == (0, [FOREIGN])
    assert run.stdout == "diffusers and transformers cannot be installed here; the tests of pipelines are skipped\n"


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        (["PYTHON=no-such-python"], {}, "Error: no-such-python is not on the PATH; install Python 3.10 or newer"),
        ([], {"TOO_OLD": "1"}, "is too old; this needs Python 3.10 or newer"),
        ([], {"NO_VENV": "1"}, "lacks the venv module; on Debian or Ubuntu: apt install python3-venv"),
    ],
)
def test_a_python_that_cannot_do_it_gets_one_line(
    checkout: Checkout, arguments: list[str], environment: dict[str, str], message: str
) -> None:
    run = checkout.make("test", *arguments, **environment)
    said = [line for line in run.stderr.splitlines() if not line.startswith("make: ***")]
    assert run.returncode != 0
    assert len(said) == 1
    assert message in said[0]
    assert not (checkout.folder / ".venv").exists()


def test_help_names_every_target_and_does_nothing(checkout: Checkout) -> None:
    listed = {line.split()[1] for line in checkout.make().stdout.splitlines()}
    (phony,) = re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert listed == set(phony.split())
    assert checkout.calls == []


def test_the_benchmark_stops_where_a_piece_fails(checkout: Checkout) -> None:
    assert checkout.make("bench-quality-fast").returncode == 0
    assert len([line for line in checkout.all_calls if "scripts/bench.py" in line]) == 2, "the runs, and the report"
    assert checkout.make("bench-quality", BENCH="1").returncode != 0
    assert len([line for line in checkout.all_calls if "scripts/bench.py" in line]) == 1


@pytest.mark.parametrize("path", sorted((ROOT / "experiments").glob("*.toml")), ids=lambda p: p.stem)
def test_experiments_name_tasks_networks_and_methods_that_there_are(path: Path) -> None:
    for table in read_experiments(path):
        task = TASKS[table.task]()
        assert table.network is None or table.network in task.networks
        assert {method for _, method, _, _ in table.methods} <= set(METHODS)
        folders: dict[str, object] = {}
        for name, method, options, _ in table.methods:
            folder = name or f"{method} {options.get('accept')}"
            assert folders.setdefault(folder, (method, options)) == (method, options), "a folder holds one sampler"
