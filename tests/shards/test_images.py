import io
import struct
import zlib

import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from imagenet_rn50.jpeg.crop import with_offset_table
from imagenet_rn50.jpeg.header import read_header
from imagenet_rn50.shards import lossless as jpegtran
from imagenet_rn50.shards.images import (
    MAX_PIXELS,
    BadImageError,
    prepare,
)
from imagenet_rn50.shards.lossless import JpegtranError, add_restart_markers
from imagenet_rn50.shards.plan import PackOptions
from imagenet_rn50.utils.errors import InputError
from tests.shards.helpers import jpeg

PLAIN = PackOptions()
MARKED = PackOptions(restart_blocks=4)
AUTO = PackOptions(restart_blocks="auto")
needs_jpegtran = pytest.mark.skipif(not jpegtran.is_installed(), reason="needs jpegtran")


def pixels(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)


def png(size=(40, 30), mode="RGB") -> bytes:
    buffer = io.BytesIO()
    Image.open(io.BytesIO(jpeg(3, size))).convert(mode).save(buffer, format="PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_sound_image_is_packed_byte_for_byte(mode, progressive):
    raw = jpeg(mode=mode, progressive=progressive)
    prepared = prepare(raw, PLAIN)
    assert prepared.jpeg == raw
    assert (prepared.width, prepared.height, prepared.changes) == (40, 30, ())


@needs_jpegtran
@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    width=st.integers(1, 130),
    height=st.integers(1, 130),
    mode=st.sampled_from(["RGB", "L"]),
    progressive=st.booleans(),
    subsampling=st.sampled_from(["4:4:4", "4:2:2", "4:2:0"]),
    blocks=st.sampled_from([1, 4, 7]),
)
def test_restart_markers_do_not_change_one_pixel(
    seed, width, height, mode, progressive, subsampling, blocks
):
    raw = jpeg(seed, (width, height), mode, progressive=progressive, subsampling=subsampling)
    prepared = prepare(raw, PackOptions(restart_blocks=blocks))
    header = read_header(prepared.jpeg)
    assert header.restart_interval == blocks
    assert not header.progressive
    assert prepared.changes == ()
    np.testing.assert_array_equal(pixels(prepared.jpeg), pixels(raw))
    np.testing.assert_array_equal(
        simplejpeg.decode_jpeg(prepared.jpeg), simplejpeg.decode_jpeg(raw)
    )


@needs_jpegtran
@pytest.mark.parametrize("size", [(500, 375), (500, 333), (241, 160), (100, 96)])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("options", [AUTO, PackOptions(restart_blocks="auto", resize="max=200")])
def test_markers_set_by_themselves_divide_every_row_and_are_listed(size, progressive, options):
    raw = jpeg(size=size, progressive=progressive)
    prepared = prepare(raw, options)
    header = read_header(prepared.jpeg, strict=True)
    assert header.grid[1] % header.restart_interval == 0
    assert header.table is not None
    assert with_offset_table(prepared.jpeg) == prepared.jpeg
    if options is AUTO:
        np.testing.assert_array_equal(pixels(prepared.jpeg), pixels(raw))


@needs_jpegtran
@pytest.mark.parametrize("size", [(95, 300), (300, 95), (48, 48)])
@pytest.mark.parametrize("progressive", [False, True])
def test_images_with_a_side_under_96_px_get_markers_only_if_their_number_is_given(
    size, progressive
):
    raw = jpeg(size=size, progressive=progressive)
    prepared = prepare(raw, AUTO)
    assert (prepared.jpeg, prepared.changes, prepared.is_without_markers) == (raw, (), True)
    assert read_header(prepare(png(size), AUTO).jpeg).restart_interval == 0
    marked = prepare(raw, MARKED)
    assert (read_header(marked.jpeg).restart_interval, marked.is_without_markers) == (4, False)


@needs_jpegtran
def test_restart_markers_keep_comment_profile_and_exif():
    exif = Image.Exif()
    exif[0x010E] = "a description"
    raw = jpeg(exif=exif.tobytes(), icc_profile=b"a profile", comment=b"a comment")
    info = Image.open(io.BytesIO(prepare(raw, MARKED).jpeg)).info
    assert info["icc_profile"] == b"a profile"
    assert info["comment"] == b"a comment"
    assert info["exif"] == exif.tobytes()


