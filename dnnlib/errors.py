"""The one exception type for mistakes that a user can mend."""

from __future__ import annotations


class UserError(ValueError):
    """One clear line: what is wrong, with which value or file, and what to do about it.

    Commands print it as `Error: ...` and exit with code 2; anything else is a bug and keeps its traceback.
    """


def shown(text: object, limit: int = 80) -> str:
    """`text` from an untrusted file, quoted, on one line, without control characters and not longer than `limit`."""
    quoted = ascii(text if isinstance(text, str) else str(text)[: 4 * limit])
    return quoted if len(quoted) <= limit else f"{quoted[: limit - 4]}...{quoted[-1]}"
