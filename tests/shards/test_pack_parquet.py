"""Parquet data sets of any columns, whose classes have names and no wnids."""

import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, Features, Image, Value
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as PillowImage

import shard_imagenet
from imagenet_rn50.classes import Classes
from imagenet_rn50.shards.audit import read_audit
from imagenet_rn50.shards.manifest import Manifest
from imagenet_rn50.shards.pack import pack
from imagenet_rn50.shards.plan import PackOptions
from imagenet_rn50.shards.sources.detect import read_source
from imagenet_rn50.shards.verify import verify
from imagenet_rn50.utils.errors import InputError
from tests.shards.helpers import jpeg, samples_of

ANIMALS = ("zebra", "cat", "dog/wolf")


def write(
    path,
    labels,
    *,
    image="image",
    label="label",
    names=ANIMALS,
    first=0,
    size=(40, 30),
    quality=90,
    **others,
):
    """Write a file as `Dataset.to_parquet` does: one drawn image per label."""
    features = Features({
        image: Image(),
        label: ClassLabel(names=list(names)),
        **{name: Value("string") if name != "coarse_label" else ClassLabel(names=["x", "y"])
           for name in others},
    })  # fmt: skip
    rows = {
        image: [
            {"bytes": jpeg(first + i, size, quality=quality), "path": f"{i}.jpg"}
            for i in range(len(labels))
        ],
        label: list(labels),
        **{name: [value] * len(labels) for name, value in others.items()},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    Dataset.from_dict(rows, features=features).to_parquet(path, batch_size=3)


def write_table(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows) if isinstance(rows, list) else rows, path)


def named_samples(folder, split):
    """Return (class name, image) of all samples."""
    classes = Classes.load(folder)
    return sorted(
        (classes.names[label], image) for label, image in samples_of(folder, split).values()
    )


@settings(max_examples=8, deadline=None)
@given(
    names=st.lists(
        st.text("abcXYZ/. é-_", min_size=1).filter(str.strip), min_size=2, max_size=5, unique=True
    ),
    data=st.data(),
)
def test_the_name_of_each_label_is_kept_whatever_its_rank(tmp_path_factory, names, data):
    folder = tmp_path_factory.mktemp("names")
    labels = data.draw(st.lists(st.integers(0, len(names) - 1), min_size=1, max_size=9))
    write(folder / "source" / "train.parquet", labels, names=names)
    made = pack(read_source(folder / "source", train_only=True), folder / "out", PackOptions())
    assert named_samples(folder / "out", "train") == sorted(
        (names[label], jpeg(i)) for i, label in enumerate(labels)
    )
    assert Classes.load(folder / "out").wnids == tuple(sorted(names))
    assert verify(folder / "out") == []
    assert made.manifest.dataset == "source"


@pytest.mark.parametrize(
    "layout",
    [
        ("data/train-00000-of-00001.parquet", "data/validation-00000-of-00001.parquet"),
        ("train.parquet", "valid.parquet"),
        ("train/0000.parquet", "val/0000.parquet"),
        ("plain/train-00000-of-00001.parquet", "plain/validation-00000-of-00001.parquet"),
        ("default/train/0000.parquet", "default/validation/0000.parquet"),
    ],
)
def test_the_usual_folders_of_splits_are_found(tmp_path, layout):
    for number, name in enumerate(layout):
        write(tmp_path / "source" / name, [0, 1, 2], first=10 * number)
    source = read_source(tmp_path / "source")
    assert {name: len(images) for name, images in source.splits.items()} == {
        "train": 3,
        "validation": 3,
    }
    assert not source.unpacked
    pack(source, tmp_path / "out", PackOptions())
    assert samples_of(tmp_path / "out", "train").keys() == {"0", "1", "2"}


