"""Render the model card as HTML without scripts and without requests to other hosts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.token import Token

_FRONT_MATTER = re.compile(r"\A---\s*\n.*?\n---\s*(\n|\Z)", re.DOTALL)


def read_card(folder: Path) -> str | None:
    """Return the model card as HTML, or None if there is none.

    Raw HTML is removed. Images are replaced by their alt text, because loading them would reveal
    visitors to other hosts.

    Args:
        folder: The model's folder.
    """
    try:
        text = (folder / "README.md").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    markdown = MarkdownIt("commonmark").enable("table")
    markdown.add_render_rule("html_block", _drop)
    markdown.add_render_rule("html_inline", _drop)
    markdown.add_render_rule("image", _alt_text)
    html: str = markdown.render(_FRONT_MATTER.sub("", text))
    return html


def _drop(self: object, tokens: Sequence[Token], index: int, *_: Any) -> str:
    return ""


def _alt_text(self: object, tokens: Sequence[Token], index: int, *_: Any) -> str:
    return escape(tokens[index].content)
