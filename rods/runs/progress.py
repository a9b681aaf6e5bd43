"""How far something has come that takes minutes: a bar on a terminal, a line a minute in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from tqdm import tqdm

from dnnlib.errors import counted


class Lines:
    """Says on stderr every `seconds` how much is done and how long the rest takes; first what is to be done."""

    def __init__(
        self,
        total: int,
        what: str,
        *,
        announce: bool = True,
        seconds: float = 60,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.total, self.what, self.seconds, self.clock = total, what, seconds, clock
        self.begun = self.said = clock()
        self.done = 0
        if announce:
            self._say(f"{counted(total, 'image')} ...")

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def update(self, n: int) -> None:
        """`n` more are done."""
        self.done += n
        now = self.clock()
        if now - self.said < self.seconds or self.done >= self.total:
            return
        left = (now - self.begun) / self.done * (self.total - self.done)
        self._say(f"{self.done:,} of {counted(self.total, 'image')}, about {max(1, round(left / 60))} min to go")
        self.said = now

    def _say(self, text: str) -> None:
        print(f"{self.what}: {text}", file=sys.stderr, flush=True)


def progress(total: int, what: str, *, shown: bool = True, announce: bool = True) -> tqdm[None] | Lines:
    """What counts images by `update(n)`, used in a with statement; of several ranks, one is `shown`."""
    if sys.stderr.isatty() or not shown:
        return tqdm(total=total, unit="img", desc=what, disable=not shown)
    return Lines(total, what, announce=announce)
