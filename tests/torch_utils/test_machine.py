"""What is known of the machine."""

from __future__ import annotations

import pytest
import torch

from torch_utils import machine


def test_facts_are_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = machine.facts()
    assert facts["torch"] == torch.__version__
    assert facts["threads"] == torch.get_num_threads()
    monkeypatch.setattr(machine, "_cpuinfo", lambda key: iter(["fpu avx2 amx_bf16"] if key == "flags" else []))
    assert machine.cpu_name() == "unknown processor"
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1")
    assert not machine.keep_freed_memory()  # the user has settled it
