"""Fixed texts of model cards: snippets, which a test runs, limits and citations."""

from __future__ import annotations

import re
from typing import Literal

Format = Literal["transformers", "torchvision", "onnx"]

HERE = ('model="."', 'model_id = "."')
"""The parts of the snippets that name the model; `push` replaces the dot with the Hub id."""

FROM_HERE = ", from within this folder, or with the model's Hub id instead of the dot"
"""Explains `HERE`; `push` removes it."""

_CLASSIFY, _FEATURES, _EMBEDDING, _ONNX = "Classify", "Feature maps", "Embedding", "ONNX"
_EXPLAINED = {
    _FEATURES: "The outputs of the stages, (images, channels, height, width):",
    _EMBEDDING: (
        "The mean of the last feature map, one vector for each image. Images that look alike have "
        "similar vectors. Continued from above:"
    ),
    _ONNX: "For `onnxruntime`; needs `onnx`, `onnxscript` and `onnxruntime`. Continued from above:",
}
_LOADING = {
    "transformers": f"With `transformers` alone{FROM_HERE}:",
    "torchvision": "With `torchvision` and `safetensors`, from within this folder:",
    "onnx": (
        "With `onnxruntime`, from within this folder; `transformers` preprocesses the image. The "
        "graph\ncomputes logits only; for feature maps and embeddings, use an export for "
        "`transformers`."
    ),
}

_SNIPPETS: dict[Format, dict[str, str]] = {
    "transformers": {
        _CLASSIFY: """\
from transformers import pipeline

classify = pipeline("image-classification", model=".")
print(classify("image.jpg"))""",
        _FEATURES: """\
import torch
from transformers import AutoImageProcessor, AutoModelForImageClassification
from transformers.image_utils import load_image

model_id = "."
processor = AutoImageProcessor.from_pretrained(model_id)
model = AutoModelForImageClassification.from_pretrained(model_id, dtype=torch.float32)
inputs = processor(load_image("image.jpg"), return_tensors="pt")
with torch.inference_mode():
    stem, *stages = model(**inputs, output_hidden_states=True).hidden_states
print([tuple(features.shape) for features in stages])""",
        _EMBEDDING: """\
with torch.inference_mode():
    embedding = model.base_model(**inputs).pooler_output.flatten()
print(embedding.shape)""",
        _ONNX: """\
import onnxruntime

pixels = inputs["pixel_values"]
names = {"input_names": ["pixel_values"], "output_names": ["logits"]}
torch.onnx.export(model, (pixels,), "model.onnx", **names)
session = onnxruntime.InferenceSession("model.onnx")
[logits] = session.run(["logits"], {"pixel_values": pixels.numpy()})
print(model.config.id2label[logits.argmax()])""",
    },
    "torchvision": {
        _CLASSIFY: """\
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
        _FEATURES: """\
from torchvision.models.feature_extraction import create_feature_extractor

extract = create_feature_extractor(model, ["layer1", "layer2", "layer3", "layer4", "avgpool"])
with torch.inference_mode():
    *stages, pooled = extract(image[None]).values()
print([tuple(features.shape) for features in stages])""",
        _EMBEDDING: """\
embedding = pooled.flatten()
print(embedding.shape)""",
        _ONNX: """\
import onnxruntime

names = {"input_names": ["pixel_values"], "output_names": ["logits"]}
torch.onnx.export(model, (image[None],), "model.onnx", **names)
session = onnxruntime.InferenceSession("model.onnx")
[logits] = session.run(["logits"], {"pixel_values": image[None].numpy()})
print(labels[str(logits.argmax())])""",
    },
    "onnx": {
        _CLASSIFY: """\
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
    },
}


def usage(form: Format) -> str:
    """Return how to use an export of a format: snippets under headings."""
    parts = [_LOADING[form]]
    for title, snippet in _SNIPPETS[form].items():
        explained = f"{_EXPLAINED[title]}\n\n" if title in _EXPLAINED else ""
        parts.append(f"### {title}\n\n{explained}```python\n{snippet}\n```")
    return "\n\n".join(parts)


LIMITS = """\
The model predicts one of its classes for any image, even if the image shows none of them, and its
probabilities may be wrong. It is not intended or tested for decisions about people. Its accuracy on
images unlike those it was evaluated on is unknown."""

IMAGENET_LIMITS = """

ImageNet's images come from the web, most of them from few countries ([Shankar et
al.](https://arxiv.org/abs/1711.08536)). Some labels are wrong, and many images show more than the
one object of their label ([Beyer et al.](https://arxiv.org/abs/2006.07159)). Its terms allow
research and education, no commercial use."""

_RESNET = """\
@inproceedings{he2016deep,
  title = {Deep Residual Learning for Image Recognition},
  author = {He, Kaiming and Zhang, Xiangyu and Ren, Shaoqing and Sun, Jian},
  booktitle = {IEEE Conference on Computer Vision and Pattern Recognition},
  pages = {770--778},
  year = {2016},
  doi = {10.1109/CVPR.2016.90}
}"""
_IMAGENET = """\
@article{russakovsky2015imagenet,
  title = {{ImageNet} Large Scale Visual Recognition Challenge},
  author = {Russakovsky, Olga and Deng, Jia and Su, Hao and Krause, Jonathan and
    Satheesh, Sanjeev and Ma, Sean and Huang, Zhiheng and Karpathy, Andrej and
    Khosla, Aditya and Bernstein, Michael and Berg, Alexander C. and Fei-Fei, Li},
  journal = {International Journal of Computer Vision},
  volume = {115},
  number = {3},
  pages = {211--252},
  year = {2015},
  doi = {10.1007/s11263-015-0816-y}
}"""
CITATIONS = (_RESNET, _IMAGENET)
"""BibTeX of ResNet's and ImageNet's papers."""

CITED_NOTE = "  note = {Exported by imagenet_rn50}"
"""A line of `model_citation`; `push` adds the model's address in front of it."""


def model_citation(name: str) -> str:
    """Return the BibTeX of a model."""
    title = re.sub(r"([_&%#$])", r"\\\1", name)
    return f"@misc{{model,\n  title = {{{title}}},\n{CITED_NOTE}\n}}"


def citation(name: str, *, is_imagenet1k: bool) -> str:
    """Return the BibTeX of a model, of ResNet and of ImageNet-1k, in a code block."""
    entries = [model_citation(name), _RESNET, *([_IMAGENET] if is_imagenet1k else [])]
    return "```bibtex\n" + "\n".join(entries) + "\n```"
