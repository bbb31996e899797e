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
"""What was measured while the model was trained."""
EVALUATION = "metrics.json"
"""What was measured of the model as it is published."""
RECIPE = "recipe.yaml"
SHARDS = "shards.json"
"""Which shards it was trained on."""
CLASSES = FILE_NAME
ORIGIN = "origin.json"
"""Name, sha256 and architecture of weights that were not trained here."""
ASSUMED_ARCHITECTURE = "assumed"
"""There, where nothing declares their architecture."""

PLOTS = "plots"
EXAMPLES = "examples"
"""Pictures for the Space to offer; people put them there, and an export leaves them."""

REPLACED = (*WEIGHTS, METRICS, EVALUATION, RECIPE, SHARDS, ORIGIN, CLASSES)
"""What one export may write and another not."""


def is_of_export(name: str) -> bool:
    """Return whether a file of an exported folder, by its path there, is one that belongs there."""
    folder, _, _ = name.rpartition("/")
    if folder:
        return (folder == PLOTS and name.endswith(".png")) or folder == EXAMPLES
    return name in {CARD, CONFIG, PROCESSOR, *REPLACED}
