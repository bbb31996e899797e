"""Samples that cannot be read or decoded: named, substituted, or too many."""

from typing import Any

import pytest
import torch

from imagenet_rn50.data.dataset import DecodeAndTransform
from imagenet_rn50.data.loader import build_loader
from imagenet_rn50.data.sampler import DistributedBatchSampler, ShardShuffleSampler
from imagenet_rn50.data.transforms import EvalTransform
from imagenet_rn50.utils.errors import InputError, RankError
from tests.support import jpeg_bytes, write_shards


def test_a_shard_that_ends_early_is_named_with_the_sample(tmp_path):
    manifest = write_shards(tmp_path, train=[3], validation=[1])
    path = tmp_path / "tiny-train-0.tar"
    path.write_bytes(path.read_bytes()[:2000])
    share = DistributedBatchSampler(start=0, stop=3, batch=3)
    loader = build_loader(tmp_path, manifest.splits["train"], share, EvalTransform(18, 16))
    with pytest.raises(InputError, match="ends within sample sample_00001 "):
        list(loader)


@pytest.fixture
def damaged(tmp_path):
    """Twelve samples in two shards; samples 1, 2 and 5, the last of its shard, are damaged."""
    split = write_shards(tmp_path, train=[6, 6], validation=[1]).splits["train"]
    content = bytearray((tmp_path / "tiny-train-0.tar").read_bytes())
    for index in (1, 2, 5):
        content[split.offsets[index] : split.offsets[index] + 4] = b"oops"
    (tmp_path / "tiny-train-0.tar").write_bytes(content)
    return tmp_path, split


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_damaged_picture_is_named_with_shard_and_offset(damaged, num_workers):
    folder, split = damaged
    loader = build_loader(
        folder,
        split,
        DistributedBatchSampler(0, 12, 3),
        EvalTransform(18, 16),
        num_workers=num_workers,
    )
    with pytest.raises(InputError) as caught:
        list(loader)
    first, *_ = str(caught.value).splitlines()
    assert first == (
        f"sample sample_00001 (tiny-train-0.tar, offset {split.offsets[1]}) is damaged"
    )
    assert "Traceback" not in str(caught.value)


@pytest.mark.parametrize(
    ("start", "is_checked", "fix"),
    [(b"\x89PNG", False, "pack the images again")]
    + [(b"\xff\xd8oops", False, "verify"), (b"\xff\xd8oops", True, "pack the images again")],
)
def test_who_meets_no_jpeg_in_a_whole_shard_is_not_sent_to_verify_it(start, is_checked, fix):
    sample: Any = {
        "is_checked": is_checked,
        "jpg": start + bytes(99),
        "index": 0,
        "epoch": 0,
        "row": 0,
        "rows": 1,
        "describe": lambda: "it",
    }
    with pytest.raises(InputError, match=rf"it cannot be decoded(.|\n)*fix: .*{fix}"):
        list(DecodeAndTransform(EvalTransform(18, 16))(iter([sample])))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_substitute_is_the_next_good_sample_of_the_shard_with_its_own_label(
    damaged, num_workers, caplog
):
    folder, split = damaged
    transform = EvalTransform(18, 16)
    loader = build_loader(
        folder,
        split,
        DistributedBatchSampler(0, 12, 5),
        transform,
        num_workers=num_workers,
        on_corrupt="substitute",
    )
    batches = list(loader)
    indices = torch.cat([batch.indices for batch in batches])
    assert indices.tolist() == [0, 3, 3, 3, 4, 0, 6, 7, 8, 9, 10, 11]
    assert torch.equal(torch.cat([batch.labels for batch in batches]), indices % 3)
    images = torch.cat([batch.images for batch in batches])
    assert torch.equal(images[1], transform(jpeg_bytes(3), 0, 3))
    assert torch.equal(images[5], transform(jpeg_bytes(0), 0, 0))
    assert loader.stats().substitutions == 3
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 3
    assert "sample_00005" in caplog.text
    assert "instead:  sample sample_00000" in caplog.text


def test_a_shard_that_ends_early_can_be_substituted_as_well(tmp_path):
    split = write_shards(tmp_path, train=[3], validation=[1]).splits["train"]
    path = tmp_path / "tiny-train-0.tar"
    path.write_bytes(path.read_bytes()[: split.offsets[1] + 10])
    loader = build_loader(
        tmp_path,
        split,
        DistributedBatchSampler(0, 3, 3),
        EvalTransform(18, 16),
        on_corrupt="substitute",
    )
    (batch,) = loader
    assert batch.indices.tolist() == [0, 0, 0]


def test_more_substitutions_than_allowed_stop_the_run(damaged):
    folder, split = damaged
    loader = build_loader(
        folder,
        split,
        DistributedBatchSampler(0, 12, 3),
        EvalTransform(18, 16),
        on_corrupt="substitute",
        max_substitutions=2,
    )
    with pytest.raises(InputError, match="3 samples were damaged and substituted"):
        list(loader)


def test_a_damaged_sample_that_every_epoch_meets_counts_once(damaged):
    folder, split = damaged
    order = ShardShuffleSampler(split.shard_sizes, seed=3, window=2)
    num_epochs = 5
    for allowed in (3, 2):
        loader = build_loader(
            folder,
            split,
            DistributedBatchSampler(0, 12 * num_epochs, 4),
            EvalTransform(18, 16),
            order=order,
            num_workers=1,
            on_corrupt="substitute",
            max_substitutions=allowed,
        )
        if allowed == 3:
            assert sum(len(batch.labels) for batch in loader) == 12 * num_epochs
            assert loader.stats().substitutions == 3 * num_epochs
        else:
            with pytest.raises(RankError, match="3 samples were damaged and substituted"):
                list(loader)
        loader.close()


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_missing_shard_is_told_by_the_rank_that_needs_it(damaged, num_workers):
    folder, split = damaged
    (folder / "tiny-train-1.tar").unlink()
    share = DistributedBatchSampler(6, 12, 3)
    loader = build_loader(folder, split, share, EvalTransform(18, 16), num_workers=num_workers)
    with pytest.raises(RankError, match="there is no shard"):
        list(loader)


def test_a_missing_shard_stops_even_where_samples_are_substituted(damaged):
    folder, split = damaged
    (folder / "tiny-train-1.tar").unlink()
    loader = build_loader(
        folder,
        split,
        DistributedBatchSampler(0, 12, 3),
        EvalTransform(18, 16),
        on_corrupt="substitute",
    )
    with pytest.raises(InputError, match="there is no shard"):
        list(loader)
