"""No split disappears: where validation is, how it is sorted, and what is said without one."""

import json
import shutil

import pytest

import shard_imagenet
from imagenet_rn50.shards.manifest import Manifest
from imagenet_rn50.shards.pack import pack
from imagenet_rn50.shards.plan import PackOptions
from imagenet_rn50.shards.sources.detect import read_source
from imagenet_rn50.utils.errors import InputError
from tests.shards.helpers import (
    WNIDS,
    jpeg,
    samples_of,
    validation_images_of,
    write_imagefolder,
    write_kaggle,
    write_official,
    write_parquet,
)

CSV = "LOC_val_solution.csv"
IMAGES = "ILSVRC/Data/CLS-LOC"


def sort_validation(root, count=6):
    """Does to the first `count` images what everybody's script does to all."""
    val = root / IMAGES / "val"
    for name, (wnid, _) in list(validation_images_of(6).items())[:count]:
        (val / wnid).mkdir(exist_ok=True)
        (val / f"{name}.JPEG").rename(val / wnid / f"{name}.JPEG")
    return val


def fingerprint_of(source, out, **options):
    pack(read_source(source), out, PackOptions(dataset="x", **options))
    return Manifest.fingerprint_of(out)


@pytest.mark.parametrize("with_csv", [True, False])
def test_a_sorted_val_folder_is_a_validation_split(tmp_path, with_csv):
    root = write_kaggle(tmp_path / "source")
    sort_validation(root)
    if not with_csv:
        (root / CSV).unlink()
    pack(read_source(root), tmp_path / "out", PackOptions())
    assert samples_of(tmp_path / "out", "validation") == {
        name: (WNIDS.index(wnid), content)
        for name, (wnid, content) in validation_images_of(6).items()
    }


def test_a_half_sorted_val_folder_needs_its_csv(tmp_path):
    root = write_kaggle(tmp_path / "source")
    sort_validation(root, count=4)
    pack(read_source(root), tmp_path / "out", PackOptions())
    assert len(samples_of(tmp_path / "out", "validation")) == 6
    (root / CSV).unlink()
    with pytest.raises(InputError, match="ILSVRC2012_val_00000005"):
        pack(read_source(root), tmp_path / "out2", PackOptions())


def test_folders_that_contradict_the_csv_are_refused(tmp_path):
    root = write_kaggle(tmp_path / "source")
    val = sort_validation(root)
    name, (wnid, _) = next(iter(validation_images_of(6).items()))
    other = next(other for other in WNIDS if other != wnid)
    (val / wnid / f"{name}.JPEG").rename(val / other / f"{name}.JPEG")
    with pytest.raises(InputError, match=rf"{name}(.|\n)*{wnid}(.|\n)*{other}"):
        read_source(root)


def test_two_images_of_one_row_of_the_csv_are_refused(tmp_path):
    root = write_kaggle(tmp_path / "source")
    (root / IMAGES / "val" / "ILSVRC2012_val_00000001.png").write_bytes(jpeg(1))
    with pytest.raises(InputError, match="ILSVRC2012_val_00000001"):
        read_source(root)


@pytest.mark.parametrize("write", [write_kaggle, write_imagefolder])
def test_a_flat_val_folder_without_its_csv_is_refused_with_its_name(tmp_path, write, refused):
    root = write(tmp_path / "source")
    for val in root.rglob("val"):
        for path in list(val.glob("*/*")):
            path.rename(val / path.name)
        for path in list(val.glob("n*")):
            path.rmdir()
    (root / CSV).unlink(missing_ok=True)
    words = ("pack", "--source", root, "--out", tmp_path / "out")
    said = refused(shard_imagenet.main, *words)
    assert str(root / CSV) in said
    assert "--train-only" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("level", ["ILSVRC", "ILSVRC/Data", IMAGES, "link", "."])
