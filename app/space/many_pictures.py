"""The second tab: files in, a table and a CSV out."""

from __future__ import annotations

from typing import Any

import gradio as gr
from gradio.processing_utils import save_bytes_to_cache

from space.batch import classify_files, to_csv
from space.limits import MAX_BATCH, QUEUE
from space.model import Classifier
from space.uploads import refuse_addresses
from space.views import table_view


def lay_out_many_pictures(classifier: Classifier) -> None:
    """Puts the components on the page, and wires them."""
    files = gr.File(
        label=f"Pictures, up to {MAX_BATCH}", file_count="multiple", height=180, elem_id="files"
    )
    refuse_addresses(files)
    button = gr.Button("Classify them", variant="primary")
    table = gr.HTML()
    download = gr.DownloadButton("Download as CSV", visible=False)

    def classify(
        paths: list[str] | None,
        progress: gr.Progress = gr.Progress(),  # noqa: B008 - Gradio looks for it here
    ) -> tuple[str, dict[str, Any]]:
        """Returns the table, and the button that downloads it."""
        if not paths:
            raise gr.Error("Please choose some pictures first.", print_exception=False)
        if len(paths) > MAX_BATCH:
            message = f"Please choose at most {MAX_BATCH} pictures at a time."
            raise gr.Error(message, print_exception=False)
        rows = list(progress.tqdm(classify_files(classifier, paths), total=len(paths)))
        file = save_bytes_to_cache(to_csv(rows), "classes.csv", download.GRADIO_CACHE)
        return table_view(rows), gr.update(value=file, visible=True)

    button.click(classify, files, [table, download], api_visibility="private", **QUEUE)
