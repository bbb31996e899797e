import gzip
import io

import numpy as np
import pytest

from imagenet_rn50.shards.sources.detect import read_source
from imagenet_rn50.shards.sources.official import read_devkit
from imagenet_rn50.utils.errors import InputError
from tests.shards.helpers import (
    WNIDS,
    jpeg,
    tar_of,
    validation_images_of,
    write_imagefolder,
    write_kaggle,
    write_official,
)


@pytest.mark.parametrize("wnid", [WNIDS[2], WNIDS[1]])
def test_an_image_with_two_rows_in_the_csv_is_refused_with_both(tmp_path, wnid):
    root = write_kaggle(tmp_path)
    with (root / "LOC_val_solution.csv").open("a", encoding="utf-8") as file:
        file.write(f"ILSVRC2012_val_00000001,{wnid} 1 2 3 4\n")
    with pytest.raises(InputError, match="ILSVRC2012_val_00000001 twice") as caught:
        read_source(root)
    assert f"{WNIDS[2]} in line 2, {wnid} in line 8" in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        f"ILSVRC2012_val_00000001,{WNIDS[0]} 1 2 3 4 {WNIDS[1]} 1 2 3 4",  # boxes of two classes
        "ILSVRC2012_val_00000001,",
        f",{WNIDS[0]} 1 2 3 4",
        f"ILSVRC2012_val_00000001,{WNIDS[0]}\n" + "a" * 200_000,
        b"ILSVRC2012_val_\xff,n01440764",
        b"\xff\xfeI\x00m\x00",  # UTF-16, as Excel may save it
    ],
)
def test_a_csv_row_without_one_class_is_refused(tmp_path, content):
    root = write_kaggle(tmp_path, validation=1)
    text = content if isinstance(content, bytes) else content.encode()
    (root / "LOC_val_solution.csv").write_bytes(b"ImageId,PredictionString\n" + text + b"\n")
    with pytest.raises(InputError, match=r"LOC_val_solution\.csv"):
        read_source(root)


@pytest.mark.parametrize("write", [write_kaggle, write_imagefolder])
def test_an_image_whose_name_has_the_wnid_of_another_class_is_refused(tmp_path, write):
    root = write(tmp_path)
    (folder,) = root.rglob(f"train/{WNIDS[0]}")
    (folder / f"{WNIDS[1]}_77.JPEG").write_bytes(jpeg())
    with pytest.raises(InputError, match=f"labelled {WNIDS[0]}(.|\n)*{WNIDS[1]} by its name"):
        read_source(root)


def test_an_image_in_the_wrong_class_tar_is_refused(tmp_path):
    root = write_official(tmp_path / "source")
    path = root / "ILSVRC2012_img_train.tar"
    renamed = path.read_bytes().replace(b"n01440764_0.JPEG", b"n01443537_0.JPEG")
    digits = sum(b"n01443537") - sum(b"n01440764")  # the checksum of the header goes with it
    begin = renamed.index(b"n01443537_0.JPEG")
    old = int(renamed[begin + 148 : begin + 154], 8)
    path.write_bytes(renamed[: begin + 148] + b"%06o" % (old + digits) + renamed[begin + 154 :])
    with pytest.raises(InputError, match=f"labelled {WNIDS[0]}(.|\n)*{WNIDS[1]} by its name"):
        read_source(root)


def test_folders_that_group_classes_under_a_name_of_their_own_are_accepted(tmp_path):
    for name, wnids in (("fish", WNIDS[:2]), ("others", WNIDS[2:])):
        folder = tmp_path / "train" / name
        folder.mkdir(parents=True)
        for wnid in wnids:
            (folder / f"{wnid}_1.JPEG").write_bytes(jpeg())
    (tmp_path / "val" / "fish").mkdir(parents=True)
    (tmp_path / "val" / "fish" / f"{WNIDS[0]}_2.JPEG").write_bytes(jpeg(1))
    assert read_source(tmp_path).classes.wnids == ("fish", "others")


def test_validation_images_whose_numbers_are_not_those_of_the_ground_truth_are_refused(tmp_path):
    root = write_official(tmp_path / "source")
    images = {f"{name}.JPEG": content for name, (_, content) in validation_images_of(7).items()}
    del images["ILSVRC2012_val_00000003.JPEG"]
    (root / "ILSVRC2012_img_val.tar").write_bytes(tar_of(images))
    with pytest.raises(InputError, match=r"expected: number 3(.|\n)*found:    number 4"):
        read_source(root)


@pytest.mark.parametrize(
    ("ids", "wnids"),
    [((1, 2, 2), WNIDS), ((1, 2, 3), (WNIDS[0], WNIDS[1], WNIDS[1]))],
)
def test_a_development_kit_that_names_a_class_twice_is_refused(tmp_path, ids, wnids):
    from scipy.io import savemat

    fields = [("ILSVRC2012_ID", object), ("WNID", object), ("words", object)]
    synsets = np.zeros((3, 1), dtype=fields)
    for row, (number, wnid) in enumerate(zip(ids, wnids, strict=True)):
        synsets[row, 0] = (number, wnid, f"words {row}")
    meta = io.BytesIO()
    savemat(meta, {"synsets": synsets})
    members = {
        "data/meta.mat": meta.getvalue(),
        "data/ILSVRC2012_validation_ground_truth.txt": b"1\n",
    }
    kit = tmp_path / "kit.tar.gz"
    kit.write_bytes(gzip.compress(tar_of(members)))
    with pytest.raises(InputError, match="names a class twice"):
        read_devkit(kit)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a", "b", "c", "d"], r"3 names(.|\n)*4 names"),
        ([*WNIDS[::-1]], "class 0 two wnids"),
    ],
)
def test_parquet_names_that_contradict_the_paths_are_refused(tmp_path, names, message):
    from datasets import ClassLabel, Dataset, Features, Image

    features = Features({"image": Image(decode=False), "label": ClassLabel(names=names)})
    images = [{"bytes": jpeg(), "path": f"{wnid}_1_{wnid}.JPEG"} for wnid in WNIDS]
    for split in ("train", "validation"):
        dataset = Dataset.from_dict({"image": images, "label": [0, 1, 2]}, features=features)
        dataset.to_parquet(tmp_path / f"{split}-00000-of-00001.parquet")
    with pytest.raises(InputError, match=message):
        read_source(tmp_path)


@pytest.mark.parametrize("compress", ["train", "val"])
def test_an_official_tar_that_was_compressed_is_called_so(tmp_path, compress):
    root = write_official(tmp_path / "source")
    path = root / f"ILSVRC2012_img_{compress}.tar"
    path.write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(InputError, match=r"is compressed with gzip(.|\n)*gzip -d"):
        read_source(root)
