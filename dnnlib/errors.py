"""The one exception type for mistakes that a user can mend, and where a library's ValueError becomes one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """One clear line: what is wrong, with which value or file, and what to do about it.

    Commands print it as `Error: ...` and exit with code 2; anything else is a bug and keeps its traceback.
    """


class OtherRankError(UserError):
    """This process stops because another one of the same run has failed, whose message says why."""


@contextmanager
def user_errors(where: str = "", *, spelled: Callable[[str], str] = str) -> Iterator[None]:
    """Within the block, a ValueError is the user's: it becomes `UserError("where: text")`.

    For the boundary between a command and the library, around the one call that checks what the user gave: the
    construction of a config, a reader of a text. Around more, it would hide bugs.

    Args:
        where: the option, or the option and its value; empty where the text names it.
        spelled: the library's text in the command's words, such as argument names as options.
    """
    try:
        yield
    except UserError:
        raise
    except ValueError as e:
        raise UserError(f"{where}: {spelled(str(e))}" if where else spelled(str(e))) from e


@contextmanager
def of_option(option: str) -> Iterator[None]:
    """Within the block, a UserError says which option it is about: it becomes `UserError("option: text")`.

    For the boundary between a command and a reader of files, which knows the file and not what named it.
    """
    try:
        yield
    except UserError as e:
        raise UserError(f"{option}: {e}") from None


def shown(value: object, limit: int = 80) -> str:
    """`value` from an untrusted file for a message: one line, no control characters, no longer than `limit`.

    Text is quoted and numbers are printed; of anything else only the type, for printing it could take for ever.
    """
    if isinstance(value, str):
        quoted = ascii(value[:limit])
        return quoted if len(quoted) <= limit else f"{quoted[: limit - 4]}...{quoted[-1]}"
    return repr(value)[:limit] if isinstance(value, (int, float)) or value is None else f"a {type(value).__name__}"


def install(extra: str) -> str:
    """The remedy for a package that is missing: the project is on no index, so its extras come from the checkout."""
    return f"pip install -e '.[{extra}]' in the checkout"


def counted(count: int, noun: str) -> str:
    """`1 image`, `2 images`, `12,000 images`: of a noun whose plural ends in s."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
