"""The first tab: classify one image and show a heat map; and the API endpoint `/predict`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import gradio as gr
from gradio.data_classes import ImageData
from PIL import Image

from space.images import ImageError, open_image
from space.limits import QUEUE
from space.model import Classifier
from space.uploads import refuse_urls
from space.views import EMPTY, error_view, examples_view, heat_map_view, predictions_view

# Each script runs once in the browser; `element` is its component.
_CLICK_EXAMPLE = """
element.addEventListener('click', event => {
    const example = event.target.closest('.example');
    if (example) trigger('click', {index: Number(example.dataset.index)});
});
"""
_SELECT_CLASS = """
element.setAttribute('aria-live', 'polite');
element.addEventListener('change', event => {
    if (event.target.name === 'prediction') trigger('select', {index: Number(event.target.value)});
});
"""
_FADE_HEAT_MAP = """
element.addEventListener('input', event => {
    const overlay = element.querySelector('.overlay');
    if (event.target.type === 'range' && overlay) overlay.style.opacity = event.target.value / 100;
});
"""


@dataclass(frozen=True)
class OneImageTab:
    """Event handlers of the tab; `build` adds its components to the page.

    Attributes:
        classifier: The model.
        examples: Example images to try.
    """

    classifier: Classifier
    examples: Sequence[Path]

    def example(self, event: gr.EventData) -> str:
        """Return the path of the clicked example."""
        return str(self.examples[event.index])

    def classify(self, path: str | None) -> tuple[str, str]:
        """Return the five most likely classes and the heat map of the first, as HTML."""
        if path is None:
            return EMPTY, ""
        start = time.perf_counter()
        try:
            image = open_image(path)
        except ImageError as error:
            return error_view(str(error)), ""
        predictions = self.classifier.predict(image)
        milliseconds = 1000 * (time.perf_counter() - start)
        return predictions_view(predictions, milliseconds), self._heat_map(
            image, predictions[0].index
        )

    def select(self, path: str | None, event: gr.EventData) -> str:
        """Return the heat map of the selected class, as HTML."""
        if path is None or event.index not in range(self.classifier.num_classes):
            return ""
        try:
            return self._heat_map(open_image(path), event.index)
        except ImageError as error:  # deleted since, for example
            return error_view(str(error))

    def predict(self, image: str | None) -> list[dict[str, str | float]]:
        """Return the five most likely classes in the format of transformers' pipeline.

        Raises:
            gr.Error: If there is no image or it cannot be read.
        """
        if image is None:
            raise gr.Error("Please upload an image.", print_exception=False)
        try:
            predictions = self.classifier.predict(open_image(image))
        except ImageError as error:
            raise gr.Error(str(error), print_exception=False) from None
        return [
            {"label": prediction.label, "score": prediction.score} for prediction in predictions
        ]

    def build(self) -> None:
        """Add the components to the page and connect their events."""
        gr.set_static_paths(list(self.examples))  # allow serving them from their folder
        with gr.Row(elem_classes="columns"):
            with gr.Column():
                image = _image_input()
                shelf = gr.HTML(examples_view(self.examples), js_on_load=_CLICK_EXAMPLE)
            with gr.Column():
                predictions = gr.HTML(EMPTY, js_on_load=_SELECT_CLASS)
                heat_map = gr.HTML(js_on_load=_FADE_HEAT_MAP)
        hidden = {"api_visibility": "private", "trigger_mode": "always_last"} | QUEUE
        shelf.click(self.example, None, image, show_progress="hidden", **hidden)
        image.change(self.classify, image, [predictions, heat_map], **hidden)
        predictions.select(self.select, image, heat_map, **hidden)
        gr.on(
            [],
            self.predict,
            image,
            gr.JSON(label="classes", visible=False),
            api_name="predict",
            api_description="Return the five most likely classes of an image, as "
            "transformers' image-classification pipeline does. Takes files, not URLs.",
            **QUEUE,
        )

    def _heat_map(self, image: Image.Image, index: int) -> str:
        crop = self.classifier.visible_crop(image)
        heat_map = self.classifier.heat_map(image, index, crop.size)
        return heat_map_view(self.classifier.class_name(index), crop, heat_map)


def _image_input() -> gr.Image:
    """Return a gr.Image that passes on the path of the uploaded file.

    By default gr.Image opens the file first and shows only "Error" if it is damaged.
    """
    image = gr.Image(
        type="filepath",
        label="Image",
        sources=["upload", "webcam", "clipboard"],
        height=360,
        placeholder="Drop, paste or choose an image",
        elem_id="image",
    )

    def example() -> dict[str, object]:  # shown in the API documentation; Gradio's own is a URL
        return {"path": "image.jpg", "meta": {"_type": "gradio.FileData"}}

    # Keep `url` in the schema, though it is refused: Gradio's clients recognize files by it.
    api_info = image.api_info() | {"additional_description": "A file, not a URL."}

    def path_of(file: ImageData | None) -> str | None:
        return None if file is None else file.path

    refuse_urls(image)
    image.example_payload = example  # type: ignore[method-assign]
    image.api_info = lambda: api_info  # type: ignore[method-assign]
    image.preprocess = path_of  # type: ignore[assignment, method-assign]
    return image
