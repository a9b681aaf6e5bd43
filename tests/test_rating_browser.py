"""The labelling page in a real browser: keyboard, a killed server, two tabs, a narrow window, skipping, the grid."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
CHROMIUM = shutil.which("chromium")
FLAGS = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-sync"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium: apt install chromium; pip install playwright"),
]


class Server:
    """scripts/label.py serve as a process that can be killed and started again on its port."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.options = [f"--images={folder}/A", f"--against={folder}/B", f"--answers={folder}/labels.jsonl", *options]
        self.port = "0"
        self.start()

    def start(self) -> None:
        command = [sys.executable, str(ROOT / "scripts/label.py"), "serve", *self.options, "--token=token"]
        self.process = subprocess.Popen([*command, f"--port={self.port}"], stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.process.stdout.readline()
        self.address = self.process.stdout.readline().strip()
        self.port = self.address.split(":")[2].split("/")[0]

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    for run in "AB":
        (tmp_path / run).mkdir()
        for i in range(6):
            Image.fromarray(np.full((16, 16), 20 * i + (run == "B"), np.uint8)).save(tmp_path / run / f"{i:06d}.png")
    server = Server(tmp_path)
    yield server
    server.kill()


@pytest.fixture
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS.split())
        yield browser
        browser.close()


def answers(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "labels.jsonl").read_text().splitlines()]


def shows(page: Any, element: str, text: str) -> None:
    from playwright.sync_api import expect

    expect(page.locator(element)).to_have_text(re.compile(text), timeout=15_000)


def saved(page: Any, done: int, of: int) -> None:
    shows(page, "#place", f"{of}, {done} answered$")
    shows(page, "#state", "^saved$")


def test_two_raters_by_keyboard_through_a_kill_and_two_tabs(server: Server, browser: Any, tmp_path: Path) -> None:
    page = browser.new_page()
    page.goto(server.address)
    page.keyboard.type("alice")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_selector("img")
    for key in ("1", "2", "u", "3", "n"):
        page.keyboard.press(key)
    page.keyboard.type("<i>thumb 1</i>")
    page.keyboard.press("Escape")
    page.keyboard.press("1")
    saved(page, 3, 12)

    server.kill()
    page.keyboard.press("1")
    page.keyboard.press("2")
    shows(page, "#state", r"^not saved \(2\)")
    server.start()
    saved(page, 5, 12)
    page.reload()
    saved(page, 5, 12)

    tab = browser.new_page()
    tab.goto(page.url)
    saved(tab, 5, 12)
    tab.keyboard.press("1")
    saved(tab, 6, 12)
    page.keyboard.press("2")  # the same item, which this tab has not seen answered
    shows(page, "#state", "answered in another tab")
    for _ in range(6):
        page.keyboard.press(" ")
        page.keyboard.press("1")
    saved(page, 12, 12)

    narrow = browser.new_page(viewport={"width": 360, "height": 640})
    narrow.goto(server.address + "rate/bob/image")
    narrow.wait_for_selector("img")
    for _ in range(12):
        narrow.keyboard.press("1")
    saved(narrow, 12, 12)
    assert narrow.evaluate("document.documentElement.scrollWidth") <= 360

    narrow.goto(server.address + "rate/consensus/image")
    shows(narrow, "#said", "The raters said")
    lines = answers(tmp_path)
    assert len({line["id"] for line in lines}) == len(lines)
    assert any(line["note"] == "<i>thumb 1</i>" for line in lines)
    latest = {(line["source"], line["sha256"]): line["answer"] for line in lines}
    assert len(latest) == 24
    assert None not in latest.values()


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Server]:
    """Six images of one run with two labels, one of them asked twice."""
    for run in "AB":
        (tmp_path / run).mkdir()
        for i in range(6):
            Image.fromarray(np.full((16, 16), 20 * i, np.uint8)).save(tmp_path / run / f"{i:06d}.png")
    server = Server(tmp_path, "--labels=good,bad", "--repeat=1")
    yield server
    server.kill()


def test_a_skip_leads_on_and_comes_back_at_the_end(small: Server, browser: Any, tmp_path: Path) -> None:
    page = browser.new_page()
    page.goto(small.address + "rate/alice/image")
    page.wait_for_selector("img")
    for key, place in [(" ", 2), ("1", 3), (" ", 4), ("0", 5), ("2", 6), ("1", 7), ("1", 1)]:
        page.keyboard.press(key)
        shows(page, "#place", f"^{place} / 7")
    page.keyboard.press(" ")
    shows(page, "#place", "^3 / 7, 5 answered$")
    page.keyboard.press(" ")
    shows(page, "#state", "skipped ones again: 2 without an answer")
    shows(page, "#place", "^1 / 7, 5 answered$")
    for _ in range(2):
        page.keyboard.press("2")
    saved(page, 7, 7)
    lines = answers(tmp_path)
    assert sorted(line["label"] for line in lines) == ["hallucinated"] * 3 + ["uncertain"] + ["valid"] * 3
    assert [line["round"] for line in lines if "round" in line] == [2]
    assert len({line["sha256"] for line in lines}) == 6


def test_the_grid_by_mouse(small: Server, browser: Any, tmp_path: Path) -> None:
    page = browser.new_page()
    page.goto(small.address)
    page.keyboard.type("alice")
    page.get_by_text("Rate in a grid").click()
    page.wait_for_selector("#thumbs img")
    thumb = page.locator("#thumbs button")
    assert thumb.count() == 7
    thumb.nth(1).click()
    thumb.nth(2).click()
    thumb.nth(2).click()  # a slip: good after all
    page.keyboard.press("0")
    thumb.nth(3).click()
    saved(page, 3, 7)
    small.kill()
    page.keyboard.press("Enter")
    shows(page, "#state", r"^not saved \(4\)")
    small.start()
    saved(page, 7, 7)
    assert [thumb.nth(i).get_attribute("class") for i in range(4)] == ["valid", "hallucinated", "valid", "uncertain"]
    latest = {(line["sha256"], line.get("round", 1)): line["label"] for line in answers(tmp_path)}
    assert sorted(latest.values()) == ["hallucinated", "uncertain", *["valid"] * 5]
    page.keyboard.press("u")
    saved(page, 6, 7)
    page.reload()
    saved(page, 6, 7)
    page.set_viewport_size({"width": 360, "height": 640})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.screenshot(path=str(tmp_path / "grid.png"))
