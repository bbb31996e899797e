"""Fixed texts of model cards; a test runs the snippets."""

from __future__ import annotations

from typing import Literal

Format = Literal["transformers", "torchvision", "onnx"]

HERE = 'model="."'
"""The part of a snippet that names the model; `push` replaces it with the Hub id."""

FROM_HERE = ", from within this folder, or with the model's Hub id instead of the dot"
"""Explains `HERE`; `push` removes it."""

LOADING = {
    "transformers": f"With `transformers` alone{FROM_HERE}:",
    "torchvision": "With `torchvision` and `safetensors`, from within this folder:",
    "onnx": "With `onnxruntime`, from within this folder; `transformers` preprocesses the image:",
}

SNIPPETS = {
    "transformers": """\
from transformers import pipeline

classify = pipeline("image-classification", model=".")
print(classify("image.jpg"))""",
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
image = prepare(ImageOps.exif_transpose(Image.open("image.jpg")).convert("RGB"))
print(labels[str(model(image[None]).argmax().item())])""",
    "onnx": """\
import json
from pathlib import Path

import onnxruntime
from PIL import Image, ImageOps
from transformers import AutoImageProcessor

labels = json.loads(Path("config.json").read_text())["id2label"]
prepare = AutoImageProcessor.from_pretrained(".")
image = ImageOps.exif_transpose(Image.open("image.jpg")).convert("RGB")
inputs = prepare(image, return_tensors="np")
session = onnxruntime.InferenceSession("onnx/model.onnx")
[logits] = session.run(["logits"], {"pixel_values": inputs["pixel_values"]})
print(labels[str(logits.argmax())])""",
}

LIMITS = """\
The model predicts one of its classes for any image, even if the image shows none of them, and its
probabilities may be wrong. It is not intended or tested for decisions about people. Its accuracy on
images unlike those it was evaluated on is unknown."""

IMAGENET_LIMITS = """

ImageNet's images come from the web, most of them from few countries ([Shankar et
al.](https://arxiv.org/abs/1711.08536)). Some labels are wrong, and many images show more than the
one object of their label ([Beyer et al.](https://arxiv.org/abs/2006.07159)). Its terms allow
research and education, no commercial use."""
