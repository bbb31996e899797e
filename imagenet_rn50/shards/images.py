"""The final JPEG bytes of a sample: inspected, and repaired where a decoder would stumble.

`prepare` is the one place where they are made, in this order: look at the header, decode once,
write anew what is no RGB or gray JPEG or is damaged inside, drop a damaged EXIF segment, resize on
request, turn upright, add restart markers. What none of these touches is packed byte for byte.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from imagenet_rn50.jpeg.crop import suggested_interval, with_offset_table
from imagenet_rn50.jpeg.header import JpegError, JpegHeader, is_jpeg, read_header
from imagenet_rn50.jpeg.orientation import orientation_of, upright
from imagenet_rn50.shards.formats import describe, open_image, to_rgb
from imagenet_rn50.shards.lossless import JpegtranError, add_restart_markers, turn_upright
from imagenet_rn50.shards.plan import PackOptions

# A decoded image takes 3 bytes a pixel in every worker; a JPEG of a few KB can claim 65,535 px
# squared, that is 13 GB.
MAX_PIXELS = 100_000_000
RestartBlocks: TypeAlias = int | Literal["auto"]
_MCU_WIDTH = {"4:4:4": 8, "4:2:0": 16}  # px
_MAX_SIDE = 65_535  # px; JPEG's limit
REPAIR_QUALITY = 95
TURNED = "turned upright"


class BadImageError(ValueError):
    """The image cannot be used; the message is the reason."""


@dataclass(frozen=True)
class Prepared:
    """What is packed of an image.

    Args:
        jpeg: The final bytes.
        width: In pixels.
        height: In pixels.
        changes: What was done to it beyond what the options ask of every image, in words.
        converted_from: The format that the image had; None for a JPEG.
        orientation: How to turn it upright, by the metadata that it still has; 1 once packed.
    """

    jpeg: bytes
    width: int
    height: int
    changes: tuple[str, ...] = ()
    converted_from: str | None = None
    orientation: int = 1


def prepare(raw: bytes, options: PackOptions) -> Prepared:
    """Make the bytes that are packed from the bytes of the source.

    Args:
        raw: The file as the source has it.
        options: Whether to decode, resize, add restart markers.

    Raises:
        BadImageError: When it cannot be decoded, or is too large to be.
    """
    prepared = _turned(_resized(repair(raw, options), options), options)
    if options.restart_blocks is None:
        return prepared
    prepared = _with_restart_markers(prepared, options.restart_blocks)
    # Where its segments begin, for the loader: looking for them would cost it more than reading.
    return replace(prepared, jpeg=with_offset_table(prepared.jpeg))


def repair(raw: bytes, options: PackOptions) -> Prepared:
    """Return the image as it is when it is an undamaged RGB or gray JPEG; else written anew.

    What is written anew is upright. Everything else keeps its EXIF orientation, as evaluation of
    files needs it: turning a JPEG may change its pixels.

    Raises:
        BadImageError: When it cannot be decoded, or is too large to be.
    """
    if not is_jpeg(raw):
        return _converted(raw, options)
    header = _header(raw)
    _require_sane_size(header.width, header.height)
    if header.color_space in {"cmyk", "ycck"}:
        return _rewritten(raw, options, header.color_space.upper())
    try:
        read_header(raw, strict=True)  # as the loader will, which is stricter than decoders are
    except ValueError as error:
        return _rewritten(raw, options, str(error))
    if options.check == "decode":
        try:
            simplejpeg.decode_jpeg(raw, strict=True)
        except ValueError as error:
            return _rewritten(raw, options, f"damaged inside ({error})")
    sound = Prepared(
        jpeg=raw, width=header.width, height=header.height, orientation=header.orientation
    )
    if header.exif is None or header.orientation != 1:
        return sound
    return _without_damaged_exif(sound, header.exif)


def _header(content: bytes) -> JpegHeader:
    try:
        return read_header(content)
    except JpegError as error:
        raise BadImageError(str(error)) from None


def _require_sane_size(width: int, height: int) -> None:
    """Refuse decompression bombs before anything is decoded."""
    if not 0 < width * height <= MAX_PIXELS:
        raise BadImageError(f"{width}x{height} pixels; up to {MAX_PIXELS:,} are accepted")


def decode(content: bytes) -> Image.Image:
    """Decode an image whole, to upright RGB or gray; see `_decode`."""
    return _decode(content)[0]


def _decode(content: bytes) -> tuple[Image.Image, int]:
    """Decode an image whole, to upright RGB or gray, and return its orientation before.

    Pillow draws the line between damaged and useless, as it does for most who train on ImageNet: it
    reads over a flaw within the data, but not over data that end too early.

    Raises:
        BadImageError: When it is of no format that is read, too large, cut off or undecodable.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = open_image(content)
            _require_sane_size(*image.size)
            image.load()
            _require_sane_size(*image.size)  # an icon's may be another than its directory says
            orientation = orientation_of(image)
            decoded = image if image.mode == "L" else to_rgb(image)
            if orientation != 1:
                decoded = Image.fromarray(upright(np.asarray(decoded), orientation))
            return decoded, orientation
    except (BadImageError, MemoryError):
        raise
    except UnidentifiedImageError:  # whose message holds an address in memory
        reason = "an image of no format that is read, or no image" if content else "an empty file"
        raise BadImageError(f"cannot be decoded: {reason}") from None
    except Exception as error:  # decoders raise whatever damaged headers make them raise
        raise BadImageError(f"cannot be decoded: {error}") from None


