"""`pack --recode Q` encodes every image anew, whatever it was, once."""

import io

import numpy as np
import pytest
from PIL import Image, JpegImagePlugin

from imagenet_rn50.jpeg.header import read_header
from imagenet_rn50.shards import lossless
from imagenet_rn50.shards.images import BadImageError, decode, prepare
from imagenet_rn50.shards.pack import pack
from imagenet_rn50.shards.plan import PackOptions
from imagenet_rn50.shards.sources.detect import read_source
from imagenet_rn50.utils.errors import InputError
from tests.shards.helpers import WRITERS, contents, images_of, jpeg, samples_of, write_kaggle

RECODE = PackOptions(recode=83)


def encoded(mode: str, form: str, **save) -> bytes:
    buffer = io.BytesIO()
    Image.open(io.BytesIO(jpeg(7, (120, 90)))).convert(mode).save(buffer, form, **save)
    return buffer.getvalue()


def reference(image: Image.Image, quality: int = 83) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, subsampling="4:2:0")
    return buffer.getvalue()


@pytest.mark.parametrize(
    "raw",
    [
        jpeg(size=(120, 90), quality=96, subsampling="4:4:4"),
        jpeg(size=(120, 90), quality=40, progressive=True),
        jpeg(size=(9, 7)),
        jpeg(mode="L", size=(120, 90)),
        jpeg(mode="CMYK", size=(120, 90)),
        encoded("RGB", "PNG"),
        encoded("L", "PNG"),
        encoded("RGBA", "WEBP", lossless=True),
    ],
    ids=["4:4:4", "progressive", "tiny", "gray", "cmyk", "png", "gray png", "webp"],
)
@pytest.mark.parametrize("check", ["decode", "header"])
def test_every_image_gets_the_quality_and_subsampling_from_its_own_pixels(raw, check):
    prepared = prepare(raw, PackOptions(recode=83, check=check))
    is_gray_jpeg = Image.open(io.BytesIO(raw)).mode == "L" and raw[:2] == b"\xff\xd8"
    image = decode(raw) if is_gray_jpeg else decode(raw).convert("RGB")
    assert prepared.jpeg == reference(image)
    with Image.open(io.BytesIO(prepared.jpeg)) as found:
        assert found.mode == ("L" if is_gray_jpeg else "RGB")
        assert JpegImagePlugin.get_sampling(found) == (-1 if is_gray_jpeg else 2)
        assert found.size == (prepared.width, prepared.height) == image.size
    assert "95" not in " ".join(prepared.changes)


@pytest.mark.parametrize("quality", [1, 50, 100])
def test_the_quality_is_the_one_asked_for(quality):
    raw = jpeg(size=(120, 90))
    assert prepare(raw, PackOptions(recode=quality)).jpeg == reference(decode(raw), quality)


@pytest.mark.parametrize(("size", "expected"), [((120, 90), (85, 64)), ((80, 60), (80, 60))])
@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_with_resize_larger_images_are_scaled_and_all_get_the_quality(size, expected, form):
    buffer = io.BytesIO()
    Image.open(io.BytesIO(jpeg(3, size))).save(buffer, form)
    prepared = prepare(buffer.getvalue(), PackOptions(recode=83, resize="short=64"))
    image = decode(buffer.getvalue())
    if size != expected:
        image = image.resize(expected, Image.Resampling.BICUBIC)
    assert (prepared.width, prepared.height) == expected
    assert prepared.jpeg == reference(image)


@pytest.mark.parametrize("orientation", [2, 6])
def test_images_are_turned_upright_and_the_audit_says_so(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    raw = jpeg(size=(120, 90), exif=exif)
    prepared = prepare(raw, RECODE)
    assert prepared.jpeg == reference(decode(raw))
    assert (prepared.width, prepared.height) == ((90, 120) if orientation == 6 else (120, 90))
    assert prepared.changes == (f"orientation {orientation}: turned upright",)
    assert read_header(prepared.jpeg).metadata == []


@pytest.mark.skipif(not lossless.is_installed(), reason="needs jpegtran")
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("blocks", ["auto", 3])
def test_restart_markers_are_added_and_listed_where_asked_for(mode, blocks):
    raw = jpeg(size=(320, 200), mode=mode)
    plain = prepare(raw, RECODE)
    marked = prepare(raw, PackOptions(recode=83, restart_blocks=blocks))
    header = read_header(marked.jpeg, strict=True)
    assert header.table is not None
    assert header.restart_interval == (blocks if blocks != "auto" else header.restart_interval)
    assert header.grid[1] % header.restart_interval == 0 or blocks == 3
    np.testing.assert_array_equal(decode(marked.jpeg), decode(plain.jpeg))


@pytest.mark.parametrize("check", ["decode", "header"])
def test_what_cannot_be_decoded_is_bad(check):
    raw = jpeg(size=(120, 90))
    with pytest.raises(BadImageError):
        prepare(raw[: len(raw) // 2], PackOptions(recode=83, check=check))


@pytest.mark.parametrize("options", [{"recode": 0}, {"recode": 101}, {"recode": 9, "quality": 8}])
def test_a_quality_out_of_range_or_in_conflict_is_refused(options):
    with pytest.raises(InputError, match="--recode"):
        PackOptions(**options)


@pytest.mark.parametrize("form", [*WRITERS, "shards"])
def test_every_source_is_packed_with_it_and_the_manifest_records_it(tmp_path, form):
    if form == "shards":
        pack(read_source(write_kaggle(tmp_path / "kaggle")), tmp_path / "source", PackOptions())
    else:
        WRITERS[form](tmp_path / "source")
    source = read_source(tmp_path / "source")
    options = PackOptions(dataset="it", recode=83)
    manifest = pack(source, tmp_path / "out", options).manifest
    assert manifest.options["recode"] == 83
    found = sorted(content for _, content in samples_of(tmp_path / "out", "train").values())
    assert found == sorted(reference(decode(raw)) for _, raw in images_of(12).values())


def test_an_interrupted_run_resumes_with_the_same_quality_alone_and_any_number_of_workers(
    tmp_path, monkeypatch
):
    source = read_source(write_kaggle(tmp_path / "source"))
    options = PackOptions(recode=83, train_shards=4)
    pack(source, tmp_path / "whole", options)

    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("imagenet_rn50.shards.pack.write_manifest", stop)
        with pytest.raises(KeyboardInterrupt):
            pack(source, tmp_path / "out", options, num_workers=2)
    for folder in ("out", "whole"):
        for other in (PackOptions(recode=84, train_shards=4), PackOptions(train_shards=4)):
            with pytest.raises(InputError, match="recode was 83"):
                pack(source, tmp_path / folder, other)
    assert pack(source, tmp_path / "out", options).num_kept == 5
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_manifests_without_it_are_those_of_before(tmp_path):
    packed = pack(read_source(write_kaggle(tmp_path / "source")), tmp_path / "out", PackOptions())
    assert "recode" not in packed.manifest.options
