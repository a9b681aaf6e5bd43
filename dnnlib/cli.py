"""What the commands share: option types, and users' errors as one line with exit code 2."""

from __future__ import annotations

import errno
import json
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click

from dnnlib.errors import OtherRankError, UserError, shown
from dnnlib.run_folder import OPTIONS_NAME, SAMPLES_NAME
from dnnlib.util import SHA256, check_place

_NO_ROOM = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
MAX_SEEDS = 10_000_000

F = TypeVar("F", bound=Callable[..., Any])


def with_options(command: F, options: Iterable[Callable[[F], F]]) -> F:
    """`command` decorated with click's `options`, listed by --help in their order."""
    for option in reversed(tuple(options)):
        command = option(command)
    return command


class SeedList(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.4 on
    """`0-63,70` -> [0, ..., 63, 70], in the order given. Raises an error for descending, repeated or too many seeds.

    `noun` is what the numbers are called in messages.
    """

    def __init__(self, noun: str = "seed") -> None:
        self.noun, self.name = noun, f"{noun}s"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[int]:
        if not isinstance(value, str):
            return list(value)
        ranges = [self._range(part.strip(), param, ctx) for part in value.split(",")]
        if sum(len(r) for r in ranges) > MAX_SEEDS:
            self.fail(f"{value!r} lists more than {MAX_SEEDS:,} {self.name}; give fewer", param, ctx)
        seeds = [seed for r in ranges for seed in r]
        if len(set(seeds)) < len(seeds):
            self.fail(f"{value!r} lists a {self.noun} twice; give each one once", param, ctx)
        return seeds

    def _range(self, part: str, param: click.Parameter | None, ctx: click.Context | None) -> range:
        found = re.fullmatch(r"(\d{1,18})(?:-(\d{1,18}))?", part)
        if not found:
            self.fail(f"{part!r} is not a {self.noun} or a range of {self.name}; write for example 0-63,70", param, ctx)
        first, last = int(found[1]), int(found[2] or found[1])
        if last < first:
            self.fail(f"{part!r} runs backwards; write {last}-{first}", param, ctx)
        return range(first, last + 1)


class NumberList(click.ParamType):  # type: ignore[type-arg]
    """Numbers with commas between, `1,2,2` -> (1, 2, 2) or `.1,.5` -> (0.1, 0.5).

    `length` fixes how many; with `or_none`, `none` -> ().
    """

    def __init__(self, kind: type[int] | type[float], *, length: int | None = None, or_none: bool = False) -> None:
        self.kind, self.length, self.or_none = kind, length, or_none
        self.name = ",".join([kind.__name__] * (length or 1)) + ("" if length else ",...")
        self.example = ",".join(["1" if kind is int else "0.5"] * (length or 2))

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int | float, ...]:
        if not isinstance(value, str):
            return tuple(value)
        if self.or_none and value == "none":
            return ()
        try:
            numbers = tuple(self.kind(part) for part in value.split(","))
        except ValueError:
            numbers = ()
        if not numbers or any(n != n for n in numbers) or (self.length or len(numbers)) != len(numbers):
            wanted = f"{self.length} numbers" if self.length else "numbers"
            none = ", nor none" if self.or_none else ""
            self.fail(f"{value!r} is not {wanted} with commas between, such as {self.example}{none}", param, ctx)
        return numbers


class Sha256(click.ParamType):  # type: ignore[type-arg]
    """A checksum: its 64 hexadecimal digits."""

    name = "hex"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not SHA256.fullmatch(value):
            self.fail(f"{shown(value)} is not a SHA-256; give its 64 hexadecimal digits", param, ctx)
        return str(value)


class Destination(click.Path):
    """A file or folder to write, checked before the work: where it cannot be made, the option is refused.

    `ending` is what the name of a file of the one kind that is written has to end with, such as `.png`. With
    `folder_exists` the folder that it goes into must be there: long work makes none for it.
    """

    def __init__(
        self, *, file_okay: bool = True, dir_okay: bool = True, ending: str = "", folder_exists: bool = False
    ) -> None:
        super().__init__(file_okay=file_okay, dir_okay=dir_okay, path_type=Path)
        self.ending, self.folder_exists = ending, folder_exists

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        path = Path(os.fsdecode(super().convert(value, param, ctx)))
        if path.suffix.lower() != self.ending and self.ending:
            self.fail(f"{shown_path(path)} does not end in {self.ending}, which is what is written", param, ctx)
        if path.name in (SAMPLES_NAME, OPTIONS_NAME) and path.is_file():
            self.fail(f"{shown_path(path)} is of the run {path.parent}; name another file", param, ctx)
        if self.folder_exists and not path.resolve().parent.is_dir():
            self.fail(f"{shown_path(path)}: there is no such folder; make it first", param, ctx)
        try:
            check_place(path)
        except OSError as e:
            self.fail(f"{shown_path(path)} cannot be written: {e.strerror}; name another place", param, ctx)
        return path


def check_once(paths: Sequence[Path | str], *, option: str) -> None:
    """Raises UserError where two of these are the same file or folder, however they are written."""
    places = [Path(path).resolve() for path in paths]
    for i, path in enumerate(paths):
        if places[i] in places[:i]:
            raise UserError(f"{option}{shown_path(path)} is given twice; give each one once")


