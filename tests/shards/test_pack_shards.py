"""Packing shards anew: views, shards of others, remote shards."""

import io
import json
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import shard_imagenet
from imagenet_rn50.classes import Classes
from imagenet_rn50.jpeg.header import read_header
from imagenet_rn50.shards.audit import read_audit
from imagenet_rn50.shards.index import IndexOptions, index
from imagenet_rn50.shards.manifest import Manifest
from imagenet_rn50.shards.pack import pack
from imagenet_rn50.shards.plan import PackOptions
from imagenet_rn50.shards.sources.detect import read_source
from imagenet_rn50.shards.subset import Selection, subset
from imagenet_rn50.shards.verify import verify
from imagenet_rn50.utils.errors import InputError
from tests.shards.helpers import (
    WNIDS,
    WRITERS,
    contents,
    jpeg,
    samples_of,
    tar_of,
    write_imagefolder,
    write_kaggle,
)


def tars(folder):
    return {name: content for name, content in contents(folder).items() if name.endswith(".tar")}


def columns(folder):
    return {name: content for name, content in contents(folder).items() if name.endswith(".npz")}


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """Return shards of 24 training and 6 validation images."""
    folder = tmp_path_factory.mktemp("packed")
    source = write_kaggle(folder / "source", train=24)
    pack(read_source(source), folder / "shards", PackOptions(train_shards=3))
    return folder / "shards"


@pytest.mark.parametrize("layout", WRITERS)
def test_shards_packed_anew_are_those_packed_from_their_source(tmp_path, layout):
    source = WRITERS[layout](tmp_path / "source")
    pack(read_source(source), tmp_path / "plain", PackOptions(seed=1, train_shards=2))
    options = PackOptions(
        dataset="it", seed=2, train_shards=3, restart_blocks="auto", resize="short=20"
    )
    pack(read_source(source), tmp_path / "direct", options)
    pack(read_source(tmp_path / "plain"), tmp_path / "again", options)
    assert tars(tmp_path / "again") == tars(tmp_path / "direct")
    assert columns(tmp_path / "again") == columns(tmp_path / "direct")
    assert verify(tmp_path / "again") == []


def test_a_packing_records_the_manifest_it_came_from(packed, tmp_path):
    options = pack(read_source(packed), tmp_path / "again", PackOptions()).manifest.options
    assert options["layout"] == "shards"
    assert options["parent"] == {
        "dataset": "source",
        "fingerprint": Manifest.fingerprint_of(packed),
        "options": Manifest.options_of(packed),
    }
    assert "subset" not in options


@settings(max_examples=10, deadline=None)
@given(
    num_classes=st.integers(2, 3),
    images_per_class=st.none() | st.integers(1, 5),
    holdout=st.booleans(),
    seed=st.integers(0, 5),
    shards=st.integers(1, 3),
)
def test_a_view_packed_anew_has_its_samples_labels_and_bytes(
    packed, tmp_path_factory, num_classes, images_per_class, holdout, seed, shards
):
    folder = tmp_path_factory.mktemp("view")
    selection = Selection(
        num_classes=num_classes,
        images_per_class=images_per_class,
        holdout=0.3 if holdout else None,
        train_only=holdout,
        seed=seed,
    )
    view = subset(str(packed), folder / "view", selection)
    source = read_source(folder / "view")
    options = PackOptions(seed=seed, train_shards=min(shards, view.split("train").num_samples))
    made = pack(source, folder / "out", options).manifest
    everything = samples_of(packed, "train") | samples_of(packed, "validation")
    for name, split in view.splits.items():
        expected = {
            split.key_of(i): (int(split.labels[i]), everything[split.key_of(i)][1])
            for i in range(split.num_samples)
        }
        assert samples_of(folder / "out", name) == expected
    assert Classes.load(folder / "out") == Classes.load(folder / "view")
    assert made.options.get("holdout") == (0.3 if holdout else None)
    assert not made.is_subset
    assert verify(folder / "out") == []


