"""The first tab: a picture in, the five likeliest classes and a heat map out; and `/predict`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import gradio as gr
from gradio.data_classes import ImageData
from PIL import Image

from space.limits import QUEUE
from space.model import Classifier
from space.pictures import PictureError, open_picture
from space.uploads import refuse_addresses
from space.views import WAITING, examples_view, guesses_view, heat_view, problem_view

# Each runs once in the browser; `element` is the component that it belongs to.
_CLICK_EXAMPLE = """
element.addEventListener('click', event => {
    const example = event.target.closest('.example');
    if (example) trigger('click', {index: Number(example.dataset.index)});
});
"""
_CHOOSE_GUESS = """
element.setAttribute('aria-live', 'polite');
element.addEventListener('change', event => {
    if (event.target.name === 'guess') trigger('select', {index: Number(event.target.value)});
});
"""
_FADE_HEAT = """
element.addEventListener('input', event => {
    const glow = element.querySelector('.glow');
    if (event.target.type === 'range' && glow) glow.style.opacity = event.target.value / 100;
});
"""


@dataclass(frozen=True)
class OnePicture:
    """What happens in the tab; `lay_out` puts it on the page.

    Attributes:
        classifier: The model.
        examples: Pictures to try.
    """

    classifier: Classifier
    examples: Sequence[Path]

    def example(self, event: gr.EventData) -> str:
        """Returns the example that was clicked."""
        return str(self.examples[event.index])

    def answer(self, path: str | None) -> tuple[str, str]:
        """Returns the five likeliest classes, and the heat map of the first, as HTML."""
        if path is None:
            return WAITING, ""
        began = time.perf_counter()
        try:
            picture = open_picture(path)
        except PictureError as problem:
            return problem_view(str(problem)), ""
        guesses = self.classifier.guess(picture)
        milliseconds = 1000 * (time.perf_counter() - began)
        return guesses_view(guesses, milliseconds), self._heat(picture, guesses[0].index)

    def choose(self, path: str | None, event: gr.EventData) -> str:
        """Returns the heat map of the class that was clicked, as HTML."""
        if path is None or event.index not in range(self.classifier.num_classes):
            return ""
        try:
            return self._heat(open_picture(path), event.index)
        except PictureError as problem:  # deleted meanwhile, say
            return problem_view(str(problem))

    def predict(self, picture: str | None) -> list[dict[str, str | float]]:
        """Returns the five likeliest classes, as transformers' pipeline does.

        Raises:
            gr.Error: When there is no picture, or none that can be read.
        """
        if picture is None:
            raise gr.Error("Please give a picture.", print_exception=False)
        try:
            guesses = self.classifier.guess(open_picture(picture))
        except PictureError as problem:
            raise gr.Error(str(problem), print_exception=False) from None
        return [{"label": guess.label, "score": guess.score} for guess in guesses]

    def lay_out(self) -> None:
        """Puts the components on the page, and wires them."""
        gr.set_static_paths(list(self.examples))  # they may be served from where they are
        with gr.Row(elem_classes="columns"):
            with gr.Column():
                picture = _picture_input()
                shelf = gr.HTML(examples_view(self.examples), js_on_load=_CLICK_EXAMPLE)
            with gr.Column():
                guesses = gr.HTML(WAITING, js_on_load=_CHOOSE_GUESS)
                heat = gr.HTML(js_on_load=_FADE_HEAT)
        hidden = {"api_visibility": "private", "trigger_mode": "always_last"} | QUEUE
        shelf.click(self.example, None, picture, show_progress="hidden", **hidden)
        picture.change(self.answer, picture, [guesses, heat], **hidden)
        guesses.select(self.choose, picture, heat, **hidden)
        gr.on(
            [],
            self.predict,
            picture,
            gr.JSON(label="classes", visible=False),
            api_name="predict",
            api_description="The five likeliest classes of a picture, as transformers' "
            "image-classification pipeline gives them. It takes files, not addresses of files.",
            **QUEUE,
        )

    def _heat(self, picture: Image.Image, index: int) -> str:
        seen = self.classifier.seen(picture)
        heat = self.classifier.heat(picture, index, seen.size)
        return heat_view(self.classifier.name(index), seen, heat)


def _picture_input() -> gr.Image:
    """Returns a gr.Image that hands on the file as it was uploaded.

    gr.Image itself would open it first, and answer a damaged one with "Error".
    """
    picture = gr.Image(
        type="filepath",
        label="Picture",
        sources=["upload", "webcam", "clipboard"],
        height=360,
        placeholder="Drop, paste or choose a picture",
        elem_id="picture",
    )

    def example() -> dict[str, object]:  # in the API's documentation; Gradio's is an address
        return {"path": "picture.jpg", "meta": {"_type": "gradio.FileData"}}

    # What the schema says of `url` stays, false as it is: by it Gradio's clients know a file.
    described = picture.api_info() | {"additional_description": "A file, not an address."}

    def path_of(file: ImageData | None) -> str | None:
        return None if file is None else file.path

    refuse_addresses(picture)
    picture.example_payload = example  # type: ignore[method-assign]
    picture.api_info = lambda: described  # type: ignore[method-assign]
    picture.preprocess = path_of  # type: ignore[assignment, method-assign]
    return picture
