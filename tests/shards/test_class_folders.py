"""One's own data: folders of classes, names that may be splits, validation held out of train."""

import json
import unicodedata

import pytest

import shard_imagenet
from imagenet_rn50.classes import Classes
from imagenet_rn50.shards.manifest import Manifest
from imagenet_rn50.shards.pack import pack
from imagenet_rn50.shards.plan import PackOptions
from imagenet_rn50.shards.sources.detect import read_source
from imagenet_rn50.utils.errors import InputError
from tests.shards.helpers import (
    jpeg,
    samples_of,
    tar_of,
    write_imagefolder,
    write_kaggle,
    write_parquet,
)


def write_classes(root, *names, num_images=4):
    """Write a folder with images per name; return `root`."""
    for number, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for i in range(num_images):
            (root / name / f"{i}.jpg").write_bytes(jpeg(100 * number + i))
    return root


def counts(source):
    return {name: len(images) for name, images in source.splits.items()}


def pack_command(root, out, *options):
    """Run the command in this process; return its exit code."""
    words = ("pack", "--source", root, "--out", out, "--restart-blocks", "none", *options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["shard_imagenet.py", *map(str, words), "--workers", "1"])
        with pytest.raises(SystemExit) as left:
            shard_imagenet.main()
    return left.value.code


def test_class_folders_are_packed_with_a_stratified_holdout(tmp_path):
    root = write_classes(tmp_path / "pets", "cats", "dogs", "two words.v1", num_images=10)
    assert pack_command(root, tmp_path / "out", "--holdout", "0.2") == 0
    manifest = Manifest.load(tmp_path / "out")
    assert manifest.options["layout"] == "imagefolder"
    assert manifest.options["holdout"] == 0.2
    assert Classes.load(tmp_path / "out").wnids == ("cats", "dogs", "two words.v1")
    train, validation = (samples_of(tmp_path / "out", name) for name in ("train", "validation"))
    assert not train.keys() & validation.keys()
    packed = {content: label for label, content in (train | validation).values()}
    assert packed == {jpeg(100 * c + i): c for c in range(3) for i in range(10)}
    assert sorted(label for label, _ in validation.values()) == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("write", [write_imagefolder, write_kaggle, write_parquet])
def test_every_layout_gives_a_holdout_once_its_validation_is_left_out(tmp_path, write):
    root = write(tmp_path / "source")
    with pytest.raises(InputError, match=r"6 validation images(.|\n)*--train-only"):
        read_source(root, holdout=0.25)
    source = read_source(root, train_only=True, holdout=0.25)
    assert counts(source) == {"train": 9, "validation": 3}
    assert source.options["holdout"] == 0.25


def test_a_holdout_is_of_keys_and_seed_alone(tmp_path):
    root = write_classes(tmp_path / "pets", "cats", "dogs", num_images=12)

    def held_out(seed):
        source = read_source(root, holdout=0.25, seed=seed)
        return {image.key for image in source.splits["validation"]}

    assert held_out(0) == held_out(0)
    assert held_out(0) != held_out(1)
    before = held_out(0)
    write_classes(root, "birds", num_images=12)  # keys of the others stay the same
    assert before <= held_out(0)


@pytest.mark.parametrize(("num_images", "expected"), [(2, 1), (3, 1), (10, 9)])
def test_a_holdout_leaves_each_class_an_image_in_both_splits(tmp_path, num_images, expected):
    root = write_classes(tmp_path / "pets", "cats", "dogs", num_images=num_images)
    fraction = 0.99 if num_images == 10 else 0.01
    assert counts(read_source(root, holdout=fraction))["validation"] == 2 * expected


def test_a_class_of_one_image_cannot_be_divided(tmp_path):
    root = write_classes(tmp_path / "pets", "cats", "dogs")
    write_classes(root, "birds", num_images=1)
    with pytest.raises(InputError, match="birds"):
        read_source(root, holdout=0.5)


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5, float("nan"), float("inf")])
def test_a_holdout_is_a_fraction(tmp_path, fraction):
    root = write_classes(tmp_path / "pets", "cats", "dogs")
    with pytest.raises(InputError, match="--holdout"):
        read_source(root, holdout=fraction)


def test_without_a_holdout_the_refusal_names_it(tmp_path):
    root = write_classes(tmp_path / "pets", "cats", "dogs")
    with pytest.raises(InputError, match="--holdout"):
        read_source(root)
    assert counts(read_source(root, train_only=True)) == {"train": 8}


