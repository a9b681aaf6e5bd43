"""The words that messages share: remedies and counts."""

import re

from tree import ROOT, extras, source_files

from dnnlib.errors import counted, install


def test_extras_are_installed_in_one_way() -> None:
    """The project is on no index: `pip install rods-toolkit[...]` finds nothing, the checkout's extras are there."""
    assert install("eval") == "pip install -e '.[eval]' in the checkout"
    texts = {path: path.read_text() for path in [*source_files(), *ROOT.glob("docs/**/*.md"), ROOT / "README.md"]}
    assert [path for path, text in texts.items() if re.search(r"pip install\W+rods-toolkit", text)] == []
    named = {
        name for text in texts.values() for name in re.findall(r"\binstall\(['\"](\w+)['\"]\)|'\.\[(\w+)\]'", text)
    }
    assert {a or b for a, b in named} <= set(extras())
    assert ("eval", "") in named


def test_counts_agree_with_their_nouns() -> None:
    assert [counted(n, "image") for n in (0, 1, 2, 12_000)] == ["0 images", "1 image", "2 images", "12,000 images"]
