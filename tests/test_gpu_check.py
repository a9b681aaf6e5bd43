"""tools/gpu_check.py on the CPU, and the matrix of execution options that it runs."""

from __future__ import annotations

import importlib
import json
import pkgutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from tools import gpu_check, gpu_sections
from tools.gpu_sections import options
from tools.gpu_sections.common import Section, plain, psnr, relative


def section(folder: Path) -> Section:
    return Section(torch.device("cpu"), True, folder / "section.json")


@pytest.mark.parametrize("name", [module.name for module in pkgutil.iter_modules(gpu_sections.__path__)])
def test_every_section_finds_what_it_imports(name: str) -> None:
    assert importlib.import_module(f"tools.gpu_sections.{name}")


def test_every_execution_option_has_a_value() -> None:
    assert set(options.execution_parameters()) == set(options.OPTIONS)


def test_a_failing_part_is_recorded_and_the_rest_goes_on(tmp_path: Path) -> None:
    own = section(tmp_path)
    with own.part("first"):
        raise RuntimeError("no such kernel")
    own.check("second", float("nan"), 1.0)
    own.check("third", 50.0, 40.0, least=True)
    found = json.loads(own.path.read_text())["checks"]
    assert [c["ok"] for c in found] == [False, False, True]
    assert found[0]["error"] == "RuntimeError: no such kernel"
    assert found[1]["value"] is None


def test_a_section_that_breaks_or_takes_too_long_leaves_what_it_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken, endless = gpu_check.Plan(60), gpu_check.Plan(0)
    monkeypatch.setattr(gpu_check, "SECTIONS", {"environment": endless, "memory": broken})
    monkeypatch.setattr(gpu_check, "PATIENCE", 0)
    check = gpu_check.Check(tmp_path / "out.json", device="cpu", quick=True, workers=2, budget=100)
    check.run(["environment"])
    check.budget = -1
    check.run(["memory"])
    found = json.loads((tmp_path / "out.json").read_text())["sections"]
    assert found["environment"]["error"] == "stopped after 0 seconds"
    assert found["memory"]["error"] == "left out: --budget=-1 is spent"
    assert not found["environment"]["ok"]


def test_numbers_are_plain_and_unknown_sections_refused(tmp_path: Path) -> None:
    assert plain({1: (0.123456, float("inf"))}) == {"1": [0.1235, None]}
    assert relative(torch.tensor([3.0, 4.0]), torch.tensor([0.0, 4.0])) == pytest.approx(0.75)
    assert psnr(torch.zeros(3), torch.full([3], 0.02)) == pytest.approx(40, abs=1e-4)
    result = CliRunner().invoke(gpu_check.main, ["--only=nothing", f"--out={tmp_path / 'out.json'}"])
    assert result.exit_code == 2
    assert "there is no section nothing" in result.output


@pytest.mark.slow
@pytest.mark.parametrize("family", options.FAMILIES)
def test_execution_options_leave_the_images(family: str, tmp_path: Path) -> None:
    own = section(tmp_path)
    names = [name for name in options.OPTIONS if name != "compile_network"]
    if not torch.backends.cpu.get_cpu_capability().startswith("AVX512"):
        names.remove("dtype")  # bf16 without instructions for it takes minutes
    options.compare(own, names, [family])
    assert [c["name"] for c in own.found["checks"] if not c["ok"]] == []
    assert len(own.found["checks"]) == len(names)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of torch's compiler
@pytest.mark.parametrize("family", options.FAMILIES)
def test_compiling_leaves_the_images(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Without code generation, which takes minutes: the section "compiled options" has it.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    own = section(tmp_path)
    options.compare(own, ["compile_network"], [family])
    assert [c for c in own.found["checks"] if not c["ok"]] == []


@pytest.mark.slow
def test_the_whole_command_runs_on_a_cpu(tmp_path: Path) -> None:
    out = tmp_path / "cpu.json"
    result = CliRunner().invoke(gpu_check.main, ["--device=cpu", "--quick", "--workers=1", f"--out={out}"])
    found: dict[str, Any] = json.loads(out.read_text())
    assert result.exit_code == 0, result.output
    assert set(found["sections"]) == {name for name, plan in gpu_check.SECTIONS.items() if not plan.full}
    assert all(s["ok"] for s in found["sections"].values())
