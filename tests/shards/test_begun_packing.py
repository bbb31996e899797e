"""Packing within one process: the order of finishing, a full disk, what an earlier run has left."""

import errno
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagenet_rn50.shards import pack as packing
from imagenet_rn50.shards.pack import pack
from imagenet_rn50.shards.plan import PackOptions
from imagenet_rn50.shards.sources.detect import read_source
from imagenet_rn50.shards.tar import TarWriter
from imagenet_rn50.shards.writer import PackingState, make_shards
from imagenet_rn50.utils.errors import InputError
from tests.shards.helpers import contents, jpeg, write_kaggle, write_parquet


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """What no test of this file changes."""
    return read_source(write_kaggle(tmp_path_factory.mktemp("begun") / "source"))


@settings(max_examples=15, deadline=None)
@given(order=st.randoms(use_true_random=False), seed=st.integers(0, 9), shards=st.integers(1, 7))
def test_the_order_in_which_shards_are_finished_changes_no_byte(
    tmp_path_factory, source, order, seed, shards
):
    folder = tmp_path_factory.mktemp("order")
    options = PackOptions(seed=seed, train_shards=shards, validation_shards=min(shards, 6))
    pack(source, folder / "one", options)

    def shuffled(tasks, *arguments):
        yield from make_shards(order.sample(tasks, len(tasks)), *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "make_shards", shuffled)
        pack(source, folder / "other", options)
    assert contents(folder / "one") == contents(folder / "other")


@pytest.mark.multiprocess
@settings(max_examples=3, deadline=None)
@given(workers=st.integers(2, 3), seed=st.integers(0, 9), shards=st.integers(2, 7))
def test_the_number_of_workers_changes_no_byte(tmp_path_factory, source, workers, seed, shards):
    folder = tmp_path_factory.mktemp("workers")
    options = PackOptions(seed=seed, train_shards=shards, metadata=seed % 2 == 0)
    pack(source, folder / "one", options)
    pack(source, folder / "many", options, num_workers=workers)
    assert contents(folder / "one") == contents(folder / "many")


class FullDisk:
    """A tar writer on a disk that holds so many bytes and no more."""

    def __init__(self, num_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left = num_bytes
        real = TarWriter._write

        def write(tar, content):
            self.left -= len(content)
            if self.left < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            real(tar, content)

        monkeypatch.setattr(TarWriter, "_write", write)


def interrupted(source, out, options, num_bytes=12_000):
    """Leaves the beginning of a packing behind."""
    with pytest.MonkeyPatch.context() as patch:
        FullDisk(num_bytes, patch)
        with pytest.raises(InputError, match="the disk is full"):
            pack(source, out, options)


def test_a_disk_that_fills_up_stops_cleanly_and_the_next_run_goes_on(tmp_path):
    source = read_source(write_kaggle(tmp_path / "source"))
    options = PackOptions(train_shards=6, validation_shards=2)
    pack(source, tmp_path / "whole", options)
    out = tmp_path / "out"
    interrupted(source, out, options)
    finished = [path.name for path in out.glob("*.tar")]
    assert 0 < len(finished) < 8
    assert not list(out.glob("*.partial"))
    packed = pack(source, out, options)
    assert packed.num_kept == len(finished)
    assert contents(out) == contents(tmp_path / "whole")


def test_a_finished_shard_that_was_damaged_meanwhile_is_made_again(tmp_path):
    source = read_source(write_kaggle(tmp_path / "source"))
    options = PackOptions(train_shards=6)
    pack(source, tmp_path / "whole", options)
    interrupted(source, tmp_path / "out", options)
    path = sorted((tmp_path / "out").glob("*.tar"))[0]
    content = bytearray(path.read_bytes())
    content[700] ^= 1
    path.write_bytes(bytes(content))
    pack(source, tmp_path / "out", options)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_parquet_is_read_again_for_the_missing_shards_only(tmp_path):
    source = read_source(write_parquet(tmp_path / "source"))
    options = PackOptions(train_shards=6)
    pack(source, tmp_path / "whole", options)
    interrupted(source, tmp_path / "out", options)
    finished = len(list((tmp_path / "out").glob("*.tar")))
    assert len(list((tmp_path / "out").rglob("*.spool"))) == 7 - finished
    assert pack(source, tmp_path / "out", options).num_kept == finished
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert not (tmp_path / "out" / ".packing").exists()


def test_packing_shards_anew_is_resumed(tmp_path):
    pack(read_source(write_kaggle(tmp_path / "source")), tmp_path / "shards", PackOptions())
    options = PackOptions(train_shards=6, seed=1)
    pack(read_source(tmp_path / "shards"), tmp_path / "whole", options)
    interrupted(read_source(tmp_path / "shards"), tmp_path / "out", options)
    finished = len(list((tmp_path / "out").glob("*.tar")))
    assert pack(read_source(tmp_path / "shards"), tmp_path / "out", options).num_kept == finished
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_run_that_was_killed_between_manifest_and_tidying_up_is_tidied_up(tmp_path):
    source = read_source(write_kaggle(tmp_path / "source"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PackingState, "forget", lambda self: None)
        pack(source, tmp_path / "out", PackOptions())
    assert (tmp_path / "out" / ".packing").is_dir()
    assert pack(source, tmp_path / "out", PackOptions()).num_made == 0
    assert not (tmp_path / "out" / ".packing").exists()


def test_the_beginning_of_another_packing_is_not_mixed_in(tmp_path):
    source = read_source(write_kaggle(tmp_path / "source"))
    interrupted(source, tmp_path / "out", PackOptions(train_shards=6))
    with pytest.raises(InputError, match="seed was 0, now 1"):
        pack(source, tmp_path / "out", PackOptions(train_shards=6, seed=1))


def test_a_finished_output_of_other_options_is_left_alone(tmp_path):
    source = read_source(write_kaggle(tmp_path / "source"))
    pack(source, tmp_path / "out", PackOptions())
    before = contents(tmp_path / "out")
    with pytest.raises(InputError, match="seed was 0, now 1"):
        pack(source, tmp_path / "out", PackOptions(seed=1))
    assert contents(tmp_path / "out") == before


def test_a_source_that_changed_since_is_noticed(tmp_path):
    source = read_source(write_kaggle(tmp_path / "source"))
    pack(source, tmp_path / "out", PackOptions())
    first = source.splits["train"][0]
    (Path(source.root) / first.path).write_bytes(jpeg(99, size=(50, 50)))
    with pytest.raises(InputError, match="source_sha256 was"):
        pack(read_source(source.root), tmp_path / "out", PackOptions())


def test_shards_of_unknown_origin_are_not_written_over(tmp_path):
    source = read_source(write_kaggle(tmp_path / "source"))
    pack(source, tmp_path / "out", PackOptions())
    (tmp_path / "out" / "manifest.json").unlink()
    with pytest.raises(InputError, match=r"holds source-train-00\.tar already"):
        pack(source, tmp_path / "out", PackOptions())
