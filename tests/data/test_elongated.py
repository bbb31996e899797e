"""An image of any shape takes bounded memory, and its pixels are those of resize-then-crop."""

import importlib.util
import io
import resource
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from imagenet_rn50.data.image_folder import ProcessorTransform
from imagenet_rn50.data.transforms import EvalTransform, TrainTransform
from imagenet_rn50.jpeg import decode as jpeg
from imagenet_rn50.model import build_processor
from imagenet_rn50.recipe import DataRecipe
from space.images import open_image
from tests.images import pillow_jpeg

DATA = DataRecipe()
PROCESSOR = build_processor(DATA)
NEEDLES = [(60_000, 1), (1, 60_000), (2, 65_000), (65_000, 3)]
STATM = Path("/proc/self/statm")
needs_proc = pytest.mark.skipif(not STATM.exists(), reason="needs /proc")


@contextmanager
def at_most(megabytes):
    """Lets this process allocate so much beyond what it has."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    now = int(STATM.read_text(encoding="utf-8").split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + megabytes * 2**20, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def noise(height, width):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def resized_then_cropped(content):
    """What the processor makes of the whole image, without normalising."""
    image = Image.open(io.BytesIO(content))
    options = {"do_rescale": False, "do_normalize": False, "return_tensors": "pt"}
    return PROCESSOR(image, **options).pixel_values[0]


@needs_proc
@pytest.mark.parametrize("size", NEEDLES)
@pytest.mark.parametrize(
    "transform",
    [
        EvalTransform(DATA.eval_resize, DATA.eval_size),
        ProcessorTransform(PROCESSOR, DATA.eval_size),
        TrainTransform(DATA, seed=0),
    ],
    ids=lambda transform: type(transform).__name__,
)
def test_a_needle_takes_bounded_memory(size, transform):
    content = pillow_jpeg(noise(*size))
    transform(pillow_jpeg(noise(300, 300)), 0, 0)  # threads and libraries
    with at_most(megabytes=200):
        image = transform(content, 0, 0)
    assert image.shape == (3, 224, 224)


@needs_proc
@pytest.mark.parametrize("size", NEEDLES)
def test_space_and_example_hand_the_processor_a_bounded_image(tmp_path, monkeypatch, size):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    source = Path(__file__).parents[2] / "examples" / "predict.py"
    spec = importlib.util.spec_from_file_location("predict", source)
    assert spec is not None
    assert spec.loader is not None
    predict = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(predict)
    content = pillow_jpeg(noise(*size))
    path = tmp_path / "needle.jpg"
    path.write_bytes(content)
    expected = ProcessorTransform(PROCESSOR, 224)(content, 0, 0)
    with at_most(megabytes=200):
        for image in (open_image(path), predict.open_image(path)):
            found = PROCESSOR(image, return_tensors="pt").pixel_values[0]
            assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("size", "is_exact"),
    [
        ((900, 3), True),  # 256 * 900 / 3 is a whole number
        ((3, 903), True),
        ((2000, 40), True),
        ((40, 2001), False),
        ((7, 401), False),
        ((4001, 100), False),
        ((9000, 257), False),
    ],
)
def test_the_center_of_an_elongated_image_is_what_resizing_all_of_it_gives(size, is_exact):
    content = pillow_jpeg(noise(*size))
    assert jpeg.central_box(*size)[2:] != size
    found = EvalTransform(256, 224)(content, 0, 0)
    difference = (found.int() - resized_then_cropped(content).int()).abs()
    assert difference.max() <= (0 if is_exact else 1)
    assert difference.float().mean() < 0.05


@given(short=st.integers(1, 3000), ratio=st.floats(1, 60_000), is_flat=st.booleans())
@settings(max_examples=200, deadline=None)
def test_the_center_is_whole_up_to_the_limit_and_central_beyond_it(short, ratio, is_flat):
    long = int(short * ratio)
    box = jpeg.central_box(short, long) if is_flat else jpeg.central_box(long, short)
    start, cut, length, kept = box if is_flat else (box[1], box[0], box[3], box[2])
    assert (start, length) == (0, short)
    assert 2 * cut + kept == long
    assert cut % short == 0
    assert kept < (jpeg.MAX_ASPECT_RATIO + 2) * short
    assert kept == long or kept >= jpeg.MAX_ASPECT_RATIO * short


@pytest.mark.parametrize("size", [(8, 271), (271, 8), (20, 30), (300, 10)])
def test_images_up_to_the_limit_are_resized_whole(size):
    content = pillow_jpeg(noise(*size))
    assert jpeg.central_box(*size) == (0, 0, *size)
    assert torch.equal(EvalTransform(256, 224)(content, 0, 0), resized_then_cropped(content))


@pytest.mark.parametrize("transform", [EvalTransform(256, 224), ProcessorTransform(PROCESSOR, 224)])
def test_an_image_that_states_more_pixels_than_pillow_decodes_is_refused(transform):
    content = bytearray(pillow_jpeg(noise(16, 16)))
    at = content.index(b"\xff\xc0") + 5
    content[at : at + 4] = bytes.fromhex("fff0fff0")
    with pytest.raises(ValueError, match=r"too large|exceeds limit"):
        transform(bytes(content), 0, 0)
