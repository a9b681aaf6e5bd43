"""Every command line in README, docs/ and the cards of models has options that its program knows."""

from __future__ import annotations

import importlib
import re
import shlex

import click
import pytest
from tree import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "models").glob("*.md"))]
COMMAND = re.compile(r"(?:python |torchrun [^`]*?)((?:scripts/|tools/|tools/rendered-hands/)?[a-z_]+\.py) ([^`]*)")
FENCED = re.compile(r"^```\w*\n(.*?)^```", re.DOTALL | re.MULTILINE)


def commands() -> list[tuple[str, str]]:
    """(program, options) of each command in a code block or in backticks, in order and without repetition."""
    found: dict[tuple[str, str], None] = {}
    for page in PAGES:
        text = page.read_text().replace("\\\n", " ")
        blocks = [line for block in FENCED.findall(text) for line in block.splitlines()]
        text = FENCED.sub("", text)
        blocks += [line.strip() for line in text.splitlines() if line.startswith("    ")]
        inline = re.findall(r"`([^`]+)`", "\n".join(line for line in text.splitlines() if not line.startswith("    ")))
        for code in [*blocks, *(" ".join(code.split()) for code in inline)]:
            for program, options in COMMAND.findall(code):
                found[program, options] = None
    return list(found)


@pytest.mark.parametrize(("program", "options"), commands())
def test_the_program_knows_the_options(program: str, options: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (ROOT / program).is_file()
    monkeypatch.syspath_prepend(str((ROOT / program).parent))
    module = importlib.import_module(program.removesuffix(".py").replace("/", ".").replace("tools.rendered-hands.", ""))
    arguments = [option for option in shlex.split(options, comments=True) if option != "..."]
    if not arguments or "--help" in arguments:
        return  # the form of a command
    command = module.main
    try:
        with command.make_context(program, arguments, resilient_parsing=isinstance(command, click.Group)) as context:
            if isinstance(command, click.Group):
                name, sub, rest = command.resolve_command(context, [*context._protected_args, *context.args])
                assert sub is not None
                sub.make_context(name, rest, parent=context)
    except click.BadParameter as e:
        if "does not exist" not in e.message and "there is no such folder" not in e.message:  # of the readers of pages
            raise


def test_there_are_many() -> None:
    assert len(commands()) > 100


@pytest.mark.parametrize("options", ["--nonsense=1", "run --task=hands-32 --keep=1"])
def test_an_unknown_option_is_noticed(options: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(click.NoSuchOption):
        test_the_program_knows_the_options("scripts/bench.py", options, monkeypatch)
