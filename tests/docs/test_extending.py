"""docs/extending.md does what it promises: its blocks register methods, in a process that then runs generate.py."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from pages import Page
from vectors import ROOT


def test_what_the_page_adds_is_there_and_keeps_the_laws(tmp_path: Path) -> None:
    """Options are made when a command is imported, so that registering takes a process; its tests: extended.py."""
    (tmp_path / "my_methods.py").write_text("\n\n".join(Page("extending").blocks))
    checks = str(ROOT / "tests" / "docs" / "extended.py")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", checks],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
