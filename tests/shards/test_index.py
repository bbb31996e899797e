import io
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import shard_imagenet
from imagenet_rn50.classes import Classes
from imagenet_rn50.shards.index import IndexOptions, index
from imagenet_rn50.shards.manifest import Manifest
from imagenet_rn50.shards.pack import pack
from imagenet_rn50.shards.plan import PackOptions
from imagenet_rn50.shards.sources.detect import read_source
from imagenet_rn50.shards.verify import verify
from imagenet_rn50.utils.errors import InputError
from tests.shards.helpers import WNIDS, contents, jpeg, samples_of, tar_of, write_kaggle


def foreign(folder, number, split="train", spelling="04d", count=4):
    """Write one shard as others do, with `tarfile`, JSON beside the label, and a folder."""
    members: dict[str, bytes] = {}
    for i in range(number * count, (number + 1) * count):
        label = i % 3
        key = f"{WNIDS[label]}_{i}"
        members |= {
            f"{key}.JPG": jpeg(i),
            f"{key}.cls": b"%d\n" % label,
            f"{key}.json": b'{"label": %d}' % label,
        }
    folder.mkdir(exist_ok=True)
    (folder / f"imagenet1k-{split}-{number:{spelling}}.tar").write_bytes(tar_of(members))


@pytest.mark.parametrize("spelling", ["02d", "04d"])
def test_foreign_shards_get_a_manifest_that_points_at_their_bytes(tmp_path, spelling):
    for number in range(3):
        foreign(tmp_path, number)
    foreign(tmp_path, 0, "validation", spelling)
    before = contents(tmp_path)
    manifest = index(tmp_path, num_threads=2)
    assert manifest.dataset == "imagenet1k-16-images"
    assert [s.name for s in manifest.split("train").shards] == [
        f"imagenet1k-train-000{number}.tar" for number in range(3)
    ]
    expected = {f"{WNIDS[i % 3]}_{i}": (i % 3, jpeg(i)) for i in range(12)}
    assert samples_of(tmp_path, "train") == expected
    assert samples_of(tmp_path, "validation").items() <= expected.items()
    assert Classes.load(tmp_path).wnids == WNIDS
    assert verify(tmp_path) == []
    after = contents(tmp_path)
    assert {name: after[name] for name in before} == before


def test_one_shard_in_two_spellings_is_refused(tmp_path):
    foreign(tmp_path, 0, "validation", "02d")
    foreign(tmp_path, 0, "validation", "04d")
    with pytest.raises(InputError, match="the same shard in two spellings"):
        index(tmp_path)


def test_indexing_our_own_shards_gives_the_manifest_of_packing(tmp_path):
    source = read_source(write_kaggle(tmp_path / "source"))
    packed = pack(source, tmp_path / "out", PackOptions(train_shards=3)).manifest
    fingerprint = Manifest.fingerprint_of(tmp_path / "out")
    (tmp_path / "out" / "manifest.json").unlink()
    indexed = index(tmp_path / "out")
    for name, split in packed.splits.items():
        assert indexed.split(name).shards == split.shards
        for column in ("offsets", "lengths", "labels", "keys", "crc32s"):
            np.testing.assert_array_equal(
                getattr(indexed.split(name), column), getattr(split, column)
            )
    assert Manifest.fingerprint_of(tmp_path / "out") == fingerprint


