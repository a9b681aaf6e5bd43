"""A log of a run of minutes says how far it is and how long it still takes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tqdm import tqdm

from rods.runs.progress import Lines, progress


def test_a_line_a_minute_with_what_is_left(capsys: pytest.CaptureFixture[str]) -> None:
    times: Iterator[float] = iter([0, 30, 60, 100, 125, 900])
    with Lines(1200, "samples", clock=lambda: next(times)) as bar:
        for n in (50, 50, 100, 100, 900):
            bar.update(n)
    assert capsys.readouterr().err.splitlines() == [
        "samples: 1,200 images ...",
        "samples: 100 of 1,200 images, about 11 min to go",
        "samples: 300 of 1,200 images, about 6 min to go",
    ]


def test_a_short_run_that_said_what_it_does_says_nothing_more(capsys: pytest.CaptureFixture[str]) -> None:
    with progress(3, "samples", announce=False) as bar:
        bar.update(3)
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with progress(3, "samples") as bar:
        assert isinstance(bar, tqdm)
        bar.update(3)
    assert "3/3" in capsys.readouterr().err
    monkeypatch.setattr("sys.stderr.isatty", lambda: False)
    assert isinstance(progress(3, "samples"), Lines)
