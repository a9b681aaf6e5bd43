"""The project's own source files, their place in the architecture, and its declared requirements."""

from __future__ import annotations

import functools
import sys
from pathlib import Path

from packaging.requirements import Requirement

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = ("dnnlib", "torch_utils", "training", "rods")
NOT_SOURCE = ("tests", "build", "data", "training-runs")  # folders at the root without code that users run


@functools.cache
def source_files() -> list[Path]:
    """Every Python file of the project outside the tests, whichever folder it is in."""
    folders = [
        path
        for path in ROOT.iterdir()
        if path.is_dir() and path.name not in NOT_SOURCE and not path.name.startswith((".", "out"))
    ]
    found = [file for folder in folders for file in folder.rglob("*.py")]
    return sorted([*ROOT.glob("*.py"), *(file for file in found if "tests" not in file.relative_to(ROOT).parts)])


def zone_of(path: Path) -> str:
    """`command`, or the package whose import rules hold for the file. Raises ValueError for a place that has none."""
    top, *rest = path.relative_to(ROOT).parts
    if not rest or top in ("scripts", "examples"):
        return "command"
    if top == "tools":
        return "tools"
    if top not in LIBRARY:
        raise ValueError(f"{path}: tests/test_imports.py has no rule for {top}/; give it one")
    return f"rods.{rest[0]}" if top == "rods" and len(rest) > 1 else top


def requirements(extra: str | None = None) -> list[Requirement]:
    """The core requirements of pyproject.toml, or those of an extra."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [
        Requirement(line) for line in (project["optional-dependencies"][extra] if extra else project["dependencies"])
    ]


def extras() -> list[str]:
    """The names of the optional dependencies."""
    return list(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
