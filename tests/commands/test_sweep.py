"""Every option of every command, taken from the commands themselves, with values that no option should take in silence.

Each answer is one line on standard error, `Error: ...`, exit code 2, and nothing is written.
"""

from __future__ import annotations

import importlib
import io
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import click
import pytest
from vectors import ROOT

from dnnlib.cli import Destination, NumberList, SeedList

MODULES = ["fid", "generate", "train", *sorted(f"scripts.{p.stem}" for p in (ROOT / "scripts").glob("*.py"))]
NUMBERS = (click.types.IntParamType, click.types.FloatParamType, NumberList, SeedList)
FAST = {"generate", "train", "fid calc", "scripts.dataset_tool", "scripts.label serve"}  # the others: pytest -m slow


def commands() -> Iterator[tuple[str, click.Command]]:
    for module in MODULES:
        main = getattr(importlib.import_module(module), "main", None)
        if isinstance(main, click.Group):
            yield from ((f"{module} {name}", command) for name, command in main.commands.items())
        elif isinstance(main, click.Command):
            yield module, main


def values(param: click.Parameter) -> Iterator[tuple[str, str]]:
    """What is tried: (why, value)"""
    if isinstance(param, click.Option) and (param.is_flag or param.count):
        return
    yield "empty", ""
    yield "blank", " "
    kind = param.type
    if isinstance(kind, NUMBERS):
        yield "no number", "many"
        yield "not a number", "nan"
        if not isinstance(kind, NumberList | SeedList):
            yield from (("out of range", bad) for bad in out_of_range(kind))
    elif isinstance(kind, click.Choice | click.types.BoolParamType):
        yield "no choice", "no-such-choice"
    elif isinstance(kind, Destination):
        yield "below a file", "a-file/out.zip"
        yield "not writable", "/proc/nowhere/out.zip"
    elif isinstance(kind, click.Path) and kind.exists:
        yield "missing", "no-such-place"


def out_of_range(kind: click.ParamType) -> Iterator[str]:
    if isinstance(kind, click.IntRange | click.FloatRange):
        yield from (str(bound + step) for bound, step in ((kind.min, -1), (kind.max, 1)) if bound is not None)


def cases(*, fast: bool) -> list[object]:
    found = []
    for name, command in commands():
        if (name in FAST) == fast:
            found += [
                pytest.param(command, param, value, id=f"{name} {param.opts[-1]} {why}")
                for param in command.params
                for why, value in values(param)
            ]
    return found


def answer(command: click.Command, arguments: list[str]) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as stopped:
        command.main(arguments, "command")
    return int(stopped.value.code or 0), out.getvalue(), err.getvalue()


def check(command: click.Command, param: click.Parameter, value: str, folder: Path) -> None:
    (folder / "a-file").write_text("not yours")
    code, out, err = answer(command, arguments_with(command, param, value))
    assert (code, out) == (2, ""), (out, err)
    assert err.startswith("Error: "), err
    assert err.count("\n") == 1, err
    name = max(param.opts, key=len) if isinstance(param, click.Option) else param.human_readable_name
    assert name in err or any(opt in err for opt in param.opts), err
    assert [p.name for p in folder.iterdir()] == ["a-file"]


def arguments_with(command: click.Command, param: click.Parameter, value: str) -> list[str]:
    """The parameter with this value, and what the command cannot do without."""
    found = []
    for p in command.params:
        if isinstance(p, click.Option) and (p is param or p.required):
            found.append(f"{max(p.opts, key=len)}={value if p is param else harmless(p.type)}")
        elif p is param or (isinstance(p, click.Argument) and p.required):
            found.append(value if p is param else harmless(p.type))
    return found


def harmless(kind: click.ParamType) -> str:
    if isinstance(kind, click.Choice):
        return str(kind.choices[0])
    if isinstance(kind, click.Path) and kind.exists:
        return "a-file" if kind.file_okay else "."
    return "out"


@pytest.mark.parametrize(("command", "param", "value"), cases(fast=True))
def test_a_bad_value_is_one_line(
    command: click.Command, param: click.Parameter, value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    check(command, param, value, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("command", "param", "value"), cases(fast=False))
def test_a_bad_value_is_one_line_in_the_other_commands(
    command: click.Command, param: click.Parameter, value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    check(command, param, value, tmp_path)


def test_every_number_has_a_range_or_a_rule_of_its_own() -> None:
    """An option of type int without bounds ends in somebody else's traceback."""
    loose = [
        f"{name} {param.opts[0]}"
        for name, command in commands()
        for param in command.params
        if type(param.type) is click.types.IntParamType
    ]
    assert loose == []
