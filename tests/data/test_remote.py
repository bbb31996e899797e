import errno
import logging
import multiprocessing
import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from imagenet_rn50.data.loader import build_loader
from imagenet_rn50.data.sampler import DistributedBatchSampler, ShardShuffleSampler
from imagenet_rn50.data.transforms import EvalTransform
from imagenet_rn50.shards.manifest import Manifest
from imagenet_rn50.shards.store import open_shards
from imagenet_rn50.utils import storage as remote
from imagenet_rn50.utils.errors import InputError
from imagenet_rn50.utils.files import sha256_of_file
from imagenet_rn50.utils.storage import RemoteFolder, RetryPolicy
from tests.data.servers import HICCUPS, serve
from tests.support import write_shards

QUICK = RetryPolicy(tries=3, initial_backoff=0.01, timeout=0.5)
PATIENT = RetryPolicy(tries=1, timeout=60)  # for a busy machine


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source")
    write_shards(folder, train=[4, 3, 5, 2], validation=[3])
    return folder


@pytest.fixture
def server(source):
    with serve(source) as running:
        yield running


def opened(location, cache, limit_bytes=10**9, retry_policy=QUICK):
    store = open_shards(location, cache=cache, limit_bytes=limit_bytes, retry_policy=retry_policy)
    return store, Manifest.load(store.folder).split("train")


def tars_in(cache):
    return sorted(path.name for path in (cache / "shards").glob("*.tar*"))


def assert_loads_like_local(store, split, source, num_workers=0):
    order = ShardShuffleSampler(split.shard_sizes, seed=1, window=2)
    arguments = {"order": order, "num_workers": num_workers}
    share, transform = DistributedBatchSampler(0, 28, 4), EvalTransform(18, 16)
    remote_batches = list(build_loader(store, split, share, transform, **arguments))
    local_batches = list(build_loader(source, split, share, transform, **arguments))
    for ours, theirs in zip(remote_batches, local_batches, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours[:3], theirs[:3], strict=True))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_remote_shards_give_the_batches_of_local_ones(server, source, tmp_path, num_workers):
    store, split = opened(server.address, tmp_path)
    assert_loads_like_local(store, split, source, num_workers)
    assert all(server.requests[shard.name] == 1 for shard in split.shards)


@pytest.mark.parametrize("hiccup", HICCUPS)
def test_a_download_that_goes_wrong_is_tried_again(server, tmp_path, hiccup):
    store, split = opened(server.address, tmp_path)
    shard = split.shards[0]
    server.hiccups[shard.name] = [hiccup, hiccup]
    assert sha256_of_file(store.fetch(shard)) == shard.sha256
    assert server.requests[shard.name] == 3
    assert tars_in(tmp_path) == [f"{shard.sha256}.tar"]


@pytest.mark.parametrize("hiccup", HICCUPS)
def test_what_goes_wrong_every_time_is_named_and_leaves_nothing_behind(server, tmp_path, hiccup):
    store, split = opened(server.address, tmp_path)
    server.hiccups[split.shards[0].name] = [hiccup] * 9
    with pytest.raises(InputError, match=r"tiny-train-0.tar cannot be downloaded"):
        store.fetch(split.shards[0])
    # aiohttp asks once more by itself where a server hangs up.
    expected = 6 if hiccup in {"hang up", "reset"} else 3
    assert server.requests[split.shards[0].name] == expected
    assert tars_in(tmp_path) == []


def test_a_manifest_with_a_damaged_part_is_tried_again(server, tmp_path):
    server.hiccups["manifest-train.npz"] = ["corrupt"]
    opened(server.address, tmp_path)
    assert server.requests["manifest-train.npz"] == 2


@pytest.mark.parametrize("content", ["{}", "[]", '{"splits": ["train"]}', '{"splits": {"a": {}}}'])
def test_a_manifest_of_another_program_is_called_so(server, tmp_path, content):
    server.folder = tmp_path
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(
        InputError, match=r"manifest\.json in http://.*/tiny is not a manifest of sh"
    ):
        opened(server.address, tmp_path / "cache")


