import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagenet_rn50.shards.audit import read_report
from imagenet_rn50.shards.manifest import Manifest, Shard, Split
from imagenet_rn50.utils.errors import InputError
from tests.support import write_shards


def make_manifest(sizes: list[int]) -> Manifest:
    n = sum(sizes)
    shards = tuple(
        Shard(name=f"tiny-train-{i}.tar", num_samples=size, num_bytes=512 * size, sha256="0" * 64)
        for i, size in enumerate(sizes)
    )
    split = Split(
        shards=shards,
        offsets=np.arange(n, dtype=np.int64) * 1024,
        lengths=np.full(n, 700, np.int32),
        labels=np.arange(n, dtype=np.int32) % 3,
        keys=np.array([f"ключ_{i}".encode() for i in range(n)], dtype=np.bytes_),
    )
    return Manifest(dataset="tiny", options={"seed": 0}, splits={"train": split})


def test_loading_returns_what_was_saved(tmp_path):
    saved = make_manifest([3, 0, 4])
    fingerprint = saved.save(tmp_path)
    loaded = Manifest.load(tmp_path)
    assert loaded.dataset == "tiny"
    assert loaded.split("train").shards == saved.split("train").shards
    assert loaded.split("train").key_of(6) == "ключ_6"
    for column in ("offsets", "lengths", "labels", "keys"):
        before, after = (getattr(m.split("train"), column) for m in (saved, loaded))
        np.testing.assert_array_equal(before, after)
    assert loaded.save(tmp_path) == fingerprint


def test_the_fingerprint_changes_when_one_label_changes(tmp_path):
    manifest = make_manifest([3, 4])
    fingerprint = manifest.save(tmp_path)
    manifest.split("train").labels[2] += 1
    assert manifest.save(tmp_path) != fingerprint


@given(sizes=st.lists(st.integers(0, 5), min_size=1, max_size=8))
def test_shard_of_finds_the_shard_that_holds_each_sample(sizes):
    split = make_manifest(sizes).split("train")
    expected = [number for number, size in enumerate(sizes) for _ in range(size)]
    assert [split.shard_of(i) for i in range(split.num_samples)] == expected


def test_a_damaged_columns_file_is_named(tmp_path):
    make_manifest([3]).save(tmp_path)
    path = tmp_path / "manifest-train.npz"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(InputError, match=r"manifest-train\.npz does not match"):
        Manifest.load(tmp_path)


def test_a_folder_without_a_manifest_says_how_to_make_one(tmp_path):
    with pytest.raises(InputError, match=r"shard_imagenet\.py pack"):
        Manifest.load(tmp_path)


@pytest.mark.parametrize(
    "name", ["../up.tar", "/etc/passwd", "a/../../b.tar", "a//b.tar", "..", ""]
)
def test_a_shard_name_that_leaves_the_location_is_refused(name):
    with pytest.raises(InputError, match="path inside the location"):
        Shard(name=name, num_samples=1, num_bytes=1, sha256="0" * 64)


def test_columns_that_contradict_the_shards_are_refused():
    split = make_manifest([3]).split("train")
    with pytest.raises(InputError, match="inconsistent"):
        Split(split.shards, split.offsets[:2], split.lengths, split.labels, split.keys)


def test_the_manifest_of_imagenet_loads_in_well_under_a_second(tmp_path):
    n = 1_281_167
    keys = np.char.add("n01440764_", np.arange(n).astype(np.str_)).astype(np.bytes_)
    split = Split(
        shards=(Shard(name="x-train-0000.tar", num_samples=n, num_bytes=1, sha256="0" * 64),),
        offsets=np.arange(n, dtype=np.int64),
        lengths=np.ones(n, np.int32),
        labels=np.zeros(n, np.int32),
        keys=keys,
        crc32s=np.zeros(n, np.uint32),
    )
    Manifest("imagenet1k", {}, {"train": split}).save(tmp_path)
    begin = time.process_time()
    assert Manifest.load(tmp_path).split("train").num_samples == n
    assert time.process_time() - begin < 0.5


def test_a_manifest_that_lacks_an_entry_is_called_damaged(tmp_path):
    make_manifest([3]).save(tmp_path)
    path = tmp_path / "manifest.json"
    content = path.read_text(encoding="utf-8")
    path.write_text(content.replace('"splits"', '"spits"'), encoding="utf-8")
    with pytest.raises(InputError, match="is damaged: KeyError"):
        Manifest.load(tmp_path)


@pytest.mark.parametrize(
    ("asked", "fix"),
    [
        ("data", r"name data/digits/shards\Z"),
        ("data/digits", r"name data/digits/shards\Z"),
        (
            "data/digits/source",
            r"source data/digits/source --out SHARDS; .* data/digits/shards\Z",
        ),
        ("data/digits/shards/inner", r"name data/digits/shards\Z"),
        ("data/digits/shards/manifest.json", r"name the folder, data/digits/shards\Z"),
        ("others", r"index --shards others\Z"),
        ("official", r"pack --source official --out SHARDS\Z"),
        ("empty", r"pack --source DIR --out empty\Z"),
        ("nowhere", r"pack --source DIR --out nowhere\Z"),
    ],
)
def test_a_folder_without_a_manifest_is_answered_by_what_it_holds(
    tmp_path, monkeypatch, asked, fix
):
    monkeypatch.chdir(tmp_path)
    write_shards(Path("data/digits/shards"), train=[3], validation=[2])
    for name in (
        "data/digits/source/ILSVRC/x.JPEG",
        "data/digits/shards/inner/x.txt",
        "others/imagenet1k-train-0000.tar",
        "official/ILSVRC2012_img_train.tar",
        "empty/x",
    ):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    Path("empty/x").unlink()
    for read in (Manifest.load, read_report):
        with pytest.raises(InputError, match=fix) as refused:
            read(Path(asked))
        assert f"--out {asked}\n" not in f"{refused.value}\n" or asked in {"empty", "nowhere"}
