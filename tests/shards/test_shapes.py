"""What packing and indexing say of images that are not upright, or very elongated, or too large."""

import io
import json

import pytest
from PIL import Image

from imagenet_rn50.data.loader import build_loader
from imagenet_rn50.data.sampler import DistributedBatchSampler
from imagenet_rn50.data.transforms import EvalTransform
from imagenet_rn50.shards.images import BadImageError, prepare
from imagenet_rn50.shards.index import index
from imagenet_rn50.shards.manifest import Manifest
from imagenet_rn50.shards.pack import pack
from imagenet_rn50.shards.plan import PackOptions
from imagenet_rn50.shards.sources.detect import read_source
from imagenet_rn50.utils.errors import InputError
from tests.shards.helpers import WNIDS, jpeg, tar_of, write_imagefolder

TAG = Image.Exif()
TAG[0x0112] = 6


def png(width, height):
    buffer = io.BytesIO()
    Image.new("L", (width, height)).save(buffer, format="PNG")
    return buffer.getvalue()


def audit(folder):
    return json.loads((folder / "audit.json").read_text(encoding="utf-8"))


def test_the_audit_counts_turned_and_elongated_images_and_packs_them_all(tmp_path):
    root = write_imagefolder(tmp_path / "source", train=6, validation=3)
    folder = root / "train" / WNIDS[0]
    (folder / "turned.JPEG").write_bytes(jpeg(7, (64, 48), exif=TAG))
    (folder / "thin.JPEG").write_bytes(png(1, 60_000))
    (folder / "flat.JPEG").write_bytes(jpeg(8, (60_000, 1)))
    pack(read_source(root), tmp_path / "out", PackOptions())
    found = audit(tmp_path / "out")
    assert found["splits"]["train"]["num_samples"] == 9
    assert found["splits"]["train"]["num_turned_upright"] == 1
    assert found["splits"]["validation"]["num_turned_upright"] == 0
    assert [(e["key"], e["width"], e["height"]) for e in found["extreme_aspect_ratio"]] == [
        ("flat", 60_000, 1),
        ("thin", 1, 60_000),
    ]
    reports = (tmp_path / "out" / "audit.md").read_text(encoding="utf-8")
    assert "Turned upright by EXIF orientation: 1." in reports
    assert "train/flat: 60000 x 1 px" in reports
    split = Manifest.load(tmp_path / "out").split("train")
    sampler = DistributedBatchSampler(0, 9, 9)
    loader = build_loader(tmp_path / "out", split, sampler, EvalTransform(18, 16))
    assert sum(len(batch.labels) for batch in loader) == 9


def test_the_audit_of_shards_made_by_others_counts_images_that_are_not_upright(tmp_path):
    members: dict[str, bytes] = {}
    for number in range(3):
        members |= {
            f"{WNIDS[number]}_0.jpg": jpeg(number, exif=TAG if number else b""),
            f"{WNIDS[number]}_0.cls": b"%d" % number,
        }
    (tmp_path / "imagenet1k-train-0000.tar").write_bytes(tar_of(members))
    index(tmp_path)
    found = audit(tmp_path)
    assert found["splits"]["train"]["num_turned_upright"] == 2
    assert [entry["key"] for entry in found["changed"]] == [f"{WNIDS[1]}_0", f"{WNIDS[2]}_0"]


@pytest.mark.parametrize("size", [(65_536, 1), (1, 70_000)])
def test_what_no_jpeg_can_hold_is_refused_with_its_size(tmp_path, size):
    content = png(*size)
    with pytest.raises(BadImageError, match=f"{size[0]}x{size[1]} pixels"):
        prepare(content, PackOptions())
    root = write_imagefolder(tmp_path / "source", train=3, validation=3)
    (root / "train" / WNIDS[0] / "odd.JPEG").write_bytes(content)
    with pytest.raises(InputError, match="odd"):
        pack(read_source(root), tmp_path / "out", PackOptions())
