"""Accept uploaded files only, not URLs."""

from __future__ import annotations

from pathlib import Path

import gradio as gr
from gradio.components import Component


def refuse_urls(component: Component) -> None:
    """Stop a component from downloading a URL that a client sends instead of a file.

    Gradio would connect to any host, without the limits on uploads.

    Args:
        component: A component that takes files.
    """
    keep_file = component.async_move_resource_to_block_cache

    async def keep_only_files(path: str | Path | None) -> str | None:
        if str(path).lower().startswith(("http:", "https:")):
            message = "Please upload the image itself, not a URL."
            raise gr.Error(message, print_exception=False)
        return await keep_file(path)

    component.async_move_resource_to_block_cache = keep_only_files  # type: ignore[assignment, method-assign]
