"""Parquet data sets on the Hub: read by ranges at a commit, without a second copy."""

import re
from urllib.parse import unquote

import pytest
from huggingface_hub import constants

import shard_imagenet
from imagenet_rn50.shards.pack import pack
from imagenet_rn50.shards.plan import PackOptions
from imagenet_rn50.shards.sources.detect import read_source
from imagenet_rn50.utils import storage
from imagenet_rn50.utils.errors import InputError
from tests.hub import TOKEN, Handler, Hub, Repo, serving_hub
from tests.shards.helpers import contents
from tests.shards.test_pack_parquet import write

ADDRESS = "hf://datasets/user/pets"


class RangeHub(Hub):
    """A Hub with a gate and failures, which counts the bytes that it serves."""

    def __init__(self):
        super().__init__()
        self.gate: int | None = None  # status for those without the token
        self.failures: list[int | str] = []  # of the next reads: a status, or `drop`
        self.num_sent = 0


class RangeHandler(Handler):
    """Serve ranges of the files of data sets, to whom the gate lets in, and fail when told to."""

    hub: RangeHub

    def do_GET(self):
        if "datasets/" in self.path and self.hub.gate:
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                self.answer(self.hub.gate, {"error": "gated"}, {"X-Error-Code": "GatedRepo"})
                return
        super().do_GET()

    def resolve(self, repository, revision, name):
        found = self.hub.repos[repository].at(unquote(revision))
        content = found[1][unquote(name)]
        begin, end = [*map(int, re.findall(r"\d+", self.headers.get("Range", "0"))), -1][:2]
        part = content[begin : end + 1 if end >= 0 else None]
        if self.hub.failures and begin > 0:
            failure = self.hub.failures.pop()
            if isinstance(failure, int):
                self.answer(failure, {"error": "busy"}, {"Retry-After": "0"})
            else:
                self.send_response(206)
                self.send_header("Content-Length", str(len(part)))
                self.end_headers()
                self.wfile.write(part[: len(part) // 2])
                self.close_connection = True
            return
        self.hub.num_sent += len(part)
        self.answer(206 if "Range" in self.headers else 200, part)


@pytest.fixture
def hub(monkeypatch):
    """Serve a Hub that the libraries of this process take for the real one."""
    monkeypatch.setattr("tests.hub.Handler", RangeHandler)
    monkeypatch.setattr("tests.hub.Hub", RangeHub)
    with serving_hub() as hub:
        template = f"{hub.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "ENDPOINT", hub.address)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        storage.filesystem.cache_clear()
        yield hub
        storage.filesystem.cache_clear()


def publish(hub, folder, repository="user/pets"):
    """Commit the files of a folder; return the commit."""
    repo = hub.repos.setdefault(f"datasets/{repository}", Repo({}))
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*")}
    return repo.commit({name: path.read_bytes() for name, path in files.items() if path.is_file()})


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
    assert {shard.sha256 for split in made.splits.values() for shard in split.shards} == {
        shard.sha256 for split in local.splits.values() for shard in split.shards
    }


def test_only_ranges_are_read_and_the_bytes_of_images_once(hub, pets, tmp_path):
    write(pets / "data" / "train-1.parquet", [0, 1, 2] * 8, size=(600, 500), quality=100)
    publish(hub, pets)
    source = read_source(ADDRESS)
    size = sum(path.stat().st_size for path in pets.rglob("*.parquet"))
    assert size > 2_000_000
    assert hub.num_sent < 250_000  # the ends of three files, and their labels
    pack(source, tmp_path / "out", PackOptions())
    assert hub.num_sent < size + 500_000
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


def test_a_folder_of_the_repository_is_a_source(hub, pets, tmp_path):
    publish(hub, pets.parent)
    source = read_source(f"{ADDRESS}/pets")
    assert source.default_name == "pets"
    assert len(source.splits["train"]) == 10


@pytest.mark.parametrize("what", ["drop", 503, 429])
def test_broken_reads_are_repeated(hub, pets, tmp_path, what):
    publish(hub, pets)
    source = read_source(ADDRESS)
    hub.failures = [what]
    pack(source, tmp_path / "out", PackOptions())
    assert not hub.failures
    pack(read_source(pets), tmp_path / "local", PackOptions())
    assert (
        contents(tmp_path / "out")["classes.json"] == contents(tmp_path / "local")["classes.json"]
    )


@pytest.mark.parametrize("status", [401, 403])
def test_a_gated_data_set_is_refused_with_one_message(hub, pets, tmp_path, status, refused):
    publish(hub, pets)
    hub.gate = status
    message = refused(shard_imagenet.main, "pack", "--source", ADDRESS, "--out", tmp_path / "out")
    assert f"{hub.address}/datasets/user/pets" in message
    assert "hf auth login" in message
    assert not (tmp_path / "out").exists()


def test_the_token_opens_a_gated_data_set(hub, pets, monkeypatch):
    publish(hub, pets)
    hub.gate = 401
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert len(read_source(ADDRESS).splits["train"]) == 10


def test_shards_without_a_manifest_are_refused_with_the_way(hub, tmp_path):
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "imagenet1k-train-0000.tar").write_bytes(b"?")
    publish(hub, tmp_path / "shards")
    with pytest.raises(InputError, match=r"index --shards hf://datasets/user/pets"):
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


def test_access_that_is_lost_on_the_way_stops_with_a_message_and_resumes(hub, pets, tmp_path):
    publish(hub, pets)
    source = read_source(ADDRESS)
    hub.gate = 403
    with pytest.raises(InputError, match="hf auth login"):
        pack(source, tmp_path / "out", PackOptions())
    hub.gate = None
    assert pack(source, tmp_path / "out", PackOptions()).num_made