@pytest.mark.parametrize(
    "names",
    [
        ("cats", "dogs", "test"),
        ("cats", "dogs", "Dev"),
        ("cats", "dogs", "val"),
        ("bus", "car", "train"),
        ("valid", "invalid"),
        ("training_set", "test_set"),
        ("seg_train/cats", "seg_train/dogs", "seg_test/cats"),
        ("val2017/cats", "extra/cats"),
        ("images", "annotations"),
        ("raw-data", "cats"),
        ("day/cats", "night/cats", "night/dogs"),
    ],
)
def test_a_folder_that_may_be_no_class_is_refused_and_packed_within_train(tmp_path, names):
    root = write_classes(tmp_path / "source", *names)
    with pytest.raises(InputError):
        read_source(root, holdout=0.5)
    root.rename(tmp_path / "train")
    (tmp_path / "again").mkdir()
    (tmp_path / "train").rename(tmp_path / "again" / "train")
    source = read_source(tmp_path / "again", holdout=0.5)
    assert set(source.classes.wnids) == {name.partition("/")[0] for name in names}


@pytest.mark.parametrize("name", ["train station", "test tube", "dev board"])
def test_a_class_whose_name_has_the_word_of_a_split_is_a_class(tmp_path, name):
    root = write_classes(tmp_path / "source", "cats", name)
    assert set(read_source(root, holdout=0.5).classes.wnids) == {"cats", name}


