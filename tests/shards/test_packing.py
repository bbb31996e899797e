import tarfile
from pathlib import Path

from imagenet_rn50.shards.manifest import Manifest
from imagenet_rn50.shards.pack import pack
from imagenet_rn50.shards.plan import PackOptions
from imagenet_rn50.shards.sources.detect import read_source
from tests.shards.helpers import contents, write_kaggle


def test_the_manifest_points_at_the_bytes_and_labels_of_every_source_image(tmp_path):
    source = read_source(write_kaggle(tmp_path / "source"))
    pack(source, tmp_path / "out", PackOptions(train_shards=3, validation_shards=2))
    manifest = Manifest.load(tmp_path / "out")
    for name, images in source.splits.items():
        split = manifest.split(name)
        expected = {p.key: (p.label, (Path(source.root) / p.path).read_bytes()) for p in images}
        found = {}
        for index in range(split.num_samples):
            shard = (tmp_path / "out" / split.shards[split.shard_of(index)].name).read_bytes()
            begin = int(split.offsets[index])
            jpeg = shard[begin : begin + int(split.lengths[index])]
            found[split.key_of(index)] = (int(split.labels[index]), jpeg)
        assert found == expected


def test_the_bytes_do_not_depend_on_the_number_of_workers(tmp_path):
    source = read_source(write_kaggle(tmp_path / "source"))
    options = PackOptions(train_shards=4, validation_shards=2)
    for workers in (1, 2):
        pack(source, tmp_path / str(workers), options, num_workers=workers)
    assert contents(tmp_path / "1") == contents(tmp_path / "2")


def test_tar_members_are_an_image_and_its_class_and_tell_nothing_of_the_machine(tmp_path):
    source = read_source(write_kaggle(tmp_path / "source"))
    pack(source, tmp_path / "out", PackOptions())
    with tarfile.open(tmp_path / "out" / "source-train-00.tar") as tar:
        members = tar.getmembers()
    assert {(m.mtime, m.uid, m.gid, m.mode, m.uname) for m in members} == {(0, 0, 0, 0o644, "")}
    stems = [m.name.split(".")[0] for m in members]
    assert [m.name for m in members] == [
        f"{stem}.{end}" for stem in stems[::2] for end in ("jpg", "cls")
    ]


def test_another_seed_gives_another_order_of_the_same_samples(tmp_path):
    source = read_source(write_kaggle(tmp_path / "source"))
    keys = []
    for seed in (0, 1):
        packed = pack(source, tmp_path / str(seed), PackOptions(seed=seed))
        keys.append(packed.manifest.split("train").keys.tolist())
    assert keys[0] != keys[1]
    assert sorted(keys[0]) == sorted(keys[1])


def test_a_second_run_makes_nothing(tmp_path):
    source = read_source(write_kaggle(tmp_path / "source"))
    pack(source, tmp_path / "out", PackOptions())
    before = contents(tmp_path / "out")
    assert pack(source, tmp_path / "out", PackOptions()).num_made == 0
    assert contents(tmp_path / "out") == before