def test_other_columns_run_end_to_end(tmp_path, capsys, monkeypatch):
    for split in ("train", "validation"):
        write(tmp_path / "pets" / f"{split}.parquet", [2, 1, 0], image="img", label="y", text="?")
    words = ["x", "pack", "--source", str(tmp_path / "pets"), "--out", str(tmp_path / "out")]
    words += ["--workers", "1"]
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(SystemExit) as left:
        shard_imagenet.main()
    assert left.value.code == 0
    printed = capsys.readouterr().out
    assert "images are column img, labels are column y" in printed
    assert "not packed: text" in printed
    assert "label 0 (zebra) is class 2" in printed
    assert Manifest.load(tmp_path / "out").dataset == "pets"
    assert read_audit(tmp_path / "out")["imagenet1k_splits"] == []


def test_several_columns_that_fit_are_named_until_one_is_chosen(tmp_path):
    labels = {"label": "fine_label", "coarse_label": 0}
    write(tmp_path / "train.parquet", [0, 1, 2], image="img", **labels)
    with pytest.raises(InputError, match="fine_label, coarse_label") as caught:
        read_source(tmp_path, train_only=True)
    assert "--label-column fine_label or --label-column coarse_label" in str(caught.value)
    source = read_source(tmp_path, train_only=True, label_column="fine_label")
    assert len(source.classes) == 3
    source = read_source(tmp_path, train_only=True, label_column="coarse_label")
    assert source.classes.wnids == ("x", "y")
    with pytest.raises(InputError, match="img is no column of labels"):
        read_source(tmp_path, train_only=True, label_column="img")


def test_columns_may_be_plain_bytes_and_texts(tmp_path):
    rows = [{"small": jpeg(1), "photo": jpeg(i), "animal": name} for i, name in enumerate(ANIMALS)]
    write_table(tmp_path / "train.parquet", rows)
    with pytest.raises(InputError, match="small, photo"):
        read_source(tmp_path, train_only=True)
    with pytest.raises(InputError, match=r"--label-column NAME"):
        read_source(tmp_path, train_only=True, image_column="photo")
    source = read_source(tmp_path, train_only=True, image_column="photo", label_column="animal")
    pack(source, tmp_path / "out", PackOptions(train_only=True))
    assert named_samples(tmp_path / "out", "train") == sorted(
        (name, jpeg(i)) for i, name in enumerate(ANIMALS)
    )


def test_a_dictionary_of_texts_is_a_column_of_labels(tmp_path):
    table = pa.table({
        "image": [{"bytes": jpeg(i)} for i in range(3)],
        "kind": pa.array(ANIMALS).dictionary_encode(),
    })  # fmt: skip
    write_table(tmp_path / "train.parquet", table)
    assert read_source(tmp_path, train_only=True).classes.wnids == tuple(sorted(ANIMALS))


def test_numbers_without_names_are_refused(tmp_path):
    write_table(tmp_path / "train.parquet", [{"image": {"bytes": jpeg()}, "label": 3}])
    with pytest.raises(InputError, match=r"is 3(.|\n)*--label-names FILE"):
        read_source(tmp_path, train_only=True)


def test_numbers_get_their_names_from_a_file(tmp_path):
    rows = [{"image": {"bytes": jpeg(i)}, "label": i} for i in range(3)]
    write_table(tmp_path / "source" / "train.parquet", rows)
    names = tmp_path / "names.txt"
    names.write_text("zebra\ncat\nash tree\n")
    source = read_source(tmp_path / "source", train_only=True, label_names=names)
    pack(source, tmp_path / "out", PackOptions(train_only=True))
    assert named_samples(tmp_path / "out", "train") == [
        ("ash tree", jpeg(2)),
        ("cat", jpeg(1)),
        ("zebra", jpeg(0)),
    ]
    for text, message in [
        ("a\nb\n", "has the label 2"),
        ("a\n\nb\n", "line 2 .* is empty"),
        ("a\na\nb\n", "line 2 .* repeats 'a'"),
    ]:
        names.write_text(text)
        with pytest.raises(InputError, match=message):
            read_source(tmp_path / "source", train_only=True, label_names=names)


