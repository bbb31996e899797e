"""Whatever is uploaded becomes the picture that a person sees, or a sentence; never a crash."""

import io
import random
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from space.pictures import MAX_ASPECT_RATIO, MAX_PIXELS, PictureError, open_picture

SIZE = (60, 40)
UPRIGHT = 6  # EXIF: to be turned by 90 degrees


def left_red_right_blue():
    """Two halves that any mode with colours can tell apart."""
    picture = Image.new("RGB", SIZE, (220, 30, 30))
    picture.paste((20, 40, 210), (SIZE[0] // 2, 0, *SIZE))
    return picture


def in_mode(mode):
    if mode == "P":
        return left_red_right_blue().quantize(2)
    return left_red_right_blue().convert(mode)


def saved(picture, kind, **options):
    buffer = io.BytesIO()
    picture.save(buffer, format=kind, **options)
    return buffer.getvalue()


def opened(tmp_path, content):
    path = tmp_path / "uploaded"
    path.write_bytes(content)
    return open_picture(path)


def assert_shows(picture, left, right, tolerance):
    assert picture.mode == "RGB"
    middle = picture.height // 2
    for x, colour in ((picture.width // 4, left), (3 * picture.width // 4, right)):
        assert picture.getpixel((x, middle)) == pytest.approx(colour, abs=tolerance)


RED, BLUE, WHITE = (220, 30, 30), (20, 40, 210), (255, 255, 255)


@pytest.mark.parametrize(
    ("mode", "kind", "options", "tolerance"),
    [
        ("RGB", "JPEG", {"quality": 95}, 6),
        ("RGB", "PNG", {}, 0),
        ("RGB", "WEBP", {"lossless": True}, 0),
        ("RGB", "AVIF", {"quality": 95}, 12),
        ("RGB", "BMP", {}, 0),
        ("RGB", "JPEG2000", {}, 6),
        ("P", "PNG", {}, 3),
        ("P", "GIF", {}, 3),
        ("CMYK", "JPEG", {"quality": 95}, 6),
        ("CMYK", "TIFF", {}, 0),
        ("RGBA", "PNG", {}, 0),
        ("RGBA", "TIFF", {}, 0),
    ],
)
def test_colours_are_kept_in_any_mode(tmp_path, mode, kind, options, tolerance):
    picture = opened(tmp_path, saved(in_mode(mode), kind, **options))
    assert picture.size == SIZE
    assert_shows(picture, RED, BLUE, tolerance)


@pytest.mark.parametrize("mode", ["1", "L", "LA"])
def test_gray_pictures_stay_gray(tmp_path, mode):
    gray = Image.new("L", SIZE, 0)
    gray.paste(255, (SIZE[0] // 2, 0, *SIZE))
    picture = opened(tmp_path, saved(gray.convert(mode), "PNG"))
    assert_shows(picture, (0, 0, 0), WHITE, 0)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
@pytest.mark.parametrize(
    ("deep", "expected"),
    [((0x4000, 0xC000), (64, 191)), ((0, 0xFFFF), (0, 255)), ((0x2000, 0x3FFF), (32, 64))],
)
def test_16_bits_a_pixel_keep_their_brightness(tmp_path, kind, deep, expected):
    values = np.array([deep], dtype=np.uint16)
    pixels = np.repeat(np.repeat(values, SIZE[1], 0), SIZE[0] // 2, 1)
    picture = opened(tmp_path, saved(Image.fromarray(pixels), kind))
    left, right = ((value, value, value) for value in expected)
    assert_shows(picture, left, right, 1)


@pytest.mark.parametrize("content", [b"P2 2 1 1023 256 512", b"P5 2 1 1023 \x01\x00\x02\x00"])
def test_so_do_other_depths_than_16_bits(tmp_path, content):
    picture = opened(tmp_path, content)
    assert [picture.getpixel((x, 0))[0] for x in (0, 1)] == [63, 127]


@pytest.mark.parametrize("values", [[-3.5, 12.25], [0.1, 0.2], [float("nan"), 7.0]])
def test_numbers_of_any_range_are_stretched_to_black_and_white(tmp_path, values):
    pixels = np.repeat(np.repeat(np.array([values], dtype=np.float32), SIZE[1], 0), SIZE[0] // 2, 1)
    picture = opened(tmp_path, saved(Image.fromarray(pixels), "TIFF"))
    assert_shows(picture, (0, 0, 0), WHITE, 0)


def test_what_is_transparent_shows_a_white_page(tmp_path):
    whole = left_red_right_blue().convert("RGBA")
    whole.paste((0, 0, 0, 0), (0, 0, SIZE[0] // 2, SIZE[1]))
    assert_shows(opened(tmp_path, saved(whole, "PNG")), WHITE, BLUE, 0)
    assert_shows(opened(tmp_path, saved(whole, "WEBP", lossless=True)), WHITE, BLUE, 0)
    assert_shows(opened(tmp_path, saved(whole.convert("LA"), "PNG")), WHITE, (53, 53, 53), 2)
    one_colour = left_red_right_blue().quantize(2)
    index = one_colour.getpixel((0, 0))
    assert_shows(opened(tmp_path, saved(one_colour, "PNG", transparency=index)), WHITE, BLUE, 8)
    content = saved(left_red_right_blue(), "PNG", transparency=RED)
    assert_shows(opened(tmp_path, content), WHITE, BLUE, 0)


def test_a_picture_taken_sideways_stands_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = UPRIGHT
    sideways = left_red_right_blue().transpose(Image.Transpose.ROTATE_90)
    picture = opened(tmp_path, saved(sideways, "JPEG", exif=exif, quality=95))
    assert picture.size == SIZE
    assert_shows(picture, RED, BLUE, 6)


def test_of_an_animation_the_first_frame_counts(tmp_path):
    frames = [Image.new("RGB", SIZE, colour) for colour in (BLUE, RED)]
    content = saved(left_red_right_blue(), "GIF", save_all=True, append_images=frames)
    assert_shows(opened(tmp_path, content), RED, BLUE, 30)


def png_claiming(width, height):
    """A PNG whose header names a size, and that holds next to nothing."""

    def chunk(kind, body):
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"0"))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("size", [(MAX_PIXELS // 1000 + 1, 1000), (60_000, 60_000)])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_decompression_bomb_is_refused_by_its_header(tmp_path, size, monkeypatch):
    def decode(*_):
        raise AssertionError("a pixel was decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", decode)
    with pytest.raises(PictureError, match="too large"):
        opened(tmp_path, png_claiming(*size))


@pytest.mark.parametrize("size", [(60_000, 1), (1, 60_000), (3, 900)])
def test_of_a_needle_the_center_is_shown_because_resizing_would_blow_it_up(tmp_path, size):
    needle = Image.linear_gradient("L").resize(size)
    short, long = sorted(opened(tmp_path, saved(needle, "PNG")).size)
    assert short == min(size)
    assert MAX_ASPECT_RATIO <= long / short < MAX_ASPECT_RATIO + 2


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hello",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) run\n",
        b"%PDF-1.7\n",
    ],
)
def test_what_is_no_picture_is_called_so(tmp_path, content):
    with pytest.raises(PictureError, match="no picture that can be read here"):
        opened(tmp_path, content)


def test_a_picture_that_was_deleted_meanwhile_is_asked_for_again(tmp_path):
    with pytest.raises(PictureError, match="no longer kept"):
        open_picture(tmp_path / "deleted.jpg")


def damaged(content, draws):
    """Cuts, flips or doubles some of a file."""
    kind = draws.randrange(3)
    if kind == 0:
        return content[: draws.randrange(len(content))]
    content = bytearray(content)
    if kind == 1:
        for _ in range(draws.randrange(1, 20)):
            content[draws.randrange(len(content))] = draws.randrange(256)
        return bytes(content)
    start = draws.randrange(len(content))
    return bytes(content[:start] + content[draws.randrange(len(content)) :] + content[start:])


@pytest.mark.filterwarnings("ignore")  # Pillow warns of some damage
def test_500_damaged_pictures_are_either_read_or_refused_with_a_sentence(tmp_path):
    draws = random.Random(0)
    files = [
        saved(in_mode(mode), kind)
        for mode, kind in [
            *(("RGB", kind) for kind in ("JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF")),
            *(("RGB", kind) for kind in ("JPEG2000", "ICO", "PPM")),
            *(("CMYK", "JPEG"), ("P", "PNG"), ("RGBA", "PNG"), ("I;16", "PNG"), ("F", "TIFF")),
        ]
    ]
    refused = []
    for number in range(500):
        try:
            picture = opened(tmp_path, damaged(files[number % len(files)], draws))
        except PictureError as problem:
            refused.append(str(problem))
        else:
            assert picture.mode == "RGB"
    assert 100 < len(refused) < 500
    assert all(sentence.endswith(".") for sentence in refused)