def test_a_cache_that_cannot_be_made_is_refused(server, tmp_path):
    cache = tmp_path / "cache"
    cache.symlink_to(cache)
    with pytest.raises(
        InputError, match=r"cannot be written(.|\n)*name another folder with --cache"
    ):
        opened(server.address, cache)


def test_a_file_that_is_not_there_is_not_waited_for(server, source, tmp_path):
    store, split = opened(server.address, tmp_path)
    server.folder = tmp_path  # holds no such file
    with pytest.raises(InputError, match=r"there is no http://127.0.0.1:\d+/sets/tiny/tiny"):
        store.fetch(split.shards[0])
    assert server.requests[split.shards[0].name] == 1


def test_a_full_disk_is_said_at_once(server, tmp_path, monkeypatch):
    store, split = opened(server.address, tmp_path)

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="no space is left"):
        store.fetch(split.shards[0])
    assert tars_in(tmp_path) == []


def test_tokens_are_used_and_never_told(server, tmp_path, caplog):
    caplog.set_level(logging.DEBUG, logger="imagenet_rn50")
    server.token = "s3cr3t"
    location = server.address.replace("http://", "http://someone:pa55@") + "?token=s3cr3t"
    store, split = opened(location, tmp_path)
    store.fetch(split.shards[0])
    server.hiccups[split.shards[1].name] = ["fail", "truncate", "fail"]
    with pytest.raises(InputError) as caught:
        store.fetch(split.shards[1])
    server.token = "another"
    with pytest.raises(InputError) as refused:
        store.fetch(split.shards[2])
    told = f"{caught.value}{refused.value}{caplog.text}{store!r}{list(tmp_path.rglob('*'))}"
    assert "try 2" in caplog.text
    assert "may not be read" in str(refused.value)
    assert server.requests[split.shards[2].name] == 1
    assert "s3cr3t" not in told
    assert "pa55" not in told


def test_pauses_grow_to_a_limit_and_differ_between_readers():
    retry_policy = RetryPolicy(initial_backoff=1, max_backoff=8)
    pauses = [[retry_policy.backoff(attempt) for _ in range(50)] for attempt in range(1, 7)]
    for longest, drawn in zip((1, 2, 4, 8, 8, 8), pauses, strict=True):
        assert longest / 2 <= min(drawn) < max(drawn) <= longest


def test_the_cache_never_takes_more_than_its_limit_and_drops_the_oldest_first(server, tmp_path):
    store, split = opened(server.address, tmp_path)
    sizes = [shard.num_bytes for shard in split.shards]
    store = replace(store, limit_bytes=sizes[0] + sizes[1] + sizes[2])
    first, second, third, fourth = split.shards
    for shard in (first, second, third):
        os.utime(store.fetch(shard), (shard.num_samples, shard.num_samples))
    store.fetch(first)  # is now the one that was used last
    store.fetch(fourth)
    names = {path.stem for path in (tmp_path / "shards").glob("*.tar")}
    assert first.sha256 in names
    assert fourth.sha256 in names
    assert sum(s.num_bytes for s in split.shards if s.sha256 in names) <= store.limit_bytes
    assert second.sha256 in names or third.sha256 in names
    assert len(names) == 3
    assert third.sha256 in names  # the fourth took the place of the second, used before it


def test_a_cache_smaller_than_a_window_works_and_is_warned_of(server, source, tmp_path, caplog):
    store, split = opened(server.address, tmp_path)
    largest = max(shard.num_bytes for shard in split.shards)
    tight = replace(store, limit_bytes=largest)
    assert_loads_like_local(tight, split, source)
    assert "some will be downloaded more than once" in caplog.text


def test_a_shard_larger_than_the_cache_is_refused(server, tmp_path):
    store, split = opened(server.address, tmp_path, limit_bytes=1000)
    with pytest.raises(InputError, match="does not fit into the cache"):
        store.fetch(split.shards[0])


