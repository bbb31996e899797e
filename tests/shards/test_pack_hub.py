"""Parquet data sets on the Hub: read by ranges at a commit, without a second copy."""

import pytest

import shard_imagenet
from imagenet_rn50.shards.pack import pack
from imagenet_rn50.shards.plan import PackOptions
from imagenet_rn50.shards.sources.detect import read_source
from imagenet_rn50.utils.errors import InputError
from tests.hub import Handler
from tests.shards.helpers import contents
from tests.shards.test_pack_parquet import write

ADDRESS = "hf://datasets/user/pets"


def publish(hub, folder):
    """Commit the files of a folder; return the commit."""
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*")}
    contents = {name: path.read_bytes() for name, path in files.items() if path.is_file()}
    return hub.add_dataset("user/pets", contents)


@pytest.fixture
def pets(tmp_path):
    """Return a folder with a data set of three classes."""
    for number, name in enumerate(("train-0", "train-1", "validation-0")):
        write(tmp_path / "pets" / "data" / f"{name}.parquet", [0, 1, 2, 0, 1], first=10 * number)
    (tmp_path / "pets" / "README.md").write_text("# Pets")
    return tmp_path / "pets"


def test_a_data_set_on_the_hub_is_packed_as_its_local_copy(hub, pets, tmp_path):
    commit = publish(hub, pets)
    options = PackOptions(train_shards=2)
    made = pack(read_source(ADDRESS), tmp_path / "out", options).manifest
    local = pack(read_source(pets), tmp_path / "local", options).manifest
    ours, theirs = contents(tmp_path / "out"), contents(tmp_path / "local")
    for name in theirs.keys() - {"manifest.json", "audit.json", "audit.md"}:
        assert ours[name] == theirs[name]
    assert made.options == {**local.options, "source": f"{ADDRESS}@{commit}"}
    assert hub.seen_by_cdn
    assert {token for _, token in hub.seen_by_cdn} == {None}


def test_labels_are_listed_without_images_which_are_read_once(hub, pets, tmp_path, monkeypatch):
    num_sent = 0
    answer = Handler.answer

    def counted(self, status, content, *arguments, **options):
        nonlocal num_sent
        num_sent += len(content) if isinstance(content, bytes) else 0
        answer(self, status, content, *arguments, **options)

    monkeypatch.setattr(Handler, "answer", counted)
    write(pets / "data" / "train-1.parquet", [0, 1, 2] * 8, size=(600, 500), quality=100)
    publish(hub, pets)
    source = read_source(ADDRESS)
    size = sum(path.stat().st_size for path in pets.rglob("*.parquet"))
    assert size > 2_000_000
    assert num_sent < 250_000  # the ends of three files, and their labels
    pack(source, tmp_path / "out", PackOptions())
    assert num_sent < size + 500_000
    assert not [path for path in tmp_path.rglob("*.parquet") if pets not in path.parents]


def test_a_moved_revision_is_refused_with_both_commits_and_a_pinned_one_stays(hub, pets, tmp_path):
    first = publish(hub, pets)
    pack(read_source(ADDRESS), tmp_path / "out", PackOptions())
    (pets / "README.md").write_text("# More pets")
    second = publish(hub, pets)
    with pytest.raises(InputError, match="another source") as caught:
        pack(read_source(ADDRESS), tmp_path / "out", PackOptions())
    assert first in str(caught.value)
    assert second in str(caught.value)
    assert pack(read_source(f"{ADDRESS}@{first}"), tmp_path / "out", PackOptions()).num_made == 0


def test_a_folder_of_the_repository_is_a_source(hub, pets):
    publish(hub, pets.parent)
    source = read_source(f"{ADDRESS}/pets")
    assert source.default_name == "pets"
    assert len(source.splits["train"]) == 10


@pytest.mark.parametrize("hiccup", ["truncate", 503, 429])
def test_broken_reads_are_repeated(hub, pets, tmp_path, hiccup):
    publish(hub, pets)
    hub.retry_after = "0"
    source = read_source(ADDRESS)
    hub.hiccups["train-0.parquet"] = [hiccup]
    pack(source, tmp_path / "out", PackOptions())
    assert not hub.hiccups["train-0.parquet"]
    pack(read_source(pets), tmp_path / "local", PackOptions())
    shards = [name for name in contents(tmp_path / "local") if name.endswith(".tar")]
    for name in shards:
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "local" / name).read_bytes()


