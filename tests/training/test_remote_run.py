"""A run at an address: what breaks off, is damaged or lies there leaves one whole state."""

import json
import shutil
from types import SimpleNamespace
from typing import Any

import pytest

from imagenet_rn50.runs.checkpoint import newest_checkpoint
from imagenet_rn50.runs.run_dir import RunDir
from imagenet_rn50.runs.sync import AsyncUploader, RemoteRun, take_snapshot
from imagenet_rn50.training import resume
from imagenet_rn50.training.config import CheckpointConfig
from imagenet_rn50.training.resume import download_run
from imagenet_rn50.utils.errors import InputError
from imagenet_rn50.utils.storage import RemoteFolder, RetryPolicy
from tests.training.trainers import hashes, steps_saved

pytestmark = pytest.mark.multiprocess


@pytest.fixture(scope="module")
def stopped(tiny, trainers):
    run = tiny / "stopped"
    trainers.train(tiny, run, "--stop-at-step", "3", "--checkpoint-steps", "1")
    return RunDir(run)


@pytest.fixture(scope="module")
def later(tiny, trainers, stopped):
    run = RunDir(tiny / "later")
    shutil.copytree(stopped.path, run.path)
    trainers.train(tiny, run.path, "--stop-at-step", "5", "--checkpoint-steps", "1")
    return run


class Broken(RemoteFolder):
    """A folder whose connection breaks after some uploads."""

    left = 0

    def upload(self, source, name):
        if Broken.left == 0:
            raise InputError("the connection broke")
        Broken.left -= 1
        super().upload(source, name)


def remote(folder, kind=RemoteFolder):
    run = RemoteRun(kind(str(folder), RetryPolicy(tries=2, initial_backoff=0.01)))
    run.latest()
    return run


def upload(folder, run):
    snapshot = take_snapshot(run)
    remote(folder).upload(snapshot)
    snapshot.discard()


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_an_upload_cut_off_at_any_file_leaves_the_state_before_it(stopped, later, tmp_path):
    snapshot, there = take_snapshot(later), tmp_path / "there"
    num_cut = 0
    while True:
        shutil.rmtree(there, ignore_errors=True)
        upload(there, stopped)
        Broken.left = num_cut
        try:
            remote(there, Broken).upload(snapshot)
        except InputError:
            pass
        else:
            break
        fetched = RunDir(tmp_path / f"fetched-{num_cut}")
        source = remote(there)
        files = source.latest()
        assert files is not None
        source.download(files, fetched)
        is_later = any(file.checkpoint == "samples-000000040" for file in files)
        assert hashes(fetched.path) == hashes((later if is_later else stopped).path)
        assert fetched.recipe() == stopped.recipe()
        num_cut += 1
    assert num_cut > 6


def test_a_fetch_cut_off_at_any_file_is_done_again(tiny, stopped, tmp_path, monkeypatch):
    there = tmp_path / "there"
    upload(there, stopped)
    source = remote(there)
    files, get, run = source.latest(), RemoteRun._download, RunDir(tmp_path / "run")
    assert files is not None
    for num_files in range(len(files)):
        left = iter(range(num_files))

        def broken(self, file, folder, left=left):
            if next(left, None) is None:
                raise KeyboardInterrupt
            get(self, file, folder)

        monkeypatch.setattr(RemoteRun, "_download", broken)
        try:
            source.download(files, run)
        except KeyboardInterrupt:
            assert not (run.path / "recipe.yaml").exists(), "it is no run before it is whole"
        else:
            break  # checkpoints that were whole have not been fetched again
    assert num_files > 4
    assert hashes(run.path) == hashes(stopped.path)
    here = {path.name for path in stopped.path.iterdir()} - {"tensorboard", "sync.partial"}
    assert {path.name for path in run.path.iterdir()} == here


def download_as_the_first(run, recipe, shards, address, monkeypatch):
    """Does what the main process of a run does before it trains, and tries nothing twice."""
    monkeypatch.setattr(resume, "gather_object", lambda mains: [True])
    monkeypatch.setattr(
        resume, "open_remote", lambda given: RemoteRun(RemoteFolder(given, RetryPolicy(tries=1)))
    )
    accelerator: Any = SimpleNamespace(
        is_main_process=True, is_local_main_process=True, wait_for_everyone=lambda: None
    )
    download_run(accelerator, RunDir(run), recipe, shards, CheckpointConfig(sync=str(address)))


