"""docs/how-to/data.md: every command on it is one that its script accepts."""

from __future__ import annotations

import re
import shlex

import click
import pytest
from vectors import ROOT

from scripts import dataset_tool, make_data, prepare_hands

SCRIPTS = {m.__name__.removeprefix("scripts."): m.main for m in (dataset_tool, make_data, prepare_hands)}
PAGE = (ROOT / "docs" / "how-to" / "data.md").read_text()
COMMANDS = re.findall(r"python scripts/(\w+)\.py ([^`\n]+)", PAGE)


@pytest.mark.parametrize(("script", "options"), COMMANDS)
def test_commands_are_accepted(script: str, options: str) -> None:
    context = SCRIPTS[script].make_context(script, shlex.split(options))
    assert context.params["dest"] is not None or context.params["check"]


def test_every_script_is_on_the_page() -> None:
    assert {script for script, _ in COMMANDS} == set(SCRIPTS)


@pytest.mark.parametrize("script", ["dataset_tool", "prepare_hands"])
def test_every_option_is_on_the_page(script: str) -> None:
    names = {option for p in SCRIPTS[script].params if isinstance(p, click.Option) for option in p.opts}
    assert {name for name in names if name not in PAGE} <= {"--help"}