def _converted(raw: bytes, options: PackOptions) -> Prepared:
    """Return an image of another format as JPEG."""
    prepared = _rewritten(raw, options, "")
    image = open_image(raw)
    change = f"{describe(image)}: converted to JPEG at quality {REPAIR_QUALITY}"
    return replace(prepared, changes=(change, *prepared.changes[1:]), converted_from=image.format)


def _rewritten(raw: bytes, options: PackOptions, reason: str) -> Prepared:
    """Return the image as an RGB JPEG of high quality."""
    decoded, orientation = _decode(raw)
    image = decoded.convert("RGB")
    if max(image.size) > _MAX_SIDE:
        raise BadImageError(
            f"{image.width}x{image.height} pixels; a JPEG has up to {_MAX_SIDE:,} a side"
        )
    return Prepared(
        jpeg=_encode(image, REPAIR_QUALITY, options.restart_blocks, subsampling="4:4:4"),
        width=image.width,
        height=image.height,
        changes=(
            f"{reason}: written anew at quality {REPAIR_QUALITY}",
            *_turning(orientation),
        ),
    )


def _encode(
    image: Image.Image, quality: int, restart_blocks: RestartBlocks | None, subsampling: str
) -> bytes:
    """Return the image as JPEG; `restart_blocks` None for no restart markers."""
    buffer = io.BytesIO()
    if restart_blocks == "auto":
        mcu_width = _MCU_WIDTH[subsampling]
        restart_blocks = suggested_interval(-(-image.width // mcu_width), mcu_width)
    image.save(
        buffer,
        format="JPEG",
        quality=quality,
        subsampling=subsampling,
        restart_marker_blocks=restart_blocks or 0,
    )
    return buffer.getvalue()


def _without_damaged_exif(prepared: Prepared, place: tuple[int, int]) -> Prepared:
    """Cut out the EXIF segment at (begin, end) if readers warn about it or fail at it."""
    if _is_sound_exif(prepared.jpeg[place[0] + 4 : place[1]]):
        return prepared
    return replace(
        prepared,
        jpeg=prepared.jpeg[: place[0]] + prepared.jpeg[place[1] :],
        changes=(*prepared.changes, "damaged EXIF: dropped"),
    )


def _is_sound_exif(content: bytes) -> bool:
    """Return whether Pillow reads all of an EXIF segment without a warning."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            exif = Image.Exif()
            exif.load(content)
            for pointer in [*exif]:
                exif.get_ifd(pointer)
    except Exception:  # whatever it stumbles over, other readers may stumble over too
        return False
    return True


def _resized(prepared: Prepared, options: PackOptions) -> Prepared:
    """Scale an image down as asked; smaller ones stay as they are."""
    if options.resize_rule is None:
        return prepared
    side, pixels = options.resize_rule
    length = (min if side == "short" else max)(prepared.width, prepared.height)
    if length <= pixels:
        return prepared
    decoded, orientation = _decode(prepared.jpeg)
    width, height = (max(1, round(whole * pixels / length)) for whole in decoded.size)
    # Pillow widens the filter by the scale, which is what antialiasing means.
    image = decoded.resize((width, height), Image.Resampling.BICUBIC)
    jpeg = _encode(image, options.quality, options.restart_blocks, subsampling="4:2:0")
    changes = (*prepared.changes, *_turning(orientation))
    return replace(
        prepared,
        jpeg=jpeg,
        width=image.width,
        height=image.height,
        changes=changes,
        orientation=1,
    )


def _turning(orientation: int, how: str = "") -> tuple[str, ...]:
    """Return what the audit says of an image that was turned; nothing if it was upright."""
    return () if orientation == 1 else (f"orientation {orientation}: {TURNED}{how}",)


def _turned(prepared: Prepared, options: PackOptions) -> Prepared:
    """Turn an image upright, by its coefficients where jpegtran can, else by its pixels.

    jpegtran cannot move the blocks that reach over an edge of the image. EXIF and XMP are dropped
    with the orientation, for they hold a thumbnail and a size that would no longer fit.
    """
    if prepared.orientation == 1:
        return prepared
    try:
        jpeg = turn_upright(prepared.jpeg, prepared.orientation)
        for begin, end in reversed(_header(jpeg).metadata):
            jpeg = jpeg[:begin] + jpeg[end:]
        how = " without loss"
    except JpegtranError as error:
        image = decode(prepared.jpeg)
        jpeg = _encode(image, REPAIR_QUALITY, options.restart_blocks, subsampling="4:4:4")
        how = f", written anew at quality {REPAIR_QUALITY} ({error})"
    header = _header(jpeg)
    changes = (*prepared.changes, *_turning(prepared.orientation, how))
    return replace(
        prepared,
        jpeg=jpeg,
        width=header.width,
        height=header.height,
        changes=changes,
        orientation=1,
    )


def _with_restart_markers(prepared: Prepared, blocks: RestartBlocks) -> Prepared:
    """Add restart markers where they are not yet; the pixels stay the same."""
    jpeg = prepared.jpeg
    try:
        if _header(jpeg).progressive:
            jpeg = add_restart_markers(jpeg, 1)  # baseline from here on, with MCUs to be counted
        wanted = _suited(jpeg) if blocks == "auto" else blocks
        if _header(jpeg).restart_interval != wanted:
            jpeg = add_restart_markers(jpeg, wanted)
        return replace(prepared, jpeg=jpeg)
    except JpegtranError as error:
        change = f"no restart markers: {error}"
        return replace(prepared, changes=(*prepared.changes, change))


def _suited(jpeg: bytes) -> int:
    """Return the number of MCUs between markers with which the loader can leave out most."""
    header = read_header(jpeg, strict=True)
    return 1 if header.mcu is None else suggested_interval(header.grid[1], header.mcu[1])
