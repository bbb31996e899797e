import io

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.image_utils import load_image

from imagenet_rn50.data.image_folder import ProcessorTransform
from imagenet_rn50.model import build_processor
from imagenet_rn50.recipe import DataRecipe
from imagenet_rn50.utils.errors import InputError
from tests.images import scene

pytestmark = pytest.mark.numeric

PROCESSOR = build_processor(DataRecipe(eval_resize=36, eval_size=32))
TURNED = 6  # EXIF: the image lies on its side


def jpeg_with_orientation(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    Image.fromarray(scene(50, 70)).save(buffer, format="JPEG", exif=exif)
    return buffer.getvalue()


@pytest.mark.parametrize("orientation", [1, TURNED])
def test_pixels_are_those_that_a_pipeline_gives_the_model(tmp_path, orientation):
    content = jpeg_with_orientation(orientation)
    path = tmp_path / "image.jpg"
    path.write_bytes(content)
    theirs = PROCESSOR(load_image(str(path)), return_tensors="pt").pixel_values[0]
    transform = ProcessorTransform.of(PROCESSOR)
    assert transform.size_at(0) == 32
    assert torch.equal(transform(content, 0, 0), theirs)
    out = torch.empty(3, 32, 32)
    assert transform(content, 0, 0, out) is out
    assert torch.equal(out, theirs)


def test_what_pillow_cannot_decode_is_a_value_error():
    with pytest.raises(ValueError, match="cannot identify"):
        ProcessorTransform.of(PROCESSOR)(b"oops", 0, 0)


def test_a_processor_whose_pictures_differ_in_shape_is_refused():
    def processor(image, return_tensors):
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
        return type("Features", (), {"pixel_values": pixels})

    with pytest.raises(InputError, match="cannot be batched"):
        ProcessorTransform.of(processor)
