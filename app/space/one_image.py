"""The first tab: classify one image and show a heat map; and the API endpoint `/predict`."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import gradio as gr
import torch
from gradio.data_classes import ImageData

from space.images import ImageError, open_image
from space.limits import QUEUE
from space.model import Answer, Classifier
from space.uploads import refuse_urls
from space.views import (
    EMPTY,
    Timed,
    answers_view,
    error_view,
    examples_view,
    heat_map_view,
    heat_maps_view,
)

_MAX_KEPT = 16  # answers, of about 100 kB each

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
    if (event.target.type === 'radio') {
        const chosen = [...element.querySelectorAll('input[type=radio]:checked')];
        trigger('select', {choices: chosen.map(radio => Number(radio.value))});
    }
});
"""
_FADE_HEAT_MAP = """
element.addEventListener('input', event => {
    const figure = event.target.closest('.heat-map');
    const overlay = figure && figure.querySelector('.overlay');
    if (event.target.type === 'range' && overlay) overlay.style.opacity = event.target.value / 100;
});
"""

# A browser would show an image that cannot be read as broken.
_REMOVE_BAD_IMAGE = """
(predictions) => predictions.includes('role="alert"') ? null : {__type__: 'update'}
"""


@dataclass(frozen=True)
class OneImageTab:
    """Event handlers of the tab; `build` adds its components to the page.

    Attributes:
        classifiers: The models.
        examples: Example images to try; the page opens with the first one.
    """

    classifiers: Sequence[Classifier]
    examples: Sequence[Path]

    def example(self, event: gr.EventData) -> str:
        """Return the path of the clicked example."""
        return str(self.examples[event.index])

    def classify(self, path: str | None) -> tuple[Any, Any]:
        """Return the most likely classes and their heat maps, as HTML."""
        if path is None:  # keep the message about an image that was removed
            return gr.skip(), gr.skip()
        try:
            return self._answers(path)
        except ImageError as error:
            return error_view(str(error)), ""

    def select(self, path: str | None, event: gr.EventData) -> str:
        """Return the heat map of the selected class of each model, as HTML."""
        choices = event.choices
        if path is None or not self._are_valid(choices):
            return ""
        try:
            image = open_image(path)
        except ImageError as error:  # deleted since, for example
            return error_view(str(error))
        return heat_maps_view(
            [
                self._heat_map(classifier, classifier.pixels(image), index)
                for classifier, index in zip(self.classifiers, choices, strict=True)
            ]
        )

    def predict(self, image: str | None, model: str | None = None) -> list[dict[str, str | float]]:
        """Return the five most likely classes in the format of transformers' pipeline.

        Args:
            image: Path of the image.
            model: Title of the model; None for the first.

        Raises:
            gr.Error: If there is no such model, no image, or it cannot be read.
        """
        if image is None:
            raise gr.Error("Please upload an image.", print_exception=False)
        named = {classifier.title: classifier for classifier in self.classifiers}
        classifier = named.get(model) if model else self.classifiers[0]
        if classifier is None:
            known = ", ".join(named)
            raise gr.Error(f"Please name one of these models: {known}.", print_exception=False)
        try:
            predictions = classifier.predict(open_image(image))
        except ImageError as error:
            raise gr.Error(str(error), print_exception=False) from None
        return [
            {"label": prediction.label, "score": prediction.score} for prediction in predictions
        ]

    def build(self) -> None:
        """Add the components to the page and connect their events."""
        gr.set_static_paths(list(self.examples))  # allow serving them from their folder
        first = str(self.examples[0]) if self.examples else None
        answers, heat_maps = self.classify(first) if first else (EMPTY, "")
        with gr.Row(elem_classes="columns"):
            with gr.Column():
                image = _image_input("image", first)
                shelf = gr.HTML(examples_view(self.examples), js_on_load=_CLICK_EXAMPLE)
            with gr.Column():
                predictions = gr.HTML(answers, js_on_load=_SELECT_CLASS)
                heat_map = gr.HTML(heat_maps, js_on_load=_FADE_HEAT_MAP)
        hidden = {"api_visibility": "private", "trigger_mode": "always_last"} | QUEUE
        shelf.click(self.example, None, image, show_progress="hidden", **hidden)
        classified = image.change(self.classify, image, [predictions, heat_map], **hidden)
        # In the browser only: an update by the server would replace the component by a plain one.
        classified.then(None, predictions, image, js=_REMOVE_BAD_IMAGE)
        image.clear(lambda: (EMPTY, ""), None, [predictions, heat_map], **hidden)
        predictions.select(self.select, image, heat_map, **hidden)
        self._build_api()

    def _build_api(self) -> None:
        """Add `/predict`, with inputs of its own: the page's image would become its default."""
        titles = [classifier.title for classifier in self.classifiers]
        gr.on(
            [],
            self.predict,
            [
                _image_input("api-image", visible=False),
                gr.Dropdown(
                    titles,
                    value=titles[0],
                    label="model",
                    visible=False,
                    allow_custom_value=True,  # `predict` checks it, and says what is allowed
                ),
            ],
            gr.JSON(label="classes", visible=False),
            api_name="predict",
            api_description="Return the five most likely classes of an image, as "
            "transformers' image-classification pipeline does. Takes files, not URLs.",
            **QUEUE,
        )

    @cached_property
    def _answers(self) -> Callable[[str], tuple[str, str]]:
        """A function from the path of an image to classes and heat maps, as HTML.

        Gradio may report one change twice, and visitors try the same examples. Paths contain a hash
        of the content, so an answer can be kept.
        """

        @lru_cache(maxsize=_MAX_KEPT)
        def answers(path: str) -> tuple[str, str]:
            start = time.perf_counter()
            image = open_image(path)
            opening = time.perf_counter() - start
            timed, figures = [], []
            for classifier in self.classifiers:
                start = time.perf_counter()
                pixels = classifier.pixels(image)
                answer = classifier.answer(pixels)
                milliseconds = 1000 * (opening + time.perf_counter() - start)
                timed.append(_timed(classifier, answer, milliseconds))
                figures.append(self._heat_map(classifier, pixels, answer.predictions[0].index))
            return answers_view(timed), heat_maps_view(figures)

        return answers

    def _are_valid(self, choices: Any) -> bool:
        """Return whether a client sent one class index per model."""
        return (
            isinstance(choices, list)
            and len(choices) == len(self.classifiers)
            and all(
                isinstance(index, int) and 0 <= index < classifier.num_classes
                for index, classifier in zip(choices, self.classifiers, strict=True)
            )
        )

    def _heat_map(self, classifier: Classifier, pixels: torch.Tensor, index: int) -> str:
        """Return the heat map of one class of a model, as HTML."""
        crop = classifier.visible_crop(pixels)
        heat_map = classifier.heat_map(pixels, index, crop.size)
        title = classifier.title if len(self.classifiers) > 1 else ""
        return heat_map_view(classifier.names[index], crop, heat_map, title)


def _timed(classifier: Classifier, answer: Answer, milliseconds: float) -> Timed:
    """Return an answer with the facts about its model that the page shows."""
    calibration = classifier.calibration
    rate = calibration.false_alarm_rate if calibration else None
    return Timed(classifier.title, classifier.size, answer, milliseconds, rate)


def _image_input(elem_id: str, value: str | None = None, *, visible: bool = True) -> gr.Image:
    """Return a gr.Image that passes on the path of the uploaded file.

    By default gr.Image opens the file first and shows only "Error" if it is damaged.

    Args:
        elem_id: Its id in the page.
        value: Path of the image that it begins with.
        visible: Whether it is shown.
    """
    image = gr.Image(
        value,
        type="filepath",
        label="Image",
        sources=["upload", "webcam", "clipboard"],
        height=360,
        placeholder="Drop, paste or choose an image",
        elem_id=elem_id,
        visible=visible,
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
