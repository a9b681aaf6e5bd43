"""Option types and errors that the commands share: one line, exit code 2, and bugs keep their tracebacks."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from vectors import ROOT

from dnnlib.cli import MAX_SEEDS, Command, Destination, Group, NumberList, SeedList
from dnnlib.errors import OtherRankError, UserError, shown, user_errors
from dnnlib.util import EasyDict

FULL = "a file or standard output cannot be written: No space left on device; make room, then run the command again\n"


@click.command(cls=Command)
@click.option("--seeds", type=SeedList(), default="0-3")
@click.option("--window", type=NumberList(float, length=2))
@click.option("--cres", type=NumberList(int))
@click.option("--dest", type=Destination())
@click.option("--flag", is_flag=True)
@click.option("--fail", default="")
def command(
    seeds: list[int], window: tuple[float, float], cres: tuple[int, ...], dest: Path | None, flag: bool, fail: str
) -> None:
    match fail:
        case "user":
            raise UserError("the file is\nbroken")
        case "other rank":
            raise OtherRankError("rank 0 stops because another rank has failed")
        case "converted":
            with user_errors("--eps", spelled=str.upper):
                raise ValueError("must be positive")
        case "bug":
            raise ValueError("channels do not divide")
        case "folder":
            Path("/nowhere/at/all").write_text("")
        case "full disk":
            raise OSError(errno.ENOSPC, "No space left on device")
        case "no system error":
            raise OSError("could not get source code")
        case "interrupt":
            raise KeyboardInterrupt
    click.echo(f"{seeds} {window} {cres}" if dest is None else f"{dest}")


def run(*args: str) -> tuple[int, str]:
    result = CliRunner().invoke(command, list(args))
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


@pytest.mark.parametrize(
    ("given", "seeds"), [("5", [5]), ("0-3,70", [0, 1, 2, 3, 70]), ("7,1, 3", [7, 1, 3]), ("4-4", [4])]
)
def test_seeds_are_read_in_the_order_given(given: str, seeds: list[int]) -> None:
    assert run(f"--seeds={given}") == (0, f"{seeds} None None\n")


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("3-1", "'3-1' runs backwards; write 1-3"),
        ("-1", "'-1' is not a seed or a range of seeds; write for example 0-63,70"),
        ("1,,2", "'' is not a seed"),
        ("a-b", "'a-b' is not a seed"),
        ("1.5", "'1.5' is not a seed"),
        (f"0-{MAX_SEEDS}", "lists more than 10,000,000 seeds; give fewer"),
        ("0-999999999999999999", "lists more than 10,000,000 seeds"),
        ("9" * 100, "is not a seed"),
        ("0-3,2", "lists a seed twice"),
    ],
)
def test_bad_seeds_are_one_clear_line(given: str, says: str) -> None:
    code, output = run(f"--seeds={given}")
    assert code == 2
    assert output.startswith("Error: Invalid value for '--seeds': ")
    assert says in output
    assert output.count("\n") == 1


def test_number_lists() -> None:
    assert run("--window=.1,.5", "--cres=1,2,2") == (0, "[0, 1, 2, 3] (0.1, 0.5) (1, 2, 2)\n")
    for bad in ("--window=.1", "--window=.1,nan", "--window=a,b", "--cres=1.5", "--cres="):
        code, output = run(bad)
        assert (code, output.count("\n")) == (2, 1), output


def test_users_errors_are_one_line() -> None:
    assert run("--fail=user") == (2, "Error: the file is broken\n")
    assert run("--fail=converted") == (2, "Error: --eps: MUST BE POSITIVE\n")
    assert run("--fail=folder") == (2, "Error: /nowhere/at/all: No such file or directory\n")
    assert run("--fail=full disk") == (2, f"Error: {FULL}")
    assert run("--seed=1")[0] == 2
    code, output = run("--fail=interrupt")
    assert code == 130
    assert output.strip() == "Interrupted."


def test_bugs_keep_their_tracebacks() -> None:
    """A ValueError that nobody converted, and an OSError that is none of the system's."""
    with pytest.raises(ValueError, match="do not divide"):
        run("--fail=bug")
    with pytest.raises(OSError, match="source code"):
        run("--fail=no system error")


def failed_rank(rank: int, fail: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> ProcessFailure:
    """What torchrun makes of a rank that has failed like this."""
    file = folder / f"{rank}.json"
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(file))
    CliRunner().invoke(command, [f"--fail={fail}"])
    return ProcessFailure(local_rank=rank, pid=1, exitcode=2, error_file=str(file))