class _OneLineErrors(click.Command):
    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """One rule for all options: a value is not empty nor NaN, is given once, and ~ is the home folder.

        An empty value is a shell variable that is not set, and a shell leaves the ~ of --outdir=~/out alone.
        """
        args = [_with_home(arg) for arg in args]
        if not ctx.resilient_parsing:
            given, _, order = self.make_parser(ctx).parse_args(args=list(args))
            for param in self.get_params(ctx):
                value = given.get(param.name or "")
                texts = value if isinstance(value, list | tuple) else [value]  # of several values, each one
                if any(isinstance(text, str) and not text.strip() for text in texts):
                    raise click.UsageError(f"{_spelled(param)} is empty; give it a value or leave it out", ctx)
                valued = isinstance(param, click.Option) and not (param.is_flag or param.multiple or param.count)
                if valued and (times := order.count(param)) > 1:
                    raise click.UsageError(f"{_spelled(param)} is given {times} times; give it once", ctx)
        rest = super().parse_args(ctx, args)
        for param in self.get_params(ctx):
            value = ctx.params.get(param.name or "")
            if isinstance(value, float) and value != value:
                raise click.UsageError(f"{_spelled(param)}: nan is not a number; give one", ctx)
        return rest

    def main(  # type: ignore[override]
        self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: Any
    ) -> Any:
        _open_closed_streams()
        try:
            code = super().main(args, prog_name, **{**extra, "standalone_mode": False})
            sys.stdout.flush()
        except click.ClickException as e:  # of the command line, which is that of all ranks: one of them says it
            _fail(e.format_message(), quiet=_is_later_rank())
        except click.Abort:
            click.echo("Interrupted.", err=True)
            sys.exit(130)
        except UserError as e:
            _fail(str(e), follows=isinstance(e, OtherRankError))
        except OSError as e:  # of the system: a file that cannot be read or written, a full disk
            if e.errno is None:
                _tell_torchrun(traceback.format_exc())
                raise
            _give_up_stdout()
            what = "a file or standard output cannot be written" if e.filename is None else shown_path(e.filename)
            _fail(f"{what}: {e.strerror}" + ("; make room, then run the command again" if e.errno in _NO_ROOM else ""))
        except Exception:  # a bug
            _tell_torchrun(traceback.format_exc())
            raise
        sys.exit(code if isinstance(code, int) else 0)


class Command(_OneLineErrors):
    """A command whose users see one line, `Error: ...`, and exit code 2 for every UserError and system error.

    Everything else is a bug and keeps its traceback.
    """


class Group(_OneLineErrors, click.Group):
    """Several commands under one name, with the same errors; alone, it prints its help."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args:
            click.echo(ctx.get_help())
            ctx.exit()
        return super().parse_args(ctx, args)


def shown_path(path: object) -> str:
    """A path for a message, with what is not UTF-8 in it replaced."""
    return os.fsencode(path).decode(errors="replace") if isinstance(path, str | bytes | os.PathLike) else str(path)


def _with_home(arg: str) -> str:
    """`--name=~/x` or `~/x` with the home folder in place of ~."""
    name, equals, value = arg.partition("=")
    if equals and name.startswith("--"):
        return f"{name}={os.path.expanduser(value)}"
    return os.path.expanduser(arg)


def _spelled(param: click.Parameter) -> str:
    """An option as it is written, the long way; an argument by its name."""
    return max(param.opts, key=len) if isinstance(param, click.Option) else param.human_readable_name


def _open_closed_streams() -> None:
    """Standard streams that the caller has closed lead nowhere; else the next file that is opened would be one."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free, which is this one
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115  (for as long as the process runs)
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115


def _give_up_stdout() -> None:
    """Standard output that takes nothing leads nowhere from now on, or Python's last flush would fail again."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _is_later_rank() -> bool:
    """Whether torchrun started this process as another rank than the first."""
    rank, ranks = (os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE"))
    return rank.isdecimal() and ranks.isdecimal() and 0 < int(rank) < int(ranks)


def _fail(message: str, *, follows: bool = False, quiet: bool = False) -> NoReturn:
    """Prints one line and exits with 2. `follows`: another process has failed before; `quiet`: it says the same."""
    text = "Error: " + " ".join(message.split()).encode(errors="backslashreplace").decode()  # names that are not UTF-8
    with suppress(OSError):
        if not quiet:
            click.echo(text, err=True)
    _tell_torchrun(text, follows=follows)
    sys.exit(2)


def _tell_torchrun(text: str, *, follows: bool = False) -> None:
    """Leaves an error where torchrun looks for it: the page that it prints after our line then ends with that line.

    Of several ranks it takes the earliest, in whole seconds, for the cause; so the one that failed first is dated back.
    """
    if path := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        about = {"py_callstack": text, "timestamp": str(int(time.time()) - (not follows))}
        with suppress(OSError):
            Path(path).write_text(json.dumps({"message": {"message": text, "extraInfo": about}}))
