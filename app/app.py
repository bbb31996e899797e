"""A Gradio Space: upload a picture, see the five most likely classes.

MODEL_ID names an exported folder or a Hub id.
"""

from __future__ import annotations

import os
import sys

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import gradio as gr
import torch
from PIL import Image, ImageOps
from transformers import AutoImageProcessor, AutoModelForImageClassification

NUM_CLASSES_SHOWN = 5


class Classifier:
    """A model and its processor, loaded once.

    Args:
        model_id: An exported folder or a Hub id.
    """

    def __init__(self, model_id: str) -> None:
        self._processor = AutoImageProcessor.from_pretrained(model_id)
        self._model = AutoModelForImageClassification.from_pretrained(model_id).eval()

    @torch.inference_mode()
    def __call__(self, picture: Image.Image | None) -> dict[str, float]:
        """Returns the probability, in [0, 1], of the most likely classes by name.

        Args:
            picture: What was uploaded, in any mode.

        Raises:
            gr.Error: When there is no picture.
        """
        if picture is None:
            raise gr.Error("Please choose a picture first.")
        upright = ImageOps.exif_transpose(picture).convert("RGB")
        inputs = self._processor(upright, return_tensors="pt")
        probabilities = self._model(**inputs).logits.softmax(-1)[0]
        top = probabilities.topk(min(NUM_CLASSES_SHOWN, len(probabilities)))
        names = [self._model.config.id2label[index] for index in top.indices.tolist()]
        return dict(zip(names, top.values.tolist(), strict=True))


def build(model_id: str) -> gr.Interface:
    """Builds the page for one model."""
    return gr.Interface(
        fn=Classifier(model_id),
        inputs=gr.Image(type="pil", label="Picture"),
        outputs=gr.Label(num_top_classes=NUM_CLASSES_SHOWN, label="Most likely classes"),
        title="What is in this picture?",
        description=f"The five most likely classes, by the model `{model_id}`.",
        flagging_mode="never",
        api_name="predict",
    )


def main() -> None:
    """Serves the page."""
    model_id = os.environ.get("MODEL_ID")
    if not model_id:
        sys.exit("error: MODEL_ID is not set\n  fix:      MODEL_ID=folder-or-Hub-id python app.py")
    build(model_id).queue(max_size=32).launch(max_file_size="10mb")


if __name__ == "__main__":
    main()