@pytest.mark.parametrize("name", ["../../x.jpg", "/etc/x.jpg", "a/../../x.jpg"])
def test_a_member_path_that_leads_out_is_refused_and_nothing_leaves_the_folder(tmp_path, name):
    shards = tmp_path / "deep" / "shards"
    shards.mkdir(parents=True)
    members = {name: jpeg(), name.replace(".jpg", ".cls"): b"0"}
    (shards / "imagenet1k-train-0000.tar").write_bytes(tar_of(members))
    with tarfile.open(shards / "imagenet1k-train-0000.tar") as tar:
        assert tar.getnames()[0] == name
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match="leads out of its folder"):
        index(shards)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"a.jpg": jpeg()}, "has no label"),
        ({"a.jpg": jpeg(), "a.png": jpeg(), "a.cls": b"1"}, "has 2 images"),
        ({"a.cls": b"1"}, "has no image"),
        ({"a.jpg": jpeg(), "a.cls": b"tench"}, "has no label"),
        ({"a.jpg": jpeg(), "a.json": b'{"label": "1"}'}, "has no label"),
        ({"a.jpg": jpeg(), "a.cls": b"-1"}, "has no label"),
        ({"a.jpg": jpeg(), "a.cls": b"99999999999999999999"}, "has no label"),
        ({"a.jpg": jpeg(), "a.cls": b"9" * 5000}, "has no label"),
        ({"a.jpg": jpeg(), "a.json": b'{"label": -1}'}, "has no label"),
        ({"a.jpg": jpeg(), "a.json": b'{"label": true}'}, "has no label"),
        ({"a.jpg": jpeg(), "a.json": b"[" * 100_000}, "has no label"),
    ],
)
def test_a_sample_without_image_or_label_is_named(tmp_path, members, message):
    (tmp_path / "x-train-0.tar").write_bytes(tar_of(members))
    with pytest.raises(InputError, match=f"the sample 'a' .* {message}"):
        index(tmp_path)


def test_a_member_name_that_is_not_utf8_is_refused(tmp_path):
    content = tar_of({"a_b.jpg": jpeg()}).replace(b"a_b.jpg", b"a\xffb.jpg")
    # The byte went up by 0xff - 0x5f, and the sum that stands in the header with it.
    old = int(content[148:154], 8)
    content = content[:148] + b"%06o" % (old + 0xFF - 0x5F) + content[154:]
    (tmp_path / "x-train-0.tar").write_bytes(content)
    with pytest.raises(InputError, match="expected: printable UTF-8 names"):
        index(tmp_path)


def test_a_shard_that_was_cut_off_is_not_indexed(tmp_path):
    foreign(tmp_path, 0)
    path = tmp_path / "imagenet1k-train-0000.tar"
    content = path.read_bytes()
    path.write_bytes(content[: content.index(b"n01443537_1.JPG")])  # at the edge of a member
    with pytest.raises(InputError, match="without an end mark: cut off"):
        index(tmp_path)
    assert not (tmp_path / "manifest.json").exists()


def test_the_same_key_in_two_shards_is_refused(tmp_path):
    foreign(tmp_path, 0)
    shutil.copy(tmp_path / "imagenet1k-train-0000.tar", tmp_path / "imagenet1k-train-0001.tar")
    with pytest.raises(InputError, match="the key 'n01440764_0' is in"):
        index(tmp_path)


def test_the_same_key_twice_in_one_shard_is_refused(tmp_path):
    with tarfile.open(tmp_path / "x-train-0.tar", "w") as tar:
        for name in ("a.jpg", "a.cls", "b.jpg", "b.cls", "a.jpg", "a.cls"):
            content = b"0" if name.endswith("cls") else jpeg()
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    with pytest.raises(InputError, match=r"the key 'a' is in x-train-0\.tar and again in x-tr"):
        index(tmp_path)


def test_a_whole_manifest_is_replaced_only_by_force(tmp_path):
    foreign(tmp_path, 0)
    index(tmp_path)
    with pytest.raises(InputError, match="holds a manifest already"):
        index(tmp_path)
    foreign(tmp_path, 1)
    assert index(tmp_path, IndexOptions(force=True)).split("train").num_samples == 8


def test_a_damaged_manifest_may_be_replaced(tmp_path):
    foreign(tmp_path, 0)
    index(tmp_path)
    (tmp_path / "manifest-train.npz").write_bytes(b"damaged")
    assert index(tmp_path).split("train").num_samples == 4


def test_a_folder_without_shards_is_refused_by_the_names_it_holds(tmp_path):
    (tmp_path / "images.tar").write_bytes(tar_of({}))
    with pytest.raises(InputError, match=r"found:    images\.tar"):
        index(tmp_path)


def encoded(form):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6)).save(buffer, format=form)
    return buffer.getvalue()


