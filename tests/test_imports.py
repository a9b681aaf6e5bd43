"""The one-way import order, read from the source of every file, and what `import rods` brings with it."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from pathlib import Path

import pytest
from tree import ROOT, extras, requirements, source_files, zone_of

# commands, scripts, tools -> rods.bench -> rods.labels, rods.runs -> rods.eval, training, rods -> torch_utils -> dnnlib
_ALL = {
    "rods.bench", "rods.labels", "rods.eval", "rods.runs", "rods.integrations", "rods",
    "training", "torch_utils", "dnnlib",
}  # fmt: skip
MAY_IMPORT: dict[str, set[str]] = {
    "command": _ALL,
    "tools": {"tools", "command", "rods.eval", "rods.runs", "rods", "training", "torch_utils", "dnnlib"},
    "rods.bench": _ALL,
    "rods.labels": {"rods.labels", "rods.runs", "rods.eval", "rods", "torch_utils", "dnnlib"},
    "rods.eval": {"rods.eval", "torch_utils", "dnnlib"},
    "rods.runs": {"rods.runs", "training", "rods", "torch_utils", "dnnlib"},
    "training": {"training", "torch_utils", "dnnlib"},
    "rods.integrations": {"rods.integrations", "rods", "torch_utils"},
    "rods": {"rods", "torch_utils"},
    "torch_utils": {"torch_utils", "dnnlib"},
    "dnnlib": {"dnnlib"},
}
FOREIGN_TO_THE_CORE_ALLOWED = {"torch"}
HOSTS = {"comfy", "comfy_execution"}  # programs that load examples/comfyui, and are there when it is called
OF_TOOLS = {path.parent.name for path in (ROOT / "tools").rglob("*.py")}  # packages that tools/ holds
MODULES = {"pillow": "PIL"}  # where the name of the import is not that of the package


def imported(source: str) -> list[str]:
    """The dotted names that a file imports anywhere in it, `from a import b` as a.b; dynamic imports by their call."""
    names = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            names += [f"{module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Name | ast.Attribute):
            called = node.id if isinstance(node, ast.Name) else node.attr
            names += [called] if called in ("import_module", "__import__") else []
    return names


def imported_on_loading(source: str) -> list[str]:
    """What is imported when the file is: all that stands outside functions and `if TYPE_CHECKING`."""
    tree = ast.parse(source)
    later = [f for f in ast.walk(tree) if isinstance(f, ast.FunctionDef)]
    later += [f for f in ast.walk(tree) if isinstance(f, ast.If) and ast.unparse(f.test) == "TYPE_CHECKING"]
    late = {id(node) for f in later for node in ast.walk(f)}
    kept = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom) and id(node) not in late]
    return imported(ast.unparse(ast.Module(list(kept), [])))


def target_zone(name: str, siblings: set[str]) -> str | None:
    """The zone of an imported name, or None for a module that is not ours. `siblings`: the commands' file stems."""
    top, *rest = name.split(".")
    if top in OF_TOOLS:
        return "tools"
    if top in ("scripts", "examples") or top in siblings:
        return "command"
    if top == "rods" and rest and rest[0] in ("bench", "labels", "eval", "runs", "integrations"):
        return f"rods.{rest[0]}"
    return top if top in MAY_IMPORT else None


def violations(
    zone: str, source: str, *, siblings: set[str], packages: set[str], extras: set[str] = frozenset()
) -> list[str]:
    """What a file of `zone` imports against the rules; `packages` are the foreign modules that may be used at all.

    `extras` may be absent from a user's machine: outside the core they are imported late, inside a function.
    """
    found, at_the_top = [], {name.split(".")[0] for name in imported_on_loading(source)}
    for name in imported(source):
        top = name.split(".")[0]
        target = target_zone(name, siblings)
        if zone == "tools" and name == "import_module":
            continue  # a tool may load its own sections by name
        if name.startswith(".") or name in ("import_module", "__import__"):
            found.append(f"{name}: imports are absolute and static")
        elif target is not None:
            if target not in MAY_IMPORT[zone]:
                found.append(f"{zone} imports {name}")
        elif top not in sys.stdlib_module_names:
            allowed = FOREIGN_TO_THE_CORE_ALLOWED if zone in ("rods", "rods.integrations") else packages
            if zone != "rods" and top in (extras | HOSTS) and top not in at_the_top:
                continue
            if top not in allowed:
                found.append(f"{zone} imports the package {name}")
    return found


@functools.cache
def packages() -> set[str]:
    return {MODULES.get(r.name, r.name) for r in requirements()}


@functools.cache
def of_extras() -> set[str]:
    """The modules of the optional packages."""
    return {
        MODULES.get(r.name, r.name.replace("-", "_")) for name in extras() if name != "dev" for r in requirements(name)
    }


