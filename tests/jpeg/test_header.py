import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from imagenet_rn50.jpeg.header import JpegError, read_header
from tests.shards.helpers import jpeg

COLOUR_SPACES = {"L": "gray", "RGB": "ycc", "CMYK": "cmyk"}


@given(
    mode=st.sampled_from(sorted(COLOUR_SPACES)),
    width=st.integers(1, 70),
    height=st.integers(1, 70),
    progressive=st.booleans(),
    blocks=st.integers(0, 5),
    with_exif=st.booleans(),
)
def test_the_header_says_what_the_picture_was_made_with(
    mode, width, height, progressive, blocks, with_exif
):
    exif = Image.Exif()
    if with_exif:
        exif[0x010E] = "a description"
    content = jpeg(
        0,
        (width, height),
        mode,
        progressive=progressive,
        restart_marker_blocks=blocks,
        exif=exif.tobytes() if with_exif else b"",
    )
    header = read_header(content)
    assert (header.width, header.height) == (width, height)
    assert header.num_components == len(mode)
    assert header.color_space == COLOUR_SPACES[mode]
    assert header.progressive == progressive
    assert header.restart_interval == blocks
    assert content[header.sos : header.sos + 2] == b"\xff\xda"
    assert (header.exif is not None) == with_exif


def test_cutting_out_the_exif_segment_leaves_the_same_picture_without_it():
    exif = Image.Exif()
    exif[0x010E] = "a description"
    content = jpeg(exif=exif.tobytes())
    exif_place = read_header(content).exif
    assert exif_place is not None
    begin, end = exif_place
    cut = content[:begin] + content[end:]
    assert read_header(cut).exif is None
    pixels = [Image.open(io.BytesIO(c)).tobytes() for c in (content, cut)]
    assert pixels[0] == pixels[1]


def test_adobe_transform_2_is_ycck():
    content = jpeg(mode="CMYK")
    at = content.index(b"Adobe") + 11
    ycck = content[:at] + b"\x02" + content[at + 1 :]
    assert read_header(ycck).color_space == "ycck"


@given(length=st.integers(0, 600))
def test_a_jpeg_that_ends_before_its_scan_is_refused_and_never_crashes(length):
    content = jpeg()
    scan = read_header(content).sos
    with pytest.raises(JpegError):
        read_header(content[: min(length, scan)])


@given(flips=st.lists(st.tuples(st.integers(2, 700), st.integers(0, 255)), max_size=20))
def test_whatever_the_bytes_the_reader_returns_or_refuses(flips):
    content = bytearray(jpeg())
    for position, value in flips:
        content[position] = value
    try:
        header = read_header(bytes(content))
    except JpegError:
        return
    assert 0 < header.sos < len(content)


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8", b"\xff\xd8\xff\xd9"])
def test_what_is_no_jpeg_is_refused(content):
    with pytest.raises(JpegError):
        read_header(content)
