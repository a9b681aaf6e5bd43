"""Links of the pages lead somewhere, and the pages that the code cites are there."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from tree import ROOT

PAGES = sorted(
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "models").glob("*.md")]
)
LINK = re.compile(r"\]\(([^)\s]+)\)")
FENCED = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
CITED = re.compile(r"\bdocs/[\w./-]*\.(?:md|png|jsonl)")


def anchors(page: Path) -> set[str]:
    """What a page's headings can be linked as, here and on the site."""
    headings = re.findall(r"^#+ (.*)$", FENCED.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", text).strip().lower()) for text in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    for target in LINK.findall(FENCED.sub("", page.read_text())):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        linked = (page.parent / name).resolve() if name else page
        assert linked.exists(), f"{page.relative_to(ROOT)} links to {target}"
        assert not anchor or anchor in anchors(linked), f"{page.relative_to(ROOT)} links to {target}"


def test_every_page_that_is_cited_is_there() -> None:
    """In code, commands' texts, tests and cards; the changelog may name pages of its time."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a checkout")
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    for name in tracked:
        path = ROOT / name
        if path.suffix in (".py", ".md", ".toml", ".ipynb", ".yml") or path.name == "Makefile":
            if name == "CHANGELOG.md" or not path.exists():
                continue
            for cited in CITED.findall(path.read_text()):
                assert (ROOT / cited).exists(), f"{name} cites {cited}"


def test_the_site_has_every_page() -> None:
    listed = set(re.findall(r"[\w/.-]+\.md", (ROOT / "mkdocs.yml").read_text()))
    assert listed == {str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")}
