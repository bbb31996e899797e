"""Entry point of the Space: serve the models given by MODEL_ID or by model.json."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from space.limits import UPLOAD_SECONDS, limit_malloc_caching
from space.model import ModelError, models_from_settings
from space.page import build_page, build_setup_page, launch
from space.uploads import keep_removing_abandoned_uploads

MODEL_FILE = Path(__file__).with_name("model.json")


def main() -> None:
    """Serve the page, or setup instructions if there is no usable model."""
    logging.basicConfig(level=logging.WARNING)
    limit_malloc_caching()
    keep_removing_abandoned_uploads(UPLOAD_SECONDS)
    try:
        page = build_page(models_from_settings(os.environ, MODEL_FILE))
    except ModelError as error:
        logging.getLogger("space").warning("%s", error, exc_info=error.__cause__)
        page = build_setup_page(error)
    launch(page)


if __name__ == "__main__":
    main()
