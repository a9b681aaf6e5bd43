"""docs/extending.md does what it promises: its blocks register methods, in a process that then runs generate.py."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from pages import Page
from vectors import ROOT

NAMES = ("roughness", "noise-length", "straighten", "heun-overshoot")


def test_what_the_page_adds_is_there_and_keeps_the_laws(tmp_path: Path) -> None:
    """Registries are read when commands and laws are imported, so that registering takes a process of its own."""
    (tmp_path / "my_methods.py").write_text("\n\n".join(Page("extending").blocks))
    here = ROOT / "tests" / "docs"
    found = os.pathsep.join([str(tmp_path), str(here), str(ROOT / "tests")])
    chosen = [str(here / "extended.py"), str(ROOT / "tests" / "laws"), "-k", " or ".join(("extended", *NAMES))]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "extension", *chosen],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": found},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(name in Page("extending").text for name in NAMES)
