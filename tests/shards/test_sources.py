import os
from pathlib import Path

import pytest

from imagenet_rn50.shards.pack import pack
from imagenet_rn50.shards.plan import PackOptions
from imagenet_rn50.shards.sources.base import Listed, with_keys
from imagenet_rn50.shards.sources.detect import read_source
from imagenet_rn50.utils.errors import InputError
from tests.shards.helpers import (
    WNIDS,
    WRITERS,
    images_of,
    jpeg,
    samples_of,
    validation_images_of,
    write_devkit,
    write_imagefolder,
    write_kaggle,
    write_official,
    write_parquet,
)


@pytest.mark.parametrize("layout", WRITERS)
def test_every_layout_is_detected_and_gives_the_same_keys_labels_and_bytes(tmp_path, layout):
    source = read_source(WRITERS[layout](tmp_path / "source"))
    assert source.layout == layout
    assert source.classes.wnids == WNIDS
    pack(source, tmp_path / "out", PackOptions(train_shards=2))
    for split, images in (
        ("train", images_of(12)),
        ("validation", validation_images_of(6)),
    ):
        expected = {name: (WNIDS.index(wnid), content) for name, (wnid, content) in images.items()}
        assert samples_of(tmp_path / "out", split) == expected


def test_every_row_group_of_parquet_is_read_once_and_nothing_temporary_stays(tmp_path, monkeypatch):
    import pyarrow.parquet as pq

    groups = []
    real = pq.ParquetFile.iter_batches

    def counted(self, batch_size, row_groups, *arguments, **options):
        groups.extend(row_groups)
        return real(self, batch_size, row_groups, *arguments, **options)

    source = read_source(write_parquet(tmp_path / "source"))
    num_groups = sum(
        pq.ParquetFile(path).metadata.num_row_groups
        for path in (tmp_path / "source").glob("data/*.parquet")
    )
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", counted)
    pack(source, tmp_path / "out", PackOptions(train_shards=6, validation_shards=3))
    assert len(groups) == num_groups
    assert num_groups > 3
    assert not list((tmp_path / "out").rglob("*.spool"))


@pytest.mark.parametrize("layout", WRITERS)
def test_reading_a_source_writes_nothing_into_it(tmp_path, layout):
    root = WRITERS[layout](tmp_path / "source")
    before = sorted(root.rglob("*"))
    pack(read_source(root), tmp_path / "out", PackOptions())
    assert sorted(root.rglob("*")) == before


def test_the_ids_of_the_development_kit_are_translated_and_not_taken_for_ranks(tmp_path):
    source = read_source(write_official(tmp_path / "source"))
    labels = [image.label for image in source.splits["validation"]]
    true_labels = [WNIDS.index(wnid) for wnid, _ in validation_images_of(6).values()]
    ilsvrc_ids = [len(WNIDS) - label for label in true_labels]
    assert labels == true_labels
    assert labels != [number - 1 for number in ilsvrc_ids]  # what taking them for ranks would give
    assert source.classes.names == tuple(f"words of {wnid}" for wnid in WNIDS)


def test_a_validation_tar_that_does_not_fit_the_ground_truth_is_refused(tmp_path):
    root = write_official(tmp_path / "source")
    write_devkit(root / "ILSVRC2012_devkit_t12.tar.gz", [WNIDS[0]] * 5)
    with pytest.raises(InputError, match="do not fit together"):
        read_source(root)


def test_official_tars_without_their_development_kit_are_refused(tmp_path):
    root = write_official(tmp_path / "source")
    (root / "ILSVRC2012_devkit_t12.tar.gz").unlink()
    with pytest.raises(InputError, match="have no development kit"):
        read_source(root)


def test_a_training_tar_that_was_cut_off_is_refused(tmp_path):
    root = write_official(tmp_path / "source")
    path = root / "ILSVRC2012_img_train.tar"
    path.write_bytes(path.read_bytes()[:-15_000])
    with pytest.raises(InputError, match="cut off"):
        read_source(root)


def test_parquet_labels_that_are_no_ranks_of_their_wnids_are_refused(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "data").mkdir()
    rows = [
        {"image": {"bytes": jpeg(i), "path": f"{wnid}_{i}_{wnid}.JPEG"}, "label": 2 - i}
        for i, wnid in enumerate(WNIDS)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "data" / "train-00000-of-00001.parquet")
    with pytest.raises(InputError, match="has the label 2"):
        read_source(tmp_path)


