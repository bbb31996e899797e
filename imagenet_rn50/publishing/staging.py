"""What goes to the Hub, laid out as it will stand there.

The card names the model's Hub id in its snippet; the Space has the model in its metadata, and a
model.json that pins it to the model's commit.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from huggingface_hub import SpaceCard

from imagenet_rn50.errors import InputError
from imagenet_rn50.publishing.layout import CARD
from imagenet_rn50.publishing.wording import FROM_HERE, HERE

APP = Path(__file__).parents[2] / "app"
PINNED = "model.json"
"""In the Space: which model it shows, and the commit of it."""

_LEFT_OUT = ("__pycache__", ".")  # how names begin that stay here


def stage_model(folder: Path, hub_id: str, stage: Path) -> None:
    """Lays out what goes into the model's repository.

    Args:
        folder: Exported folder.
        hub_id: What its card calls it instead of "this folder".
        stage: New folder; large files are linked.
    """
    _link(folder, stage)
    card = (folder / CARD).read_text(encoding="utf-8")
    card = card.replace(FROM_HERE, "").replace(HERE, f'model="{hub_id}"')
    (stage / CARD).unlink()
    (stage / CARD).write_text(card, encoding="utf-8")


def stage_space(app: Path, hub_id: str, revision: str, stage: Path) -> None:
    """Lays out what goes into the Space's repository.

    Args:
        app: Folder of the Space.
        hub_id: The model that it shows.
        revision: The commit of it, 40 hexadecimal digits.
        stage: Folder; what stands there is replaced.

    Raises:
        InputError: When there is no such app.
    """
    if not (app / "app.py").is_file():
        raise InputError(
            f"there is no Space in {app}",
            expected="app.py, README.md, requirements.txt",
            fix="push from a checkout of the repository",
        )
    shutil.rmtree(stage, ignore_errors=True)
    _link(app, stage)
    card = SpaceCard((app / CARD).read_text(encoding="utf-8"))
    card.data["models"] = [hub_id]
    (stage / CARD).unlink()
    (stage / CARD).write_text(str(card), encoding="utf-8")
    pinned = {"model_id": hub_id, "revision": revision}
    (stage / PINNED).write_text(json.dumps(pinned, indent=2) + "\n", encoding="utf-8")


def _link(source: Path, stage: Path) -> None:
    """Puts links to all files of a folder into another one, hidden files left out."""
    for path in sorted(source.rglob("*")):
        name = path.relative_to(source)
        if path.is_file() and not any(part.startswith(_LEFT_OUT) for part in name.parts):
            (stage / name).parent.mkdir(parents=True, exist_ok=True)
            (stage / name).symlink_to(path.resolve())
