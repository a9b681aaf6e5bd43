"""pyproject.toml, environment.yml and constraints.txt say the same."""

from __future__ import annotations

import sys
from importlib import metadata

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from tree import LIBRARY, ROOT, requirements, tomllib

CONDA_NAMES = {"torch": "pytorch"}
ACCELERATOR_WHEELS = ("nvidia-", "cuda-", "triton")  # torch pins these itself; which ones depends on its build
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PYTHONS = ("3.10", "3.11")  # on both sides of the markers in constraints.txt


def constraint_lines() -> list[Requirement]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return [Requirement(line) for line in lines if not line.startswith("#")]


def pins(python: str) -> dict[str, Version]:
    """Package -> pinned version on a Python version; every package is pinned at most once there."""
    found: dict[str, Version] = {}
    for line in constraint_lines():
        if line.marker is None or line.marker.evaluate({"python_version": python}):
            (spec,) = line.specifier
            assert spec.operator == "==", f"{line}: a constraint is an exact pin"
            assert canonicalize_name(line.name) not in found, f"{line.name} is pinned twice for Python {python}"
            found[canonicalize_name(line.name)] = Version(spec.version)
    return found


def test_conda_environment_has_the_packages_of_pyproject() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert set(environment) == {"name", "channels", "dependencies"}
    conda = {r.name: r.specifier for r in map(Requirement, environment["dependencies"])}
    assert str(conda.pop("python")) == PYPROJECT["project"]["requires-python"]
    assert conda == {CONDA_NAMES.get(r.name, r.name): r.specifier for r in requirements()}


@pytest.mark.parametrize("python", PYTHONS)
def test_pins_are_within_the_ranges(python: str) -> None:
    pinned = pins(python)
    for requirement in [*requirements(), *requirements("dev")]:
        assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)]), requirement


def test_pins_of_pipelines_are_within_the_ranges() -> None:
    pinned = pins("3.11")
    for requirement in requirements("foreign"):
        assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)]), requirement


def test_pins_have_no_build_tag() -> None:
    assert all(version.local is None for python in PYTHONS for version in pins(python).values())


@pytest.mark.parametrize("extra", ["dev", "foreign"])
def test_what_the_requirements_bring_along_is_pinned_too(extra: str) -> None:
    if extra == "foreign":
        pytest.importorskip("diffusers", reason="diffusers is not installed")
        pytest.importorskip("transformers", reason="transformers is not installed")
        if sys.version_info < (3, 11):
            pytest.skip("these packages are pinned from Python 3.11 on")
    pinned = pins(f"{sys.version_info.major}.{sys.version_info.minor}")
    seen: set[str] = set()
    queue = [*requirements(), *requirements(extra)]
    while queue:
        name = canonicalize_name(queue.pop().name)
        if name in seen or name.startswith(ACCELERATOR_WHEELS):
            continue
        seen.add(name)
        needed = [Requirement(line) for line in metadata.requires(name) or []]
        queue += [r for r in needed if r.marker is None or r.marker.evaluate({"extra": ""})]
    assert len(seen) > 20
    assert seen <= set(pinned), f"not in constraints.txt: {seen - set(pinned)}"


def test_every_package_of_the_library_is_installed_by_pyproject() -> None:
    include = PYPROJECT["tool"]["setuptools"]["packages"]["find"]["include"]
    assert set(include) == {f"{package}*" for package in LIBRARY}
    folders = {path.parent for package in LIBRARY for path in (ROOT / package).rglob("*.py")}
    assert all((folder / "__init__.py").is_file() for folder in folders)
