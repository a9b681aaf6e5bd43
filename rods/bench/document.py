"""A document of texts, tables and pictures, written as Markdown with files beside it and as one HTML file."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from dnnlib.util import atomic_write
from rods.bench.tables import Table

CSS = """
:root{color-scheme:light dark;--ink:#1d1d1f;--muted:#666;--line:#ddd;--back:#fff;--code:#f4f4f4}
@media (prefers-color-scheme:dark){:root{--ink:#e8e8e8;--muted:#aaa;--line:#444;--back:#18191b;--code:#2a2b2e}}
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--back);max-width:1180px;margin:2rem auto;
padding:0 1rem}
h1{font-size:1.7rem}h2{font-size:1.35rem;margin-top:2.5rem;border-bottom:1px solid var(--line)}h3{font-size:1.1rem}
.wide{overflow-x:auto}table{border-collapse:collapse;font-size:13px;margin:.6rem 0;font-variant-numeric:tabular-nums}
th,td{padding:.25rem .6rem;text-align:left;white-space:nowrap;border-bottom:1px solid var(--line)}
thead th{color:var(--muted);font-weight:600}tbody th{font-weight:500}
code{background:var(--code);padding:0 .25em;border-radius:3px;overflow-wrap:anywhere}
figure{display:inline-block;margin:.5rem .5rem .5rem 0;max-width:100%}img,svg{max-width:100%;height:auto}
svg{border:1px solid var(--line);border-radius:6px}
nav a{margin-right:1rem}
"""


@dataclass(frozen=True)
class Heading:
    text: str
    level: int


@dataclass(frozen=True)
class Text:
    """Paragraphs; `code` and **bold** are marked as in Markdown. Lines that begin with `- ` are a list."""

    text: str


@dataclass(frozen=True)
class Figure:
    """A picture with a file name: SVG as text, or a PNG as bytes."""

    name: str
    content: str | bytes
    caption: str


Block = Heading | Text | Table | Figure


def write_document(blocks: Sequence[Block], dest: Path, *, name: str) -> list[Path]:
    """Writes `name`.md with its figures, and `name`.html, which needs nothing else; returns the files."""
    (dest / "figures").mkdir(parents=True, exist_ok=True)
    written = []
    for block in blocks:
        if isinstance(block, Figure):
            path = dest / "figures" / block.name
            with atomic_write(path) as temporary:
                temporary.write_bytes(block.content if isinstance(block.content, bytes) else block.content.encode())
            written.append(path)
    for path, text in ((dest / f"{name}.md", markdown(blocks)), (dest / f"{name}.html", html(blocks))):
        with atomic_write(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
        written.append(path)
    return written


def markdown(blocks: Sequence[Block]) -> str:
    parts = []
    for block in blocks:
        if isinstance(block, Heading):
            parts.append("#" * block.level + " " + block.text)
        elif isinstance(block, Text):
            parts.append(block.text)
        elif isinstance(block, Table):
            parts.append(block.markdown())
        else:
            parts.append(f"![{block.caption}](figures/{block.name})")
    return "\n\n".join(parts) + "\n"


def html(blocks: Sequence[Block]) -> str:
    """One page that makes no request: figures are inside it."""
    title = next((b.text for b in blocks if isinstance(b, Heading)), "")
    chapters = [b.text for b in blocks if isinstance(b, Heading) and b.level == 2]
    links = "".join(f'<a href="#{anchor(text)}">{escape(text)}</a>' for text in chapters)
    head, *rest = [_block(block) for block in blocks] or [""]
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<style>{CSS}</style></head><body>{head}<nav>{links}</nav>{''.join(rest)}</body></html>\n"
    )


def _block(block: Block) -> str:
    if isinstance(block, Heading):
        return f'<h{block.level} id="{anchor(block.text)}">{inline(block.text)}</h{block.level}>'
    if isinstance(block, Text):
        return "".join(_paragraph(part) for part in block.text.split("\n\n"))
    if isinstance(block, Table):
        return block.html()
    if isinstance(block.content, str):
        return f"<figure>{block.content}</figure>"
    data = base64.b64encode(block.content).decode()
    return f'<figure><img alt="{escape(block.caption)}" src="data:image/png;base64,{data}"></figure>'


def _paragraph(text: str) -> str:
    lines = text.split("\n")
    if all(line.startswith("- ") for line in lines):
        return "<ul>" + "".join(f"<li>{inline(line[2:])}</li>" for line in lines) + "</ul>"
    return f"<p>{inline(text)}</p>"


def inline(text: str) -> str:
    """`code` and **bold** of a text without tags."""
    safe = escape(text, quote=False)
    return re.sub(r"\*\*([^*]+)\*\*", r"<b>\1</b>", re.sub(r"`([^`]+)`", r"<code>\1</code>", safe))


def anchor(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