@pytest.mark.parametrize("fail", ["user", "full disk", "bug", "no system error"])
def test_the_page_of_torchrun_ends_with_the_line_of_the_rank_that_failed_first(
    fail: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though other ranks of lower numbers stop in the same second, and one is killed by torchrun itself."""
    first = failed_rank(2, fail, tmp_path, monkeypatch)
    follows = failed_rank(0, "other rank", tmp_path, monkeypatch)
    killed = ProcessFailure(local_rank=1, pid=1, exitcode=-15, error_file=str(tmp_path / "none"))
    page = ChildFailedError("generate.py", {0: follows, 1: killed, 2: first}).format_msg()
    cause = [line.strip() for line in page[page.index("Root Cause") :].splitlines() if line.strip(" =")]
    assert (
        cause[-1].removeprefix("traceback : ")
        == {
            "user": "Error: the file is broken",
            "full disk": f"Error: {FULL.strip()}",
            "bug": "ValueError: channels do not divide",
            "no system error": "OSError: could not get source code",
        }[fail]
    )
    assert "Error: rank 0 stops because another rank has failed" in page


@pytest.mark.parametrize(
    ("rank", "ranks", "says"), [("0", "2", True), ("1", "2", False), ("1", "1", True), ("", "", True)]
)
def test_a_wrong_command_line_is_said_by_one_rank_and_stops_all(
    rank: str, ranks: str, says: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "error.json"
    for name, value in (("RANK", rank), ("WORLD_SIZE", ranks), ("TORCHELASTIC_ERROR_FILE", str(page))):
        monkeypatch.setenv(name, value)
    line = "Error: --seeds is given 2 times; give it once"
    assert run("--seeds=1", "--seeds=2") == (2, f"{line}\n" if says else "")
    assert line in page.read_text()


def test_users_errors_pass_unchanged_where_value_errors_are_converted() -> None:
    with pytest.raises(UserError, match=r"^the file is broken$"), user_errors("--network", spelled=str.upper):
        raise UserError("the file is broken")
    with pytest.raises(UserError, match=r"^rho: is not a radius$"), user_errors():
        raise ValueError("rho: is not a radius")


def test_help_and_groups() -> None:
    group = Group("fid", commands={"calc": command})
    assert run("--help")[0] == 0
    result = CliRunner().invoke(group, [])
    assert (result.exit_code, "calc" in result.output) == (0, True)
    result = CliRunner().invoke(group, ["calc", "--seeds=3-1"])
    assert (result.exit_code, result.output.count("\n")) == (2, 1)
    result = CliRunner().invoke(group, ["nonsense"])
    assert (result.exit_code, result.output) == (2, "Error: No such command 'nonsense'.\n")


def test_untrusted_text_is_shown_safely() -> None:
    assert shown("a\x1b[2J\nb") == r"'a\x1b[2J\nb'"
    assert len(shown("x" * 10_000)) == 80
    assert shown([[1]]) == "a list"
    assert shown(3) == "3"


def test_easy_dict_entries_are_attributes() -> None:
    d = EasyDict(a=1)
    d.b = 2
    del d.a
    assert d == {"b": 2}
    with pytest.raises(AttributeError):
        _ = d.a


@pytest.mark.parametrize("option", ["--seeds", "--window", "--cres", "--dest", "--fail"])
@pytest.mark.parametrize("value", ["", " "])
def test_an_empty_value_is_an_error_that_names_the_option(option: str, value: str) -> None:
    says = f"Error: {option} is empty; give it a value or leave it out\n"
    assert run(f"{option}={value}") == (2, says)
    assert run(option, value) == (2, says)


def test_an_empty_argument_is_an_error_too() -> None:
    read = Command("read", params=[click.Argument(["a"]), click.Option(["--b"])])
    result = CliRunner().invoke(read, ["", "--b=1"])
    assert (result.exit_code, result.output) == (2, "Error: A is empty; give it a value or leave it out\n")


def test_an_option_given_twice_is_an_error() -> None:
    assert run("--seeds=1", "--seeds", "2") == (2, "Error: --seeds is given 2 times; give it once\n")
    assert run("--flag", "--flag")[0] == 0


def test_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for arguments in (["--dest=~/a"], ["--dest", "~/a"]):
        assert run(*arguments) == (0, f"{tmp_path / 'a'}\n")
    assert run("--dest=a~b") == (0, "a~b\n")


def test_a_destination_is_checked_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert run(f"--dest={tmp_path / 'new' / 'folder' / 'x'}")[0] == 0
    assert run(f"--dest={tmp_path / 'file'}")[0] == 0
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]
    for bad in (tmp_path / "file" / "x", "/proc/x/y", tmp_path / ("x" * 300)):
        code, output = run(f"--dest={bad}")
        assert (code, output.count("\n")) == (2, 1), output
        assert output.startswith("Error: Invalid value for '--dest': ")
        assert "cannot be written: " in output


STREAMS = """
import click
from dnnlib.cli import Command
@click.command(cls=Command)
def main():
    with open("file", "w") as f:
        print("said")
        click.echo("warned", err=True)
main()
"""


@pytest.mark.parametrize(
    ("redirect", "code", "says"),
    [("> /dev/full", 2, f"Error: {FULL}"), ("2>&-", 0, ""), (">&-", 0, "warned\n"), (">&- 2>&- <&-", 0, "")],
)
def test_closed_and_full_streams(redirect: str, code: int, says: str, tmp_path: Path) -> None:
    """No traceback, and no file of the command's takes the place of a closed stream."""
    (tmp_path / "command.py").write_text(STREAMS)
    line = f"{sys.executable} command.py {redirect}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(line, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.removeprefix("warned\n" if code else "")) == (code, says)
    assert (tmp_path / "file").read_text() == ""


@pytest.mark.parametrize("name", ["samples.jsonl", "options.json"])
def test_what_is_written_replaces_no_records_of_a_run(tmp_path: Path, name: str) -> None:
    place = tmp_path / name
    assert Destination(dir_okay=False).convert(str(place), None, None) == place
    place.write_text("{}")
    with pytest.raises(click.BadParameter, match="is of the run"):
        Destination(dir_okay=False).convert(str(place), None, None)
