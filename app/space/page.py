"""The page: its tabs, its look, and how it is served."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import gradio as gr

from space.card import read_card
from space.limits import KEPT_SECONDS, MAX_FILE_SIZE, MAX_WAITING, NUM_WORKERS
from space.many_pictures import lay_out_many_pictures
from space.model import Classifier, ModelError, ModelId, find_folder
from space.one_picture import OnePicture
from space.views import about_view, no_model_view

TITLE = "What is in this picture?"

_HERE = Path(__file__).parent
_OWN_EXAMPLES = _HERE.parent / "examples"


def build_page(model: ModelId) -> gr.Blocks:
    """Loads a model and builds the page around it.

    Raises:
        ModelError: When there is no such model, or it cannot be loaded.
    """
    folder = find_folder(model)
    classifier = Classifier(folder)
    page = _blocks(TITLE)
    with page:
        gr.HTML(
            f"<h1>{TITLE}</h1><p>A neural network names the five likeliest of "
            f"{classifier.num_classes:,} classes, and shows what made it think so.</p>",
            elem_classes="heading",
        )
        with gr.Tab("One picture"):
            OnePicture(classifier, _examples(folder)).lay_out()
        with gr.Tab("Many pictures"):
            lay_out_many_pictures(classifier)
        with gr.Tab("About"):
            gr.HTML(about_view(model.title, classifier.facts, read_card(folder)))
        gr.HTML(
            f"<p>Pictures are deleted within {2 * KEPT_SECONDS // 3600} hours. Nothing is sent "
            "anywhere else.</p>",
            elem_classes="footnote",
        )
    return page


def build_no_model_page(reason: ModelError) -> gr.Blocks:
    """Builds the page that says what to set."""
    page = _blocks("No model yet")
    with page:
        gr.HTML(no_model_view(str(reason)))
    return page


def launch(page: gr.Blocks, **options: Any) -> tuple[Any, str, str]:
    """Serves a page, within its limits.

    Args:
        page: From `build_page` or `build_no_model_page`.
        **options: More of `gr.Blocks.launch`.

    Returns:
        The web application, its address here, and "".
    """
    _keep_off_proxies("localhost", "127.0.0.1")
    page.queue(max_size=MAX_WAITING, default_concurrency_limit=NUM_WORKERS)
    answer: tuple[Any, str, str] = page.launch(
        max_file_size=MAX_FILE_SIZE,
        theme=_theme(),
        css_paths=_HERE / "style.css",
        footer_links=["api"],
        ssr_mode=False,  # no second server, in Node
        state_session_capacity=256,  # visitors
        **options,
    )
    return answer


def _keep_off_proxies(*hosts: str) -> None:
    """Lets Gradio ask its own address whether it is up, which it must, where HTTP_PROXY is set."""
    others = os.environ.get("no_proxy") or os.environ.get("NO_PROXY")
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(filter(None, [others, *hosts]))


def _blocks(title: str) -> gr.Blocks:
    return gr.Blocks(
        title=title, analytics_enabled=False, delete_cache=(KEPT_SECONDS, KEPT_SECONDS)
    )


def _theme() -> gr.themes.Base:
    """Returns colours with enough contrast, and fonts that are there: Gradio's are fetched."""
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
    """Returns pictures to try: the model's own where it brings some, or ours."""
    brought = sorted((folder / "examples").glob("*.jpg"))
    return brought or sorted(_OWN_EXAMPLES.glob("*.jpg"))
