"""Test sets whose right answers are known, because the model reads them off the pictures."""

import io
import json
import shutil
from dataclasses import replace

import pytest
import torch
from PIL import Image

from imagenet_rn50.classes import Classes
from imagenet_rn50.evaluation.datasets import ShardImages, open_images, read_folder, read_real
from imagenet_rn50.evaluation.evaluate import evaluate
from imagenet_rn50.shards.store import LocalShards
from imagenet_rn50.utils.errors import InputError
from tests.evaluation.models import classes_of, label_shards, painted_model, picture_of

NUM_CLASSES = 12
CLASSES = classes_of(NUM_CLASSES)


def write_set(root, answers_of, name_of):
    """Writes a folder a class; `answers_of` says what the model will answer to its pictures."""
    for label, answers in answers_of.items():
        folder = root / name_of(label)
        folder.mkdir(parents=True)
        for number, answer in enumerate(answers):
            (folder / f"{number}.JPEG").write_bytes(picture_of(answer))
    return root


def rows_of(images, **options):
    evaluation = evaluate(painted_model(NUM_CLASSES), images, batch=4, **options)
    return evaluation.results


def by_wnid(label):
    return CLASSES.wnids[label]


@pytest.mark.parametrize("layout", [None, "imagenetv2"])
def test_numbered_folders_are_class_indices_and_not_ranks_of_sorted_text(tmp_path, layout):
    answers = {label: [label, label] for label in range(NUM_CLASSES)} | {10: [10, 2]}
    images = read_folder(write_set(tmp_path, answers, str), NUM_CLASSES, None, layout)
    assert images.labels.tolist() == [label for label in range(NUM_CLASSES) for _ in range(2)]
    for row in rows_of(images):
        assert (row.num_images, row.correct_top1) == (24, 23)
        assert row.correct_top5 == 23  # of picture 2, the five nearest classes do not reach 10


@pytest.mark.parametrize("layout", [None, "imagenet-a", "imagenet-r"])
def test_a_set_of_some_classes_lets_only_these_be_named(tmp_path, layout):
    # Painted 7: class 7 lies nearest of all, and of 2, 5, 9 the nearest is 9.
    root = write_set(tmp_path, {2: [2, 3], 5: [5], 9: [7, 9, 5]}, by_wnid)
    images = read_folder(root, NUM_CLASSES, CLASSES, layout)
    assert images.subset is not None
    assert images.subset.tolist() == [2, 5, 9]
    evaluation = evaluate(painted_model(NUM_CLASSES), images, batch=4)
    for row in evaluation.results:
        assert (row.num_images, row.correct_top1, row.correct_top5) == (6, 5, 6)
    assert evaluation.predictions.top.tolist()[-2:] == [[9, 5, 2], [5, 2, 9]]
    logits = -(torch.tensor([2.0, 5.0, 9.0]) - 9 - 0.25).abs()  # of the picture painted 9
    assert evaluation.predictions.confidence[4] == pytest.approx(
        float(logits.softmax(0)[2]), abs=0.02
    )


@pytest.mark.parametrize("layout", [None, "imagenet-sketch"])
def test_a_set_of_all_classes_by_wnid_restricts_nothing(tmp_path, layout):
    answers = {label: [label] for label in range(NUM_CLASSES)} | {3: [4]}
    root = write_set(tmp_path, answers, by_wnid)
    images = read_folder(root, NUM_CLASSES, CLASSES, layout)
    assert images.subset is None
    for row in rows_of(images):
        assert (row.num_images, row.correct_top1, row.correct_top5) == (12, 11, 12)


def test_a_picture_that_is_a_png_or_cmyk_counts_like_any_other(tmp_path):
    root = write_set(tmp_path, {label: [label] for label in range(NUM_CLASSES)}, str)
    for label, mode, kind in ((4, "RGB", "PNG"), (6, "CMYK", "JPEG"), (8, "L", "PNG")):
        picture = Image.open(io.BytesIO(picture_of(label))).convert(mode)
        picture.save(root / str(label) / "0.JPEG", format=kind)
    (root / "README.txt").write_text("not a picture", encoding="utf-8")
    for row in rows_of(read_folder(root, NUM_CLASSES, None)):
        assert (row.num_images, row.correct_top1) == (12, 12)


