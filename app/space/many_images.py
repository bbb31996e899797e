"""The second tab: classify many files, show a table and offer it as CSV."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr
from gradio.processing_utils import save_bytes_to_cache

from space.batch import classify_files, to_csv
from space.limits import MAX_BATCH, QUEUE
from space.model import Classifier
from space.uploads import refuse_urls
from space.views import table_view


def build_many_images_tab(classifiers: Sequence[Classifier]) -> None:
    """Add the components to the page and connect their events."""
    titles = [classifier.title for classifier in classifiers]
    files = gr.File(
        label=f"Images (up to {MAX_BATCH})", file_count="multiple", height=180, elem_id="files"
    )
    refuse_urls(files)
    model = gr.Radio(titles, value=titles[0], label="Model", visible=len(titles) > 1)
    button = gr.Button("Classify", variant="primary")
    table = gr.HTML()
    download = gr.DownloadButton("Download as CSV", visible=False)

    def classify(
        paths: list[str] | None,
        title: str,
        progress: gr.Progress = gr.Progress(),  # noqa: B008 - Gradio looks for it here
    ) -> tuple[str, dict[str, Any]]:
        """Return the table and the update of the download button."""
        if not paths:
            raise gr.Error("Please upload at least one image.", print_exception=False)
        if len(paths) > MAX_BATCH:
            message = f"Please upload at most {MAX_BATCH} images at a time, got {len(paths)}."
            raise gr.Error(message, print_exception=False)
        classifier = classifiers[titles.index(title)]
        rows = list(progress.tqdm(classify_files(classifier, paths), total=len(paths)))
        file = save_bytes_to_cache(to_csv(rows), "classes.csv", download.GRADIO_CACHE)
        return table_view(rows), gr.update(value=file, visible=True)

    button.click(classify, [files, model], [table, download], api_visibility="private", **QUEUE)
