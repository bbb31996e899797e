"""The Space: which model is in it is said by MODEL_ID, or by the model.json pushed with it."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from space.limits import give_back_freed_memory
from space.model import ModelError, ModelId
from space.page import build_no_model_page, build_page, launch

PUSHED = Path(__file__).with_name("model.json")


def main() -> None:
    """Serves the page; without a usable model, one that says what to set."""
    logging.basicConfig(level=logging.WARNING)
    give_back_freed_memory()
    try:
        page = build_page(ModelId.chosen(os.environ, PUSHED))
    except ModelError as reason:
        logging.getLogger("space").warning("%s", reason, exc_info=reason.__cause__)
        page = build_no_model_page(reason)
    launch(page)


if __name__ == "__main__":
    main()
