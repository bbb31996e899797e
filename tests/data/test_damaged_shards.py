"""Bytes that have changed since they were packed: noticed as they are read, and fetched again."""

import hashlib
import multiprocessing
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from imagenet_rn50.data import loader as loaders
from imagenet_rn50.data.loader import build_loader
from imagenet_rn50.data.reader import SampleError, ShardReader
from imagenet_rn50.data.sampler import DistributedBatchSampler, ShardShuffleSampler
from imagenet_rn50.data.transforms import EvalTransform
from imagenet_rn50.shards.manifest import Manifest
from imagenet_rn50.shards.store import CachedShards, LocalShards, open_shards
from imagenet_rn50.utils.errors import InputError
from imagenet_rn50.utils.storage import RetryPolicy
from tests.data.servers import serve
from tests.support import write_shards

QUICK = RetryPolicy(tries=3, initial_backoff=0.01, timeout=2)
SHARE, TRANSFORM = DistributedBatchSampler(0, 28, 4), EvalTransform(18, 16)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source")
    write_shards(folder, train=[4, 3, 5, 2], validation=[3])
    return folder


@pytest.fixture
def server(source):
    with serve(source) as running:
        yield running


def opened(server, cache):
    store = open_shards(server.address, cache=cache, retry_policy=QUICK)
    return store, Manifest.load(store.folder).split("train")


def batches_of(store, split, **options):
    order = ShardShuffleSampler(split.shard_sizes, seed=1, window=2)
    return build_loader(store, split, SHARE, TRANSFORM, order=order, **options)


def assert_equal_batches(ours, theirs):
    for one, other in zip(ours, theirs, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one[:3], other[:3], strict=True))