def test_what_a_killed_download_left_is_removed_and_does_not_count(server, tmp_path):
    store, split = opened(server.address, tmp_path)
    first, second = split.shards[:2]
    store = replace(store, limit_bytes=max(first.num_bytes, second.num_bytes))
    (tmp_path / "shards").mkdir()
    for suffix in ("reserved", "partial"):
        (tmp_path / "shards" / f"{first.sha256}.tar.{suffix}").write_bytes(b"x" * 5000)
    store.fetch(second)
    assert tars_in(tmp_path) == [f"{second.sha256}.tar"]


def test_a_download_waits_until_another_one_frees_its_space(server, tmp_path):
    store, split = opened(server.address, tmp_path)
    first, second = split.shards[:2]
    tight = replace(store, limit_bytes=max(first.num_bytes, second.num_bytes))
    server.hiccups[first.name] = ["stall"]
    slow = threading.Thread(target=tight.fetch, args=(first,))
    slow.start()
    while not list((tmp_path / "shards").glob("*.reserved")):
        pass
    assert sha256_of_file(tight.fetch(second)) == second.sha256
    slow.join()
    assert len(tars_in(tmp_path)) == 1


def fetch_all(store, split, order, failures):
    try:
        for k in order:
            shard = split.shards[k]
            assert sha256_of_file(store.fetch(shard)) == shard.sha256
    except BaseException as error:
        failures.put(repr(error))
        raise


@pytest.mark.multiprocess
def test_processes_share_downloads(server, tmp_path):
    store, split = opened(server.address, tmp_path, retry_policy=PATIENT)
    context = multiprocessing.get_context("fork")
    failures = context.SimpleQueue()
    orders = [(0, 1, 2, 3), (3, 2, 1, 0), (1, 0, 3, 2), (2, 3, 0, 1)]
    processes = [
        context.Process(target=fetch_all, args=(store, split, order, failures)) for order in orders
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert failures.empty()
    assert [server.requests[shard.name] for shard in split.shards] == [1, 1, 1, 1]


def test_a_remote_folder_needs_a_cache():
    with pytest.raises(InputError, match="s3://bucket/x is remote"):
        open_shards("s3://bucket/x?token=1")


def test_an_unknown_scheme_is_said(tmp_path):
    with pytest.raises(InputError, match="cannot be read from nowhere://"):
        open_shards("nowhere://bucket/x", cache=tmp_path)


def test_a_local_path_is_not_copied(source):
    store = open_shards(str(source))
    assert store.folder == source


@pytest.fixture
def bucket(source, bucket_server):
    """A bucket with the shards in it."""
    bucket_server.create_bucket(Bucket="images")
    for path in Path(source).iterdir():
        key = f"sets/{path.name}"
        bucket_server.put_object(Bucket="images", Key=key, Body=path.read_bytes())
    return bucket_server


def test_shards_are_read_from_s3(bucket, source, tmp_path):
    store, split = opened(
        "s3://images/sets", tmp_path, retry_policy=RetryPolicy(tries=2, timeout=10)
    )
    assert_loads_like_local(store, split, source)


def test_what_is_missing_or_damaged_on_s3_is_named(bucket, source, tmp_path):
    store, split = opened(
        "s3://images/sets", tmp_path, retry_policy=RetryPolicy(2, 0.01, timeout=10)
    )
    first, second = split.shards[:2]
    bucket.put_object(Bucket="images", Key=f"sets/{first.name}", Body=b"something else")
    with pytest.raises(InputError, match="14 bytes instead of"):
        store.fetch(first)
    bucket.delete_object(Bucket="images", Key=f"sets/{second.name}")
    with pytest.raises(InputError, match=f"there is no s3://images/sets/{second.name}"):
        store.fetch(second)


def test_a_read_only_look_at_a_folder_shows_no_secret():
    folder = RemoteFolder("https://user:pa55@host/path?token=1#x")
    assert repr(folder) == "RemoteFolder('https://host/path')"
    assert remote.DEFAULT_RETRY_POLICY == folder.retry_policy
