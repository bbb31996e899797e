"""The model's card, as HTML that can do no harm and asks no other host for anything."""

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
    """Returns the card of a model as HTML; None when it has none.

    HTML in the card is left out. Of pictures, only their descriptions are shown: fetching them
    would tell other hosts who reads this page.

    Args:
        folder: The model's folder, with a README.md or not.
    """
    try:
        text = (folder / "README.md").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    markdown = MarkdownIt("commonmark").enable("table")
    markdown.add_render_rule("html_block", _nothing)
    markdown.add_render_rule("html_inline", _nothing)
    markdown.add_render_rule("image", _description)
    html: str = markdown.render(_FRONT_MATTER.sub("", text))
    return html


def _nothing(self: object, tokens: Sequence[Token], index: int, *_: Any) -> str:
    return ""


def _description(self: object, tokens: Sequence[Token], index: int, *_: Any) -> str:
    return escape(tokens[index].content)