def flip(content, split, shard):
    """Damages each sample of a shard, in the middle, where it still decodes more often than not."""
    begin, end = split.shard_starts[shard : shard + 2]
    for index in range(begin, end):
        middle = int(split.offsets[index] + split.lengths[index] // 2)
        content[middle : middle + 20] = bytes(
            value ^ 0x55 for value in content[middle : middle + 20]
        )
    return content


def zero(content, split, shard):
    """As a crash leaves a file that was renamed before its bytes were on the disk."""
    content[len(content) // 4 : 3 * len(content) // 4] = bytes(len(content) // 2)
    return content


def cut(content, split, shard):
    return content[: len(content) // 3]


def empty(content, split, shard):
    return b""


def other_version(content, split, shard):
    """The same names and sizes, and other bytes."""
    return bytes(255 - value for value in content)


DAMAGES = [flip, zero, cut, empty, other_version]


def damage_cache(store, split, damage):
    for number, shard in enumerate(split.shards):
        path = store.fetch(shard)
        path.write_bytes(damage(bytearray(path.read_bytes()), split, number))


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_cached_shard_that_is_damaged_is_fetched_again_once(
    server, source, tmp_path, damage, num_workers
):
    store, split = opened(server, tmp_path)
    damage_cache(store, split, damage)
    ours = batches_of(store, split, num_workers=num_workers)
    assert_equal_batches(ours, batches_of(source, split))
    assert [server.requests[shard.name] for shard in split.shards] == [2, 2, 2, 2]


def read_everything(store, split, failures):
    try:
        with ShardReader(store, split) as reader:
            for index in range(split.num_samples):
                reader.read(index)
    except BaseException as error:
        failures.put(repr(error))
        raise


@pytest.mark.multiprocess
def test_processes_that_meet_the_same_damage_fetch_once(server, tmp_path):
    store, split = opened(server, tmp_path)
    damage_cache(store, split, flip)
    context = multiprocessing.get_context("fork")
    failures = context.SimpleQueue()
    arguments = (store, split, failures)
    processes = [context.Process(target=read_everything, args=arguments) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert failures.empty()
    assert [server.requests[shard.name] for shard in split.shards] == [2, 2, 2, 2]


class OnBadDisk(CachedShards):
    """A cache on a disk that damages whatever is written to it."""

    def fetch(self, shard):
        path = super().fetch(shard)
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() == shard.sha256:
            # Renamed, because the prefetcher may be reading it.
            damaged = path.with_suffix(f".{threading.get_ident()}")
            damaged.write_bytes(other_version(content, None, None))
            damaged.replace(path)
        return path


def test_what_is_damaged_again_is_named_with_what_can_mend_it(server, tmp_path):
    store, split = opened(server, tmp_path)
    store = OnBadDisk(store.remote, store.cache, store.limit_bytes, store.folder)
    with pytest.raises(InputError, match="is damaged") as named:
        list(batches_of(store, split))
    assert str(tmp_path) in str(named.value)
    assert server.address in str(named.value)
    assert "pack" not in str(named.value)
    assert "index" not in str(named.value)


def test_what_is_damaged_and_out_of_reach_names_the_address(server, tmp_path):
    store, split = opened(server, tmp_path)
    damage_cache(store, split, flip)
    server.folder = tmp_path  # holds no shards
    with pytest.raises(InputError, match=rf"there is no {server.address}/tiny-train"):
        list(batches_of(store, split))


def test_a_cache_that_is_removed_while_it_is_read_is_filled_again(server, source, tmp_path):
    store, split = opened(server, tmp_path / "cache")
    ours = []
    for batch in batches_of(store, split):
        ours.append(batch)
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)
    assert_equal_batches(ours, batches_of(source, split))


def test_a_cache_that_becomes_a_file_is_named(server, tmp_path):
    store, split = opened(server, tmp_path / "cache")
    shutil.rmtree(tmp_path / "cache")
    (tmp_path / "cache").touch()
    with pytest.raises(InputError, match=r"cache .* cannot be used"):
        store.fetch(split.shards[0])


def test_data_sets_that_share_a_cache_do_not_mix(server, source, tmp_path):
    another = tmp_path / "another"
    write_shards(another, train=[3, 4, 2, 5], validation=[2])
    store, split = opened(server, tmp_path / "cache")
    with serve(another) as second:
        other_store, other_split = opened(second, tmp_path / "cache")
        assert_equal_batches(batches_of(store, split), batches_of(source, split))
        assert_equal_batches(batches_of(other_store, other_split), batches_of(another, other_split))


@pytest.fixture
def changed(source, tmp_path):
    """Local shards of which samples 1 and 5 have changed, and still decode."""
    folder = tmp_path / "shards"
    shutil.copytree(source, folder)
    split = Manifest.load(folder).split("train")
    for index in (1, 5):
        path = folder / split.shards[split.shard_of(index)].name
        content = bytearray(path.read_bytes())
        content[split.offsets[index] + 30] ^= 1  # a quantization table's value
        path.write_bytes(content)
        jpeg = content[split.offsets[index] : split.offsets[index] + split.lengths[index]]
        TRANSFORM(bytes(jpeg), 0, index)
    return folder, split


def test_a_local_sample_that_has_changed_stops_the_run(changed):
    folder, split = changed
    with pytest.raises(SampleError, match=r"sample_0000[15] (.|\n)*CRC-32(.|\n)*verify --shards"):
        list(batches_of(folder, split))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_local_sample_that_has_changed_is_substituted_where_that_is_asked_for(
    changed, num_workers
):
    folder, split = changed
    options = {"on_corrupt": "substitute", "num_workers": num_workers}
    loader = build_loader(folder, split, DistributedBatchSampler(0, 14, 7), TRANSFORM, **options)
    indices = torch.cat([batch.indices for batch in loader])
    assert indices.tolist() == [0, 2, 2, 3, 4, 6, *range(6, 14)]
    assert loader.stats().substitutions == 2


def test_a_manifest_without_checksums_is_read_and_said_to_be_unchecked_once(
    changed, caplog, monkeypatch
):
    folder, split = changed
    object.__setattr__(split, "crc32s", None)
    loaders._warn_of_unchecked_samples.cache_clear()
    for _ in range(2):
        assert sum(len(batch.labels) for batch in batches_of(folder, split)) == 28
    assert caplog.text.count("CRC-32") == 1


def test_checking_changes_no_bytes_and_no_manifest(source):
    manifest = Manifest.load(source)
    split = manifest.split("train")
    assert split.crc32s is not None
    assert split.crc32s.dtype == np.uint32
    with ShardReader(LocalShards(source), split) as reader:
        content = b"".join(map(reader.read, range(split.num_samples)))
    assert len(content) == split.lengths.sum()
    assert Manifest.fingerprint_of(Path(source)) == manifest.save(source)
