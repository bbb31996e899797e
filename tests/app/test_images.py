"""Any upload becomes the image that a viewer shows, or an ImageError; it never crashes."""

import io
import random
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from space.images import MAX_ASPECT_RATIO, MAX_PIXELS, ImageError, open_image

SIZE = (60, 40)
UPRIGHT = 6  # EXIF orientation: rotate by 90 degrees


def left_red_right_blue():
    """Return an image of two halves that differ in every colour mode."""
    image = Image.new("RGB", SIZE, (220, 30, 30))
    image.paste((20, 40, 210), (SIZE[0] // 2, 0, *SIZE))
    return image


def in_mode(mode):
    if mode == "P":
        return left_red_right_blue().quantize(2)
    return left_red_right_blue().convert(mode)


def saved(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def opened(tmp_path, content):
    path = tmp_path / "uploaded"
    path.write_bytes(content)
    return open_image(path)


def assert_shows(image, left, right, tolerance):
    assert image.mode == "RGB"
    middle = image.height // 2
    for x, colour in ((image.width // 4, left), (3 * image.width // 4, right)):
        assert image.getpixel((x, middle)) == pytest.approx(colour, abs=tolerance)


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
def test_colours_are_preserved_in_every_mode(tmp_path, mode, kind, options, tolerance):
    image = opened(tmp_path, saved(in_mode(mode), kind, **options))
    assert image.size == SIZE
    assert_shows(image, RED, BLUE, tolerance)


@pytest.mark.parametrize("mode", ["1", "L", "LA"])
def test_gray_images_stay_gray(tmp_path, mode):
    gray = Image.new("L", SIZE, 0)
    gray.paste(255, (SIZE[0] // 2, 0, *SIZE))
    image = opened(tmp_path, saved(gray.convert(mode), "PNG"))
    assert_shows(image, (0, 0, 0), WHITE, 0)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
@pytest.mark.parametrize(
    ("deep", "expected"),
    [((0x4000, 0xC000), (64, 191)), ((0, 0xFFFF), (0, 255)), ((0x2000, 0x3FFF), (32, 64))],
)
def test_16_bit_images_keep_their_brightness(tmp_path, kind, deep, expected):
    values = np.array([deep], dtype=np.uint16)
    pixels = np.repeat(np.repeat(values, SIZE[1], 0), SIZE[0] // 2, 1)
    image = opened(tmp_path, saved(Image.fromarray(pixels), kind))
    left, right = ((value, value, value) for value in expected)
    assert_shows(image, left, right, 1)


@pytest.mark.parametrize("content", [b"P2 2 1 1023 256 512", b"P5 2 1 1023 \x01\x00\x02\x00"])
def test_pgms_of_10_bits_keep_their_brightness(tmp_path, content):
    image = opened(tmp_path, content)
    assert [image.getpixel((x, 0))[0] for x in (0, 1)] == [63, 127]


@pytest.mark.parametrize("values", [[-3.5, 12.25], [0.1, 0.2], [float("nan"), 7.0]])
def test_floats_of_any_range_are_scaled_to_black_and_white(tmp_path, values):
    pixels = np.repeat(np.repeat(np.array([values], dtype=np.float32), SIZE[1], 0), SIZE[0] // 2, 1)
    image = opened(tmp_path, saved(Image.fromarray(pixels), "TIFF"))
    assert_shows(image, (0, 0, 0), WHITE, 0)


def test_transparent_areas_become_white(tmp_path):
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


def test_exif_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = UPRIGHT
    sideways = left_red_right_blue().transpose(Image.Transpose.ROTATE_90)
    image = opened(tmp_path, saved(sideways, "JPEG", exif=exif, quality=95))
    assert image.size == SIZE
    assert_shows(image, RED, BLUE, 6)


def test_animations_give_their_first_frame(tmp_path):
    frames = [Image.new("RGB", SIZE, colour) for colour in (BLUE, RED)]
    content = saved(left_red_right_blue(), "GIF", save_all=True, append_images=frames)
    assert_shows(opened(tmp_path, content), RED, BLUE, 30)


def png_claiming(width, height):
    """Return a PNG whose header claims a size, with almost no data."""

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
def test_a_decompression_bomb_is_rejected_by_its_header(tmp_path, size, monkeypatch):
    def decode(*_):
        raise AssertionError("a pixel was decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", decode)
    with pytest.raises(ImageError, match="too large"):
        opened(tmp_path, png_claiming(*size))


@pytest.mark.parametrize("size", [(60_000, 1), (1, 60_000), (3, 900)])
def test_very_elongated_images_are_cropped_to_their_center(tmp_path, size):
    elongated = Image.linear_gradient("L").resize(size)
    short, long = sorted(opened(tmp_path, saved(elongated, "PNG")).size)
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
def test_files_of_other_types_are_an_image_error(tmp_path, content):
    with pytest.raises(ImageError, match="not a supported image"):
        opened(tmp_path, content)


def test_a_deleted_file_is_an_image_error(tmp_path):
    with pytest.raises(ImageError, match="upload it again"):
        open_image(tmp_path / "deleted.jpg")


def damaged(content, rng):
    """Truncate a file, change some bytes or duplicate a part."""
    kind = rng.randrange(3)
    if kind == 0:
        return content[: rng.randrange(len(content))]
    content = bytearray(content)
    if kind == 1:
        for _ in range(rng.randrange(1, 20)):
            content[rng.randrange(len(content))] = rng.randrange(256)
        return bytes(content)
    start = rng.randrange(len(content))
    return bytes(content[:start] + content[rng.randrange(len(content)) :] + content[start:])


@pytest.mark.filterwarnings("ignore")  # Pillow warns about some damage
def test_500_damaged_images_are_read_or_raise_image_error(tmp_path):
    rng = random.Random(0)
    files = [
        saved(in_mode(mode), kind)
        for mode, kind in [
            *(("RGB", kind) for kind in ("JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF")),
            *(("RGB", kind) for kind in ("JPEG2000", "ICO", "PPM")),
            *(("CMYK", "JPEG"), ("P", "PNG"), ("RGBA", "PNG"), ("I;16", "PNG"), ("F", "TIFF")),
        ]
    ]
    num_rejected = 0
    for number in range(500):
        try:
            image = opened(tmp_path, damaged(files[number % len(files)], rng))
        except ImageError:
            num_rejected += 1
        else:
            assert image.mode == "RGB"
    assert 100 < num_rejected < 500