@pytest.mark.parametrize("has_token", [True, False])
def test_a_gated_data_set_is_refused_with_one_message(
    hub, pets, tmp_path, refused, monkeypatch, has_token
):
    publish(hub, pets)
    hub.gated.add("datasets/user/pets")
    hub.accepts_terms = False
    if not has_token:
        monkeypatch.delenv("HF_TOKEN")
    message = refused(shard_imagenet.main, "pack", "--source", ADDRESS, "--out", tmp_path / "out")
    assert f"accept the terms at {hub.address}/datasets/user/pets" in message
    assert not (tmp_path / "out").exists()


def test_access_that_is_lost_on_the_way_stops_with_a_message_and_resumes(hub, pets, tmp_path):
    publish(hub, pets)
    hub.gated.add("datasets/user/pets")
    source = read_source(ADDRESS)
    hub.accepts_terms = False
    with pytest.raises(InputError, match="accept the terms"):
        pack(source, tmp_path / "out", PackOptions())
    hub.accepts_terms = True
    assert pack(source, tmp_path / "out", PackOptions()).num_made


def test_shards_without_a_manifest_are_refused_with_the_way(hub, tmp_path):
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "imagenet1k-train-0000.tar").write_bytes(b"?")
    publish(hub, tmp_path / "shards")
    with pytest.raises(InputError, match="index --shards hf://datasets/user/pets"):
        read_source(ADDRESS)


def test_other_files_are_refused_with_the_revision_where_the_hub_keeps_parquet(hub, tmp_path):
    (tmp_path / "zips").mkdir()
    (tmp_path / "zips" / "train.zip").write_bytes(b"?")
    publish(hub, tmp_path / "zips")
    with pytest.raises(InputError, match=r"train\.zip(.|\n)*pets@refs/convert/parquet"):
        read_source(ADDRESS)


def test_shards_with_a_manifest_on_the_hub_are_packed(hub, pets, tmp_path):
    options = PackOptions(train_shards=2, dataset="pets")
    pack(read_source(pets), tmp_path / "shards", options)
    publish(hub, tmp_path / "shards")
    source = read_source(ADDRESS, cache=tmp_path / "cache")
    assert source.layout == "shards"
    pack(source, tmp_path / "out", options)
    ours, theirs = contents(tmp_path / "out"), contents(tmp_path / "shards")
    assert all(ours[name] == theirs[name] for name in theirs if name.endswith((".tar", ".npz")))


@pytest.mark.parametrize("address", ["hf://datasets/user/nothing", f"{ADDRESS}@nothing"])
def test_a_repository_or_revision_that_is_missing_is_named(hub, pets, address):
    publish(hub, pets)
    with pytest.raises(InputError, match=address):
        read_source(address)


def test_parquet_files_in_a_bucket_are_read_the_same_way(bucket_server, pets, tmp_path):
    bucket_server.create_bucket(Bucket="data")
    for path in pets.rglob("*.*"):
        name = path.relative_to(pets).as_posix()
        bucket_server.put_object(Bucket="data", Key=f"pets/{name}", Body=path.read_bytes())
    source = read_source("s3://data/pets")
    assert source.default_name == "pets"
    pack(source, tmp_path / "out", PackOptions())
    pack(read_source(pets), tmp_path / "local", PackOptions())
    ours, theirs = contents(tmp_path / "out"), contents(tmp_path / "local")
    assert all(ours[name] == theirs[name] for name in theirs if name.endswith((".tar", ".npz")))
    path = pets / "data" / "train-0.parquet"
    content = bytearray(path.read_bytes())
    content[300] ^= 1  # in an image
    bucket_server.put_object(Bucket="data", Key="pets/data/train-0.parquet", Body=bytes(content))
    with pytest.raises(InputError, match="source_sha256 was"):
        pack(read_source("s3://data/pets"), tmp_path / "out", PackOptions())
