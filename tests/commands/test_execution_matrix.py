"""Every option of how a command computes, alone and in pairs, beside the plain run; one that nobody knows fails."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from click import Command
from execution_matrix import BENCH_OTHERS, SUBJECTS, Numbers, apart, limit, small_task

import fid
from rods.bench.task import Task
from scripts import bench

MATRIX = [
    pytest.param(name, family, first, id=f"{name}, {family or 'plain'}, {first}")
    for name, subject in SUBJECTS.items()
    for family, first in subject.cases()
]


@pytest.mark.parametrize("name", SUBJECTS)
def test_every_option_is_known(name: str) -> None:
    subject = SUBJECTS[name]
    assert not subject.unknown(), "enter it in tests/execution_matrix.py: does it decide how, or what, is computed?"
    assert not subject.gone(), "tests/execution_matrix.py speaks of an option that is gone"


def test_every_command_of_a_group_is_known() -> None:
    assert {f"fid {name}" for name in fid.main.commands} - set(SUBJECTS) == {"fid info"}
    assert {f"bench {name}" for name in bench.main.commands} - set(SUBJECTS) == {f"bench {n}" for n in BENCH_OTHERS}
    for name, known in BENCH_OTHERS.items():
        command: Command = bench.main.commands[name]
        assert {parameter.name for parameter in command.params} - known <= {"threads"}, name


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What all runs are given."""
    return tmp_path_factory.mktemp("matrix")


@pytest.fixture(scope="module")
def plain() -> dict[tuple[str, str], Numbers]:
    """Runs without options, by command and family."""
    return {}


@pytest.fixture
def _small_task(offer_tasks: Callable[[Any, dict[str, Task]], None]) -> None:
    offer_tasks(bench, {"small": small_task()})


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of torch's compiler
@pytest.mark.usefixtures("_small_task")
@pytest.mark.parametrize(("name", "family", "first"), MATRIX)
def test_options_leave_the_result(
    name: str,
    family: str,
    first: str,
    shared: Path,
    plain: dict[tuple[str, str], Numbers],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Without code generation, which takes minutes: tools/gpu_check.py --full has it.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    subject = SUBJECTS[name]
    own = subject.families[family]
    if (name, family) not in plain:
        plain[name, family] = subject.run(tmp_path / "plain", shared, *own)
    far = {}
    for together in subject.together(family, first):
        torch._dynamo.reset()
        found = subject.run(tmp_path / "".join(together), shared, *own, *together)
        if not (distance := apart(found, plain[name, family])) <= limit(together):
            far[" ".join(together)] = distance
    assert not far
