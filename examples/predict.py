r"""Classify images with an exported model, using only transformers.

python examples/predict.py --model runs/demo/exported IMAGE...
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # the model is a local folder

from PIL import Image
from transformers import logging, pipeline
from transformers.image_utils import load_image

_MAX_ASPECT_RATIO = 32


def main() -> None:
    """Print the most likely classes of each image, one line per image.

    Raises:
        SystemExit: With code 2 if the model or any image cannot be read; other images are printed.
    """
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # no traceback after `| head`
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="folder of the exported model")
    parser.add_argument("--top", type=int, default=3, help="classes per image (default: 3)")
    parser.add_argument("images", nargs="+", type=Path)
    arguments = parser.parse_args()
    if arguments.top < 1:
        parser.error(f"--top must be at least 1, got {arguments.top}")

    if not arguments.model.is_dir():
        parser.error(f"--model must be a folder, {arguments.model} does not exist or is a file")

    logging.disable_progress_bar()
    model = str(arguments.model)
    try:
        classify = pipeline("image-classification", model=model, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        parser.error(f"--model {model} cannot be loaded: {_first_line(error)}")
    num_unreadable = 0
    for path in arguments.images:
        try:
            image = open_image(path)
            image.load()
        except Exception as error:  # Pillow raises anything on damaged files
            num_unreadable += 1
            print(f"error: {path} cannot be read: {_first_line(error)}", file=sys.stderr)
            continue
        predictions = classify(image, top_k=arguments.top)
        text = "   ".join(
            f"{prediction['score']:6.1%} {prediction['label']}" for prediction in predictions
        )
        print(f"{path.name}:  {text}")
    if num_unreadable:
        raise SystemExit(2)


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def open_image(path: Path) -> Image.Image:
    """Open an image upright, as the pipeline does, and crop very elongated ones to their center.

    The processor resizes the short side before it crops the center: 1 x 60,000 px would become 11.8
    GB. Cropping whole squares from both ends does not move the center crop.
    """
    image = load_image(str(path))
    short, long = sorted(image.size)
    margin = short * max(0, (long // short - _MAX_ASPECT_RATIO) // 2)
    x, y = (margin, 0) if image.width > image.height else (0, margin)
    return image.crop((x, y, image.width - x, image.height - y)) if margin else image


if __name__ == "__main__":
    main()
