r"""Classifies pictures with an exported model, and nothing but transformers.

python examples/predict.py --model runs/demo/exported PICTURE...
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a folder is given: nothing is to be fetched

from PIL import Image
from transformers import logging, pipeline
from transformers.image_utils import load_image

_MAX_ASPECT_RATIO = 32


def main() -> None:
    """Prints the most likely classes of each picture, a line a picture.

    Raises:
        SystemExit: With code 2 when the model or a picture cannot be read; the others are printed.
    """
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends it without a traceback
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="exported folder")
    parser.add_argument("--top", type=int, default=3, help="classes to show (default: 3)")
    parser.add_argument("pictures", nargs="+", type=Path)
    arguments = parser.parse_args()
    if arguments.top < 1:
        parser.error(f"--top must be at least 1, got {arguments.top}")

    if not arguments.model.is_dir():
        parser.error(f"there is no folder {arguments.model} for --model")

    logging.disable_progress_bar()
    model = str(arguments.model)
    try:
        classify = pipeline("image-classification", model=model, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        parser.error(f"--model {model} cannot be loaded: {_first_line(error)}")
    num_unreadable = 0
    for path in arguments.pictures:
        try:
            picture = open_image(path)
            picture.load()
        except Exception as error:  # whatever a damaged file makes Pillow raise
            num_unreadable += 1
            print(f"error: {path} cannot be read: {_first_line(error)}", file=sys.stderr)
            continue
        answers = classify(picture, top_k=arguments.top)
        named = "   ".join(f"{answer['score']:6.1%} {answer['label']}" for answer in answers)
        print(f"{path.name}:  {named}")
    if num_unreadable:
        raise SystemExit(2)


def _first_line(error: Exception) -> str:
    """Return what an error says in one line."""
    return (str(error) or type(error).__name__).splitlines()[0]


def open_image(path: Path) -> Image.Image:
    """Opens an image as the pipeline does, upright; of a very elongated one, its center.

    The processor resizes the short side, then crops the center: of 1 x 60,000 px it would make 11.8
    GB. Squares that are cut off both ends equally leave the crop where it is.
    """
    image = load_image(str(path))
    short, long = sorted(image.size)
    cut_off = short * max(0, (long // short - _MAX_ASPECT_RATIO) // 2)
    x, y = (cut_off, 0) if image.width > image.height else (0, cut_off)
    return image.crop((x, y, image.width - x, image.height - y)) if cut_off else image


if __name__ == "__main__":
    main()