def test_names_that_contradict_those_of_the_files_are_refused(tmp_path):
    write(tmp_path / "source" / "train.parquet", [0, 1, 2])
    names = tmp_path / "names.txt"
    names.write_text("\n".join(ANIMALS))
    assert read_source(tmp_path / "source", train_only=True, label_names=names)
    names.write_text("a\nb\nc\n")
    with pytest.raises(InputError, match=r"zebra, cat, dog/wolf(.|\n)*a, b, c"):
        read_source(tmp_path / "source", train_only=True, label_names=names)


@pytest.mark.parametrize("bad", [None, -1])
def test_rows_without_label_or_image_stop_packing_or_are_counted(tmp_path, bad):
    write(tmp_path / "source" / "train.parquet", [0, 1, 2, 0, 0])
    table = pq.read_table(tmp_path / "source" / "train.parquet")
    labels = pa.array([0, bad, bad, 2, 1], type=pa.int64())
    images = table.column("image").to_pylist()
    images[4] = None
    table = table.set_column(1, table.schema.field("label"), labels)
    column = pa.array(images, type=table.schema.field("image").type)
    table = table.set_column(0, table.schema.field("image"), column)
    write_table(tmp_path / "source" / "train.parquet", table)
    source = read_source(tmp_path / "source", train_only=True)
    with pytest.raises(InputError, match=r"rows 1, 2 of train\.parquet \(no label\)"):
        pack(source, tmp_path / "out", PackOptions(train_only=True))
    pack(source, tmp_path / "out", PackOptions(train_only=True, on_corrupt="skip"))
    audit = read_audit(tmp_path / "out")
    assert audit["splits"]["train"]["files"]["found"] == 5
    assert audit["splits"]["train"]["files"]["skipped"] == 3
    assert {row["reason"] for row in audit["skipped"]} == {"no label", "no image"}
    assert len(samples_of(tmp_path / "out", "train")) == 2


@pytest.mark.parametrize(("label", "message"), [(3, "has the label 3"), (-2, "has the label -2")])
def test_a_label_without_a_name_is_refused(tmp_path, label, message):
    write(tmp_path / "train.parquet", [0, 1])
    table = pq.read_table(tmp_path / "train.parquet")
    column = pa.array([0, label], type=pa.int64())
    write_table(tmp_path / "train.parquet", table.set_column(1, table.schema.field(1), column))
    with pytest.raises(InputError, match=message):
        read_source(tmp_path, train_only=True)


def test_a_test_split_validates_only_where_there_is_no_other_and_is_named(tmp_path):
    write(tmp_path / "train.parquet", [0, 1, 2])
    write(tmp_path / "test.parquet", [2, 1], first=10)
    source = read_source(tmp_path)
    assert len(source.splits["validation"]) == 2
    assert any("split `test`" in note for note in source.notes)
    made = pack(source, tmp_path / "out", PackOptions()).manifest
    assert made.options["validation_split"] == "test"
    assert "test.parquet" in [
        entry.path for entry in read_source(tmp_path, train_only=True).unpacked
    ]
    write(tmp_path / "validation.parquet", [0], first=20)
    source = read_source(tmp_path)
    assert len(source.splits["validation"]) == 1
    assert "validation_split" not in source.options
    assert "test.parquet" in [entry.path for entry in source.unpacked]


def test_a_test_split_without_labels_is_no_validation(tmp_path):
    write(tmp_path / "train.parquet", [0, 1, 2])
    write(tmp_path / "test.parquet", [-1, -1], first=10)
    with pytest.raises(InputError, match=r"no validation images(.|\n)*test\.parquet \(no label\)"):
        read_source(tmp_path)
    source = read_source(tmp_path, train_only=True)
    assert pack(source, tmp_path / "out", PackOptions(train_only=True)).num_made


def test_files_of_other_classes_are_refused_with_both(tmp_path):
    write(tmp_path / "train.parquet", [0, 1, 2])
    write(tmp_path / "validation.parquet", [0, 1, 2], names=ANIMALS[::-1])
    with pytest.raises(InputError, match=r"zebra, cat, dog/wolf(.|\n)*dog/wolf, cat, zebra"):
        read_source(tmp_path)


