"""notebooks/start.ipynb: its cells run from top to bottom, with few seeds here, as they stand in a kernel (slow)."""

from __future__ import annotations

import json
import os
import sys
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
import torch
from tree import ROOT

NOTEBOOK = ROOT / "notebooks" / "start.ipynb"


def code_cells() -> list[str]:
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


@pytest.mark.skipif(not find_spec("matplotlib"), reason="matplotlib is not installed (the extra notebook)")
def test_the_cells_run_with_few_seeds(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(NOTEBOOK.parent)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    path, parameters, *rest = code_cells()
    names: dict[str, Any] = {}
    exec(path, names)
    exec(parameters, names)
    names |= {"seeds": range(3), "num_steps": 10}
    for source in rest:
        exec(compile(source, str(NOTEBOOK), "exec"), names)
    assert torch.get_num_threads() == 1
    shape = (3, 1, 32, 32)
    assert tuple(names["restart"].images.shape) == tuple(names["cas"].images.shape) == shape
    assert names["H"].shape == (3, len(names["record"].sigma))
    assert np.array_equal(names["after"]["euler"], names["labels"])
    told = capsys.readouterr().out
    changed = len(names["changed"])
    assert f"{changed} of 3 images changed, {3 - changed} are the same bit for bit" in told
    first = [line.split()[0] for line in told.splitlines()]
    assert [name for name in first if name in names["after"]] == ["euler", "restart", "restart", "cas"]


def test_it_is_saved_as_it_was_written() -> None:
    """Outputs, where there are any, are those of a run from top to bottom, and none is an error."""
    cells = [c for c in json.loads(NOTEBOOK.read_text())["cells"] if c["cell_type"] == "code"]
    counts = [cell["execution_count"] for cell in cells]
    assert counts in ([None] * len(cells), list(range(1, len(cells) + 1)))
    assert all(output["output_type"] != "error" for cell in cells for output in cell["outputs"])


@pytest.mark.slow
def test_it_runs_in_a_kernel() -> None:
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed (the extra notebook)")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed (the extra notebook)")
    nbformat = pytest.importorskip("nbformat")
    book = nbformat.read(NOTEBOOK, as_version=4)
    folder = {"metadata": {"path": str(NOTEBOOK.parent)}}
    nbclient.NotebookClient(book, timeout=600, resources=folder, kernel_name="python3").execute()
    shown = [output for cell in book.cells if cell.cell_type == "code" for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in shown) >= 2