def test_images_of_any_name_format_and_depth_count_and_what_is_no_image_is_told(tmp_path):
    root = write_set(tmp_path / "set", {label: [label] for label in range(NUM_CLASSES)}, str)
    for label, name in ((3, "a.webp"), (4, "b.bmp"), (5, "c.gif"), (6, "d/e.tiff"), (7, "f.jfif")):
        (root / str(label) / name).parent.mkdir(exist_ok=True)
        Image.open(io.BytesIO(picture_of(label))).save(root / str(label) / name)
    (root / "8" / "without_ending").write_bytes(picture_of(8))
    (root / "8" / ".DS_Store").write_bytes(b"Bud1")
    (root / "LICENSE").write_bytes(b"free")
    (root / "__MACOSX").mkdir()
    (root / "__MACOSX" / "._x").write_bytes(b"x")
    images = read_folder(root, NUM_CLASSES, None)
    for row in rows_of(images):
        assert (row.num_images, row.correct_top1) == (18, 18)
    assert [entry.path for entry in images.not_counted] == ["8/.DS_Store", "__MACOSX/", "LICENSE"]
    assert images.description["files_not_counted"] == 3


@pytest.mark.parametrize(
    ("name", "content"),
    [("loose.JPEG", picture_of(3)), ("3/notes.txt", b"no image"), ("4/vector.eps", b"%!PS-Adobe")],
)
def test_files_of_no_class_and_files_that_are_no_images_are_refused_before_counting(
    tmp_path, name, content
):
    root = write_set(tmp_path, {label: [label] for label in range(NUM_CLASSES)}, str)
    (root / name).write_bytes(content)
    with pytest.raises(InputError, match=name):
        read_folder(root, NUM_CLASSES, None)


def test_a_picture_that_is_none_is_named(tmp_path):
    root = write_set(tmp_path, {label: [label] for label in range(NUM_CLASSES)}, str)
    (root / "7" / "0.JPEG").write_bytes(b"oops")
    with pytest.raises(InputError, match=r"7/0\.JPEG cannot be used"):
        rows_of(read_folder(root, NUM_CLASSES, None))


@pytest.mark.parametrize(
    ("names", "layout", "problem"),
    [
        ([], None, "the layout of .* is unknown"),
        (["train", "val"], None, "the layout of .* is unknown"),
        (["0", "1", "n00000010"], None, "the layout of .* is unknown"),
        ([str(n) for n in range(11)], None, "not laid out as ImageNet-V2"),
        ([str(n) for n in range(13)], None, "not laid out as ImageNet-V2"),
        ([by_wnid(0)], "imagenetv2", "not laid out as ImageNet-V2"),
        ([by_wnid(0), "n99999999"], None, "that the model does not have"),
        ([by_wnid(0)], "imagenet-sketch", "not laid out as imagenet-sketch"),
        ([by_wnid(0)], None, "is the folder of a class without images"),
    ],
)
def test_a_folder_that_is_no_such_set_is_refused(tmp_path, names, layout, problem):
    for name in names:
        (tmp_path / name).mkdir()
    with pytest.raises(InputError, match=problem):
        read_folder(tmp_path, NUM_CLASSES, CLASSES, layout)


def test_wnids_need_classes_and_classes_come_from_the_model_the_shards_or_a_file(tmp_path):
    root = write_set(tmp_path / "set", {2: [2], 5: [5]}, by_wnid)
    nameless = painted_model(NUM_CLASSES)
    nameless = type(nameless)(**{**vars(nameless), "classes": None})
    with pytest.raises(InputError, match="those of the model are unknown"):
        open_images(nameless, None, root)
    mapping = tmp_path / "LOC_synset_mapping.txt"
    lines = (f"{w} {name}\n" for w, name in zip(CLASSES.wnids, CLASSES.names, strict=True))
    mapping.write_text("".join(lines), encoding="utf-8")
    shards = label_shards(tmp_path / "shards", [3], NUM_CLASSES)
    renamed = shutil.copy(shards / "classes.json", tmp_path / "names.txt")
    for loaded, location, classes in (
        (painted_model(NUM_CLASSES), None, None),
        (nameless, None, mapping),
        (nameless, None, shards),
        (nameless, None, shards / "classes.json"),
        (nameless, None, renamed),
        (nameless, str(shards), None),
        (nameless, str(shards), mapping),
    ):
        images, _ = open_images(loaded, location, root, classes=classes)
        assert images.labels.tolist() == [2, 5]
    with pytest.raises(InputError, match="there is no file"):
        open_images(nameless, None, root, classes=tmp_path / "nothing.txt")
    with pytest.raises(InputError, match="nothing to evaluate on"):
        open_images(nameless, None, None)


def numbered_keys(numbers):
    return [f"ILSVRC2012_val_{number:08d}" for number in numbers]


