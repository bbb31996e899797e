"""The final JPEG bytes of a sample: inspected, and repaired where a decoder would stumble.

`prepare` is the one place where they are made, in this order: look at the header, decode once,
write anew what is no RGB or gray JPEG or is damaged inside, drop a damaged EXIF segment, resize on
request, turn upright, add restart markers. What none of these touches is packed byte for byte.
With `recode`, every image is encoded anew instead, once and from the pixels of its source.
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
# Of a smaller image a crop needs nearly all, and finding its segments costs more than it saves.
LEAST_SIDE = 96  # px
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
        is_without_markers: Whether it has no restart markers because it is too small for them.
    """

    jpeg: bytes
    width: int
    height: int
    changes: tuple[str, ...] = ()
    converted_from: str | None = None
    orientation: int = 1
    is_without_markers: bool = False


def prepare(raw: bytes, options: PackOptions) -> Prepared:
    """Make the bytes that are packed from the bytes of the source.

    Args:
        raw: The file as the source has it.
        options: Whether to decode, resize, encode anew, add restart markers.

    Raises:
        BadImageError: When it cannot be decoded, or is too large to be.
    """
    if _is_checked_by_marking(raw, options):
        try:
            # Reading all coefficients finds what decoding would find.
            return _with_restart_markers(repair(raw, replace(options, check="header")), options)
        except JpegtranError:
            pass  # decoding tells what is wrong, and what can be saved
    prepared = repair(raw, options)
    if options.recode is not None:
        prepared = _recoded(prepared, raw, options)
    else:
        prepared = _turned(_resized(prepared, options), options)
    if options.restart_blocks is None:
        return prepared
    try:
        return _with_restart_markers(prepared, options)
    except JpegtranError as error:
        changes = (*prepared.changes, f"no restart markers: {error}")
        return replace(prepared, jpeg=with_offset_table(prepared.jpeg), changes=changes)


def _is_checked_by_marking(raw: bytes, options: PackOptions) -> bool:
    """Return whether all that is done to an image is to read its coefficients and write markers."""
    if options.check != "decode" or options.restart_blocks is None:
        return False
    if options.recode is not None or options.resize is not None:
        return False
    try:
        header = read_header(raw, strict=True)
    except ValueError:
        return False
    if header.mcu is None or header.orientation != 1:
        return False
    return header.restart_interval != _interval(header, options.restart_blocks)


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
    change = f"{describe(image)}: converted to JPEG at quality {_quality(options)}"
    return replace(prepared, changes=(change, *prepared.changes[1:]), converted_from=image.format)


def _rewritten(raw: bytes, options: PackOptions, reason: str) -> Prepared:
    """Return the image as an RGB JPEG, of high quality unless all images get another."""
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
            f"{reason}: written anew at quality {_quality(options)}",
            *_turning(orientation),
        ),
    )


def _quality(options: PackOptions) -> int:
    """Return the quality of what has to be written anew."""
    return REPAIR_QUALITY if options.recode is None else options.recode


def _encode(
    image: Image.Image, quality: int, restart_blocks: RestartBlocks | None, subsampling: str
) -> bytes:
    """Return the image as JPEG; `restart_blocks` None for no restart markers."""
    buffer = io.BytesIO()
    if restart_blocks is not None and _is_too_small(*image.size, restart_blocks):
        restart_blocks = None
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


def _recoded(repaired: Prepared, raw: bytes, options: PackOptions) -> Prepared:
    """Encode the upright pixels of the source at the asked quality, in 4:2:0 or gray."""
    assert options.recode is not None
    decoded, orientation = _decode(raw)
    image = _scaled(decoded if is_jpeg(raw) else decoded.convert("RGB"), options)
    changes = repaired.changes
    if repaired.orientation != 1:  # else it was upright, or is among the changes
        changes = (*changes, *_turning(orientation))
    return replace(
        repaired,
        jpeg=_encode(image, options.recode, options.restart_blocks, subsampling="4:2:0"),
        width=image.width,
        height=image.height,
        changes=changes,
        orientation=1,
    )


def _scaled(image: Image.Image, options: PackOptions) -> Image.Image:
    """Scale an image down as asked; a smaller one is returned as it is."""
    if options.resize_rule is None:
        return image
    side, pixels = options.resize_rule
    length = (min if side == "short" else max)(image.size)
    if length <= pixels:
        return image
    width, height = (max(1, round(whole * pixels / length)) for whole in image.size)
    # Pillow widens the filter by the scale, which is what antialiasing means.
    return image.resize((width, height), Image.Resampling.BICUBIC)


def _resized(prepared: Prepared, options: PackOptions) -> Prepared:
    """Scale an image down as asked and encode it anew; smaller ones stay as they are."""
    if options.resize_rule is None:
        return prepared
    side, pixels = options.resize_rule
    if (min if side == "short" else max)(prepared.width, prepared.height) <= pixels:
        return prepared
    decoded, orientation = _decode(prepared.jpeg)
    image = _scaled(decoded, options)
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


def _with_restart_markers(prepared: Prepared, options: PackOptions) -> Prepared:
    """Add restart markers where they are not yet; the pixels stay the same.

    Raises:
        JpegtranError: When jpegtran does not accept the image.
    """
    blocks = options.restart_blocks
    assert blocks is not None
    jpeg = prepared.jpeg
    header = _header(jpeg)
    if _is_too_small(header.width, header.height, blocks):
        prepared = replace(prepared, is_without_markers=header.restart_interval == 0)
    else:
        if header.progressive:
            jpeg = add_restart_markers(jpeg, 1)  # baseline from here on, with MCUs to be counted
        header = read_header(jpeg, strict=True)
        wanted = _interval(header, blocks)
        if header.restart_interval != wanted:
            jpeg = add_restart_markers(jpeg, wanted)
    # Where its segments begin, for the loader: looking for them would cost it more than reading.
    return replace(prepared, jpeg=with_offset_table(jpeg))


def _is_too_small(width: int, height: int, blocks: RestartBlocks) -> bool:
    """Return whether an image is left without restart markers, unless their number is given."""
    return blocks == "auto" and min(width, height) < LEAST_SIDE


def _interval(header: JpegHeader, blocks: RestartBlocks) -> int:
    """Return the number of MCUs between markers; `auto`: with which the loader skips most."""
    if _is_too_small(header.width, header.height, blocks):
        return header.restart_interval
    if blocks != "auto":
        return blocks
    return 1 if header.mcu is None else suggested_interval(header.grid[1], header.mcu[1])