def test_a_packed_view_is_that_of_a_folder_with_its_images(tmp_path):
    whole = write_imagefolder(tmp_path / "whole", train=24)
    pack(read_source(whole), tmp_path / "shards", PackOptions(train_shards=3))
    view = subset(str(tmp_path / "shards"), tmp_path / "view", Selection(images_per_class=4))
    keys = {view.split("train").key_of(i) for i in range(12)}
    for path in whole.rglob("train/*/*"):
        if path.stem not in keys:
            path.unlink()
    options = PackOptions(dataset="it", train_shards=2)
    pack(read_source(whole), tmp_path / "direct", options)
    pack(read_source(tmp_path / "view"), tmp_path / "again", options)
    assert tars(tmp_path / "again") == tars(tmp_path / "direct")


def test_a_changed_source_is_another_packing(packed, tmp_path):
    subset(str(packed), tmp_path / "view", Selection(images_per_class=4))
    pack(read_source(tmp_path / "view"), tmp_path / "out", PackOptions(dataset="it"))
    assert pack(
        read_source(tmp_path / "view"), tmp_path / "out", PackOptions(dataset="it")
    ).num_kept
    shutil.rmtree(tmp_path / "view")
    subset(str(packed), tmp_path / "view", Selection(images_per_class=4, seed=1))
    with pytest.raises(InputError, match="another source") as caught:
        pack(read_source(tmp_path / "view"), tmp_path / "out", PackOptions(dataset="it"))
    assert "source_sha256" in str(caught.value)


