"""What the page sends."""

from __future__ import annotations

from typing import Any


def answer(key: str, what: str | None, *, ident: str, seen: int = 0, note: str = "") -> dict[str, Any]:
    return {"item": key, "answer": what, "note": note, "seen": seen, "id": ident}
