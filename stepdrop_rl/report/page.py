"""A page of headings, tables and pictures: as Markdown with files beside it, and as one HTML file."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stepdrop_rl.report.tables import markdown_table
from stepdrop_rl.weights import write_bytes, write_text

_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;color:#222}"
    "table{border-collapse:collapse;font-variant-numeric:tabular-nums;margin:1rem 0;font-size:13px}"
    "th,td{padding:.25rem .6rem;border-bottom:1px solid #ddd;text-align:right}"
    "th:first-child,td:first-child{text-align:left}tr.strong td{font-weight:600}img{max-width:100%}"
)


@dataclass(frozen=True)
class Block:
    """A part of a page: a heading, a paragraph, a table or a picture (its file's name and content)."""

    heading: str | None = None
    text: str | None = None
    table: tuple[list[str], list[list[str]]] | None = None
    picture: tuple[str, bytes] | None = None


def write_page(title: str, blocks: Sequence[Block], folder: Path, name: str) -> Path:
    """Write ``name``.md, its pictures and ``name``.html into ``folder``; return the HTML file."""
    lines, parts = [], []
    for block in blocks:
        if block.heading is not None:
            lines.append(f"## {block.heading}\n")
            parts.append(f"<h2>{html.escape(block.heading)}</h2>")
        if block.text is not None:
            lines.append(f"{block.text}\n")
            parts.append(f"<p>{html.escape(block.text)}</p>")
        if block.table is not None:
            lines.append(markdown_table(*block.table))
            parts.append(_html_table(*block.table))
        if block.picture is not None:
            file, content = block.picture
            write_bytes(folder / file, content)
            lines.append(f"![{file.removesuffix('.png').replace('_', ' ')}]({file})\n")
            coded = base64.b64encode(content).decode()
            parts.append(f'<img alt="{html.escape(file)}" src="data:image/png;base64,{coded}">')
    write_text(folder / f"{name}.md", f"# {title}\n\n" + "\n".join(lines))
    page = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{_STYLE}</style><h1>{html.escape(title)}</h1>{''.join(parts)}</html>"
    )
    return write_text(folder / f"{name}.html", page)


def _html_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def row(cells: Sequence[str], tag: str) -> str:
        strong = ' class="strong"' if cells[0].startswith("**") else ""
        inner = "".join(f"<{tag}>{html.escape(cell.replace('**', ''))}</{tag}>" for cell in cells)
        return f"<tr{strong}>{inner}</tr>"

    return f"<table>{row(header, 'th')}{''.join(row(cells, 'td') for cells in rows)}</table>"
