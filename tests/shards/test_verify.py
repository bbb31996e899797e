import random
import shutil
from dataclasses import replace

import numpy as np
import pytest

from imagenet_rn50.shards.manifest import Manifest
from imagenet_rn50.shards.pack import pack
from imagenet_rn50.shards.plan import PackOptions
from imagenet_rn50.shards.sources.detect import read_source
from imagenet_rn50.shards.tar import padding
from imagenet_rn50.shards.verify import verify
from imagenet_rn50.utils.errors import InputError
from tests.shards.helpers import write_kaggle


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("packed")
    source = read_source(write_kaggle(folder / "source", train=30))
    pack(source, folder / "out", PackOptions(train_shards=3, validation_shards=2))
    return folder / "out"


@pytest.fixture
def shards(packed, tmp_path):
    return shutil.copytree(packed, tmp_path / "shards")


@pytest.mark.parametrize("quick", [False, True])
def test_whole_shards_give_no_finding(shards, quick):
    assert verify(shards, quick=quick, num_threads=2) == []


def test_a_sample_that_is_not_listed_is_a_finding_unless_the_manifest_is_a_subset(shards):
    manifest = Manifest.load(shards)
    train = manifest.split("train")
    listed = {**manifest.splits, "train": train.select(np.arange(1, train.num_samples))}
    (shards / "_info.json").unlink()
    replace(manifest, splits=listed).save(shards)
    [finding] = verify(shards)
    assert train.key_of(0) in finding.problem
    parent = {"dataset": "whole", "fingerprint": "", "options": manifest.options}
    options = {"subset": {}, "parent": parent}
    replace(manifest, splits=listed, options=options).save(shards)
    assert verify(shards) == []


def test_each_of_200_flipped_bytes_is_found_and_its_sample_named(shards):
    rng = random.Random(0)
    manifest = Manifest.load(shards)
    tars = sorted(shards.glob("*.tar"))
    num_named = 0
    for _ in range(200):
        path = rng.choice(tars)
        content = bytearray(path.read_bytes())
        position = rng.randrange(len(content))
        content[position] ^= rng.randrange(1, 256)
        whole = path.read_bytes()
        path.write_bytes(bytes(content))
        findings = verify(shards)
        path.write_bytes(whole)
        assert {finding.file for finding in findings} == {path.name}, position
        if key := sample_at(manifest, path.name, position):
            assert any(key in finding.problem for finding in findings), (key, findings)
            num_named += 1
    assert num_named > 40
    assert verify(shards) == []


def sample_at(manifest: Manifest, shard: str, position: int) -> str | None:
    """Return the key of the sample whose image or label holds that byte; None outside."""
    for split in manifest.splits.values():
        for index in range(split.num_samples):
            begin, length = int(split.offsets[index]), int(split.lengths[index])
            label = begin + length + padding(length) + 512
            places = (range(begin, begin + length), range(label, label + 1))
            is_here = split.shards[split.shard_of(index)].name == shard
            if is_here and any(position in place for place in places):
                return split.key_of(index)
    return None


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 0.999])
def test_a_truncated_shard_is_found_by_size_alone_and_the_missing_samples_are_named(shards, share):
    path = shards / "source-train-01.tar"
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    assert [finding.file for finding in verify(shards, quick=True)] == [path.name]
    problems = " ".join(finding.problem for finding in verify(shards))
    assert "cut off" in problems
    split = Manifest.load(shards).split("train")
    ends = split.offsets + split.lengths
    lost = [split.key_of(index) for index in range(10, 20) if ends[index] > len(content) * share]
    assert all(repr(key) in problems for key in lost)


def test_a_missing_and_a_surplus_shard_are_found(shards):
    (shards / "source-train-00.tar").rename(shards / "source-train-07.tar")
    for quick in (True, False):
        found = {finding.file: finding.problem for finding in verify(shards, quick=quick)}
        assert found == {
            "source-train-00.tar": "is missing",
            "source-train-07.tar": "is not in the manifest",
        }


def test_two_shards_that_were_swapped_are_both_found(shards):
    one, other = shards / "source-train-00.tar", shards / "source-train-01.tar"
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)
    assert {finding.file for finding in verify(shards)} == {one.name, other.name}


def test_a_label_that_differs_from_the_manifest_is_named(shards):
    manifest = Manifest.load(shards)
    manifest.split("train").labels[3] += 1
    manifest.save(shards)
    (finding,) = verify(shards)
    assert repr(manifest.split("train").key_of(3)) in finding.problem
    assert "has the label" in finding.problem


@pytest.mark.parametrize(
    "name", ["manifest.json", "manifest-train.npz", "_info.json", "classes.json"]
)
def test_damage_beside_the_shards_is_found(shards, name):
    content = bytearray((shards / name).read_bytes())
    content[len(content) // 3] ^= 0x15
    (shards / name).write_bytes(bytes(content))
    assert verify(shards)


@pytest.mark.parametrize("quick", [False, True])
def test_missing_names_of_classes_are_found(shards, quick):
    (shards / "classes.json").unlink()
    assert [str(finding) for finding in verify(shards, quick=quick)] == ["classes.json: is missing"]


def test_shards_without_checksums_of_images_are_still_verified(shards):
    manifest = Manifest.load(shards)
    for split in manifest.splits.values():
        object.__setattr__(split, "crc32s", None)
    manifest.save(shards)
    assert Manifest.load(shards).split("train").crc32s is None
    assert verify(shards) == []
    path = shards / "source-train-00.tar"
    content = bytearray(path.read_bytes())
    content[600] ^= 1
    path.write_bytes(bytes(content))
    assert [str(finding) for finding in verify(shards)] == [f"{path.name}: sha256 differs"]


def test_a_folder_without_a_manifest_is_wrong_use(tmp_path):
    with pytest.raises(InputError, match="holds no manifest"):
        verify(tmp_path)


def test_a_shard_of_zeros_loses_all_its_samples(shards):
    path = shards / "source-train-02.tar"
    path.write_bytes(bytes(path.stat().st_size))
    problems = [finding.problem for finding in verify(shards)]
    assert sum("is missing" in problem for problem in problems) == 10
    assert verify(shards, quick=True) == []  # which is why it is called quick
