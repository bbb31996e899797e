"""A contact sheet: random samples with their class names, to be looked at."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from imagenet_rn50.classes import FILE_NAME as CLASSES_NAME
from imagenet_rn50.classes import Classes
from imagenet_rn50.shards.images import BadImageError, decode
from imagenet_rn50.shards.manifest import Manifest, Split
from imagenet_rn50.shards.plan import permutation
from imagenet_rn50.shards.store import ShardStore
from imagenet_rn50.utils.errors import InputError, require_at_least
from imagenet_rn50.utils.files import atomic_file, require_writable_file

_TILE = 192  # px an image may be wide and high
_LINE = 18  # px of a line of text
_MARGIN = 8  # px
_FONT_SIZE = 13  # px


def write_sheet(
    store: ShardStore, out: Path, *, split: str, num_samples: int, seed: int
) -> list[str]:
    """Draw random samples of a split into one PNG.

    Args:
        store: Where the shards are.
        out: The PNG to write.
        split: `train` or `validation`.
        num_samples: How many; fewer when the split has fewer.
        seed: Decides which.

    Returns:
        The keys of the samples, as they stand on the sheet.

    Raises:
        InputError: When there is no such split, an image cannot be decoded, or `out` cannot be
            written.
    """
    require_at_least("--num", num_samples, 1)
    require_at_least("--seed", seed, 0)
    require_writable_file(out)
    folder = store.folder
    chosen = Manifest.load(folder).split(split)
    labels = Classes.load(folder).labels if (folder / CLASSES_NAME).is_file() else None
    indices = permutation(chosen.num_samples, seed=seed, stream=0)[:num_samples].tolist()
    num_columns = min(len(indices), max(1, round(len(indices) ** 0.5 * 1.3)))
    num_rows = -(-len(indices) // num_columns)
    cell = (_TILE + _MARGIN, _TILE + 2 * _LINE + _MARGIN)
    size = (num_columns * cell[0] + _MARGIN, num_rows * cell[1] + _MARGIN)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    font = _font()
    for place, index in enumerate(indices):
        row, column = divmod(place, num_columns)
        corner = (_MARGIN + column * cell[0], _MARGIN + row * cell[1])
        image = _tile(store, chosen, index)
        left = corner[0] + (_TILE - image.width) // 2
        sheet.paste(image, (left, corner[1] + (_TILE - image.height) // 2))
        label = int(chosen.labels[index])
        name = labels[label] if labels else f"class {label}"
        for line, text in enumerate((name, chosen.key_of(index))):
            where = (corner[0], corner[1] + _TILE + line * _LINE)
            draw.text(where, _fitting(text, draw, font), fill="black", font=font)
    with atomic_file(out) as file:
        sheet.save(file, format="PNG")
    return [chosen.key_of(index) for index in indices]


def _font() -> ImageFont.FreeTypeFont:
    """Return DejaVu Sans, which matplotlib ships: Pillow's own font has only ASCII."""
    matplotlib = find_spec("matplotlib")  # importing it would take a second
    assert matplotlib is not None
    assert matplotlib.origin is not None
    path = Path(matplotlib.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"
    return ImageFont.truetype(str(path), _FONT_SIZE)


def _tile(store: ShardStore, split: Split, index: int) -> Image.Image:
    """Read one image and fit it into a tile."""
    shard = split.shards[split.shard_of(index)]
    try:
        with store.fetch(shard).open("rb") as file:
            file.seek(int(split.offsets[index]))
            content = file.read(int(split.lengths[index]))
        image = decode(content).convert("RGB")
    except (FileNotFoundError, BadImageError) as error:
        raise InputError(
            f"the sample {split.key_of(index)} in {shard.name} cannot be shown",
            found=str(error),
            fix=f"python shard_imagenet.py verify --shards {store.folder}",
        ) from None
    scale = min(_TILE / image.width, _TILE / image.height)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.BICUBIC)


def _fitting(text: str, draw: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont) -> str:
    """Cut a text to the width of a tile."""
    if draw.textlength(text, font=font) <= _TILE:
        return text
    while text and draw.textlength(text + "...", font=font) > _TILE:
        text = text[:-1]
    return text.rstrip() + "..."
