"""Fixtures that several test files share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def _denormals() -> Iterator[None]:
    """Commands set this for their process, which here is that of all tests; hypothesis draws denormal numbers."""
    torch.set_flush_denormal(False)
    yield
    torch.set_flush_denormal(False)


@pytest.fixture
def restored_threads() -> Iterator[None]:
    """Torch's settings are the process's: a command that runs in it must leave none behind."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
