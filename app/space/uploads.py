"""What a client may send: files, not addresses of files."""

from __future__ import annotations

from pathlib import Path

import gradio as gr
from gradio.components import Component


def refuse_addresses(component: Component) -> None:
    """Keeps a component from fetching an address that a client sends in place of a file.

    Gradio would ask any host for it, and no limit of ours would hold for what comes back.

    Args:
        component: One that takes files.
    """
    keep_file = component.async_move_resource_to_block_cache

    async def keep_only_files(path: str | Path | None) -> str | None:
        if str(path).lower().startswith(("http:", "https:")):
            message = "Please upload the picture itself, not its address."
            raise gr.Error(message, print_exception=False)
        return await keep_file(path)

    component.async_move_resource_to_block_cache = keep_only_files  # type: ignore[assignment, method-assign]
