"""The names of the files in an exported folder."""

CARD = "README.md"
CONFIG = "config.json"
PROCESSOR = "preprocessor_config.json"

TRANSFORMERS_WEIGHTS = "model.safetensors"
TORCHVISION_WEIGHTS = "resnet50.safetensors"
ONNX_MODEL = "model.onnx"

METRICS = "metrics.jsonl"
"""What was measured while the model was trained."""
EVALUATION = "metrics.json"
"""What was measured of the model as it is published."""
RECIPE = "recipe.yaml"
SHARDS = "shards.json"
"""Which shards it was trained on."""
ORIGIN = "origin.json"
"""Name and sha256 of weights that were not trained here."""
