"""Accept uploaded files only, not URLs, and remove what uploads leave behind."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from pathlib import Path

import gradio as gr
from gradio.components import Component
from gradio.utils import get_upload_folder


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


def remove_abandoned_uploads(age: float) -> None:
    """Delete the temporary files of uploads that were interrupted or refused, which Gradio keeps.

    Args:
        age: Age from which they are deleted, seconds.
    """
    for path in Path(get_upload_folder()).glob("tmp*"):
        with suppress(OSError):  # finished or deleted meanwhile
            if path.is_file() and time.time() - path.stat().st_mtime >= age:
                path.unlink()


def keep_removing_abandoned_uploads(seconds: float) -> None:
    """Delete abandoned uploads of that age from time to time, in a thread.

    Args:
        seconds: Age from which they are deleted, and the interval of the check.
    """

    def run() -> None:
        while True:
            time.sleep(seconds)
            remove_abandoned_uploads(seconds)

    threading.Thread(target=run, daemon=True).start()
