"""The page's preprocessing beside that of the processor, on pixels that are decoded already."""

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imagenet_rn50.model import processor_of

NODE = shutil.which("node")
PIXELS = Path(__file__).parents[2] / "web" / "pixels.js"

pytestmark = pytest.mark.skipif(NODE is None, reason="needs node")

# Reads jobs {image, width, height, preprocessing} on stdin; image is a file of RGBA pixels. Writes
# the crop of each, RGB, beside its image.
PREPROCESS = """
import { readFileSync, writeFileSync } from "node:fs";
const { planCrop, resizeCrop } = await import(process.argv[1]);
for (const { image, width, height, preprocessing } of JSON.parse(readFileSync(0, "utf8"))) {
  const pixels = new Uint8ClampedArray(readFileSync(image));
  const read = (left, top, w, h) => {
    const box = new Uint8ClampedArray(w * h * 4);
    for (let y = 0; y < h; y++) {
      const from = ((top + y) * width + left) * 4;
      box.set(pixels.subarray(from, from + w * 4), y * w * 4);
    }
    return box;
  };
  const plan = planCrop(width, height, preprocessing);
  writeFileSync(`${image}.crop`, resizeCrop(read, plan, preprocessing.resample));
}
"""

CALL = """
import { readFileSync } from "node:fs";
const pixels = await import(process.argv[1]);
const [name, ...given] = JSON.parse(readFileSync(0, "utf8"));
const found = pixels[name](...given.map((it) => (it?.floats ? Float32Array.from(it.floats) : it)));
process.stdout.write(JSON.stringify(found && found.length >= 0 ? Array.from(found) : found));
"""


def in_node(script, value):
    command = [NODE, "--input-type=module", "--eval", script, str(PIXELS)]
    done = subprocess.run(
        command, input=json.dumps(value), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def call(name, *arguments):
    return json.loads(in_node(CALL, [name, *arguments]))


def noise(seed, width, height):
    """An image with all that resizing may get wrong: edges, noise, and smooth parts."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    pixels[: height // 3] = np.linspace(0, 255, width, dtype=np.uint8)[None, :, None]
    pixels[height // 3 : height // 2, : width // 2] = (255, 0, 128)
    return pixels


# Width and height: square, wide, tall, odd, tiny, as small as the crop, elongated, a phone's photo.
SIZES = [
    *((256, 256), (500, 375), (375, 500), (333, 251), (1, 1), (3, 2), (31, 47), (224, 224)),
    *((1023, 767), (257, 256), (2000, 31), (40, 3000), (100, 3999), (5, 700), (1500, 1999)),
]
SETTINGS = [(256, 224, 2), (36, 32, 2), (224, 224, 3), (235, 181, 3)]


@pytest.mark.numeric
def test_pixels_equal_the_processors_within_one_level(tmp_path):
    jobs, expected = [], []
    for number, (width, height) in enumerate(SIZES):
        pixels = noise(number, width, height)
        rgba = np.dstack([pixels, np.full((height, width), 255, np.uint8)])
        for resize, size, resample in SETTINGS[: 4 if width * height < 300_000 else 1]:
            path = tmp_path / f"{number}-{resize}"
            path.write_bytes(rgba.tobytes())
            settings = {
                "resize": resize,
                "crop": {"height": size, "width": size},
                "resample": {2: "bilinear", 3: "bicubic"}[resample],
            }
            jobs.append({"image": str(path), "width": width, "height": height})
            jobs[-1]["preprocessing"] = settings
            processor = processor_of(resize, size, [0.0] * 3, [1.0] * 3, resample)
            inputs = processor(Image.fromarray(central(pixels)), return_tensors="np")
            levels = np.rint(inputs["pixel_values"][0] * 255)
            expected.append(levels.transpose(1, 2, 0))
    in_node(PREPROCESS, jobs)
    worst, different = [], []
    for job, theirs in zip(jobs, expected, strict=True):
        ours = np.fromfile(f"{job['image']}.crop", np.uint8).reshape(theirs.shape)
        distance = np.abs(ours - theirs)
        worst.append(distance.max())
        different.append((distance > 0).mean())
    assert max(worst) <= 1
    # None with AVX2; without it, torchvision resizes in float32, and some 5% differ by one level.
    assert np.mean(different) < 0.1


def central(pixels):
    """Of elongated images, what the Space passes to the processor; it would take gigabytes."""
    height, width = pixels.shape[:2]
    short, long = sorted((height, width))
    cut = short * max(0, (long // short - 32) // 2)
    x, y = (cut, 0) if width > height else (0, cut)
    return pixels[y : height - y, x : width - x]


def test_the_most_likely_classes_come_first_and_large_logits_do_not_overflow():
    top = call("topClasses", {"floats": [1000.0, 1002.0, -1000.0, 1001.0]}, 3)
    assert [each["index"] for each in top] == [1, 3, 0]
    assert top[0]["score"] == pytest.approx(1 / (1 + np.exp(-1) + np.exp(-2)))


def test_a_heat_map_is_transparent_where_nothing_raises_the_score_and_opaque_at_its_peak():
    def alpha(values):
        size = {"height": 2, "width": 2}
        painted = call("paintMap", {"floats": values}, size, size)
        return painted and painted[3::4]

    assert alpha([-5.0, 0.0, 1.0, 2.0]) == [0, 0, 128, 255]
    assert alpha([7.0, 7.5, 7.0, 8.0]) == [0, 128, 0, 255]  # the least of an image does not glow
    assert alpha([-5.0, -1.0, 0.0, -2.0]) is None
    assert alpha([3.0] * 4) == [0] * 4  # all areas alike: none stands out