@needs_jpegtran
def test_jpegtran_that_complains_is_not_believed():
    raw = jpeg(size=(200, 150))
    with pytest.raises(JpegtranError, match="Premature end"):
        add_restart_markers(raw[: len(raw) // 2], 4)


def test_restart_markers_without_jpegtran_are_refused_with_the_name_of_the_package(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(InputError, match="apt-get install libjpeg-turbo-progs"):
        jpegtran.require_installed()


@pytest.mark.parametrize("options", [PLAIN, PackOptions(check="header")])
def test_a_cmyk_jpeg_becomes_an_rgb_jpeg_of_nearly_the_same_pixels(options):
    raw = jpeg(mode="CMYK", size=(64, 48))
    prepared = prepare(raw, options)
    header = read_header(prepared.jpeg)
    assert (header.num_components, header.color_space) == (3, "ycc")
    assert prepared.changes == ("CMYK: written anew at quality 95",)
    assert np.abs(pixels(prepared.jpeg) - pixels(raw)).mean() < 1.5


def test_a_ycck_jpeg_becomes_an_rgb_jpeg():
    content = jpeg(mode="CMYK")
    at = content.index(b"Adobe") + 11
    prepared = prepare(content[:at] + b"\x02" + content[at + 1 :], PLAIN)
    assert read_header(prepared.jpeg).color_space == "ycc"
    assert prepared.changes[0].startswith("YCCK")


@pytest.mark.parametrize("mode", ["RGB", "P", "RGBA", "L", "1"])
def test_a_png_in_disguise_becomes_a_jpeg_of_nearly_the_same_pixels(mode):
    raw = png(mode=mode)
    prepared = prepare(raw, PLAIN)
    transparency = ", without its transparency" * (mode == "RGBA")
    assert prepared.changes == (f"PNG{transparency}: converted to JPEG at quality 95",)
    assert read_header(prepared.jpeg).color_space == "ycc"
    assert np.abs(pixels(prepared.jpeg) - pixels(raw)).mean() < (12 if mode in "P1" else 2)


def test_a_png_of_16_bits_keeps_its_range():
    ramp = np.linspace(0, 65535, 64 * 64, dtype=np.uint16).reshape(64, 64)
    buffer = io.BytesIO()
    Image.fromarray(ramp).save(buffer, format="PNG")
    prepared = prepare(buffer.getvalue(), PLAIN)
    assert np.abs(pixels(prepared.jpeg) - (ramp // 257)[..., None]).max() < 8


@pytest.mark.parametrize("check", ["decode", "header"])
def test_a_header_that_the_loader_would_refuse_is_written_anew(check):
    raw = jpeg()
    at = 2 + 2 + int.from_bytes(raw[4:6])  # behind the first segment
    prepared = prepare(raw[:at] + b"\0\0" + raw[at:], PackOptions(check=check, restart_blocks=4))
    assert prepared.changes == ("the JPEG is damaged at byte 20: written anew at quality 95",)
    assert read_header(prepared.jpeg, strict=True).restart_interval == 4
    assert np.abs(pixels(prepared.jpeg) - pixels(raw)).mean() < 2


def test_rewritten_images_carry_restart_markers_too():
    assert read_header(prepare(png(), MARKED).jpeg).restart_interval == 4


def test_damaged_exif_is_dropped_and_the_pixels_stay():
    # A directory that promises 200 entries and holds none, as in n04152593_17460.
    tiff = b"II*\0" + struct.pack("<IH", 8, 200)
    segment = b"Exif\0\0" + tiff
    raw = jpeg()
    segment = b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment
    damaged = raw[:2] + segment + raw[2:]
    prepared = prepare(damaged, PLAIN)
    assert prepared.changes == ("damaged EXIF: dropped",)
    assert prepared.jpeg == raw


def test_sound_exif_stays():
    exif = Image.Exif()
    exif[0x010E] = "a description"
    exif.get_ifd(0x8769)[0x9003] = "2012:01:01 00:00:00"
    raw = jpeg(exif=exif.tobytes())
    assert prepare(raw, PLAIN).jpeg == raw


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_a_truncated_jpeg_is_bad(share, progressive):
    raw = jpeg(size=(200, 150), progressive=progressive)
    with pytest.raises(BadImageError):
        prepare(raw[: int(len(raw) * share)], PLAIN)


def test_a_truncated_png_in_disguise_is_bad():
    raw = png()
    with pytest.raises(BadImageError, match="cannot be decoded"):
        prepare(raw[: len(raw) // 2], PLAIN)


@pytest.mark.parametrize(
    "raw", [b"", b"<html>not found</html>", b"GIF89a\x01\0\x01\0", b"\xff\xd8"]
)
def test_what_is_no_image_is_bad(raw):
    with pytest.raises(BadImageError):
        prepare(raw, PLAIN)


def test_a_jpeg_damaged_inside_is_written_anew_so_that_strict_decoders_read_it():
    raw = bytearray(jpeg(size=(200, 150)))
    middle = len(raw) * 2 // 3
    raw[middle : middle + 300] = bytes(300)
    damaged = bytes(raw)
    with pytest.raises(ValueError, match="Corrupt JPEG data"):
        simplejpeg.decode_jpeg(damaged)
    prepared = prepare(damaged, PLAIN)
    assert prepared.changes[0].startswith("damaged inside (Corrupt JPEG data")
    assert simplejpeg.decode_jpeg(prepared.jpeg).shape == (150, 200, 3)
    assert np.abs(pixels(prepared.jpeg) - pixels(damaged)).mean() < 2


def bomb_jpeg() -> bytes:
    raw = bytearray(jpeg())
    frame = raw.index(b"\xff\xc0")
    raw[frame + 5 : frame + 9] = struct.pack(">HH", 65_500, 65_500)
    return bytes(raw)


def bomb_png() -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(1_000_000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows)


@pytest.mark.parametrize("make", [bomb_jpeg, bomb_png])
@pytest.mark.parametrize("options", [PLAIN, PackOptions(check="header")])
def test_a_decompression_bomb_is_refused_before_it_is_decoded(make, options, monkeypatch):
    def never(*_, **__):
        raise AssertionError("decoded")

    raw = make()
    monkeypatch.setattr(Image.Image, "load", never)
    monkeypatch.setattr(simplejpeg, "decode_jpeg", never)
    with pytest.raises(BadImageError, match=rf"up to {MAX_PIXELS:,} are accepted|bomb"):
        prepare(raw, options)


@pytest.mark.parametrize(
    ("rule", "size", "expected"),
    [
        ("short=64", (200, 100), (128, 64)),
        ("short=64", (100, 201), (64, 129)),
        ("max=100", (200, 150), (100, 75)),
        ("max=100", (90, 200), (45, 100)),
    ],
)
def test_resizing_scales_to_the_asked_side_and_sets_restart_markers(rule, size, expected):
    prepared = prepare(jpeg(size=size), PackOptions(resize=rule, restart_blocks=4, quality=90))
    header = read_header(prepared.jpeg)
    assert (header.width, header.height) == expected == (prepared.width, prepared.height)
    assert header.restart_interval == 4


def test_resizing_is_antialiased():
    # Stripes of one pixel: sampling without a filter gives black or white, never gray.
    stripes = np.zeros((256, 256, 3), dtype=np.uint8)
    stripes[:, ::2] = 255
    buffer = io.BytesIO()
    Image.fromarray(stripes).save(buffer, format="JPEG", quality=100, subsampling=0)
    prepared = prepare(buffer.getvalue(), PackOptions(resize="short=64", quality=95))
    assert np.abs(pixels(prepared.jpeg) - 127.5).max() < 16


def test_smaller_images_are_not_scaled_up():
    raw = jpeg(size=(60, 50))
    assert prepare(raw, PackOptions(resize="short=64")).jpeg == raw


@pytest.mark.parametrize(
    "options",
    [
        {"resize": "long=3"},
        {"resize": "short=0"},
        {"quality": 0},
        {"quality": 101},
        {"restart_blocks": 0},
        {"recode": 0},
        {"dataset": "../up"},
        {"dataset": "a.b"},
        {"seed": -1},
    ],
)
def test_options_that_cannot_be_used_are_named(options):
    with pytest.raises(InputError):
        PackOptions(**options)