@pytest.fixture
def shuffled(tmp_path):
    """Validation images in another order than that of their names, as packing leaves them."""
    keys = numbered_keys([3, 1, 5, 2, 4])
    folder = label_shards(tmp_path / "shards", [2, 3], NUM_CLASSES, keys=keys)
    return ShardImages(LocalShards(folder), "validation")


def write_real(tmp_path, lists):
    path = tmp_path / "real.json"
    path.write_text(json.dumps(lists), encoding="utf-8")
    return path


def test_reassessed_labels_are_matched_by_the_images_names(tmp_path, shuffled):
    path = write_real(tmp_path, [[1], [2, 3], [], [4], [5, 11]])
    fitting = read_real(path, shuffled, NUM_CLASSES)
    assert fitting == [frozenset(), {1}, {5, 11}, {2, 3}, {4}]


def test_any_fitting_class_is_right_and_images_without_any_do_not_count(tmp_path):
    # Labels 0 to 11, each picture painted as its label; then what fits, in the order of names.
    for label in range(NUM_CLASSES):
        folder = tmp_path / "set" / by_wnid(label)
        folder.mkdir(parents=True)
        (folder / f"ILSVRC2012_val_{label + 1:08d}.JPEG").write_bytes(picture_of(label))
    lists = [[label] for label in range(NUM_CLASSES)]
    lists[0] = []  # does not count
    lists[3] = []
    lists[5] = [9, 5]  # right: one of two
    lists[6] = [0]  # wrong: not even among the first five
    lists[8] = [10, 2]  # wrong at first, right among five
    images = read_folder(tmp_path / "set", NUM_CLASSES, CLASSES)
    real = read_real(write_real(tmp_path, lists), images, NUM_CLASSES)
    rows = rows_of(images, real=real, flip=True)
    assert [row.name for row in rows] == ["set"] * 4 + ["real"] * 4
    for row in rows[:4]:
        assert (row.num_images, row.correct_top1, row.correct_top5) == (12, 12, 12)
    for row in rows[4:]:
        assert (row.num_images, row.correct_top1, row.correct_top5) == (10, 8, 9)
        assert row.loss is None
        assert row.calibration.num_images.sum() == 10


@pytest.mark.parametrize("given", ["the model", "--classes"])
def test_lists_of_classes_that_give_an_index_two_wnids_are_refused(tmp_path, given):
    others = Classes((*CLASSES.wnids[:-1], "n99999999"), CLASSES.names)
    loaded = painted_model(NUM_CLASSES)
    shards = label_shards(tmp_path / "shards", [3], NUM_CLASSES)
    path = None
    if given == "the model":
        loaded = replace(loaded, classes=others)
    else:
        others.save(tmp_path)
        path = tmp_path / "classes.json"
    with pytest.raises(InputError, match="class 11 to be") as caught:
        open_images(loaded, str(shards), None, classes=path)
    assert CLASSES.wnids[-1] in str(caught.value)
    assert "n99999999" in str(caught.value)


@pytest.mark.parametrize("num_lists", [4, 6])
def test_a_list_of_another_length_is_refused(tmp_path, shuffled, num_lists):
    with pytest.raises(InputError, match=f"found:    {num_lists} lists"):
        read_real(write_real(tmp_path, [[1]] * num_lists), shuffled, NUM_CLASSES)


@pytest.mark.parametrize(
    "content", [{"a": 1}, [1, 2, 3, 4, 5], [[1], [2], [3], [4], [12]], [["a"]]]
)
def test_a_file_that_is_no_list_of_classes_is_refused(tmp_path, shuffled, content):
    with pytest.raises(InputError, match="does not list reassessed labels"):
        read_real(write_real(tmp_path, content), shuffled, NUM_CLASSES)


def test_a_folder_in_the_place_of_the_list_is_refused(tmp_path, shuffled):
    with pytest.raises(InputError, match="cannot be read"):
        read_real(tmp_path, shuffled, NUM_CLASSES)


def test_a_list_in_which_nothing_fits_is_refused(tmp_path, shuffled):
    with pytest.raises(InputError, match="only empty lists"):
        read_real(write_real(tmp_path, [[]] * 5), shuffled, NUM_CLASSES)


def test_images_that_are_not_imagenets_have_no_reassessed_labels(tmp_path):
    folder = label_shards(tmp_path / "shards", [3], NUM_CLASSES)
    images = ShardImages(LocalShards(folder), "validation")
    with pytest.raises(InputError, match="sample_00000 is not one of ImageNet's"):
        read_real(write_real(tmp_path, [[1]] * 3), images, NUM_CLASSES)