def damage(folder, name, index):
    """Flip a bit in the middle of a sample's image; return its key."""
    split = Manifest.load(folder).split(name)
    path = folder / split.shards[split.shard_of(index)].name
    content = bytearray(path.read_bytes())
    content[int(split.offsets[index]) + int(split.lengths[index]) // 2] ^= 4
    path.write_bytes(content)
    return split.key_of(index)


@pytest.mark.parametrize("check", ["decode", "header"])
def test_a_damaged_sample_of_the_source_is_named_and_may_be_skipped(packed, tmp_path, check):
    shutil.copytree(packed, tmp_path / "shards")
    key = damage(tmp_path / "shards", "train", 5)
    with pytest.raises(InputError, match=rf"key {key}(.|\n)*CRC-32"):
        pack(read_source(tmp_path / "shards"), tmp_path / "out", PackOptions(check=check))
    options = PackOptions(check=check, on_corrupt="skip")
    pack(read_source(tmp_path / "shards"), tmp_path / "out", options)
    [skipped] = read_audit(tmp_path / "out")["skipped"]
    assert skipped["key"] == key
    assert "CRC-32" in skipped["reason"]
    assert samples_of(tmp_path / "out", "train").keys() == samples_of(packed, "train").keys() - {
        key
    }


@pytest.mark.parametrize("change", ["missing", "cut"])
def test_a_source_shard_that_is_missing_or_of_another_size_is_refused(packed, tmp_path, change):
    shutil.copytree(packed, tmp_path / "shards")
    path = tmp_path / "shards" / "source-train-01.tar"
    content = path.read_bytes()
    path.unlink()
    if change == "cut":
        path.write_bytes(content[:-512])
    with pytest.raises(InputError, match=r"source-train-01\.tar"):
        read_source(tmp_path / "shards")


@pytest.mark.parametrize("change", ["missing", "changed", "short"])
def test_shards_without_their_classes_are_refused(packed, tmp_path, change):
    shutil.copytree(packed, tmp_path / "shards")
    path = tmp_path / "shards" / "classes.json"
    if change == "missing":
        path.unlink()
    else:
        Classes(WNIDS[:2], WNIDS[:2]).save(path.parent)
    if change == "short":
        manifest = Manifest.load(path.parent)
        Manifest(manifest.dataset, {}, manifest.splits).save(path.parent)
    with pytest.raises(InputError, match="class"):
        read_source(tmp_path / "shards")


def test_a_repacked_validation_split_without_training_needs_no_training(packed, tmp_path):
    subset(str(packed), tmp_path / "view", Selection(validation_only=True))
    made = pack(read_source(tmp_path / "view"), tmp_path / "out", PackOptions()).manifest
    assert list(made.splits) == ["validation"]


def test_what_lies_beside_the_shards_is_named(packed, tmp_path):
    shutil.copytree(packed, tmp_path / "shards")
    (tmp_path / "shards" / "notes.txt").write_text("?")
    shutil.copy(tmp_path / "shards" / "source-train-01.tar", tmp_path / "shards" / "extra.tar")
    source = read_source(tmp_path / "shards", train_only=True)
    assert {entry.path for entry in source.unpacked} == {"notes.txt", "extra.tar", "validation/"}


def test_shards_in_folders_are_shards_and_not_class_folders(packed, tmp_path):
    (tmp_path / "shards" / "train").mkdir(parents=True)
    manifest = Manifest.load(packed)
    for path in packed.glob("*-train-*.tar"):
        shutil.copy(path, tmp_path / "shards" / "train" / path.name)
    split = manifest.split("train")
    named = [type(s)(f"train/{s.name}", s.num_samples, s.num_bytes, s.sha256) for s in split.shards]
    moved = type(split)(tuple(named), split.offsets, split.lengths, split.labels, split.keys)
    Manifest("tiny", {}, {"train": moved}).save(tmp_path / "shards")
    Classes.load(packed).save(tmp_path / "shards")
    source = read_source(tmp_path / "shards", train_only=True)
    assert source.layout == "shards"
    assert not source.unpacked
    pack(source, tmp_path / "out", PackOptions(train_only=True))
    assert samples_of(tmp_path / "out", "train") == samples_of(packed, "train")
    assert any("checksums" in note for note in source.notes)


def test_remote_shards_are_downloaded_once_each_and_leave_the_cache(
    packed, tmp_path, monkeypatch, bucket_server
):
    from imagenet_rn50.utils.storage import RemoteFolder

    bucket_server.create_bucket(Bucket="data")
    for path in packed.iterdir():
        bucket_server.put_object(Bucket="data", Key=f"it/{path.name}", Body=path.read_bytes())
    downloads, most = [], 0
    real = RemoteFolder.download

    def download(self, name, target, **options):
        nonlocal most
        real(self, name, target, **options)
        downloads.append(name)
        most = max(most, len([*(tmp_path / "cache" / "shards").glob("*.tar")]))

    monkeypatch.setattr(RemoteFolder, "download", download)
    source = read_source("s3://data/it", cache=tmp_path / "cache")
    options = PackOptions(dataset="it", train_shards=2, restart_blocks=4)
    pack(source, tmp_path / "remote", options)
    pack(read_source(packed), tmp_path / "local", options)
    assert contents(tmp_path / "remote") == contents(tmp_path / "local")
    assert sorted(name for name in downloads if name.endswith(".tar")) == sorted(tars(packed))
    assert most == 1
    assert not [*(tmp_path / "cache" / "shards").glob("*.tar")]


def test_a_cached_shard_stays_and_a_damaged_copy_of_it_is_downloaded_again(
    packed, tmp_path, bucket_server
):
    from imagenet_rn50.shards.store import open_shards

    bucket_server.create_bucket(Bucket="data")
    for path in packed.iterdir():
        bucket_server.put_object(Bucket="data", Key=f"it/{path.name}", Body=path.read_bytes())
    store = open_shards("s3://data/it", cache=tmp_path / "cache")
    intact, damaged = Manifest.load(packed).split("train").shards[:2]
    store.fetch(intact)
    path = store.fetch(damaged)
    path.write_bytes(bytes(damaged.num_bytes))
    pack(read_source("s3://data/it", cache=tmp_path / "cache"), tmp_path / "out", PackOptions())
    assert samples_of(tmp_path / "out", "train") == samples_of(packed, "train")
    assert [path.stem for path in (tmp_path / "cache" / "shards").glob("*.tar")] == [intact.sha256]


def write_foreign(folder, num_shards=3, form="PNG", split="train", first=0):
    """Write shards with webdataset's own writer; return (label, pixels) by key."""
    webdataset = pytest.importorskip("webdataset")
    folder.mkdir(parents=True, exist_ok=True)
    expected = {}
    pattern = str(folder / f"birds-{split}-%04d.tar")
    with webdataset.ShardWriter(pattern, maxcount=4, verbose=0) as writer:
        for number in range(first, first + 4 * num_shards):
            label = number % 3
            key = f"{WNIDS[label]}/{WNIDS[label]}_{number}"
            image = Image.open(io.BytesIO(jpeg(number)))
            buffer = io.BytesIO()
            image.save(buffer, form, **({"lossless": True} if form == "WEBP" else {}))
            members = {"__key__": key, form.lower(): buffer.getvalue(), "cls": str(label).encode()}
            writer.write(members | {"json": json.dumps({"caption": "a bird"}).encode()})
            expected[key] = label, np.asarray(image.convert("RGB"))
    return expected


@pytest.mark.parametrize("form", ["PNG", "WEBP"])
def test_shards_of_others_become_jpeg_shards_with_restart_markers(tmp_path, form):
    expected = write_foreign(tmp_path / "birds", form=form)
    write_foreign(tmp_path / "birds", num_shards=1, form=form, split="val", first=50)
    before = contents(tmp_path / "birds")
    source = read_source(tmp_path / "birds")
    assert source.layout == "shards"
    options = PackOptions(train_shards=2, restart_blocks=2)
    made = pack(source, tmp_path / "out", options).manifest
    found = samples_of(tmp_path / "out", "train")
    assert {key: label for key, (label, _) in found.items()} == {
        key: label for key, (label, _) in expected.items()
    }
    for key, (_, content) in found.items():
        decoded = np.asarray(Image.open(io.BytesIO(content))).astype(int)
        assert abs(decoded - expected[key][1]).mean() < 4
        assert read_header(content).restart_interval == 2
    assert "parent" not in made.options
    assert made.dataset == "birds"
    assert any(".json" in note for note in source.notes)
    assert contents(tmp_path / "birds") == before
    assert verify(tmp_path / "out") == []


def test_shards_of_others_give_what_their_index_gives(tmp_path):
    write_foreign(tmp_path / "birds")
    index(tmp_path / "birds", out=tmp_path / "index")
    options = PackOptions(dataset="it", train_shards=2, train_only=True)
    for name in ("birds", "index"):
        pack(read_source(tmp_path / name, train_only=True), tmp_path / f"of-{name}", options)
    assert tars(tmp_path / "of-birds") == tars(tmp_path / "of-index")
    assert Manifest.options_of(tmp_path / "of-index")["parent"]["options"] == {"indexed": True}


def test_shards_of_others_are_refused_as_by_index_with_the_way_to_its_options(tmp_path):
    write_foreign(tmp_path / "birds")
    for path in (tmp_path / "birds").iterdir():
        path.rename(path.with_name(path.name.removeprefix("birds-train-")))
    with pytest.raises(InputError, match=r"--train(.|\n)*index --shards .*birds --out INDEX"):
        read_source(tmp_path / "birds")


def test_shards_of_others_without_known_classes_are_refused(tmp_path):
    (tmp_path / "birds").mkdir()
    members = {"a.jpg": jpeg(1), "a.cls": b"0", "b.jpg": jpeg(2), "b.cls": b"1"}
    (tmp_path / "birds" / "birds-train-0000.tar").write_bytes(tar_of(members))
    with pytest.raises(InputError, match=r"classes of .*birds are not known"):
        read_source(tmp_path / "birds", train_only=True)


def test_indexed_shards_pack_from_the_command_line(tmp_path, monkeypatch, capsys):
    write_foreign(tmp_path / "birds")
    words = ["x", "pack", "--source", tmp_path / "birds", "--out", tmp_path / "out", "--train-only"]
    words += ["--workers", "1"]
    monkeypatch.setattr("sys.argv", [str(word) for word in words])
    with pytest.raises(SystemExit) as left:
        shard_imagenet.main()
    assert left.value.code == 0
    printed = capsys.readouterr().out
    assert "which training cannot read" not in printed
    assert "other members of the samples" in printed


@pytest.mark.parametrize("name", ["backup.tar", "manifest.json"])
def test_shards_beside_class_folders_are_not_the_source_and_are_named(packed, tmp_path, name):
    root = write_imagefolder(tmp_path / "source")
    for path in packed.iterdir():
        if name == "manifest.json" or path.name == "source-train-00.tar":
            shutil.copy(path, root / (name if name == "backup.tar" else path.name))
    source = read_source(root)
    assert source.layout == "imagefolder"
    assert name in [entry.path for entry in source.unpacked]
    pack(source, tmp_path / "out", PackOptions())
    assert len(samples_of(tmp_path / "out", "train")) == 12


@pytest.mark.parametrize("has_manifest", [True, False])
def test_shards_are_not_packed_into_their_own_folder(tmp_path, packed, has_manifest):
    shutil.copytree(packed, tmp_path / "shards")
    if not has_manifest:
        (tmp_path / "shards" / "manifest.json").unlink()
    before = contents(tmp_path / "shards")
    with pytest.raises(InputError, match="folder of the shards"):
        pack(read_source(tmp_path / "shards"), tmp_path / "shards", PackOptions(dataset="it"))
    assert contents(tmp_path / "shards") == before
    assert not (tmp_path / "shards" / ".packing").exists()


def test_samples_of_others_that_cannot_be_used_stop_packing_or_are_counted(tmp_path):
    write_foreign(tmp_path / "birds")
    members = {f"{WNIDS[0]}_90.png": b"?", f"{WNIDS[0]}_91.cls": b"0", "what.jpg": jpeg(92)}
    (tmp_path / "birds" / "birds-train-0003.tar").write_bytes(tar_of(members))
    source = read_source(tmp_path / "birds", train_only=True)
    with pytest.raises(InputError, match=rf"train-0003\.tar: {WNIDS[0]}_91"):
        pack(source, tmp_path / "out", PackOptions(train_only=True))
    pack(source, tmp_path / "out", PackOptions(train_only=True, on_corrupt="skip"))
    audit = read_audit(tmp_path / "out")
    assert audit["splits"]["train"]["files"]["found"] == 15
    assert len(audit["skipped"]) == 3
    assert len(samples_of(tmp_path / "out", "train")) == 12


def test_labels_from_a_json_field_become_those_of_the_packed_shards(tmp_path):
    members = {}
    for number in range(6):
        members[f"{number}.jpg"] = jpeg(number)
        members[f"{number}.json"] = json.dumps({"kind": number % 3, "label": 9}).encode()
    (tmp_path / "birds").mkdir()
    (tmp_path / "birds" / "train-0000.tar").write_bytes(tar_of(members))
    Classes(WNIDS, WNIDS).save(tmp_path / "birds")
    index(tmp_path / "birds", IndexOptions(label_key="kind"), out=tmp_path / "index")
    for source, out in (("index", "packed"), ("packed", "again")):
        options = PackOptions(train_only=True)
        pack(read_source(tmp_path / source, train_only=True), tmp_path / out, options)
        found = samples_of(tmp_path / out, "train")
        assert {key: label for key, (label, _) in found.items()} == {
            str(number): number % 3 for number in range(6)
        }
        assert verify(tmp_path / out) == []
