"""A contact sheet: random samples with their class names, to be looked at."""

from __future__ import annotations

from collections.abc import Sequence
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
from imagenet_rn50.utils.formatting import quoted

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
    names = class_names(folder, chosen)
    indices = permutation(chosen.num_samples, seed=seed, stream=0)[:num_samples].tolist()
    num_columns = min(len(indices), max(1, round(len(indices) ** 0.5 * 1.3)))
    captions = [(names[int(chosen.labels[index])], chosen.key_of(index)) for index in indices]
    tiles = [_tile(store, chosen, index) for index in indices]
    sheet = draw_sheet(tiles, captions, num_columns=num_columns, tile=_TILE)
    with atomic_file(out) as file:
        sheet.save(file, format="PNG")
    return [chosen.key_of(index) for index in indices]


def class_names(folder: Path, split: Split) -> Sequence[str]:
    """Return the name of each class of a split; `class 7` where the shards have no names."""
    if (folder / CLASSES_NAME).is_file():
        return Classes.load(folder).labels
    return [f"class {label}" for label in range(int(split.labels.max(initial=-1)) + 1)]


def draw_sheet(
    tiles: Sequence[Image.Image],
    captions: Sequence[Sequence[str]],
    *,
    num_columns: int,
    tile: int,
) -> Image.Image:
    """Draw images in rows, each centered in a tile above the lines of its caption.

    Args:
        tiles: The images, at most `tile` px wide and high.
        captions: Lines of text of each image, equally many.
        num_columns: Images in a row.
        tile: Side of a tile, px.
    """
    num_rows = -(-len(tiles) // num_columns)
    width, height = tile + _MARGIN, tile + len(captions[0]) * _LINE + _MARGIN
    size = (num_columns * width + _MARGIN, num_rows * height + _MARGIN)
    sheet = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(sheet), _font()
    for place, (image, lines) in enumerate(zip(tiles, captions, strict=True)):
        row, column = divmod(place, num_columns)
        left, top = _MARGIN + column * width, _MARGIN + row * height
        sheet.paste(image, (left + (tile - image.width) // 2, top + (tile - image.height) // 2))
        for line, text in enumerate(lines):
            shown = _fitting(text, draw, font, tile)
            draw.text((left, top + tile + line * _LINE), shown, fill="black", font=font)
    return sheet


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
            fix=f"python shard_imagenet.py verify --shards {quoted(store.folder)}",
        ) from None
    scale = min(_TILE / image.width, _TILE / image.height)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.BICUBIC)


def _fitting(text: str, draw: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont, width: int) -> str:
    """Cut a text to a width, px."""
    if draw.textlength(text, font=font) <= width:
        return text
    while text and draw.textlength(text + "...", font=font) > width:
        text = text[:-1]
    return text.rstrip() + "..."
