"""docs/errors.md says what the commands say."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import metadata

import pytest
import torch
from packaging.requirements import Requirement
from vectors import ROOT

from scripts import error_table

WORDED_ELSEWHERE = ("click", "safetensors", "torch")  # packages whose own words are on the page


def pins() -> dict[str, str]:
    """The tested version of each package."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    found = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {r.name: str(r.specifier).removeprefix("==") for r in found if r.marker is None or r.marker.evaluate()}


@pytest.fixture
def settings_of_torch() -> Iterator[None]:
    """The commands change them for their whole process."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.set_flush_denormal(False)


@pytest.mark.usefixtures("settings_of_torch")
def test_the_page_is_what_the_commands_say() -> None:
    """Also that each of them ends with code 2 and one line, and writes nothing."""
    page = error_table.error_table()
    assert page.count("\n| ") == len(error_table.MISTAKES) + 1
    if sys.platform != "linux" or any(
        metadata.version(name).split("+")[0] != pins()[name] for name in WORDED_ELSEWHERE
    ):
        pytest.skip(f"the page has the words of Linux and of the tested {', '.join(WORDED_ELSEWHERE)}")
    assert (ROOT / "docs" / "errors.md").read_text() == page, "run: python scripts/error_table.py"


@pytest.mark.parametrize(
    ("code", "errors"),
    [(0, ""), (2, ""), (1, "Error: x\n"), (2, "Error: x\nand more\n"), (2, "Traceback: x\n"), (2, "x\nError: y\n")],
)
def test_what_is_no_clear_refusal_is_noticed(code: int, errors: str) -> None:
    assert error_table.Outcome(2, "Error: x\n").message() == "Error: x"
    with pytest.raises(ValueError, match="exit code"):
        error_table.Outcome(code, errors).message()
