"""The names of the files in an exported folder."""

from pathlib import PurePosixPath

from imagenet_rn50.classes import FILE_NAME

CARD = "README.md"
CONFIG = "config.json"
PROCESSOR = "preprocessor_config.json"

TRANSFORMERS_WEIGHTS = "model.safetensors"
TORCHVISION_WEIGHTS = "resnet50.safetensors"
ONNX_FOLDER = "onnx"
ONNX_MODELS = {
    name: PurePosixPath(ONNX_FOLDER, file)
    for name, file in {
        "fp32": "model.onnx",
        "fp16": "model_fp16.onnx",
        "int8": "model_quantized.onnx",
    }.items()
}
"""The models by precision, named as transformers.js expects."""
ONNX_MODEL = str(ONNX_MODELS["fp32"])
WEB_METRICS = PurePosixPath(ONNX_FOLDER, "metrics.json")
"""Accuracy of the ONNX models."""
WEIGHTS = (TRANSFORMERS_WEIGHTS, TORCHVISION_WEIGHTS, ONNX_MODEL)

METRICS = "metrics.jsonl"
"""Metrics of the training."""
EVALUATION = "metrics.json"
"""Evaluation of the exported model."""
RECIPE = "recipe.yaml"
SHARDS = "shards.json"
"""Identity of the shards that it was trained on."""
CLASSES = FILE_NAME
ORIGIN = "origin.json"
"""Name, sha256 and architecture of pretrained weights."""
ASSUMED_ARCHITECTURE = "assumed"
"""Value of `architecture` in it if none is declared."""

STATS = "model_stats.json"
"""Number of parameters; multiply-adds and activations of an image."""

EVAL_RESULTS = ".eval_results/imagenet-1k.yaml"
"""Results for the Hub's leaderboard of ImageNet-1k."""
PLOTS = "plots"
EXAMPLES = "examples"
"""Example images for the Space; an export keeps those that people added."""
EXAMPLES_SOURCE = "examples.json"
"""Where the exported example images come from."""
CALIBRATION = "calibration.json"
"""The threshold by which the Space recognises images that are unlike those that the model saw."""

REPLACED = (
    *(*WEIGHTS, f"{ONNX_FOLDER}/*", METRICS, EVALUATION, RECIPE, SHARDS, ORIGIN, CLASSES),
    *(EVAL_RESULTS, EXAMPLES_SOURCE, CALIBRATION),
)
"""Files that some exports write and others do not; a push removes stale ones."""


def is_of_export(name: str) -> bool:
    """Return whether a path, relative to an exported folder, is a file of an export."""
    folder, _, _ = name.rpartition("/")
    if folder in {PLOTS, EXAMPLES}:
        return folder == EXAMPLES or name.endswith(".png")
    onnx = {str(path) for path in (*ONNX_MODELS.values(), WEB_METRICS)}
    return name in {CARD, CONFIG, PROCESSOR, STATS, *REPLACED, *onnx}
