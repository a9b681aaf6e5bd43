"""What is loaded with what: no circles, and what the core and the commands never bring with them."""

from __future__ import annotations

import ast
from functools import cache

import pytest
from tree import ROOT, source_files


@cache
def graph() -> dict[str, set[str]]:
    """Which of our modules each of them imports when it is loaded, its packages among them."""
    paths = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in source_files()
    }
    found: dict[str, set[str]] = {}
    for name, path in paths.items():
        dotted: list[str] = []
        for node in ast.parse(path.read_text()).body:  # what stands in functions is imported later
            if isinstance(node, ast.Import):
                dotted += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                dotted += [f"{node.module}.{alias.name}" for alias in node.names]
        prefixes = {".".join(d.split(".")[:n]) for d in dotted for n in range(1, d.count(".") + 2)}
        found[name] = prefixes & set(paths) - {name}
    return found


def reached(start: str, graph: dict[str, set[str]]) -> set[str]:
    """Every module that is loaded with `start`."""
    done, waiting = set(), [start]
    while waiting:
        name = waiting.pop()
        if name not in done:
            done.add(name)
            waiting += graph[name]
    return done


def test_no_module_needs_itself() -> None:
    """The packages that a module is in are there before it: `import rods.x` loads rods first."""
    needed = {name: {other for other in found if not name.startswith(f"{other}.")} for name, found in graph().items()}
    assert [name for name, found in needed.items() if any(name in reached(other, needed) for other in found)] == []


@pytest.mark.parametrize(
    ("module", "never"),
    [
        ("rods", {"rods.runs", "rods.labels", "rods.eval", "rods.bench", "training", "dnnlib"}),
        ("rods.config", {"rods.runs", "rods.labels", "rods.eval", "rods.bench", "training", "dnnlib"}),
        ("rods.runs.run", {"rods.labels", "rods.eval", "rods.bench"}),
        ("training.trainer", {"rods"}),
        ("fid", {"rods.bench", "rods.labels"}),
        ("generate", {"rods.bench", "rods.labels", "rods.eval"}),
    ],
)
def test_what_a_module_never_brings_with_it(module: str, never: set[str]) -> None:
    found = reached(module, graph())
    assert len(found) > 5
    assert sorted(name for name in found if any(f"{name}.".startswith(f"{package}.") for package in never)) == []