def test_machines_that_share_nothing_all_go_on_from_what_the_first_one_has(
    tiny, stopped, later, tmp_path, monkeypatch
):
    there, first, second = tmp_path / "there", tmp_path / "first", tmp_path / "second"
    shutil.copytree(later.path, first)
    upload(there, stopped)  # and the sync of what came later broke off
    monkeypatch.setattr(resume, "gather_object", lambda mains: [True, True])
    for run in (first, second):
        accelerator: Any = SimpleNamespace(
            is_main_process=run == first,
            is_local_main_process=True,
            wait_for_everyone=lambda: None,
        )
        asked = RunDir(run), stopped.recipe(), tiny / "shards", CheckpointConfig(sync=str(there))
        download_run(accelerator, *asked)
    assert hashes(first) == hashes(second) == hashes(later.path)
    assert steps_saved(second)[-1] == 40


def test_a_checkpoint_that_lacks_a_file_is_named_and_keeps_no_other_from_being_synced(
    later, tmp_path, capsys
):
    run, there = RunDir(tmp_path / "run"), tmp_path / "there"
    shutil.copytree(later.path, run.path)
    assert steps_saved(run.path) == [32, 40]
    (run.checkpoints / "samples-000000032" / "optimizer.bin").unlink()
    uploader = AsyncUploader(run, str(there), enabled=True)
    uploader.upload()
    uploader.finish()
    files = remote(there).latest()
    assert files is not None
    assert {file.checkpoint for file in files if file.checkpoint} == {"samples-000000040"}
    said = capsys.readouterr().out
    assert "samples-000000032 is not uploaded" in said
    assert "optimizer.bin is missing" in said
    assert "failed" not in said


def test_a_damaged_checkpoint_there_is_passed_over_for_the_one_before(stopped, tmp_path, capsys):
    there = tmp_path / "there"
    upload(there, stopped)
    files = remote(there).latest()
    assert files is not None
    newest = [file for file in files if file.checkpoint == "samples-000000024"]
    path = there / next(file.object for file in newest if "model" in file.path)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    fetched = RunDir(tmp_path / "fetched")
    remote(there).download(files, fetched)
    assert "skipping a damaged checkpoint" in capsys.readouterr().out
    found = newest_checkpoint(fetched.checkpoints)
    assert found is not None
    assert found.samples_seen == 16


def test_a_run_whose_every_checkpoint_there_is_damaged_is_not_begun_anew_and_stands(
    tiny, stopped, tmp_path, monkeypatch
):
    there, run = tmp_path / "there", tmp_path / "run"
    upload(there, stopped)
    for path in there.glob("objects/*model.safetensors"):
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    before = contents(there)
    for _ in range(2):  # the same command again
        with pytest.raises(InputError, match="is damaged, and") as refused:
            download_as_the_first(run, stopped.recipe(), tiny / "shards", there, monkeypatch)
        assert "samples-000000016, samples-000000024" in str(refused.value)
    assert contents(there) == before
    # Where one stands here, the run goes on from that.
    newest = stopped.checkpoints / "samples-000000024"
    shutil.copytree(newest, run / "checkpoints" / "samples-000000008")
    download_as_the_first(run, stopped.recipe(), tiny / "shards", there, monkeypatch)
    assert contents(there) == before


@pytest.mark.parametrize("address", ["", "elsewhere", "link", "file://", "../another", "../holds"])
def test_an_address_where_a_run_folder_is_is_refused_before_anything_is_written(
    tiny, stopped, tmp_path, address, monkeypatch
):
    run = tmp_path / "holds" / "objects" / "run"
    shutil.copytree(stopped.path, run)
    shutil.copytree(stopped.path, run.parent / "another")
    (tmp_path / "link").symlink_to(run)
    given = {
        "link": tmp_path / "link",
        "file://": f"file://{run}",
        "../holds": tmp_path / "holds",
    }.get(address, run / address)
    before = contents(tmp_path)
    with pytest.raises(InputError, match="uploaded into a run directory"):
        download_as_the_first(run, stopped.recipe(), tiny / "shards", given, monkeypatch)
    assert contents(tmp_path) == before


def test_an_address_beside_the_run_folder_or_above_it_is_none_in_it(
    tiny, stopped, tmp_path, monkeypatch
):
    run = tmp_path / "runs" / "run"
    shutil.copytree(stopped.path, run)
    for address in (tmp_path / "runs", tmp_path / "runs" / "run-elsewhere"):
        download_as_the_first(run, stopped.recipe(), tiny / "shards", address, monkeypatch)


@pytest.mark.parametrize("path", ["../recipe.yaml", "/tmp/x", "checkpoints/../../x", ""])
def test_a_list_that_would_write_outside_the_run_folder_is_refused(stopped, tmp_path, path):
    upload(tmp_path, stopped)
    content = json.loads((tmp_path / "latest.json").read_text())
    content["files"][0]["path"] = path
    (tmp_path / "latest.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"latest\.json is damaged"):
        remote(tmp_path)
