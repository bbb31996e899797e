"""Only data with ImageNet-1k's classes and numbers of images is called ImageNet-1k."""

import json
from pathlib import Path

import numpy as np
import pytest

from imagenet_rn50.classes import Classes
from imagenet_rn50.evaluation.datasets import ShardImages
from imagenet_rn50.shards.imagenet1k import complete_splits, dataset_name, is_name
from imagenet_rn50.shards.index import IndexOptions, index
from imagenet_rn50.shards.manifest import Manifest, Shard, Split
from imagenet_rn50.shards.pack import pack
from imagenet_rn50.shards.plan import PackOptions, with_dataset
from imagenet_rn50.shards.sources.base import Source, SourceImage
from imagenet_rn50.shards.sources.detect import read_source
from imagenet_rn50.shards.store import LocalShards
from imagenet_rn50.utils.errors import InputError
from tests.shards.helpers import WNIDS, jpeg, write_imagefolder, write_kaggle
from tests.support import imagenet1k_wnids

ALL = Classes(imagenet1k_wnids(), imagenet1k_wnids())
COUNTS = {"train": 1_281_167, "validation": 50_000}


@pytest.mark.parametrize(
    ("classes", "counts", "complete"),
    [
        (ALL, COUNTS, ["train", "validation"]),
        (ALL, {"train": 1_281_167}, ["train"]),
        (ALL, COUNTS | {"train": 1_281_166}, ["validation"]),
        (ALL, COUNTS | {"validation": 49_999}, ["train"]),
        (ALL, {"train": 5000, "validation": 1000}, []),
        (None, COUNTS, []),
        (Classes(ALL.wnids[:-1], ALL.names[:-1]), COUNTS, []),
        (Classes((*ALL.wnids[:-1], "n99999999"), ALL.names), COUNTS, []),
    ],
)
def test_classes_and_counts_decide_which_splits_are_imagenet1k(classes, counts, complete):
    assert complete_splits(classes, counts) == complete
    if complete == list(counts):
        assert dataset_name("imagenet1k", "x", classes, counts) == "imagenet1k"
    else:
        with pytest.raises(InputError, match="--dataset"):
            dataset_name("imagenet1k", "x", classes, counts)
        assert not is_name(dataset_name(None, "imagenet1k", classes, counts))


@pytest.mark.parametrize(
    "name",
    ["imagenet1k", "ImageNet-1k", "imagenet", "ILSVRC", "ilsvrc2012", "in1k", "imagenet_2012"],
)
def test_a_small_set_is_not_packed_under_a_name_of_imagenet1k(tmp_path, name):
    root = write_imagefolder(tmp_path / name)
    with pytest.raises(InputError, match=f"--dataset {name}"):
        pack(read_source(root), tmp_path / "out", PackOptions(dataset=name))
    assert not (tmp_path / "out").exists()
    packed = pack(read_source(root), tmp_path / "out", PackOptions())
    assert packed.manifest.dataset == f"{name}-18-images"


@pytest.mark.parametrize(
    "name", ["imagenet100", "imagenet-r", "tiny-imagenet", "imagenette2", "pets"]
)
def test_other_names_are_free_and_the_default_is_the_name_of_the_folder(tmp_path, name):
    packed = pack(read_source(write_imagefolder(tmp_path / name)), tmp_path / "out", PackOptions())
    assert packed.manifest.dataset == name
    assert packed.manifest.split("train").shards[0].name == f"{name}-train-00.tar"


@pytest.mark.parametrize(
    ("folder", "name"), [("my pets.v2", "my-pets-v2"), ("猫", "images"), ("_x", "x")]
)
def test_a_folder_whose_name_cannot_begin_a_file_name_gives_one_that_can(folder, name):
    image = SourceImage("a", 0, "a.jpg", 0, 1)
    source = Source(Path(folder), "imagefolder", Classes(("a",), ("a",)), {"train": [image]})
    assert with_dataset(PackOptions(), source).dataset == name


def test_imagenet1k_is_not_packed_without_the_images_that_are_skipped(tmp_path, monkeypatch):
    monkeypatch.setattr("imagenet_rn50.shards.imagenet1k.complete_splits", lambda c, n, _: list(n))
    root = write_imagefolder(tmp_path / "source")
    (root / "train" / WNIDS[0] / "bad.JPEG").write_bytes(jpeg()[:90])
    with pytest.raises(InputError, match=r"bad\.JPEG"):
        pack(
            read_source(root),
            tmp_path / "out",
            PackOptions(dataset="imagenet1k", on_corrupt="skip"),
        )


def test_shards_of_others_are_called_imagenet1k_only_if_they_are(tmp_path):
    pack(read_source(write_kaggle(tmp_path / "source")), tmp_path / "out", PackOptions())
    shards = tmp_path / "shards"
    shards.mkdir()
    for path in (tmp_path / "out").glob("*.tar"):
        path.rename(shards / path.name.replace("source", "imagenet1k"))
    with pytest.raises(InputError, match="--dataset imagenet1k"):
        index(shards, IndexOptions(dataset="imagenet1k"))
    assert index(shards).dataset == "imagenet1k-18-images"
    audit = json.loads((shards / "audit.json").read_text(encoding="utf-8"))
    assert audit["imagenet1k_splits"] == []


def test_an_evaluation_says_whether_it_was_on_imagenet1k(tmp_path):
    def described(classes, count, options=None):
        column = np.zeros(count, np.int64)
        keys = np.arange(count).astype("S8")
        shard = Shard("imagenet1k-validation-00.tar", count, 0, "")
        split = Split((shard,), column, column.astype(np.int32), column.astype(np.int32), keys)
        Manifest("imagenet1k", options or {}, {"validation": split}).save(tmp_path)
        classes.save(tmp_path)
        return ShardImages(LocalShards(tmp_path), "validation").description["is_imagenet1k"]

    assert described(ALL, 50_000) is True
    assert described(ALL, 49_999) is False
    assert described(ALL, 50_000, {"holdout": 0.04}) is False
    assert described(Classes(WNIDS, WNIDS), 50_000) is False