@functools.cache
def commands() -> set[str]:
    return {path.stem for path in source_files() if zone_of(path) == "command"}


@pytest.mark.parametrize("path", source_files(), ids=lambda p: p.relative_to(ROOT).as_posix())
def test_every_file_keeps_the_import_order(path: Path) -> None:
    found = violations(zone_of(path), path.read_text(), siblings=commands(), packages=packages(), extras=of_extras())
    assert not found, f"{path.relative_to(ROOT)}: " + "; ".join(found)


def test_every_zone_has_files() -> None:
    assert {zone_of(path) for path in source_files()} == set(MAY_IMPORT)


@pytest.mark.parametrize(
    ("zone", "source"),
    [
        ("rods", "import numpy as np"),
        ("rods", "def f():\n    import flask"),
        ("rods.runs", "if True:\n    import flask\n\ndef f():\n    import flask"),
        ("rods", "from dnnlib.errors import UserError"),
        ("rods", "from rods import bench"),
        ("rods", "from rods.integrations import k_diffusion"),
        ("rods.integrations", "import k_diffusion"),
        ("rods.integrations", "import flask"),
        ("rods.integrations", "def f():\n    import numpy"),
        ("rods.integrations", "from rods.runs.images import to_uint8"),
        ("rods.eval", "from rods.samplers import euler_sampler"),
        ("rods.labels", "import training.checkpoint"),
        ("rods.bench", "from rendered_hands import render_hands"),
        ("tools", "from rods.bench.task import Task"),
        ("command", "from generate import main"),
        ("command", "from scripts.convert import main"),
        ("command", "import torchvision"),
        ("command", "from comfy.samplers import KSAMPLER"),
        ("training", "from . import unet"),
        ("training", "import importlib\nimportlib.import_module('rods')"),
    ],
)
def test_the_check_sees(zone: str, source: str) -> None:
    assert violations(zone, source, siblings={"generate", "convert"}, packages=packages(), extras={"flask"})


@pytest.mark.parametrize(
    ("zone", "source"),
    [
        ("rods", "import math\nfrom torch import Tensor\nfrom rods.types import Step\nimport torch_utils.rng"),
        ("rods.runs", "import PIL.Image, numpy, tqdm\nfrom rods.presets import Preset\nfrom dnnlib.util import x"),
        ("rods.bench", "from rods.eval.labels import Label\nfrom training.checkpoint import load_denoiser"),
        ("command", "import click\nfrom rods.bench.tasks.hands.data import draw_hands\nimport torch_utils.distributed"),
        ("rods.runs", "def f():\n    import flask"),
        ("rods.integrations", "def f():\n    import flask"),
    ],
)
def test_the_check_allows(zone: str, source: str) -> None:
    assert violations(zone, source, siblings={"generate", "convert"}, packages=packages(), extras={"flask"}) == []


def test_importing_rods_loads_nothing_beside_torch_and_its_own_modules() -> None:
    listing = "import sys, torch; had = set(sys.modules); import rods; print(*set(sys.modules) - had)"
    run = subprocess.run([sys.executable, "-c", listing], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = {module.split(".")[0] for module in run.stdout.split()}
    assert "rods" in loaded
    assert loaded - sys.stdlib_module_names <= {"rods", "torch", "torch_utils"}


# -- what is loaded with what -----------------------------------------------------------------------------------------


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@functools.cache
def loading() -> dict[str, set[str]]:
    """Which of our modules each of them imports when it is loaded, its packages among them."""
    paths = {module_name(path): path for path in source_files()}
    found: dict[str, set[str]] = {}
    for name, path in paths.items():
        dotted = imported_on_loading(path.read_text())
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
    """A package may be needed by its own modules, for it is loaded first: `import rods.x` loads rods."""
    graph = {name: {other for other in found if not name.startswith(f"{other}.")} for name, found in loading().items()}
    circles = [name for name, found in graph.items() if any(name in reached(other, graph) for other in found)]
    assert circles == []


@pytest.mark.parametrize(
    ("module", "never"),
    [
        ("rods.config", ("rods.runs", "rods.labels", "rods.eval", "rods.bench", "training", "dnnlib")),
        ("rods", ("rods.runs", "rods.labels", "rods.eval", "rods.bench", "training", "dnnlib")),
        ("fid", ("rods.bench", "rods.labels")),
        ("generate", ("rods.bench", "rods.labels", "rods.eval")),
        ("train", ("rods.bench", "rods.labels", "rods.eval")),
    ],
)
def test_what_a_module_never_brings_with_it(module: str, never: tuple[str, ...]) -> None:
    found = reached(module, loading())
    assert len(found) > 10
    assert not [name for name in found if name.startswith(tuple(f"{package}." for package in never)) or name in never]
