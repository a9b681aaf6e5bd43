"""Fixtures that several test files share."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes that tests start
torch.set_num_threads(1)  # workers of pytest share the cores


@pytest.fixture(autouse=True)
def _torch_settings() -> Iterator[None]:
    """Commands set these for their process, which here is that of all tests; hypothesis draws denormal numbers."""
    torch.set_flush_denormal(False)
    yield
    torch.set_flush_denormal(False)
    torch.set_num_threads(1)
