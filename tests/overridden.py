"""Arguments of a command where the later of two wins: the commands themselves take an option once."""

from __future__ import annotations

from collections.abc import Iterable


def last_of_each(arguments: Iterable[object]) -> list[str]:
    """Of `--name=value` given several times, the last, in its place; all else as it is."""
    texts = [str(argument) for argument in arguments]
    names = [text.partition("=")[0] if text.startswith("--") else None for text in texts]
    return [text for i, text in enumerate(texts) if names[i] is None or names[i] not in names[i + 1 :]]
