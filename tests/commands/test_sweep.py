"""Every option of every command, taken from the commands themselves, with values that no option should take in silence.

Each answer is one line on standard error, `Error: ...`, exit code 2, and nothing is written.
"""

from __future__ import annotations

import importlib
import io
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import MappingProxyType

import click
import numpy as np
import PIL.Image
import pytest
from commands import SMALL
from vectors import ROOT

import fid
from dnnlib.cli import Destination, NumberList, SeedList

SCRIPTS = sorted(f"scripts.{p.stem}" for p in (ROOT / "scripts").glob("*.py"))
MODULES = ["fid", "generate", "train", *SCRIPTS, "tools.gpu_check"]
NUMBERS = (click.types.IntParamType, click.types.FloatParamType, NumberList, SeedList)
READ = {  # names of parameters that say where to read from, whatever their type is
    "network", "source", "data", "preset", "ref", "val", "transfer", "resume", "images", "against", "real", "answers",
    "run", "detector", "from_network", "a", "b", "reference", "runs", "run_folder", "run_a", "run_b", "samples",
}  # fmt: skip
FEATURES = {"detector": "pixels", "ref": "ref.npz", "metrics": "fid", "threads": "1"}
BASE: dict[str, dict[str, str]] = {  # parameters with which a command would do its work
    "fid calc": {"images": "images", **FEATURES},
    "fid compare": {"a": "images", "b": "images", "bootstrap": "2", **FEATURES},
    "fid ref": {"data": "images", "detector": "pixels", "dest": "out.npz", "threads": "1"},
    "fid info": {},
    "generate": {"network": "net.safetensors", "steps": "2", "seeds": "0", "sampler": "euler", "threads": "1"},
    "train": {"data": "images", "cbase": "4", "cres": "1", "blocks": "1", "batch": "2", "duration": "4e-6",
              "threads": "1"},
    "scripts.bench label": {"task_name": "hands-32"},
    "scripts.bench compare": {},
    "scripts.bench_speed": {},
    "scripts.convert": {"dest": "out.safetensors"},
    "scripts.dataset_tool": {"dest": "out.zip"},
    "scripts.fit_gate": {"network": "net.safetensors", "real": "images", "dest": "my.preset.json"},
    "scripts.label serve": {"images": "images", "answers": "out.jsonl"},
    "scripts.label report": {},
    "scripts.learning_curve": {},
    "scripts.prepare_hands": {"dest": "out.zip"},
}  # fmt: skip
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


def places(param: click.Parameter) -> Iterator[tuple[str, str]]:
    """What is tried of a place to read from, or to write to: (why, value)"""
    if isinstance(param.type, Destination):
        yield from [("a directory", "a-folder")] * (not param.type.dir_okay)
        yield from [("a file", "a-file")] * (not param.type.file_okay)
    elif param.name in READ and not isinstance(param.type, NUMBERS):
        yield from (("missing", "no-such-place"), ("a directory", "a-folder"), ("not of its kind", "a-file"))


def out_of_range(kind: click.ParamType) -> Iterator[str]:
    if isinstance(kind, click.IntRange | click.FloatRange):
        yield from (str(bound + step) for bound, step in ((kind.min, -1), (kind.max, 1)) if bound is not None)


def cases(*, fast: bool, tries: Callable[[click.Parameter], Iterator[tuple[str, str]]] = values) -> list[object]:
    """For `places`, of the commands that look at a place without other work."""
    found = []
    for name, command in commands():
        if (name in FAST) == fast and (tries is values or name in BASE):
            found += [
                pytest.param(*((name,) if tries is places else ()), command, param, value,
                             id=f"{name} {param.opts[-1]} {why}")
                for param in command.params
                for why, value in tries(param)
            ]  # fmt: skip
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


def arguments_with(
    command: click.Command, param: click.Parameter, value: str, base: Mapping[str, str] = MappingProxyType({})
) -> list[str]:
    """The parameter with this value, and what the command cannot do without, of `base` where that has it."""
    found = []
    for p in command.params:
        if p is not param and p.name not in base and not p.required:
            continue
        text = value if p is param else base.get(p.name or "") or harmless(p.type)
        found.append(f"{max(p.opts, key=len)}={text}" if isinstance(p, click.Option) else text)
    return found


def harmless(kind: click.ParamType) -> str:
    if isinstance(kind, click.Choice):
        return str(kind.choices[0])
    if isinstance(kind, click.Path) and kind.exists:
        return "a-file" if kind.file_okay else "."
    return "0.1" if isinstance(kind, click.types.FloatParamType) else "out"


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


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, their statistics and a network; a file that is none of these, and an empty folder."""
    folder = tmp_path_factory.mktemp("inputs")
    (folder / "a-file").write_text("not yours")
    (folder / "a-folder").mkdir()
    (folder / "images").mkdir()
    for i in range(8):
        pixels = np.random.default_rng(i).integers(0, 256, (8, 8), dtype=np.uint8)
        PIL.Image.fromarray(pixels).save(folder / "images" / f"{i:06d}.png")
    shutil.copy(SMALL, folder / "net.safetensors")
    command = fid.main.commands["ref"]
    answer(command, [f"--data={folder / 'images'}", f"--dest={folder / 'ref.npz'}", "--detector=pixels", "--threads=1"])
    return folder


def check_place(name: str, command: click.Command, param: click.Parameter, value: str, folder: Path) -> None:
    """Whatever else a command has printed of its inputs by then: one line of error, exit code 2, nothing written."""
    before = sorted(folder.rglob("*"))
    base = {k: v for k, v in BASE[name].items() if not (param.name == "from_network" and k == "images")}
    code, _, err = answer(command, arguments_with(command, param, value, base))
    assert (code, err.count("\n")) == (2, 1), err
    assert err.startswith("Error: ")
    assert sorted(folder.rglob("*")) == before
    assert (folder / "a-file").read_text() == "not yours"


@pytest.mark.parametrize(("name", "command", "param", "value"), cases(fast=True, tries=places))
def test_a_bad_place_is_one_line(
    name: str, command: click.Command, param: click.Parameter, value: str, inputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(inputs)
    check_place(name, command, param, value, inputs)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "command", "param", "value"), cases(fast=False, tries=places))
def test_a_bad_place_is_one_line_in_the_other_commands(
    name: str, command: click.Command, param: click.Parameter, value: str, inputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(inputs)
    check_place(name, command, param, value, inputs)


def test_every_command_is_swept() -> None:
    """What the folders of commands hold; a new one is swept without a word here."""
    names = {name.split()[0] for name, _ in commands()}
    assert names == set(MODULES)
    assert set(BASE) <= {name for name, _ in commands()}
    assert len([name for name, _ in commands()]) > 35


def test_every_number_has_a_range_or_a_rule_of_its_own() -> None:
    """An option of type int without bounds ends in somebody else's traceback."""
    loose = [
        f"{name} {param.opts[0]}"
        for name, command in commands()
        for param in command.params
        if type(param.type) is click.types.IntParamType
    ]
    assert loose == []
