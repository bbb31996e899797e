"""The names of the files in an exported folder."""

from imagenet_rn50.classes import FILE_NAME

CARD = "README.md"
CONFIG = "config.json"
PROCESSOR = "preprocessor_config.json"

TRANSFORMERS_WEIGHTS = "model.safetensors"
TORCHVISION_WEIGHTS = "resnet50.safetensors"
ONNX_MODEL = "model.onnx"
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
"""Example images for the Space; an export keeps them."""

REPLACED = (*WEIGHTS, METRICS, EVALUATION, RECIPE, SHARDS, ORIGIN, CLASSES, EVAL_RESULTS)
"""Files that some exports write and others do not; a push removes stale ones."""


def is_of_export(name: str) -> bool:
    """Return whether a path, relative to an exported folder, is a file of an export."""
    folder, _, _ = name.rpartition("/")
    if folder in {PLOTS, EXAMPLES}:
        return folder == EXAMPLES or name.endswith(".png")
    return name in {CARD, CONFIG, PROCESSOR, STATS, *REPLACED}
