"""Render the model card as HTML without scripts and without requests to other hosts."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

from markdown_it import MarkdownIt
from markdown_it.token import Token
from PIL import Image

_FRONT_MATTER = re.compile(r"\A---\s*\n.*?\n---\s*(\n|\Z)", re.DOTALL)
_IMAGE_TYPES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
_MAX_IMAGE_BYTES = 2_000_000
_MAX_IMAGES = 12


def read_card(folder: Path) -> str | None:
    """Return the model card as HTML, or None if there is none.

    Raw HTML is removed, and so are images of other hosts, because loading them would reveal
    visitors. Images in the model's folder, such as curves, are embedded.

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
    markdown.add_render_rule("image", _embed_images_of(folder))
    html: str = markdown.render(_FRONT_MATTER.sub("", text))
    return html


def _drop(self: object, tokens: Sequence[Token], index: int, *_: Any) -> str:
    return ""


def _embed_images_of(folder: Path) -> Callable[..., str]:
    """Return the render rule of images: those in `folder` become data URLs, others are removed."""
    embedded: set[str] = set()

    def render(self: object, tokens: Sequence[Token], index: int, *_: Any) -> str:
        source = unquote(str(tokens[index].attrs.get("src", "")))
        embedded.add(source)
        url = _data_url(folder, source) if len(embedded) <= _MAX_IMAGES else None
        return f'<img src="{url}" alt="{escape(tokens[index].content)}">' if url else ""

    return render


def _data_url(folder: Path, source: str) -> str | None:
    """Return an image file as a data URL; None if it is not a small image in `folder`.

    Args:
        folder: The model's folder. In the Hub's cache its files are links out of it, so only the
            path is checked, not what it leads to.
        source: Path relative to the folder.
    """
    path = PurePosixPath(source)
    kind = _IMAGE_TYPES.get(path.suffix.lower())
    if kind is None or path.is_absolute() or {"..", "~"} & set(path.parts) or ":" in source:
        return None
    try:
        with (folder / path).open("rb") as file:
            content = file.read(_MAX_IMAGE_BYTES + 1)
        with Image.open(folder / path, formats=[kind]) as image:
            image.verify()
    except Exception:  # missing or damaged, for which Pillow raises anything
        return None
    if len(content) > _MAX_IMAGE_BYTES:
        return None
    return f"data:image/{kind.lower()};base64,{base64.b64encode(content).decode()}"
