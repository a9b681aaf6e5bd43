"""The one exception type for mistakes that a user can mend."""

from __future__ import annotations


class UserError(ValueError):
    """One clear line: what is wrong, with which value or file, and what to do about it.

    Commands print it as `Error: ...` and exit with code 2; anything else is a bug and keeps its traceback.
    """


def shown(value: object, limit: int = 80) -> str:
    """`value` from an untrusted file for a message: one line, no control characters, no longer than `limit`.

    Text is quoted and numbers are printed; of anything else only the type, for printing it could take for ever.
    """
    if isinstance(value, str):
        quoted = ascii(value[:limit])
        return quoted if len(quoted) <= limit else f"{quoted[: limit - 4]}...{quoted[-1]}"
    return repr(value)[:limit] if isinstance(value, (int, float)) or value is None else f"a {type(value).__name__}"