def test_several_configurations_are_refused_with_the_right_folders(tmp_path):
    for name in ("full", "small"):
        write(tmp_path / name / "train-00000-of-00001.parquet", [0, 1, 2])
    with pytest.raises(InputError, match=rf"--source {tmp_path}/full or --source {tmp_path}/small"):
        read_source(tmp_path, train_only=True)
    assert read_source(tmp_path / "small", train_only=True).layout == "parquet"


def test_classes_without_images_keep_their_index_and_are_named(tmp_path):
    write(tmp_path / "train.parquet", [0, 0, 1])
    source = read_source(tmp_path, train_only=True)
    assert source.classes.wnids == tuple(sorted(ANIMALS))
    assert any("1 classes have no training images: dog/wolf" in note for note in source.notes)


def test_a_column_for_another_layout_is_refused(tmp_path):
    path = tmp_path / "train" / "cat" / "1.jpg"
    path.parent.mkdir(parents=True)
    path.write_bytes(jpeg())
    with pytest.raises(InputError, match="--label-column y needs a source in parquet"):
        read_source(tmp_path, train_only=True, label_column="y")


def test_png_bytes_become_jpeg(tmp_path):
    buffer = io.BytesIO()
    PillowImage.open(io.BytesIO(jpeg(1))).save(buffer, "PNG")
    rows = [{"image": {"bytes": buffer.getvalue(), "path": None}, "label": "cat"}]
    write_table(tmp_path / "train.parquet", rows)
    pack(read_source(tmp_path, train_only=True), tmp_path / "out", PackOptions(train_only=True))
    [(_, content)] = samples_of(tmp_path / "out", "train").values()
    assert PillowImage.open(io.BytesIO(content)).format == "JPEG"
    audit = json.loads((tmp_path / "out" / "audit.json").read_text())
    assert audit["splits"]["train"]["files"]["converted"] == {"PNG": 1}


def test_names_that_repeat_get_the_name_of_their_class_in_front(tmp_path):
    for number in range(2):
        write(tmp_path / f"train-{number}.parquet", [2, 2], first=10 * number)
    source = read_source(tmp_path, train_only=True)
    pack(source, tmp_path / "out", PackOptions(train_only=True))
    keys = {"dog_wolf_0", "dog_wolf_0-2", "dog_wolf_1", "dog_wolf_1-2"}
    assert samples_of(tmp_path / "out", "train").keys() == keys


def test_a_hold_out_leaves_the_test_split_alone(tmp_path):
    write(tmp_path / "train.parquet", [0, 1, 2, 0, 1, 2])
    write(tmp_path / "test.parquet", [2, 1], first=10)
    source = read_source(tmp_path, holdout=0.5)
    assert len(source.splits["validation"]) == 3
    assert "test.parquet" in [entry.path for entry in source.unpacked]
    assert "validation_split" not in source.options


def test_another_data_set_beside_the_folder_data_is_named(tmp_path):
    write(tmp_path / "data" / "train.parquet", [0, 1, 2])
    write(tmp_path / "small" / "train.parquet", [0, 1, 2])
    source = read_source(tmp_path, train_only=True)
    assert len(source.splits["train"]) == 3
    assert [entry.path for entry in source.unpacked] == ["small/train.parquet"]


def test_packing_from_another_column_is_another_packing(tmp_path):
    rows = [{"a": jpeg(i), "b": jpeg(9 - i), "label": "xyz"[i]} for i in range(3)]
    write_table(tmp_path / "source" / "train.parquet", rows)
    options = PackOptions(train_only=True)
    for column in "ab":
        source = read_source(tmp_path / "source", train_only=True, image_column=column)
        assert source.options == {"image_column": column}
        if column == "a":
            pack(source, tmp_path / "out", options)
    with pytest.raises(InputError, match="image_column was 'a', now 'b'"):
        pack(source, tmp_path / "out", options)
