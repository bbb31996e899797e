import io
import shutil
import struct
from functools import cache

import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from imagenet_rn50.jpeg import crop as restart
from imagenet_rn50.jpeg import decode as jpeg
from imagenet_rn50.jpeg.crop import cut, suggested_interval, with_offset_table
from imagenet_rn50.jpeg.header import APP9, TABLE_NAME, read_header
from tests.images import jpegtran, pillow_jpeg, scene, turbo_jpeg

pytestmark = pytest.mark.numeric

needs_jpegtran = pytest.mark.skipif(shutil.which("jpegtran") is None, reason="jpegtran is missing")
SAMPLINGS = ("4:4:4", "4:2:2", "4:2:0")


@st.composite
def boxes(draw, height, width):
    # Often at the edges of blocks, where what is cut away could be missed.
    ranges = []
    for side in (height, width):
        edge = st.one_of(st.integers(0, side), st.integers(0, side // 8).map(lambda k: 8 * k))
        first, stop = sorted((draw(edge), draw(edge)))
        first = min(first, side - 1)
        ranges.append((first, max(stop, first + 1) - first))
    (top, box_height), (left, box_width) = ranges
    return top, left, box_height, box_width


def table_of(content):
    table = read_header(content, strict=True).table
    assert table is not None
    return table


def inside(pixels, box):
    top, left, height, width = box
    return pixels[top : top + height, left : left + width]


def assert_cut_changes_no_pixel(content, box):
    piece = cut(content, box)
    pixels = simplejpeg.decode_jpeg(piece.jpeg)
    assert pixels.shape[:2] == piece.size
    np.testing.assert_array_equal(
        inside(pixels, (*piece.offset, *box[2:])), inside(simplejpeg.decode_jpeg(content), box)
    )
    return piece


@settings(max_examples=120)
@given(
    data=st.data(),
    height=st.integers(1, 150),
    width=st.integers(1, 150),
    interval=st.one_of(st.integers(1, 4), st.integers(1, 24)),
    subsampling=st.sampled_from((*SAMPLINGS, "gray")),
    quality=st.integers(5, 100),
    table=st.booleans(),
)
def test_a_cut_changes_no_pixel_in_any_subsampling_size_and_interval(
    data, height, width, interval, subsampling, quality, table
):
    pixels = scene(height, width, seed=height + width)
    options = {"quality": quality, "restart_marker_blocks": interval}
    if subsampling == "gray":
        content = pillow_jpeg(pixels[:, :, 0], **options)
    else:
        content = pillow_jpeg(pixels, subsampling=subsampling, **options)
    content = with_offset_table(content) if table else content
    assert_cut_changes_no_pixel(content, data.draw(boxes(height, width)))


@needs_jpegtran
@settings(max_examples=40, deadline=None)
@given(
    data=st.data(),
    height=st.integers(1, 140),
    width=st.integers(1, 140),
    interval=st.sampled_from(["1B", "2B", "3B", "4B", "7B", "1", "2"]),
    subsampling=st.sampled_from(["444", "422", "420", "440", "411", "Gray"]),
    optimize=st.booleans(),
)
def test_a_cut_changes_no_pixel_of_what_jpegtran_wrote(
    data, height, width, interval, subsampling, optimize
):
    pixels = scene(height, width, seed=height + width)
    pixels = pixels[:, :, 0] if subsampling == "Gray" else pixels
    options = ["-restart", interval] + optimize * ["-optimize"]
    content = with_offset_table(jpegtran(turbo_jpeg(pixels, subsampling), *options))
    assert_cut_changes_no_pixel(content, data.draw(boxes(height, width)))


@settings(max_examples=60)
@given(data=st.data(), subsampling=st.sampled_from(SAMPLINGS), factor=st.sampled_from([2, 4, 8]))
def test_shrinking_while_decoding_gives_the_same_pixels_from_the_cut(data, subsampling, factor):
    content = pillow_jpeg(scene(170, 190), subsampling=subsampling, restart_marker_blocks=2)
    top, left, height, width = data.draw(boxes(170 // factor, 190 // factor))
    box = tuple(value * factor for value in (top, left, height, width))
    whole = simplejpeg.decode_jpeg(
        content, min_height=-(-170 // factor), min_width=-(-190 // factor)
    )
    shrunk = jpeg.decode_box(content, box, factor=factor)
    np.testing.assert_array_equal(shrunk, inside(whole, (top, left, height, width)))


@pytest.mark.parametrize("subsampling", SAMPLINGS)
def test_a_small_box_needs_a_small_part_of_the_bytes(subsampling):
    content = pillow_jpeg(scene(375, 480), subsampling=subsampling, restart_marker_blocks=3)
    assert len(cut(content, (100, 100, 90, 90)).jpeg) < len(content) / 5


def test_where_segments_do_not_end_with_the_row_whole_rows_are_kept():
    content = pillow_jpeg(scene(240, 376), subsampling="4:4:4", restart_marker_blocks=4)
    piece = assert_cut_changes_no_pixel(content, (100, 100, 50, 50))
    assert piece.size[1] == 376
    assert piece.size[0] < 240


@cache
def coded(subsampling="4:2:0"):
    return pillow_jpeg(scene(100, 144), subsampling=subsampling, restart_marker_blocks=3)


def test_the_table_spares_the_scan_and_changes_no_pixel(monkeypatch):
    content, tabled = coded(), with_offset_table(coded())
    np.testing.assert_array_equal(simplejpeg.decode_jpeg(content), simplejpeg.decode_jpeg(tabled))
    expected = cut(content, (10, 10, 40, 40))
    monkeypatch.setattr(restart, "_scan_for_starts", None)
    assert cut(tabled, (10, 10, 40, 40)) == expected


def test_writing_the_table_again_changes_nothing():
    tabled = with_offset_table(coded())
    assert with_offset_table(tabled) == tabled
    stale = bytearray(tabled)
    stale[table_of(tabled)[0] + 1] ^= 1
    assert with_offset_table(bytes(stale)) == tabled


def test_other_application_segments_are_kept_beside_the_table():
    exif = Image.Exif()
    exif[0x010E] = "a description"
    content = pillow_jpeg(
        scene(100, 144), restart_marker_blocks=3, exif=exif, icc_profile=b"x" * 500, comment=b"c"
    )
    tabled = with_offset_table(content)
    table = table_of(tabled)
    start = table[0] - 4 - len(TABLE_NAME)
    assert tabled[start : start + 2] == bytes([0xFF, APP9])
    assert tabled[:start] + tabled[table[1] :] == content
    assert b"a description" not in assert_cut_changes_no_pixel(tabled, (20, 20, 20, 20)).jpeg


@settings(max_examples=80)
@given(data=st.data())
def test_a_table_that_does_not_fit_the_bytes_is_not_believed(data):
    tabled = bytearray(with_offset_table(coded()))
    start, stop = table_of(bytes(tabled))
    kind = data.draw(st.sampled_from(["flip", "swap", "random"]))
    at = data.draw(st.integers(start, stop - 1))
    if kind == "flip":
        tabled[at] ^= data.draw(st.integers(1, 255))
    elif kind == "swap":
        tabled[start:stop] = tabled[at:stop] + tabled[start:at]
    else:
        tabled[start:stop] = data.draw(st.binary(min_size=stop - start, max_size=stop - start))
    assert_cut_changes_no_pixel(bytes(tabled), data.draw(boxes(100, 144)))


def unusual():
    colour = scene(64, 64)
    yield "no markers", pillow_jpeg(colour)
    yield "progressive", pillow_jpeg(colour, progressive=True, restart_marker_blocks=2)
    buffer = io.BytesIO()
    Image.fromarray(colour).convert("CMYK").save(buffer, "JPEG", restart_marker_blocks=2)
    yield "four components", buffer.getvalue()
    content = pillow_jpeg(colour, restart_marker_blocks=2)
    number = content.index(b"\xff\xd1") + 1
    yield "misnumbered", content[:number] + b"\xd5" + content[number + 1 :]
    yield "no end", content[:-2]
    yield "fill bytes", content[: number - 1] + b"\xff" + content[number - 1 :]
    interval = content.index(b"\xff\xdd") + 5
    yield "wrong interval", content[:interval] + b"\x03" + content[interval + 1 :]


@pytest.mark.parametrize(("name", "content"), list(unusual()), ids=lambda value: str(value)[:20])
def test_what_is_unusual_is_handed_back_whole(name, content):
    assert with_offset_table(content) is content
    assert cut(content, (16, 16, 16, 16)).jpeg is content


@needs_jpegtran
def test_arithmetic_coding_is_handed_back_whole():
    content = jpegtran(pillow_jpeg(scene(64, 64)), "-arithmetic", "-restart", "1B")
    assert cut(content, (16, 16, 16, 16)).jpeg is content


def test_a_table_that_would_not_fit_is_not_written():
    # Segments of one MCU of the largest possible image would need more than one APP9 holds.
    content = pillow_jpeg(
        np.zeros((2000, 2000, 3), np.uint8), subsampling="4:4:4", restart_marker_blocks=1
    )
    assert with_offset_table(content) is content


def test_fill_bytes_before_markers_are_allowed():
    content = coded()
    at = content.index(b"\xff\xdb")
    filled = content[:at] + b"\xff\xff" + content[at:]
    assert len(assert_cut_changes_no_pixel(filled, (40, 40, 10, 10)).jpeg) < len(content) / 2


@pytest.mark.parametrize("box", [(0, 0, 0, 5), (-1, 0, 5, 5), (60, 0, 50, 5), (0, 0, 5, 145)])
def test_a_box_outside_the_picture_is_refused(box):
    with pytest.raises(ValueError, match="is not inside 100 x 144 px"):
        cut(coded(), box)


@settings(max_examples=200)
@given(data=st.data(), subsampling=st.sampled_from(SAMPLINGS), table=st.booleans())
def test_hostile_bytes_raise_value_error_or_give_a_picture(data, subsampling, table):
    content = coded(subsampling)
    content = with_offset_table(content) if table else content
    hostile = bytearray(content)
    reach = data.draw(st.sampled_from([40, 700, len(hostile)]))  # mostly in the header
    for _ in range(data.draw(st.integers(0, 4))):
        hostile[data.draw(st.integers(0, min(reach, len(hostile)) - 1))] = data.draw(
            st.integers(0, 255)
        )
    if data.draw(st.booleans()):
        del hostile[data.draw(st.integers(0, len(hostile) - 1)) :]
    box = data.draw(boxes(100, 144))
    try:
        with_offset_table(bytes(hostile))
        decoded = jpeg.decode_box(bytes(hostile), box)
    except ValueError:
        return
    assert decoded.shape == (*box[2:], 3)


@given(content=st.binary(max_size=200))
def test_bytes_that_are_no_jpeg_raise_value_error(content):
    for start in (b"", b"\xff\xd8", b"\xff\xd8\xff\xc0\x00\x11\x08"):
        with pytest.raises(ValueError, match="JPEG"):
            read_header(start + content, strict=True)


@pytest.mark.parametrize("sizes", [(0, 10), (10, 0)])
def test_a_header_without_a_size_is_refused(sizes):
    content = bytearray(coded())
    struct.pack_into(">HH", content, read_header(bytes(content), strict=True).size_offset, *sizes)
    with pytest.raises(ValueError, match="states no size"):
        read_header(bytes(content), strict=True)


@pytest.mark.parametrize(
    ("columns", "mcu_width", "interval"), [(32, 16, 2), (63, 8, 3), (40, 8, 5), (47, 8, 47)]
)
def test_the_suggested_interval_divides_the_row(columns, mcu_width, interval):
    assert suggested_interval(columns, mcu_width) == interval