def test_a_test_folder_beside_train_is_named_with_what_to_do(tmp_path, capsys):
    root = write_imagefolder(tmp_path / "source")
    (root / "val").rename(root / "test")
    assert pack_command(root, tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert "test/" in said
    assert "--holdout" in said
    assert pack_command(root, tmp_path / "out", "--holdout", "0.25") == 0
    assert "not packed: test/ (6 files)" in capsys.readouterr().out
    assert Manifest.num_samples_of(tmp_path / "out") == {"train": 9, "validation": 3}


@pytest.mark.parametrize("name", ["training", "Training", "TRAIN"])
def test_the_training_folder_has_several_names(tmp_path, name):
    root = write_imagefolder(tmp_path / "source")
    (root / "train").rename(root / name)
    assert counts(read_source(root)) == {"train": 12, "validation": 6}


def test_a_single_class_is_refused(tmp_path):
    root = write_classes(tmp_path / "source", "cats")
    for layout in (None, "imagefolder"):
        with pytest.raises(InputError, match="cats"):
            read_source(root, layout, holdout=0.5)


def test_a_folder_one_level_too_high_is_refused_with_the_right_one(tmp_path):
    root = write_classes(tmp_path / "downloads" / "pets", "cats", "dogs")
    with pytest.raises(InputError, match=f"--source {root}"):
        read_source(root.parent, holdout=0.5)


def test_other_layouts_are_not_taken_for_class_folders(tmp_path):
    root = write_parquet(tmp_path / "source")
    write_classes(root, "assets", "figures")
    assert read_source(root).layout == "parquet"
    root = write_kaggle(tmp_path / "kaggle")
    write_classes(root, "cats", "dogs")
    assert read_source(root).layout == "kaggle"


def test_what_lies_among_class_folders_is_packed_counted_or_named(tmp_path, capsys):
    root = write_classes(tmp_path / "pets", "cats", "dogs")
    for name in (".DS_Store", "cats/Thumbs.db", "dogs/._0.jpg", "README.txt"):
        (root / name).write_bytes(b"Bud1")
    (root / ".cache").mkdir()
    (root / "__MACOSX" / "cats").mkdir(parents=True)
    (root / "__MACOSX" / "cats" / "._0.jpg").write_bytes(b"\0\5\x16\7")
    assert pack_command(root, tmp_path / "out", "--holdout", "0.5") == 0
    audit = json.loads((tmp_path / "out" / "audit.json").read_text(encoding="utf-8"))
    assert {entry["path"] for entry in audit["not_packed"]} == {
        *(".DS_Store", "cats/Thumbs.db", "dogs/._0.jpg", "README.txt", ".cache/", "__MACOSX/"),
    }
    (root / "loose.jpg").write_bytes(jpeg(1))
    (root / "birds.tar").write_bytes(tar_of({"1.jpg": jpeg(2)}))
    assert pack_command(root, tmp_path / "out2", "--holdout", "0.5") == 2
    assert "loose.jpg" in capsys.readouterr().err


@pytest.mark.parametrize("inside", [None, "notes.txt"])
def test_a_class_folder_without_images_stops_packing(tmp_path, inside, capsys):
    root = write_classes(tmp_path / "pets", "cats", "dogs")
    (root / "birds").mkdir()
    if inside:
        (root / "birds" / inside).write_text("none yet", encoding="utf-8")
    assert pack_command(root, tmp_path / "out", "--holdout", "0.5") == 2
    assert "birds" in capsys.readouterr().err


def test_nested_folders_and_links_are_of_their_class_and_said(tmp_path):
    root = write_classes(tmp_path / "pets", "cats", "dogs/husky", "dogs/pug")
    elsewhere = write_classes(tmp_path / "elsewhere", "birds")
    (root / "birds").symlink_to(elsewhere / "birds")
    source = read_source(root, holdout=0.5)
    assert source.classes.wnids == ("birds", "cats", "dogs")
    assert counts(source) == {"train": 8, "validation": 8}
    [note] = [note for note in source.notes if "dogs/husky/" in note]
    assert "class dogs" in note


def test_two_classes_that_are_one_folder_are_refused(tmp_path):
    root = write_classes(tmp_path / "pets", "cats", "dogs")
    (root / "kittens").symlink_to(root / "cats")
    with pytest.raises(InputError, match="same folder"):
        read_source(root, holdout=0.5)


def test_class_folders_named_by_wnid_take_the_names_of_a_mapping(tmp_path):
    root = write_classes(tmp_path / "fish", "n01440764", "n01443537")
    mapping = "n01440764 tench, Tinca tinca\nn01443537 goldfish\n"
    (root / "LOC_synset_mapping.txt").write_text(mapping, encoding="utf-8")
    source = read_source(root, holdout=0.5)
    assert source.classes.names == ("tench, Tinca tinca", "goldfish")
    assert not source.unpacked


def test_the_order_of_classes_does_not_depend_on_the_unicode_form_of_their_names(tmp_path):
    names = ("été", "eu", "zoo")
    composed = write_classes(tmp_path / "nfc", *names)
    decomposed = write_classes(tmp_path / "nfd", *(unicodedata.normalize("NFD", n) for n in names))
    assert (
        read_source(composed, holdout=0.5).classes == read_source(decomposed, holdout=0.5).classes
    )
    write_classes(composed, unicodedata.normalize("NFD", "été"))
    with pytest.raises(InputError, match="Unicode"):
        read_source(composed, holdout=0.5)


def test_names_that_differ_only_in_case_and_numbers_sorted_as_text_are_said(tmp_path):
    source = read_source(write_classes(tmp_path / "letters", "A", "a", "b"), holdout=0.5)
    assert len(source.classes) == 3
    assert any("'A' and 'a'" in note for note in source.notes)
    names = [str(number) for number in range(11)]
    source = read_source(write_classes(tmp_path / "numbers", *names, num_images=2), holdout=0.5)
    assert source.classes.index_of["10"] == 2
    assert any("sorted as text" in note for note in source.notes)
    source = read_source(write_classes(tmp_path / "digits", "0", "1", "2"), holdout=0.5)
    assert not any("sorted" in note for note in source.notes)


def test_the_output_folder_is_not_made_a_class(tmp_path, capsys):
    root = write_classes(tmp_path / "pets", "cats", "dogs")
    assert pack_command(root, root / "shards", "--holdout", "0.5") == 2
    assert "every folder is a class" in capsys.readouterr().err
    assert not (root / "shards").exists()


def test_an_image_of_both_splits_is_said(tmp_path, capsys):
    root = write_classes(tmp_path / "pets", "cats", "dogs", num_images=2)
    (root / "cats" / "1.jpg").write_bytes(jpeg(0))
    assert pack_command(root, tmp_path / "out", "--holdout", "0.5") == 0
    assert "1 image of validation" in capsys.readouterr().out


def test_packing_with_a_holdout_resumes_and_refuses_another(tmp_path, capsys):
    root = write_classes(tmp_path / "pets", "cats", "dogs")
    for _ in range(2):
        assert pack_command(root, tmp_path / "out", "--holdout", "0.5") == 0
    assert "already packed" in capsys.readouterr().out
    assert pack_command(root, tmp_path / "out", "--holdout", "0.25") == 2
    assert "holdout" in capsys.readouterr().err


def test_a_train_only_set_says_how_to_get_a_validation_split(tmp_path):
    root = write_classes(tmp_path / "pets", "cats", "dogs")
    pack(read_source(root, train_only=True), tmp_path / "out", PackOptions(train_only=True))
    with pytest.raises(InputError, match="subset --shards"):
        Manifest.load(tmp_path / "out").split("validation")
