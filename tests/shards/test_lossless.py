"""Restart markers: the child process gives the bytes of `jpegtran`, or `jpegtran` is asked."""

import io
import os
import signal
import subprocess
from collections.abc import Callable

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from imagenet_rn50.jpeg.header import read_header
from imagenet_rn50.shards import lossless, transcoder_process
from imagenet_rn50.shards.lossless import JpegtranError, add_by_jpegtran, add_restart_markers
from imagenet_rn50.shards.pack import pack
from imagenet_rn50.shards.plan import PackOptions
from imagenet_rn50.shards.sources.detect import read_source
from tests.images import jpegtran, scene, turbo_jpeg
from tests.shards.helpers import contents, write_kaggle

pytestmark = pytest.mark.skipif(not lossless.is_installed(), reason="needs jpegtran")

SEGMENTS = {
    "exif": b"\xff\xe1\0\x10Exif\0\0II*\0\0\0\0\0",
    "exif that is cut off": b"\xff\xe1\0\x06Exif",
    "xmp": b"\xff\xe1\0\x08http:/",
    "icc": b"\xff\xe2\0\x12ICC_PROFILE\0\1\1xy",
    "adobe": b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0\1",
    "rgb": b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0\0",
    "adobe that is cut off": b"\xff\xee\0\x07Adobe",
    "comment": b"\xff\xfe\0\x04hi",
    "empty comment": b"\xff\xfe\0\x02",
    "largest": b"\xff\xe5\xff\xff" + bytes(65533),
    "second jfif": b"\xff\xe0\0\x10JFIF\0\1\2\1\0\x48\0\x24\0\0",
    "jfxx": b"\xff\xe0\0\x08JFXX\0\x10",
}
MODES = ["444", "422", "420", "440", "411", "Gray", "CMYK"]


def jpeg(mode: str, size: tuple[int, int], seed: int, options: tuple[str, ...]) -> bytes:
    pixels = scene(*size, seed=seed)
    if mode == "CMYK":
        buffer = io.BytesIO()
        Image.fromarray(pixels).convert("CMYK").save(buffer, "JPEG")
        content = buffer.getvalue()
    else:
        content = turbo_jpeg(pixels[:, :, 0] if mode == "Gray" else pixels, mode)
    return jpegtran(content, *options) if options else content


def outcome(call: Callable[[bytes, int], bytes], content: bytes, blocks: int) -> bytes | str:
    try:
        return call(content, blocks)
    except JpegtranError as error:
        return str(error)


@settings(max_examples=40, deadline=None)
@given(
    mode=st.sampled_from(MODES),
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    seed=st.integers(0, 3),
    options=st.sampled_from([(), ("-progressive",), ("-optimize",), ("-restart", "3B")]),
    segments=st.lists(st.sampled_from(sorted(SEGMENTS)), max_size=3),
    is_first=st.booleans(),
    blocks=st.integers(1, 70),
    damage=st.sampled_from(["none", "cut off", "flipped", "garbage", "second image"]),
    where=st.floats(0, 1, exclude_max=True),
)
@example("444", 50, 40, 0, (), ["exif", "icc", "adobe"], False, 5, "garbage", 0.5)
@example("CMYK", 50, 40, 0, ("-progressive",), ["exif"], True, 1, "none", 0.5)
@example("Gray", 9, 41, 0, ("-optimize",), ["second jfif", "jfxx"], True, 2, "none", 0.5)
def test_restart_markers_are_those_of_jpegtran_for_any_file(
    mode, height, width, seed, options, segments, is_first, blocks, damage, where
):
    content = jpeg(mode, (height, width), seed, options)
    at = 2 if is_first else 4 + int.from_bytes(content[4:6])
    content = content[:at] + b"".join(SEGMENTS[name] for name in segments) + content[at:]
    middle = int(where * len(content))
    if damage == "cut off":
        content = content[:middle]
    elif damage == "flipped":
        content = content[:middle] + bytes([content[middle] ^ 0x5A]) + content[middle + 1 :]
    elif damage == "garbage":
        content += bytes(range(256))
    elif damage == "second image":
        content += content
    expected = outcome(add_by_jpegtran, content, blocks)
    assert outcome(add_restart_markers, content, blocks) == expected
    assert lossless.why_slow() is None


def test_a_gray_image_that_states_a_subsampling_gets_the_markers_of_jpegtran():
    content = bytearray(jpeg("Gray", (50, 41), 0, ()))
    frame = content.index(b"\xff\xc0")
    assert content[frame + 11] == 0x11  # sampling factors of the only component
    content[frame + 11] = 0x22  # as some encoders write them; a scan of one component ignores them
    marked = add_restart_markers(bytes(content), 2)
    assert marked == add_by_jpegtran(bytes(content), 2)
    assert marked[marked.index(b"\xff\xc0") + 11] == 0x11
    assert lossless.why_slow() is None


def test_without_the_library_jpegtran_is_called_for_each_image_and_the_reason_is_given(monkeypatch):
    content = jpeg("420", (50, 40), 0, ())
    lossless.shut_down()
    monkeypatch.setattr(lossless, "find_library", lambda: "no/such/libjpeg.so.62")
    try:
        assert "no/such/libjpeg.so.62" in str(lossless.why_slow())
        assert add_restart_markers(content, 2) == jpegtran(content, "-restart", "2B")
    finally:
        lossless.shut_down()
        monkeypatch.undo()
    assert lossless.why_slow() is None


def test_images_after_the_end_of_the_child_process_get_the_same_markers():
    content = jpeg("444", (50, 40), 0, ())
    expected = add_restart_markers(content, 2)
    command = ["ps", "-ww", "-o", "pid=,args=", "--ppid", str(os.getpid())]
    children = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    (line,) = [line for line in children.splitlines() if transcoder_process.__file__ in line]
    os.kill(int(line.split()[0]), signal.SIGKILL)
    assert [add_restart_markers(content, 2) for _ in range(2)] == [expected] * 2
    assert read_header(expected).restart_interval == 2


def test_an_interrupted_image_does_not_leave_its_bytes_to_the_next(monkeypatch):
    first, second = (jpeg("420", (50, 40), seed, ()) for seed in (0, 1))

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(lossless, "wait", interrupt)
        with pytest.raises(KeyboardInterrupt):
            add_restart_markers(first, 2)
    assert add_restart_markers(second, 2) == add_by_jpegtran(second, 2)


def test_pack_says_that_markers_are_slow_and_makes_the_same_shards(tmp_path, monkeypatch, caplog):
    source = read_source(write_kaggle(tmp_path / "source"))
    options = PackOptions(restart_blocks=4)
    pack(source, tmp_path / "fast", options)
    assert "jpegtran" not in caplog.text
    monkeypatch.setattr(lossless, "find_library", lambda: "no/such/libjpeg.so.62")
    pack(source, tmp_path / "slow", options)
    assert "no/such/libjpeg.so.62" in caplog.text
    assert contents(tmp_path / "fast") == contents(tmp_path / "slow")
