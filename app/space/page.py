"""Build and serve the page."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from space.card import read_card
from space.limits import MAX_FILE_SIZE, MAX_WAITING, NUM_WORKERS, POLL_SECONDS, UPLOAD_SECONDS
from space.many_images import build_many_images_tab
from space.model import Classifier, ModelError, ModelId, find_folder, titles_of
from space.one_image import OneImageTab
from space.views import about_view, heading_view, setup_view

TITLE = "What is in this image?"

_HERE = Path(__file__).parent
_OWN_EXAMPLES = _HERE.parent / "examples"


def build_page(models: Sequence[ModelId]) -> gr.Blocks:
    """Load models and build the page, which compares them if there are several.

    Raises:
        ModelError: If a model is not found or cannot be loaded.
    """
    folders = [find_folder(model) for model in models]
    classifiers = list(map(Classifier, folders, titles_of(models)))
    page = _blocks(TITLE)
    with page:
        gr.HTML(
            heading_view(TITLE, classifiers[0].names, num_models=len(models)),
            elem_classes="heading",
        )
        with gr.Tab("One image"):
            OneImageTab(classifiers, _examples(folders[0])).build()
        with gr.Tab("Many images"):
            build_many_images_tab(classifiers)
        with gr.Tab("About"):
            for folder, classifier in zip(folders, classifiers, strict=True):
                gr.HTML(about_view(classifier.title, classifier.summary, read_card(folder)))
        gr.HTML(
            f"<p>Uploaded images are deleted within {2 * UPLOAD_SECONDS // 3600} hours and are not "
            "sent to other servers.</p>",
            elem_classes="footnote",
        )
    return page


def build_setup_page(error: ModelError) -> gr.Blocks:
    """Build the page with setup instructions, shown if there is no usable model."""
    page = _blocks("No model yet")
    with page:
        gr.HTML(setup_view(str(error)))
    return page


def launch(page: gr.Blocks, **options: Any) -> tuple[Any, str, str]:
    """Serve a page within the limits of `space.limits`.

    Args:
        page: From `build_page` or `build_setup_page`.
        **options: Further options of `gr.Blocks.launch`.

    Returns:
        The web application, its local URL and "".
    """
    _bypass_proxy("localhost", "127.0.0.1")
    page.queue(max_size=MAX_WAITING, default_concurrency_limit=NUM_WORKERS)
    page._queue.sleep_when_free = POLL_SECONDS
    launched: tuple[Any, str, str] = page.launch(
        max_file_size=MAX_FILE_SIZE,
        theme=_theme(),
        css_paths=_HERE / "style.css",
        footer_links=["api"],
        ssr_mode=False,  # no second server in Node
        state_session_capacity=256,  # sessions
        **options,
    )
    return launched


def _bypass_proxy(*hosts: str) -> None:
    """Let Gradio reach its own server for the startup check where HTTP_PROXY is set."""
    existing = os.environ.get("no_proxy") or os.environ.get("NO_PROXY")
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(filter(None, [existing, *hosts]))


def _blocks(title: str) -> gr.Blocks:
    return gr.Blocks(
        title=title, analytics_enabled=False, delete_cache=(UPLOAD_SECONDS, UPLOAD_SECONDS)
    )


def _theme() -> gr.themes.Base:
    """Return a theme with accessible contrast and system fonts; Gradio downloads its own."""
    return gr.themes.Default(
        primary_hue="teal",
        neutral_hue="slate",
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    ).set(
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        color_accent="*primary_700",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
    )


def _examples(folder: Path) -> list[Path]:
    """Return the example images of the model, or the Space's own."""
    of_model = sorted((folder / "examples").glob("*.jpg"))
    return of_model or sorted(_OWN_EXAMPLES.glob("*.jpg"))
