"""Shards that lie elsewhere: read-only folders, web servers, S3 and the Hub."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset

import shard_imagenet
from imagenet_rn50.classes import Classes
from imagenet_rn50.data.loader import build_loader
from imagenet_rn50.data.sampler import DistributedBatchSampler, ShardShuffleSampler
from imagenet_rn50.data.transforms import EvalTransform
from imagenet_rn50.runs.metrics import read_metrics
from imagenet_rn50.shards.index import IndexOptions, index
from imagenet_rn50.shards.manifest import Manifest
from imagenet_rn50.shards.scan import scan_shard
from imagenet_rn50.shards.store import CachedShards, open_shards
from imagenet_rn50.shards.subset import Selection, subset
from imagenet_rn50.shards.verify import verify
from imagenet_rn50.utils.errors import InputError
from imagenet_rn50.utils.files import lock_file
from imagenet_rn50.utils.storage import FileInfo, RetryPolicy
from tests.data.servers import serve
from tests.hub import TOKEN
from tests.shards.helpers import WNIDS, contents, jpeg, tar_of
from tests.support import needs_fork, write_tiny

QUICK = RetryPolicy(tries=3, initial_backoff=0.01, timeout=5)
ROOT = Path(__file__).parents[2]
LABELS = IndexOptions(train="*[0-9].tar", label_key="label")
PATTERN = IndexOptions(train="0000{0..1}.tar", validation="00002.tar", label_key="label")


def samples(number, count=5):
    """Yield (key, class index, JPEG) of one shard."""
    for n in range(number * count, (number + 1) * count):
        yield f"{WNIDS[n % 3]}_{n}", n % 3, jpeg(n)


def write_with_webdataset(path, number, key="{}"):
    with webdataset.TarWriter(str(path)) as writer:
        for name, label, image in samples(number):
            fields = {"jpg": image, "cls": label, "json": {"label": label, "filename": name}}
            writer.write({"__key__": key.format(name), **fields})


def timm(folder):
    """Write shards as timm/imagenet-1k-wds has them."""
    folder.mkdir()
    names = [f"imagenet1k-train-{n:04d}.tar" for n in range(3)]
    names += ["imagenet1k-validation-00.tar"]
    for number, name in enumerate(names):
        write_with_webdataset(folder / name, number)
    lengths = {"train": names[:3], "validation": names[3:]}
    splits = {
        split: {
            "name": split,
            "num_samples": 5 * len(files),
            "filenames": files,
            "shard_lengths": [5] * len(files),
        }
        for split, files in lengths.items()
    }
    (folder / "_info.json").write_text(json.dumps({"splits": splits}))
    return folder


def img2dataset(folder):
    """Write shards as img2dataset does, with files beside them; labels are a column."""
    folder.mkdir()
    for number in range(3):
        members: dict[str, bytes] = {}
        for n, (_, label, image) in enumerate(samples(number)):
            key = f"{number:05d}{n:04d}"
            about = {"url": "http://x", "key": key, "label": label, "original_width": float("nan")}
            members |= {f"{key}.jpg": image, f"{key}.txt": b"a caption"}
            members[f"{key}.json"] = json.dumps(about).encode()
        (folder / f"{number:05d}.tar").write_bytes(tar_of(members))
        (folder / f"{number:05d}.parquet").write_bytes(b"PAR1")
        (folder / f"{number:05d}_stats.json").write_text("{}")
    return folder


def nested(folder):
    """Write train/000.tar and val/000.tar with keys in class folders."""
    for split, count, first in (("train", 2, 0), ("val", 1, 2)):
        (folder / split).mkdir(parents=True)
        for number in range(count):
            path = folder / split / f"{number:03d}.tar"
            write_with_webdataset(path, first + number, key="images/{}")
    return folder


LAYOUTS = {
    "timm": (timm, IndexOptions()),
    "img2dataset": (img2dataset, PATTERN),
    "nested": (nested, IndexOptions()),
}


@pytest.fixture(params=LAYOUTS)
def layout(request, tmp_path):
    write, options = LAYOUTS[request.param]
    return write(tmp_path / "source"), options


def files_of(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def local_index(source, tmp_path, options=None):
    out = tmp_path / "local"
    index(source, options, out=out)
    return out


def epoch(shards, cache=None, num_workers=0):
    """Return keys, labels and pixels of a loaded epoch."""
    store = open_shards(shards, cache=cache, retry_policy=QUICK)
    split = Manifest.load(store.folder).split("train")
    order = ShardShuffleSampler(split.shard_sizes, seed=1, window=2)
    share = DistributedBatchSampler(0, split.num_samples, 5)
    batches = build_loader(
        store, split, share, EvalTransform(18, 16), order=order, num_workers=num_workers
    )
    return [batch[:3] for batch in batches]


def assert_same_epoch(one, other):
    for ours, theirs in zip(one, other, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def assert_same(out, local, cache=None):
    assert Manifest.fingerprint_of(out) == Manifest.fingerprint_of(local)
    assert_same_epoch(epoch(out, cache), epoch(local))


def test_a_read_only_folder_stays_as_it_is(layout, tmp_path):
    source, options = layout
    before = files_of(source)
    for path in [*source.rglob("*"), source]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        out = local_index(source, tmp_path, options)
        assert files_of(source) == before
        assert sorted(p.name for p in source.iterdir()) == sorted({n.split("/")[0] for n in before})
    finally:
        for path in [source, *source.rglob("*")]:
            path.chmod(0o755)
    manifest = Manifest.load(out)
    assert manifest.location == str(source)
    counts = {name: split.num_samples for name, split in manifest.splits.items()}
    assert counts["validation"] == 5
    assert counts["train"] % 5 == 0
    expected = [n % 3 for n in range(counts["train"])]
    assert manifest.split("train").labels.tolist() == expected
    assert verify(out) == []
    assert not (out / "_info.json").exists()
    index(source, options)
    assert Manifest.fingerprint_of(source) == Manifest.fingerprint_of(out)


def test_a_relative_folder_stays_relative_to_the_manifest(tmp_path, monkeypatch):
    timm(tmp_path / "source")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    index("../source", out=Path("deep/out"))
    assert Manifest.load(Path("deep/out")).location == "../../../source"
    assert verify("deep/out") == []


@pytest.mark.parametrize("lists", [True, False])
def test_shards_on_a_web_server_give_the_manifest_of_local_ones(layout, tmp_path, lists):
    source, options = layout
    local = local_index(source, tmp_path, options)
    with serve(source) as server:
        server.lists = lists
        if not lists and not (options.train or (source / "_info.json").exists()):
            with pytest.raises(InputError, match="does not list its files"):
                index(server.address, options, out=tmp_path / "out", retry_policy=QUICK)
            options = IndexOptions(train="train/00{0,1}.tar", validation="val/000.tar")
        arguments = {"out": tmp_path / "out", "cache": tmp_path / "cache", "num_threads": 3}
        manifest = index(server.address, options, retry_policy=QUICK, **arguments)
        assert manifest.location == server.address
        assert_same(tmp_path / "out", local, tmp_path / "cache")
        # Neither the epoch nor its resumption downloaded anything again.
        names = [s.name for split in manifest.splits.values() for s in split.shards]
        asked = Counter(Path(name).name for name in names)
        assert {name: server.requests[name] for name in asked} == asked
        assert verify(tmp_path / "out", cache=tmp_path / "cache", retry_policy=QUICK) == []


@pytest.mark.parametrize("hiccup", [429, 503, "stall", "truncate", "reset"])
def test_what_goes_wrong_on_the_way_is_retried(tmp_path, hiccup):
    source = timm(tmp_path / "source")
    local = local_index(source, tmp_path)
    with serve(source) as server:
        server.lists = True
        server.retry_after = "0.2"
        server.hiccups["imagenet1k-train-0001.tar"] = [hiccup]
        policy = RetryPolicy(tries=3, initial_backoff=0.01, timeout=0.5)
        index(server.address, out=tmp_path / "out", retry_policy=policy)
        assert server.requests["imagenet1k-train-0001.tar"] == 2
    assert Manifest.fingerprint_of(tmp_path / "out") == Manifest.fingerprint_of(local)
    assert not (tmp_path / "out" / ".indexing").exists()


def test_a_folder_that_cannot_be_listed_is_not_taken_for_an_empty_one(tmp_path):
    source = nested(tmp_path / "source")
    with serve(source) as server:
        server.lists = True
        server.hiccups[""] = [503, "reset"]
        index(server.address, out=tmp_path / "out", retry_policy=QUICK)
        server.hiccups[""] = [503] * 9
        with pytest.raises(InputError, match=r"cannot be listed(.|\n)*HTTP status 503"):
            index(server.address, out=tmp_path / "other", retry_policy=QUICK)


def test_what_info_json_lists_and_is_not_there_is_refused_before_anything_is_read(tmp_path):
    source = timm(tmp_path / "source")
    (source / "imagenet1k-train-0002.tar").unlink()
    with serve(source) as server:
        server.lists = True
        with pytest.raises(InputError, match=r"_info\.json lists 1 shards that are not there"):
            index(server.address, out=tmp_path / "out", retry_policy=QUICK)
        assert not server.requests["imagenet1k-train-0000.tar"]
        part = IndexOptions(train="*train-{0000..0001}.tar")
        assert index(server.address, part, out=tmp_path / "out").split("train").num_samples == 10


def test_shards_in_a_bucket_give_the_manifest_of_local_ones(tmp_path, bucket_server):
    source = nested(tmp_path / "source")
    local = local_index(source, tmp_path)
    bucket_server.create_bucket(Bucket="images")
    for name, content in files_of(source).items():
        bucket_server.put_object(Bucket="images", Key=f"sets/{name}", Body=content)
    with pytest.raises(InputError, match=r"s3://none/x cannot be listed|there is no s3://none/x"):
        index("s3://none/x", out=tmp_path / "none", retry_policy=QUICK)
    manifest = index("s3://images/sets/", out=tmp_path / "out", num_threads=2)
    assert manifest.location == "s3://images/sets"
    assert_same(tmp_path / "out", local, tmp_path / "cache")
    shard = manifest.split("train").shards[0]
    assert verify(tmp_path / "out", quick=True) == []
    bucket_server.put_object(Bucket="images", Key=f"sets/{shard.name}", Body=b"something else")
    [finding] = verify(tmp_path / "out", quick=True)
    assert finding.file == shard.name
    assert "14 bytes instead of" in finding.problem


@needs_fork
def test_shards_on_the_hub_are_pinned_to_a_commit_and_keep_the_token_there(layout, tmp_path, hub):
    source, options = layout
    local = local_index(source, tmp_path, options)
    commit = hub.add_dataset("timm/set", files_of(source))
    hub.gated.add("datasets/timm/set")
    manifest = index(
        "hf://datasets/timm/set@main", options, out=tmp_path / "out", cache=tmp_path / "cache",
        num_threads=2, retry_policy=QUICK,
    )  # fmt: skip
    assert manifest.location == f"hf://datasets/timm/set@{commit}"
    hub.add_dataset("timm/set", {s.name: b"new" for s in manifest.split("train").shards})
    asked = list(hub.seen_by_cdn)
    assert_same(tmp_path / "out", local, tmp_path / "cache")
    assert hub.seen_by_cdn == asked
    assert_same_epoch(epoch(tmp_path / "out", tmp_path / "other", num_workers=2), epoch(local))
    assert len(hub.seen_by_cdn) > len(asked)
    assert {authorization for _, authorization in hub.seen_by_cdn} == {None}
    assert verify(tmp_path / "out", quick=True) == []
    texts = b"".join(files_of(tmp_path / "out").values())
    assert TOKEN.encode() not in texts


def test_a_manifest_on_the_hub_is_read_from_there(tmp_path, hub):
    source = timm(tmp_path / "source")
    index(source)
    hub.add_dataset("user/set", {f"sets/{name}": c for name, c in files_of(source).items()})
    address = "hf://datasets/user/set/sets"
    assert_same_epoch(epoch(address, tmp_path / "cache"), epoch(source))
    assert verify(address, cache=tmp_path / "cache", retry_policy=QUICK) == []
    view = subset(address, tmp_path / "view", Selection(num_classes=2), cache=tmp_path / "cache")
    assert view.location == address


@pytest.mark.parametrize("accepts_terms", [True, False])
def test_a_gated_data_set_is_refused_with_its_page(tmp_path, hub, monkeypatch, accepts_terms):
    hub.add_dataset("timm/set", files_of(timm(tmp_path / "source")))
    hub.gated.add("datasets/timm/set")
    if accepts_terms:
        monkeypatch.setenv("HF_TOKEN", "")
    hub.accepts_terms = accepts_terms
    with pytest.raises(InputError, match="may not be read") as refused:
        index("hf://datasets/timm/set", out=tmp_path / "out", retry_policy=QUICK)
    assert f"{hub.address}/datasets/timm/set" in str(refused.value)
    assert "hf auth login" in str(refused.value)
    assert TOKEN not in str(refused.value)


@pytest.mark.parametrize("name", ["user/none", "timm/set@none", "alone"])
def test_a_repository_or_revision_that_is_not_there_is_named(tmp_path, hub, name):
    hub.add_dataset("timm/set", {})
    with pytest.raises(InputError, match=f"hf://datasets/{name}"):
        index(f"hf://datasets/{name}", out=tmp_path / "out", retry_policy=QUICK)


def test_hiccups_of_the_hub_are_retried_and_a_wrong_sha256_is_named(tmp_path, hub):
    hub.add_dataset("timm/set", files_of(timm(tmp_path / "source")))
    hub.retry_after = "0.1"
    hub.hiccups["imagenet1k-train-0000.tar"] = [429, "truncate", 503]
    policy = RetryPolicy(tries=4, initial_backoff=0.01, timeout=5)
    index("hf://datasets/timm/set", out=tmp_path / "out", retry_policy=policy)
    assert hub.num_downloads("imagenet1k-train-0000.tar") == 4
    hub.hiccups["imagenet1k-train-0001.tar"] = ["corrupt"] * 9
    with pytest.raises(InputError, match=r"train-0001\.tar cannot be downloaded(.|\n)*sha256"):
        index("hf://datasets/timm/set", out=tmp_path / "other", retry_policy=policy)
    hub.hiccups["imagenet1k-train-0001.tar"] = ["corrupt"] * 9
    findings = verify(tmp_path / "out", cache=tmp_path / "cache", retry_policy=QUICK)
    assert [finding.file for finding in findings] == ["imagenet1k-train-0001.tar"]
    assert "sha256" in findings[0].problem


def failing_scan(monkeypatch, name):
    """Make the scan of one shard fail as a bug would."""

    def fail(path, **arguments):
        if arguments["name"] == name:
            raise RuntimeError("planted")
        return scan_shard(path, **arguments)

    monkeypatch.setattr("imagenet_rn50.shards.scanner.scan_shard", fail)


def test_a_run_that_stopped_is_resumed_and_reads_nothing_twice(tmp_path, monkeypatch):
    source = timm(tmp_path / "source")
    local = local_index(source, tmp_path)
    with serve(source) as server, monkeypatch.context() as patch:
        server.lists = True
        failing_scan(patch, "imagenet1k-train-0002.tar")
        with pytest.raises(RuntimeError, match="planted"):
            index(server.address, out=tmp_path / "out", retry_policy=QUICK)
        patch.undo()
        changed = "imagenet1k-train-0000.tar"
        write_with_webdataset(source / changed, 7)
        index(server.address, out=tmp_path / "out", retry_policy=QUICK)
        asked = [server.requests[f"imagenet1k-train-{n:04d}.tar"] for n in range(3)]
        assert asked == [2, 1, 2]  # the changed one, the kept one, the one that failed
    assert Manifest.fingerprint_of(tmp_path / "out") != Manifest.fingerprint_of(local)
    assert Manifest.load(tmp_path / "out").split("train").key_of(0) == "n02012849_35"
    assert sorted(p.name for p in (tmp_path / "out").iterdir() if "index" in p.name) == []


def test_a_revision_that_moved_is_refused_with_both_commits(tmp_path, hub, monkeypatch):
    files = files_of(timm(tmp_path / "source"))
    first = hub.add_dataset("timm/set", files)
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        failing_scan(patch, "imagenet1k-train-0002.tar")
        with pytest.raises(RuntimeError):
            index("hf://datasets/timm/set", out=out, retry_policy=QUICK)
    second = hub.add_dataset("timm/set", {"README.md": b"new"})
    with pytest.raises(InputError, match="revision moved") as refused:
        index("hf://datasets/timm/set", out=out, retry_policy=QUICK)
    assert first in str(refused.value)
    assert second in str(refused.value)
    index(f"hf://datasets/timm/set@{first}", out=out, retry_policy=QUICK)
    assert hub.num_downloads("imagenet1k-train-0000.tar") == 1
    with pytest.raises(InputError, match="another commit") as refused:
        index("hf://datasets/timm/set", out=out, retry_policy=QUICK)
    assert first in str(refused.value)
    assert second in str(refused.value)


def test_other_shards_are_not_mixed_into_what_was_begun(tmp_path, monkeypatch):
    timm(tmp_path / "source")
    shutil.copytree(tmp_path / "source", tmp_path / "copy")
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        failing_scan(patch, "imagenet1k-train-0002.tar")
        with pytest.raises(RuntimeError):
            index(tmp_path / "source", out=out)
    with pytest.raises(InputError, match="unfinished index of other shards"):
        index(tmp_path / "copy", out=out)


def test_another_label_key_reads_all_shards_again(tmp_path):
    (tmp_path / "source").mkdir()
    with webdataset.TarWriter(str(tmp_path / "source" / "pets-train-0000.tar")) as tar:
        for number in range(4):
            label = {"kind": ("cat", "dog")[number % 2]}
            tar.write({"__key__": f"{number}", "jpg": jpeg(number), "json": label})
    with pytest.raises(InputError, match="--label-key"):
        index(tmp_path / "source", out=tmp_path / "out")
    options = IndexOptions(label_key="kind")
    manifest = index(tmp_path / "source", options, out=tmp_path / "out")
    assert manifest.split("train").labels.tolist() == [0, 1, 0, 1]
    assert Classes.load(tmp_path / "out").wnids == ("cat", "dog")


def test_two_runs_into_one_folder_are_refused(tmp_path):
    timm(tmp_path / "source")
    (tmp_path / "out" / ".indexing").mkdir(parents=True)
    with (
        lock_file(tmp_path / "out" / ".indexing" / "lock"),
        pytest.raises(InputError, match="another process is indexing"),
    ):
        index(tmp_path / "source", out=tmp_path / "out")


@pytest.mark.slow
@pytest.mark.multiprocess
def test_a_killed_process_is_resumed(tmp_path):
    source = timm(tmp_path / "source")
    local = local_index(source, tmp_path)
    with serve(source) as server:
        server.lists = True
        server.hiccups["imagenet1k-train-0002.tar"] = ["stall"]
        command = [sys.executable, "shard_imagenet.py", "index", "--shards", server.address]
        command += ["--out", str(tmp_path / "out"), "--workers", "1"]
        process = subprocess.Popen(command, cwd=ROOT)
        while not server.requests["imagenet1k-train-0002.tar"]:
            time.sleep(0.05)
        time.sleep(0.5)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert list((tmp_path / "out" / ".indexing").glob("*.partial"))
        subprocess.run(command, cwd=ROOT, check=True)
        asked = [server.requests[f"imagenet1k-train-{n:04d}.tar"] for n in range(3)]
        assert asked == [1, 1, 2]
    assert Manifest.fingerprint_of(tmp_path / "out") == Manifest.fingerprint_of(local)
    assert not (tmp_path / "out" / ".indexing").exists()


def test_the_cache_keeps_what_was_streamed_and_evicts_older_shards_first(tmp_path, capsys):
    source = timm(tmp_path / "source")
    size = max(path.stat().st_size for path in source.glob("*.tar"))
    cache = tmp_path / "cache"
    (cache / "shards").mkdir(parents=True)
    old = cache / "shards" / f"{'0' * 64}.tar"
    old.write_bytes(bytes(size))
    os.utime(old, (1, 1))
    with serve(source) as server:
        server.lists = True
        for limit, kept in ((4 * size, 4), (2 * size, 2), (size // 2, 0)):
            out = tmp_path / f"out-{limit}"
            arguments = {"cache": cache, "limit_bytes": limit, "retry_policy": QUICK}
            index(server.address, out=out, **arguments)
            shards = [s for split in Manifest.load(out).splits.values() for s in split.shards]
            # None that this run streamed made way for a later one.
            stems = {path.stem for path in (cache / "shards").glob("*.tar")}
            assert stems == {shard.sha256 for shard in shards[:kept]}
            assert not old.exists()
            said = capsys.readouterr().out
            assert (f"{4 - kept} of 4 shards are not in the cache" in said) == (kept < 4)
            names = {path.name for path in (cache / "shards").iterdir()}
            assert all(name.endswith((".tar", ".lock")) for name in names)
            shutil.rmtree(cache / "shards")


def test_a_truncated_shard_and_one_that_changed_later_are_named(tmp_path):
    source = timm(tmp_path / "source")
    cache = tmp_path / "cache"
    with serve(source) as server:
        server.lists = True
        whole = (source / "imagenet1k-train-0001.tar").read_bytes()
        (source / "imagenet1k-train-0001.tar").write_bytes(whole[:4096])
        with pytest.raises(InputError, match=rf"{server.address}/imagenet1k-train-0001\.tar ends"):
            index(server.address, out=tmp_path / "out", cache=cache, retry_policy=QUICK)
        (source / "imagenet1k-train-0001.tar").write_bytes(whole)
        index(server.address, out=tmp_path / "out", cache=cache, retry_policy=QUICK)
        changed = bytearray(whole)
        changed[1000] ^= 1
        (source / "imagenet1k-train-0001.tar").write_bytes(changed)
        (source / "imagenet1k-train-0002.tar").unlink()
        (source / "imagenet1k-train-0000.tar").write_bytes(whole + bytes(10240))
        quick = verify(tmp_path / "out", quick=True, retry_policy=QUICK)
        assert {f.file[-8:-4] for f in quick} == {"0000", "0002"}
        found = verify(tmp_path / "out", cache=tmp_path / "new", retry_policy=QUICK)
        assert {f.file[-8:-4] for f in found} == {"0000", "0001", "0002"}


def test_a_damaged_copy_in_the_cache_is_replaced_by_verify(tmp_path):
    source = timm(tmp_path / "source")
    with serve(source) as server:
        server.lists = True
        arguments = {"cache": tmp_path / "cache", "retry_policy": QUICK}
        index(server.address, out=tmp_path / "out", **arguments)
        copy = next((tmp_path / "cache" / "shards").glob("*.tar"))
        copy.write_bytes(bytes(copy.stat().st_size))
        assert verify(tmp_path / "out", **arguments) == []


@pytest.mark.parametrize(
    "address",
    ["https://user:pa55@host/x", "https://host/x?token=pa55", "s3://key:pa55@bucket/x"],
)
def test_addresses_with_credentials_are_refused_and_not_repeated(tmp_path, address):
    with pytest.raises(InputError, match="carries credentials") as refused:
        index(address, out=tmp_path / "out")
    assert "pa55" not in str(refused.value)


def test_remote_shards_need_an_output_folder(refused):
    said = refused(shard_imagenet.main, "index", "--shards", "s3://bucket/x")
    assert "--out" in said


def test_an_output_folder_with_other_files_is_refused(tmp_path):
    timm(tmp_path / "source")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="is not empty"):
        index(tmp_path / "source", out=tmp_path / "out")
    assert contents(tmp_path / "out") == {"notes.txt": b"mine"}


def test_names_without_a_split_are_refused_and_never_guessed(tmp_path, capsys):
    source = img2dataset(tmp_path / "source")
    with pytest.raises(InputError, match="--train") as refused:
        index(source)
    assert "00000.tar, 00001.tar, 00002.tar" in str(refused.value)
    manifest = index(source, LABELS, out=tmp_path / "out")
    assert list(manifest.splits) == ["train"]
    assert "ignored beside the shards: 3 .json, 3 .parquet files" in capsys.readouterr().out
    only = IndexOptions(validation="00002.tar", label_key="label")
    assert list(index(source, only, out=tmp_path / "validation").splits) == ["validation"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"train": "x*.tar"}, "names no tar"),
        ({"train": "0000{0..4}.tar"}, r"2 of the 5 .* 00003\.tar, 00004\.tar"),
        ({"train": "*.tar", "validation": "00002.tar"}, "both --train and --validation"),
        ({"train": "0000{0..2.tar"}, "brace"),
        ({"train": "00000.tar::*.tar"}, "twice"),
        ({"train": "00000.parquet"}, "end in .tar"),
        ({"train": "../source/*.tar"}, "not a pattern"),
    ],
)
def test_patterns_that_name_something_else_are_refused(tmp_path, options, words):
    source = img2dataset(tmp_path / "source")
    with pytest.raises(InputError, match=words):
        index(source, IndexOptions(label_key="label", **options), out=tmp_path / "out")


def test_patterns_give_shards_in_the_order_of_their_numbers(tmp_path, capsys):
    for number in (10, 9, 2):
        (tmp_path / f"{number}.tar").write_bytes(
            tar_of({f"{number}.jpg": jpeg(), f"{number}.cls": b"0"})
        )
    manifest = index(tmp_path, IndexOptions(train="*.tar"))
    assert [s.name for s in manifest.split("train").shards] == ["2.tar", "9.tar", "10.tar"]
    assert "6 numbers are missing" in capsys.readouterr().out


def json_shard(folder, key, labels, number=0):
    members: dict[str, bytes] = {}
    for n, label in enumerate(labels):
        name = key.format(wnid=WNIDS[n % 3], n=n)
        about = json.dumps({"filename": "x", "coarse": label}).encode()
        members |= {f"{name}.jpg": jpeg(n), f"{name}.json": about, f"{name}.cls": b"%d" % n}
    (folder / f"x-train-{number}.tar").write_bytes(tar_of(members))


@pytest.mark.parametrize(
    ("labels", "wnids", "expected"),
    [
        (["cat", "dog", "ant"], ("ant", "cat", "dog"), [1, 2, 0]),
        ([0, 1, 2], WNIDS, [0, 1, 2]),
        ([1, 0, 0], None, [1, 0, 0]),  # other classes than the wnids in the keys
        (list(WNIDS), WNIDS, [0, 1, 2]),
    ],
)
def test_a_field_of_the_json_alone_gives_the_label(tmp_path, labels, wnids, expected):
    json_shard(tmp_path, "{wnid}_{n}", labels)
    manifest = index(tmp_path, IndexOptions(label_key="coarse"))
    assert manifest.split("train").labels.tolist() == expected
    assert manifest.options["label_key"] == "coarse"
    assert (tmp_path / "classes.json").exists() == (wnids is not None)
    assert verify(tmp_path) == []
    json_shard(tmp_path, "{wnid}_{n}", [*labels[1:], labels[0]])
    assert any("has the label" in finding.problem for finding in verify(tmp_path))


@pytest.mark.parametrize("label", ["1", "", -1, True, 1.5, None, [1]])
def test_a_field_that_is_no_label_is_named(tmp_path, label):
    json_shard(tmp_path, "{n}", [0, label])
    with pytest.raises(InputError, match=r"the sample '1' .* has no label.*'coarse'"):
        index(tmp_path, IndexOptions(label_key="coarse"))


def test_numbers_and_names_in_one_field_are_refused(tmp_path):
    json_shard(tmp_path, "{n}", [0, "cat"])
    with pytest.raises(InputError, match="numbers in some samples, names in others"):
        index(tmp_path, IndexOptions(label_key="coarse"))


def test_a_mapping_translates_class_names_of_a_field(tmp_path):
    json_shard(tmp_path, "{n}", ["ant", "bee", "cat"])
    mapping = tmp_path / "mapping.txt"
    names = ("cat", "ant", "bee")
    mapping.write_text("".join(f"{w} {n}\n" for w, n in zip(WNIDS, names, strict=True)))
    manifest = index(tmp_path, IndexOptions(label_key="coarse", mapping=mapping))
    assert manifest.split("train").labels.tolist() == [1, 2, 0]
    assert verify(tmp_path) == []


def test_info_json_gives_splits_where_names_do_not_and_a_field_of_labels(tmp_path):
    source = img2dataset(tmp_path / "source")
    files = [f"0000{n}.tar" for n in range(3)]
    about = {"num_samples": 15, "filenames": files, "shard_lengths": [5] * 3, "alt_label": "label"}
    (source / "_info.json").write_text(json.dumps({"splits": {"train": about}}))
    with pytest.raises(InputError, match="--label-key label"):
        index(source, out=tmp_path / "out")
    manifest = index(source, IndexOptions(label_key="label"), out=tmp_path / "out")
    assert [shard.name for shard in manifest.split("train").shards] == files
    np.testing.assert_array_equal(manifest.split("train").labels, np.arange(15) % 3)


def test_a_store_of_remote_shards_says_what_the_storage_knows(tmp_path, hub):
    hub.add_dataset("timm/set", files_of(timm(tmp_path / "source")))
    index("hf://datasets/timm/set", out=tmp_path / "out", retry_policy=QUICK)
    store = open_shards(tmp_path / "out", cache=tmp_path / "cache", retry_policy=QUICK)
    assert isinstance(store, CachedShards)
    shard = Manifest.load(tmp_path / "out").split("train").shards[0]
    assert store.info(shard).sha256 == shard.sha256


def test_a_damaged_copy_in_the_cache_is_not_indexed(tmp_path, hub):
    source = timm(tmp_path / "source")
    local = local_index(source, tmp_path)
    hub.add_dataset("timm/set", files_of(source))
    arguments = {"cache": tmp_path / "out" / "cache", "retry_policy": QUICK}
    index("hf://datasets/timm/set", out=tmp_path / "out", **arguments)
    for copy in (tmp_path / "out" / "cache" / "shards").glob("*.tar"):
        copy.write_bytes(bytes(copy.stat().st_size))
    force = IndexOptions(force=True)
    index("hf://datasets/timm/set", force, out=tmp_path / "out", **arguments)
    assert Manifest.fingerprint_of(tmp_path / "out") == Manifest.fingerprint_of(local)
    asked = len(hub.seen_by_cdn)
    index("hf://datasets/timm/set", force, out=tmp_path / "out", **arguments)
    assert len(hub.seen_by_cdn) == asked


def test_names_that_lead_out_of_the_folder_are_refused(tmp_path):
    split = {"num_samples": 1, "filenames": ["../x.tar"], "shard_lengths": [1]}
    (tmp_path / "_info.json").write_text(json.dumps({"splits": {"train": split}}))
    with serve(tmp_path) as server, pytest.raises(InputError, match="not a path inside"):
        index(server.address, out=tmp_path / "out", retry_policy=QUICK)


def test_a_server_that_tells_no_size_is_not_taken_for_whole(tmp_path, monkeypatch):
    source = timm(tmp_path / "source")
    with serve(source) as server:
        server.lists = True
        index(server.address, out=tmp_path / "out", retry_policy=QUICK)
        monkeypatch.setattr("imagenet_rn50.utils.storage._head", lambda *_: FileInfo())
        findings = verify(tmp_path / "out", quick=True, retry_policy=QUICK)
        assert len(findings) == 4
        assert "does not tell its size" in findings[0].problem
        assert verify(tmp_path / "out", cache=tmp_path / "cache", retry_policy=QUICK) == []


def test_a_split_test_in_info_json_is_named_and_not_indexed(tmp_path, capsys):
    source = timm(tmp_path / "source")
    about = json.loads((source / "_info.json").read_text())
    about["splits"]["test"] = {
        "name": "test", "num_samples": 5, "filenames": ["imagenet1k-test-00.tar"],
        "shard_lengths": [5],
    }  # fmt: skip
    (source / "_info.json").write_text(json.dumps(about))
    write_with_webdataset(source / "imagenet1k-test-00.tar", 9)
    manifest = index(source, out=tmp_path / "out")
    assert {name: len(split.shards) for name, split in manifest.splits.items()} == {
        "train": 3,
        "validation": 1,
    }
    said = capsys.readouterr().out
    assert "the split 'test' is not indexed" in said
    assert "not indexed: 1 other tar: imagenet1k-test-00.tar" in said


def trained_on(shards, recipe, run, *more, **environment):
    """Train as a user does; return the last sample hash and loss of each epoch."""
    words = ["train_accelerate.py", "--recipe", recipe, "--shards", shards, "--run", run]
    subprocess.run(
        [sys.executable, *map(str, words), "--workers", "1", *map(str, more)],
        cwd=ROOT,
        env=os.environ | {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"} | environment,
        check=True,
    )
    rows = read_metrics(run)
    hashes = [row["sample_hash"] for row in rows if "sample_hash" in row]
    return hashes, [row["loss"] for row in read_metrics(run, "validation")]


@pytest.mark.slow
@pytest.mark.multiprocess
def test_a_run_on_indexed_shards_of_the_hub_is_the_run_on_local_ones(tmp_path, hub):
    tiny = write_tiny(tmp_path)
    for path in tiny.joinpath("shards").glob("manifest*"):
        path.unlink()
    shutil.copytree(tiny / "shards", tmp_path / "local")
    index(tmp_path / "local")
    hub.add_dataset("user/tiny", files_of(tiny / "shards"))
    hub.gated.add("datasets/user/tiny")
    cache = tmp_path / "cache"
    index("hf://datasets/user/tiny", out=tmp_path / "out", cache=cache, retry_policy=QUICK)
    asked = len(hub.seen_by_cdn)
    environment = {"HF_ENDPOINT": hub.address, "HF_TOKEN": TOKEN}
    recipe = tiny / "tiny.yaml"
    ours = trained_on(tmp_path / "out", recipe, tmp_path / "run", "--cache", cache, **environment)
    assert len(hub.seen_by_cdn) == asked
    theirs = trained_on(tmp_path / "local", recipe, tmp_path / "other")
    assert ours == theirs
    assert ours[0]
    other = trained_on(
        tmp_path / "out", recipe, tmp_path / "third", "--cache", tmp_path / "new", **environment
    )
    assert other == theirs
    assert {token for _, token in hub.seen_by_cdn} == {None}
