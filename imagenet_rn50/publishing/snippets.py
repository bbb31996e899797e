"""What cards say in the same words each time; a test runs the snippets that stand here."""

from __future__ import annotations

from typing import Literal

Format = Literal["transformers", "torchvision", "onnx"]

HERE = 'model="."'
"""Where a snippet names the model; publishing puts its Hub id there."""

FROM_HERE = ", from within this folder, or with the model's Hub id instead of the dot"
"""Said beside `HERE`, and no more where the snippet names the Hub id."""

LOADING = {
    "transformers": f"With `transformers` alone{FROM_HERE}:",
    "torchvision": "With `torchvision` and `safetensors`, from within this folder:",
    "onnx": "With `onnxruntime`, from within this folder; `transformers` prepares the picture:",
}

SNIPPETS = {
    "transformers": """\
from transformers import pipeline

classify = pipeline("image-classification", model=".")
print(classify("picture.jpg"))""",
    "torchvision": """\
import json
from pathlib import Path

import torch
from PIL import Image, ImageOps
from safetensors.torch import load_file
from torchvision.models import resnet50
from torchvision.transforms import v2

labels = json.loads(Path("config.json").read_text())["id2label"]
model = resnet50(num_classes=len(labels)).eval()
model.load_state_dict(load_file("resnet50.safetensors"))

p = json.loads(Path("preprocessor_config.json").read_text())
prepare = v2.Compose([
    v2.ToImage(),
    v2.Resize(p["size"]["shortest_edge"], p["resample"]),
    v2.CenterCrop(p["crop_size"]["height"]),
    v2.ToDtype(torch.float32, scale=True),
    v2.Normalize(p["image_mean"], p["image_std"]),
])
picture = prepare(ImageOps.exif_transpose(Image.open("picture.jpg")).convert("RGB"))
print(labels[str(model(picture[None]).argmax().item())])""",
    "onnx": """\
import json
from pathlib import Path

import onnxruntime
from PIL import Image, ImageOps
from transformers import AutoImageProcessor

labels = json.loads(Path("config.json").read_text())["id2label"]
prepare = AutoImageProcessor.from_pretrained(".")
picture = ImageOps.exif_transpose(Image.open("picture.jpg")).convert("RGB")
inputs = prepare(picture, return_tensors="np")
session = onnxruntime.InferenceSession("model.onnx")
[logits] = session.run(["logits"], {"pixel_values": inputs["pixel_values"]})
print(labels[str(logits.argmax())])""",
}

LIMITS = """\
The model names one of its classes for any picture, also for one that shows none of them, and its
probabilities are no measure of truth. It was neither tested nor meant for decisions about people.
How it does on other pictures than those it was evaluated on is not known until it is measured."""

IMAGENET_LIMITS = """

ImageNet's pictures come from the web, and most of them from few countries ([Shankar et
al.](https://arxiv.org/abs/1711.08536)). Some of its labels are wrong, and many pictures show more
than the one thing that they are labelled with ([Beyer et al.](https://arxiv.org/abs/2006.07159)).
Its terms allow research and education, no commercial use."""