@pytest.mark.parametrize(("ending", "form"), [("jpg", "PNG"), ("png", "PNG"), ("webp", "WEBP")])
def test_images_of_other_formats_are_listed_and_may_be_left_out(tmp_path, capsys, ending, form):
    members = {f"n01440764_1.{ending}": encoded(form), "n01440764_1.cls": b"0"}
    members |= {"n01440764_2.jpg": jpeg(), "n01440764_2.cls": b"0"}
    (tmp_path / "x-train-0.tar").write_bytes(tar_of(members))
    assert index(tmp_path).split("train").num_samples == 2
    said = capsys.readouterr().out
    assert "1 images are no JPEGs, which training cannot read; they are listed in" in said
    assert f"pack --source {tmp_path}" in said
    assert "n01440764_1" in (tmp_path / "audit.md").read_text()
    skipping = index(tmp_path, IndexOptions(on_corrupt="skip", force=True))
    assert [bytes(key) for key in skipping.split("train").keys] == [b"n01440764_2"]
    assert verify(tmp_path) == []


UNUSABLE = {
    "a.jpg": jpeg(1), "b.cls": b"0", "c.jpg": jpeg(2), "c.png": b"", "c.cls": b"0",
    "d.jpg": jpeg()[:20], "d.cls": b"0", "e.png": b"\x89PNG\r\n\x1a\n", "e.cls": b"0",
    "f.jpg": b"", "f.cls": b"0", "g.x.jpg": jpeg(3), "g.cls": b"0",
}  # fmt: skip


def test_what_cannot_be_used_is_counted_and_named_and_left_out_only_on_request(tmp_path):
    for number in range(2):
        usable = {f"n01440764_{number}.jpg": jpeg(), f"n01440764_{number}.cls": b"0"}
        unusable = {f"{number}{name}": content for name, content in UNUSABLE.items()}
        (tmp_path / f"x-train-{number}.tar").write_bytes(tar_of(usable | unusable))
    with pytest.raises(InputError, match="cannot be used: 14") as refused:
        index(tmp_path)
    assert "the sample '0a' in x-train-0.tar has no label" in str(refused.value)
    assert not (tmp_path / "manifest.json").exists()
    manifest = index(tmp_path, IndexOptions(on_corrupt="skip"))
    assert manifest.split("train").num_samples == 2
    assert manifest.options["num_skipped"] == 14
    audit = (tmp_path / "audit.md").read_text()
    assert "## Skipped images: 14" in audit
    assert all(f"| 1{key} |" in audit for key in "abcdefg")
    assert verify(tmp_path) == []
    assert not (tmp_path / ".indexing").exists()


def test_a_split_of_which_nothing_can_be_used_is_refused(tmp_path):
    (tmp_path / "x-train-0.tar").write_bytes(tar_of({"a.cls": b"0"}))
    with pytest.raises(InputError, match="no sample that can be used"):
        index(tmp_path, IndexOptions(on_corrupt="skip"))


@pytest.mark.parametrize("make", [Path.mkdir, lambda path: None])
def test_a_mapping_that_is_no_file_is_refused(tmp_path, refused, make):
    foreign(tmp_path, 0)
    make(tmp_path / "mapping")
    said = refused(
        shard_imagenet.main, "index", "--shards", tmp_path, "--mapping", tmp_path / "mapping"
    )
    assert said.startswith(f"--mapping {tmp_path / 'mapping'} is not a file")
    assert not (tmp_path / "manifest.json").exists()


def test_shards_whose_classes_nobody_names_are_called_so(tmp_path, capsys):
    (tmp_path / "x-train-0.tar").write_bytes(tar_of({"a.jpg": jpeg(), "a.cls": b"0"}))
    index(tmp_path)
    assert not (tmp_path / "classes.json").exists()
    assert "training will refuse these shards" in capsys.readouterr().out


def test_names_of_classes_come_from_a_mapping(tmp_path):
    foreign(tmp_path, 0)
    mapping = tmp_path / "mapping.txt"
    mapping.write_text("".join(f"{w} name of {w}\n" for w in WNIDS), encoding="utf-8")
    index(tmp_path, IndexOptions(mapping=mapping))
    assert Classes.load(tmp_path).names[0] == "name of n01440764"
    mapping.write_text("n01440764 the only one\n", encoding="utf-8")
    with pytest.raises(InputError, match="class index 2, beyond the 1 known classes"):
        index(tmp_path, IndexOptions(mapping=mapping, force=True))
