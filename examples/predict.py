r"""Classifies pictures with an exported model, and nothing but transformers.

python examples/predict.py --model runs/demo/exported PICTURE...
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a folder is given: nothing is to be fetched

from transformers import logging, pipeline


def main() -> None:
    """Prints the most likely classes of each picture, a line a picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="exported folder")
    parser.add_argument("--top", type=int, default=3, help="classes to show (default: 3)")
    parser.add_argument("pictures", nargs="+", type=Path)
    arguments = parser.parse_args()

    logging.disable_progress_bar()
    model = str(arguments.model)
    classify = pipeline("image-classification", model=model, trust_remote_code=False)
    for picture in arguments.pictures:
        answers = classify(str(picture), top_k=arguments.top)
        named = "   ".join(f"{answer['score']:6.1%} {answer['label']}" for answer in answers)
        print(f"{picture.name}:  {named}")


if __name__ == "__main__":
    main()
