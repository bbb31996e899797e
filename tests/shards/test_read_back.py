"""Others read the shards: stock webdataset, datasets and Python's tarfile."""

import tarfile

import pytest

from imagenet_rn50.shards.pack import pack
from imagenet_rn50.shards.plan import PackOptions
from imagenet_rn50.shards.sources.detect import read_source
from tests.shards.helpers import jpeg, members_of, samples_of, write_imagefolder


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("read_back")
    root = write_imagefolder(folder / "source", train=24)
    for number, name in enumerate(("with.dots.JPEG", "猫 и été.JPEG", f"{'long' * 40}.JPEG")):
        (root / "train" / "n01440764" / name).write_bytes(jpeg(70 + number))
    pack(read_source(root), folder / "out", PackOptions(train_shards=3))
    return folder / "out"


@pytest.mark.parametrize("split", ["train", "validation"])
def test_tarfile_reads_equal_bytes_and_labels(shards, split):
    found = {}
    for path in sorted(shards.glob(f"*-{split}-*.tar")):
        with tarfile.open(path) as tar:
            members = members_of(tar)
        for name in members:
            key, _, end = name.rpartition(".")
            if end == "jpg":
                found[key] = (int(members[f"{key}.cls"]), members[name])
    assert found == samples_of(shards, split)


@pytest.mark.parametrize("split", ["train", "validation"])
@pytest.mark.filterwarnings("ignore")
def test_stock_webdataset_reads_equal_bytes_and_labels(shards, split):
    import webdataset

    urls = [str(path) for path in sorted(shards.glob(f"*-{split}-*.tar"))]
    samples = webdataset.WebDataset(urls, shardshuffle=False)
    found = {sample["__key__"]: (int(sample["cls"]), sample["jpg"]) for sample in samples}
    assert found == samples_of(shards, split)


@pytest.mark.parametrize("split", ["train", "validation"])
@pytest.mark.filterwarnings("ignore")
def test_datasets_streams_equal_bytes_and_labels(shards, split, monkeypatch):
    import datasets

    files = {split: [str(path) for path in sorted(shards.glob(f"*-{split}-*.tar"))]}
    stream = datasets.load_dataset("webdataset", data_files=files, split=split, streaming=True)
    stream = stream.cast_column("jpg", datasets.Image(decode=False))
    found = {row["__key__"]: (int(row["cls"]), row["jpg"]["bytes"]) for row in stream}
    assert found == samples_of(shards, split)