def test_a_mapping_that_names_a_class_without_images_is_refused(tmp_path):
    root = write_kaggle(tmp_path / "source")
    with (root / "LOC_synset_mapping.txt").open("a", encoding="utf-8") as file:
        file.write("n01440000 would shift every index after it\n")
    with pytest.raises(InputError, match="1 classes that have no images, such as n01440000"):
        read_source(root)


@pytest.mark.parametrize("write", [write_kaggle, write_imagefolder])
@pytest.mark.parametrize("inside", ["nothing", "images"])
def test_a_class_without_images_is_refused_for_it_would_shift_the_indices(tmp_path, write, inside):
    root = write(tmp_path / "source")
    (root / "LOC_synset_mapping.txt").unlink(missing_ok=True)
    (train,) = root.rglob("train")
    (train / "n00000001" / ("" if inside == "nothing" else inside)).mkdir(parents=True)
    with pytest.raises(InputError, match=rf"n00000001 is the folder of a class(.|\n)*{inside}"):
        read_source(root)


def test_validation_classes_that_training_lacks_are_refused(tmp_path):
    root = write_imagefolder(tmp_path / "source")
    (root / "val" / "n09999999").mkdir()
    (root / "val" / "n09999999" / "a.jpg").write_bytes(jpeg())
    with pytest.raises(InputError, match="has the class n09999999, which the training images"):
        read_source(root)


def test_names_with_dots_and_unicode_names_become_keys_that_survive(tmp_path):
    root = write_imagefolder(tmp_path / "source")
    names = ("a.b.c.JPEG", "a.b_c.JPEG", "été 猫 — ½.jpg")
    for number, name in enumerate(names):
        (root / "train" / WNIDS[0] / name).write_bytes(jpeg(50 + number))
    pack(read_source(root), tmp_path / "out", PackOptions())
    samples = samples_of(tmp_path / "out", "train")
    by_content = {content: key for key, (_, content) in samples.items()}
    keys = [by_content[jpeg(50 + number)] for number in range(len(names))]
    assert len(set(samples)) == 15
    assert keys == ["n01440764_a_b_c", "n01440764_a_b_c-2", "été 猫 — ½"]
    assert not any("." in key for key in samples)


def test_a_file_name_that_is_not_utf8_gets_a_key_that_is(tmp_path):
    root = write_imagefolder(tmp_path / "source")
    name = os.fsdecode(b"caf\xe9.JPEG")
    (root / "train" / WNIDS[0] / name).write_bytes(jpeg(5, mode="CMYK"))
    pack(read_source(root), tmp_path / "out", PackOptions(metadata=True))
    assert "caf\\udce9" in samples_of(tmp_path / "out", "train")
    assert "CMYK" in (tmp_path / "out" / "audit.md").read_text(encoding="utf-8")


def test_the_same_name_in_two_classes_gives_two_keys():
    from imagenet_rn50.classes import Classes

    rows = [Listed("1", wnid, f"train/{wnid}/1.jpg", 0, 9) for wnid in WNIDS]
    images = with_keys(rows, Classes(WNIDS, WNIDS))
    assert [image.key for image in images] == [f"{wnid}_1" for wnid in WNIDS]
    assert [image.label for image in images] == [0, 1, 2]


def test_an_image_that_vanishes_after_listing_is_named(tmp_path):
    source = read_source(write_imagefolder(tmp_path / "source"))
    (Path(source.root) / source.splits["train"][3].path).unlink()
    with pytest.raises(InputError, match="the source changed while it was read"):
        pack(source, tmp_path / "out", PackOptions())


def test_a_damaged_tar_within_the_training_tar_is_refused(tmp_path):
    root = write_official(tmp_path / "source")
    content = bytearray((root / "ILSVRC2012_img_train.tar").read_bytes())
    content[content.find(b"n02012849_")] ^= 1
    (root / "ILSVRC2012_img_train.tar").write_bytes(bytes(content))
    with pytest.raises(InputError, match="damaged header"):
        read_source(root)
