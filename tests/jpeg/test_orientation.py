"""Everybody who opens an image turns it alike: training, evaluation, pipeline, Space, example."""

import importlib.util
import io
import random
import struct
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers.image_utils import load_image

from imagenet_rn50.data.image_folder import ProcessorTransform, read_image
from imagenet_rn50.data.transforms import (
    EvalTransform,
    TrainTransform,
    augmentation_rng,
    random_crop_box,
    resize,
)
from imagenet_rn50.jpeg import decode as jpeg
from imagenet_rn50.jpeg.crop import with_offset_table
from imagenet_rn50.jpeg.header import read_header
from imagenet_rn50.jpeg.orientation import upright
from imagenet_rn50.model import build_processor
from imagenet_rn50.recipe import DataRecipe
from imagenet_rn50.shards.images import prepare
from imagenet_rn50.shards.lossless import is_installed
from imagenet_rn50.shards.plan import PackOptions
from imagenet_rn50.shards.sources.base import SourceImage
from space.images import open_image
from tests.images import pillow_jpeg, scene

ORIENTATIONS = range(1, 9)
XMP = b"http://ns.adobe.com/xap/1.0/\0"
DATA = DataRecipe(train_size=32, eval_resize=36, eval_size=32)
PROCESSOR = build_processor(DATA)


def exif(orientation, order="<", kind=3):
    """The content of an EXIF segment with a description and an orientation of a TIFF type."""
    value = struct.pack(order + {1: "B3x", 3: "Hxx", 4: "L", 9: "l", 11: "f"}[kind], orientation)
    entries = struct.pack(order + "HHL4s", 0x010E, 2, 4, b"abc\0")
    entries += struct.pack(order + "HHL", 0x0112, kind, 1) + value
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(order + "L", 8)
    return b"Exif\0\0" + head + struct.pack(order + "H", 2) + entries + bytes(4)


def xmp(orientation, form='tiff:Orientation="{}"'):
    return XMP + b"<x:xmpmeta " + form.format(orientation).encode() + b"/>"


def tagged(content, *segments):
    """Puts APP1 segments behind the JPEG's first segment."""
    at = 4 + int.from_bytes(content[4:6])
    added = b"".join(b"\xff\xe1" + struct.pack(">H", len(s) + 2) + s for s in segments)
    return content[:at] + added + content[at:]


