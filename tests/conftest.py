"""Fixtures that several test files share."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import settings

from rods.bench.task import Task

os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes that tests start
torch.set_num_threads(1)  # workers of pytest share the cores
settings.register_profile("untimed", deadline=None)  # time is measured by benchmarks, not by tests
settings.load_profile("untimed")


@pytest.fixture(autouse=True)
def _torch_settings() -> Iterator[None]:
    """Commands set these for their process, which here is that of all tests; hypothesis draws denormal numbers."""
    torch.set_flush_denormal(False)
    yield
    torch.set_flush_denormal(False)
    torch.set_num_threads(1)


@pytest.fixture
def offer_tasks(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any, dict[str, Task]], None]:
    """Makes a script of the benchmark offer these tasks in place of the registered ones."""

    def offer(script: Any, tasks: dict[str, Task]) -> None:
        monkeypatch.setattr(script, "TASKS", {name: lambda task=task: task for name, task in tasks.items()})
        for command in getattr(script.main, "commands", {"": script.main}).values():
            for option in command.params:
                if option.name == "task_name":
                    monkeypatch.setattr(option, "type", type(option.type)(list(tasks)))

    return offer