def test_a_source_is_the_same_from_every_level_of_kaggles_tree(tmp_path, level, monkeypatch):
    root = write_kaggle(tmp_path / "source")
    (tmp_path / "source" / "link").symlink_to(root / IMAGES)
    named = root / level
    if level == ".":
        monkeypatch.chdir(root / IMAGES)
        named = type(root)(".")
    assert fingerprint_of(named, tmp_path / "one") == fingerprint_of(root, tmp_path / "two")


@pytest.mark.parametrize("name", ["val", "validation", "valid", "Val", "VALIDATION"])
def test_validation_folders_have_several_names_in_any_case(tmp_path, name):
    root = write_imagefolder(tmp_path / "source")
    (root / "val").rename(root / name)
    (root / "train").rename(root / "Train")
    source = read_source(root)
    assert {split: len(images) for split, images in source.splits.items()} == {
        "train": 12,
        "validation": 6,
    }


def test_two_validation_folders_are_refused(tmp_path):
    root = write_imagefolder(tmp_path / "source")
    shutil.copytree(root / "val", root / "validation")
    with pytest.raises(InputError, match="val and validation"):
        read_source(root)


def test_folders_may_be_links(tmp_path):
    root = write_imagefolder(tmp_path / "source")
    expected = fingerprint_of(root, tmp_path / "one")
    for number, path in enumerate((root / "val", root / "train" / WNIDS[0])):
        path.rename(tmp_path / f"elsewhere-{number}")
        path.symlink_to(tmp_path / f"elsewhere-{number}")
    assert fingerprint_of(root, tmp_path / "two") == expected


def no_folder(root):
    shutil.rmtree(root / "val")


def empty_folder(root):
    no_folder(root)
    (root / "val").mkdir()


def only_test_folder(root):
    (root / "val").rename(root / "test")


@pytest.mark.parametrize("lose", [no_folder, empty_folder, only_test_folder])
def test_a_source_without_validation_is_packed_only_when_asked(tmp_path, lose, refused):
    root = write_imagefolder(tmp_path / "source")
    lose(root)
    words = ("pack", "--source", root, "--out", tmp_path / "out")
    said = refused(shard_imagenet.main, *words)
    assert "--train-only" in said
    assert ("test/" in said) == (lose is only_test_folder)
    assert not (tmp_path / "out").exists()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "sys.argv", ["shard_imagenet.py", *map(str, words), "--train-only", "--workers", "1"]
        )
        with pytest.raises(SystemExit) as left:
            shard_imagenet.main()
    assert left.value.code == 0
    assert list(Manifest.load(tmp_path / "out").splits) == ["train"]
    assert Manifest.load(tmp_path / "out").options["train_only"] is True


@pytest.mark.parametrize("write", [write_kaggle, write_imagefolder, write_official, write_parquet])
def test_train_only_leaves_validation_out_and_names_it(tmp_path, write):
    root = write(tmp_path / "source")
    source = read_source(root, train_only=True)
    assert list(source.splits) == ["train"]
    assert any("--train-only" in entry.reason for entry in source.unpacked)
    whole = read_source(root).splits["train"]
    assert source.splits["train"] == whole


def test_classes_of_training_that_validation_lacks_are_named(tmp_path):
    root = write_imagefolder(tmp_path / "source")
    shutil.rmtree(root / "val" / WNIDS[1])
    pack(read_source(root), tmp_path / "out", PackOptions())
    audit = json.loads((tmp_path / "out" / "audit.json").read_text(encoding="utf-8"))
    [note] = audit["notes"]
    assert WNIDS[1] in note


def test_a_source_of_two_layouts_is_refused_until_one_is_named(tmp_path):
    root = write_imagefolder(tmp_path / "source")
    for path in write_official(tmp_path / "official").iterdir():
        path.rename(root / path.name)
    with pytest.raises(InputError, match="official, imagefolder"):
        read_source(root)
    assert read_source(root, "imagefolder").layout == "imagefolder"
    assert read_source(root, "official").layout == "official"


def test_a_source_one_level_too_high_is_refused_with_the_right_one(tmp_path):
    root = write_imagefolder(tmp_path / "downloads" / "imagenette2")
    with pytest.raises(InputError, match=f"--source {root}"):
        read_source(root.parent)
