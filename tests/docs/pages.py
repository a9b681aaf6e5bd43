"""The code and the commands of a page of docs/."""

from __future__ import annotations

import re
import shlex

from vectors import ROOT


class Page:
    """A page of docs/: `blocks` are its ```python blocks, `commands` the arguments of the generate.py that it shows."""

    def __init__(self, name: str) -> None:
        self.text = (ROOT / "docs" / f"{name}.md").read_text()
        self.blocks = re.findall(r"```python\n(.*?)```", self.text, re.DOTALL)
        shown = re.findall(
            r"(?:^    |`)(?:python )?generate\.py (--[^`\n]+)", self.text.replace("\\\n", " "), re.MULTILINE
        )
        self.commands = [shlex.split(text) for text in shown]