def pillows(content):
    """The upright image by Pillow, as transformers opens it; as stored where Pillow fails."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return np.asarray(load_image(Image.open(io.BytesIO(content))))
        except Exception:
            return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def predict_example():
    path = Path(__file__).parents[2] / "examples" / "predict.py"
    spec = importlib.util.spec_from_file_location("predict", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("size", [(50, 70), (64, 48)])
def test_all_who_open_an_image_see_the_same_pixels(tmp_path, monkeypatch, orientation, size):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    content = tagged(pillow_jpeg(scene(*size)), exif(orientation))
    path = tmp_path / "image.jpg"
    path.write_bytes(content)
    image = load_image(str(path))  # as transformers' pipeline does
    expected = np.asarray(image)
    np.testing.assert_array_equal(jpeg.decode(content), expected)
    np.testing.assert_array_equal(np.asarray(open_image(path)), expected)
    np.testing.assert_array_equal(np.asarray(predict_example().open_image(path)), expected)
    theirs = PROCESSOR(image, return_tensors="pt").pixel_values[0]
    assert torch.equal(ProcessorTransform.of(PROCESSOR)(content, 0, 0), theirs)
    plain = PROCESSOR(image, do_rescale=False, do_normalize=False, return_tensors="pt")
    evaluated = read_image(tmp_path, SourceImage("image", 0, "image.jpg", 0, len(content)))
    assert torch.equal(EvalTransform(36, 32)(evaluated, 0, 0), plain.pixel_values[0])


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("size", [(90, 117), (128, 96)])
def test_training_crops_the_upright_image_from_the_segments_of_the_stored_one(orientation, size):
    content = pillow_jpeg(scene(*size), restart_marker_blocks=2, subsampling="4:4:4")
    content = with_offset_table(tagged(content, exif(orientation)))
    whole = pillows(content)
    transform = TrainTransform(DATA, seed=1)
    for index in range(8):
        rng = augmentation_rng(1, 0, index)
        top, left, height, width = random_crop_box(
            rng, whole.shape[0], whole.shape[1], DATA.crop_scale, DATA.crop_ratio
        )
        if jpeg.dct_factor((top, left, height, width), (32, 32)) > 1:
            continue
        crop = whole[top : top + height, left : left + width]
        expected = resize(crop, (32, 32), flip=rng.random() < DATA.flip)
        assert torch.equal(transform(content, 0, index), expected)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_crop_that_is_shrunk_while_decoding_is_turned_too(orientation):
    content = tagged(pillow_jpeg(scene(401, 603)), exif(orientation))
    stored = np.asarray(Image.open(io.BytesIO(content)))
    transform = TrainTransform(DataRecipe(train_size=16, flip=0.0), seed=2)
    rng = augmentation_rng(2, 0, 0)
    box, factor = transform.draw_box(rng, read_header(content, strict=True), 16)
    assert factor > 1
    assert all(value % factor == 0 for value in box)
    top, left, height, width = box
    crop = upright(stored[top : top + height, left : left + width], orientation)
    expected = resize(crop, (16, 16))
    assert (transform(content, 0, 0).int() - expected.int()).abs().float().mean() < 2


CASES = {
    "big-endian": [exif(6, ">")],
    "a long": [exif(8, kind=4)],
    "a signed long": [exif(3, kind=9)],
    "a float": [exif(6, kind=11)],
    "bytes": [exif(6, kind=1)],
    "zero": [exif(0)],
    "nine": [exif(9)],
    "large": [exif(65535)],
    "only in XMP": [xmp(6)],
    "only in an XMP element": [xmp(8, "tiff:Orientation>{}<")],
    "invalid in XMP": [xmp(9)],
    "EXIF and XMP disagree": [exif(3), xmp(6)],
    "XMP first": [xmp(6), exif(3)],
    "two XMP": [xmp(6), xmp(8)],
    "two EXIF": [exif(6), exif(3)],
    "EXIF in two segments": [exif(6)[:25], b"Exif\0\0" + exif(6)[25:]],
    "EXIF twice headed": [b"Exif\0\0" + exif(5)],
    "EXIF without orientation, and XMP": [exif(6).replace(b"\x12\x01", b"\x1a\x01"), xmp(6)],
    "empty EXIF": [b"Exif\0\0"],
    "no TIFF": [b"Exif\0\0nonsense"],
    "cut off within the directory": [exif(6)[:30]],
    "cut off at the end": [exif(6)[:-4]],
    "more entries than there are": [exif(6).replace(b"\x02\x00\x0e", b"\xff\x00\x0e")],
    "directory beyond the end": [exif(6).replace(b"\x08\0\0\0", b"\xff\xff\0\0")],
    "not EXIF": [b"anything else"],
}


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # of the Space's, and of Pillow's own use
@pytest.mark.parametrize("name", CASES)
def test_odd_and_damaged_metadata_turns_an_image_as_pillow_does(tmp_path, name):
    content = tagged(pillow_jpeg(scene(24, 40)), *CASES[name])
    expected = pillows(content)
    np.testing.assert_array_equal(jpeg.decode(content), expected)
    assert read_header(content, strict=True).orientation == read_header(content).orientation
    assert read_header(content, strict=True).upright_size == expected.shape[:2]
    path = tmp_path / "image.jpg"
    path.write_bytes(content)
    np.testing.assert_array_equal(np.asarray(open_image(path)), expected)
    assert torch.isfinite(ProcessorTransform.of(PROCESSOR)(content, 0, 0)).all()


@example(seed=479, order=">", orientation=2)  # EXIF that Pillow reads and cannot write
@example(seed=516, order="<", orientation=5)
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), order=st.sampled_from("<>"), orientation=st.integers(1, 8))
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_any_damage_to_exif_turns_an_image_as_pillow_does(
    tmp_path_factory, seed, order, orientation
):
    rng = random.Random(seed)
    damaged = bytearray(exif(orientation, order))
    for _ in range(rng.randrange(4)):
        damaged[rng.randrange(6, len(damaged))] = rng.randrange(256)
    damaged = damaged[: rng.choice([len(damaged), rng.randrange(len(damaged))])]
    content = tagged(pillow_jpeg(scene(8, 16)), bytes(damaged))
    expected = pillows(content)
    np.testing.assert_array_equal(jpeg.decode(content), expected)
    path = tmp_path_factory.mktemp("damaged") / "image.jpg"
    path.write_bytes(content)
    np.testing.assert_array_equal(np.asarray(open_image(path)), expected)


def orientation_left(content):
    return Image.open(io.BytesIO(content)).getexif().get(0x0112, 1)


@pytest.mark.parametrize("orientation", range(2, 9))
@pytest.mark.parametrize("blocks", [None, "auto"])
@pytest.mark.parametrize("size", [(64, 48), (50, 70)])
@pytest.mark.skipif(not is_installed(), reason="needs jpegtran")
def test_packing_turns_an_image_once_and_without_loss_where_its_blocks_allow(
    orientation, blocks, size
):
    raw = tagged(pillow_jpeg(scene(*size)), exif(orientation), xmp(orientation))
    prepared = prepare(raw, PackOptions(restart_blocks=blocks))
    expected = pillows(raw).astype(int)
    found = jpeg.decode(prepared.jpeg)
    assert (prepared.height, prepared.width) == found.shape[:2] == expected.shape[:2]
    (change,) = prepared.changes
    assert f"orientation {orientation}" in change
    is_lossless = "without loss" in change
    assert is_lossless == (size == (64, 48) or orientation == 5)
    # Turned coefficients give the same pixels up to the rounding of the inverse DCT and upsampling.
    assert np.abs(found - expected).mean() < (0.5 if is_lossless else 2)
    assert orientation_left(prepared.jpeg) == read_header(prepared.jpeg).orientation == 1
    assert prepare(prepared.jpeg, PackOptions(restart_blocks=blocks)).jpeg == prepared.jpeg


def test_without_jpegtran_an_image_is_turned_by_its_pixels(monkeypatch):
    monkeypatch.setenv("PATH", "")
    raw = tagged(pillow_jpeg(scene(64, 48)), exif(6))
    prepared = prepare(raw, PackOptions(restart_blocks=None))
    assert "not installed" in prepared.changes[0]
    assert np.abs(jpeg.decode(prepared.jpeg) - pillows(raw).astype(int)).mean() < 2


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "CMYK", "damaged EXIF", "damaged inside"])
@pytest.mark.parametrize("rule", [None, "short=24", "max=40"])
def test_whatever_packing_writes_anew_is_upright(kind, rule):
    plain = Image.fromarray(scene(48, 64))
    tag = Image.Exif()
    tag[0x0112] = 6
    buffer = io.BytesIO()
    image = plain.convert("CMYK") if kind == "CMYK" else plain
    image.save(buffer, format="PNG" if kind == "PNG" else "JPEG", exif=tag, quality=95)
    raw = buffer.getvalue()
    if kind == "damaged EXIF":  # the orientation is read, the description lies beyond the end
        damaged = bytearray(exif(6))
        damaged[20:24] = struct.pack("<L", 4)
        raw = tagged(pillow_jpeg(scene(48, 64)), bytes(damaged)[:-4])
    if kind == "damaged inside":
        middle = len(raw) * 3 // 4
        raw = raw[:middle] + bytes(40) + raw[middle + 40 :]
    prepared = prepare(raw, PackOptions(resize=rule))
    expected = Image.fromarray(pillows(raw)).resize(
        (prepared.width, prepared.height), Image.Resampling.BICUBIC
    )
    assert prepared.height > prepared.width
    assert np.abs(jpeg.decode(prepared.jpeg) - np.asarray(expected).astype(int)).mean() < 8
    assert orientation_left(prepared.jpeg) == 1
    assert sum("turned upright" in change for change in prepared.changes) == 1
    assert sum("turned" in change for change in prepare(prepared.jpeg, PackOptions()).changes) == 0


def test_an_image_that_states_no_turn_is_packed_byte_for_byte():
    for segments in ([], [exif(1)], [exif(9)], [xmp(1)], [b"anything else"]):
        raw = tagged(pillow_jpeg(scene(50, 70)), *segments)
        prepared = prepare(raw, PackOptions(restart_blocks=None))
        assert prepared.jpeg == raw
        assert prepared.changes == ()


def test_turning_undoes_itself():
    pixels = scene(6, 9)
    for orientation, inverse in zip(ORIENTATIONS, (1, 2, 3, 4, 5, 8, 7, 6), strict=True):
        np.testing.assert_array_equal(upright(upright(pixels, orientation), inverse), pixels)
