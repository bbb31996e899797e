"""What cannot be used is refused with one message and exit code 2, whatever is typed."""

import errno
import json
import os
import re
import shlex
import shutil
from pathlib import Path

import pytest

import shard_imagenet
import train_accelerate
from imagenet_rn50 import __main__ as verbs
from imagenet_rn50.runs.run_dir import RunDir
from imagenet_rn50.utils import files
from imagenet_rn50.utils.errors import InputError
from tests.shards.helpers import write_imagefolder
from tests.support import write_tiny


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = write_tiny(tmp_path_factory.mktemp("tiny"))
    write_imagefolder(folder / "source")
    return folder


@pytest.fixture
def inside(tiny, monkeypatch):
    """Lets commands name tiny.yaml and shards, a folder that nothing is written into."""
    monkeypatch.chdir(tiny)
    before = sorted(tiny.rglob("*"))
    yield
    assert sorted(tiny.rglob("*")) == before


COMMANDS = {
    "preview": (verbs.main, "preview", "--shards", "shards", "--recipe", "tiny.yaml"),
    "schedule": (verbs.main, "schedule", "--recipe", "tiny.yaml"),
    "sample": (shard_imagenet.main, "sample", "--shards", "shards"),
    "train": (train_accelerate.main, "--recipe", "digits", "--shards", "shards", "--run", "run"),
}


@pytest.mark.usefixtures("inside")
@pytest.mark.parametrize(
    ("command", "options", "message"),
    [
        ("preview", "--rows 0", "--rows must be at least 1, got 0"),
        ("preview", "--rows -1", "--rows must be at least 1, got -1"),
        ("preview", "--columns 0", "--columns must be at least 1, got 0"),
        ("preview", "--start -5", "--start must be at least 0, got -5"),
        ("preview", "--out nodir/x.png", "there is no folder nodir for x.png"),
        ("schedule", "--out nodir/x.png", "there is no folder nodir for x.png"),
        ("schedule", "--out shards", "shards cannot be written"),
        ("sample", "--seed -3", "--seed must be at least 0, got -3"),
        ("sample", "--num 0", "--num must be at least 1, got 0"),
        ("sample", "--out shards", "shards cannot be written"),
        ("sample", "--out nodir/x.png", "there is no folder nodir for x.png"),
        ("train", "--workers -1", "--workers must be at least 0, got -1"),
        ("train", "--cache-gb -1", "--cache-gb must be at least 0, got -1"),
        ("train", "--data.std 0 0 0", "greater than 0"),
        ("train", "--find-lr --profile 3", "--profile"),
        ("train", "--find-lr --stop-at-step 3", "--stop-at-step"),
        ("train", "--find-lr --max-hours 1", "--max-hours"),
        ("train", "--find-lr --stop-at 2099-01-31T18:00", "--stop-at"),
    ],
)
def test_what_makes_no_sense_is_refused_and_nothing_is_written(command, options, message, refused):
    assert message in refused(*COMMANDS[command], *options.split())


TOO_LONG = "x" * 250  # and a file is written under a longer name first
needs_proc = pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="no /proc")
PLACES = ["tiny.yaml/x", TOO_LONG, pytest.param("/proc/x", marks=needs_proc)]


@pytest.mark.usefixtures("inside")
@pytest.mark.parametrize("place", [*PLACES, "/dev/null"])
@pytest.mark.parametrize("command", ["preview", "schedule", "sample"])
def test_a_file_that_cannot_be_written_is_noticed_before_the_work(
    command, place, refused, monkeypatch
):
    monkeypatch.setattr(files, "write_bytes", None)  # is not called
    told = refused(*COMMANDS[command], "--out", place)
    assert "cannot be written" in told or "there is no folder" in told
    assert place in told or Path(place).name in told
    assert not os.path.isfile("/dev/null")


FOLDERS = {
    "train": (*COMMANDS["train"][:-1],),
    "evaluate": (verbs.main, "evaluate", "--model", "run", "--shards", "shards", "--out"),
    "prove-resume": (
        *(verbs.main, "prove-resume", "--recipe", "tiny.yaml", "--shards", "shards", "--run"),
    ),
    "pack": (shard_imagenet.main, "pack", "--source", "source", "--dataset", "x", "--out"),
}


@pytest.mark.usefixtures("inside")
@pytest.mark.parametrize("place", ["tiny.yaml/x", "x" * 300, "tiny.yaml", "/dev/null", "/proc/x"])
@pytest.mark.parametrize("command", FOLDERS)
def test_a_folder_that_cannot_be_written_is_noticed_before_the_work(command, place, refused):
    assert place in refused(*FOLDERS[command], place)


@pytest.mark.usefixtures("inside")
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO])
def test_a_disk_that_fills_up_is_one_message_and_leaves_nothing(
    error, refused, monkeypatch, tmp_path
):
    def full(descriptor):
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(os, "fsync", full)
    command = *COMMANDS["schedule"], "--out", str(tmp_path / "x.png")
    if error == errno.EIO:  # a broken machine
        with pytest.raises(OSError, match="Input/output error"):
            refused(*command)
    else:
        assert f"{tmp_path / 'x.png'}: {os.strerror(error)}" in refused(*command)
    assert list(tmp_path.iterdir()) == []


def test_a_recipe_that_is_not_utf_8_is_refused(tmp_path, refused):
    path = tmp_path / "mine.yaml"
    path.write_bytes(b"epochs: 3  # caf\xe9\n")
    assert "expected: text in UTF-8" in refused(verbs.main, "schedule", "--recipe", path)


def test_a_run_folder_that_cannot_be_made_is_refused(tmp_path):
    run = tmp_path / "run"
    run.symlink_to(run)
    with pytest.raises(InputError, match="cannot be written"), RunDir(run).lock():
        pass


def nothing(folder, tiny):
    folder.rmdir()


def empty(folder, tiny):
    pass


def tars_without_a_manifest(folder, tiny):
    for path in (tiny / "shards").glob("*.tar"):
        shutil.copy(path, folder)


def images(folder, tiny):
    shutil.copytree(tiny / "source", folder, dirs_exist_ok=True)


def a_damaged_manifest(folder, tiny):
    shutil.copytree(tiny / "shards", folder, dirs_exist_ok=True)
    content = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    del content["splits"]
    (folder / "manifest.json").write_text(json.dumps(content), encoding="utf-8")


def a_manifest(folder, tiny):
    shutil.copytree(tiny / "shards", folder, dirs_exist_ok=True)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (nothing, ("sample", "--shards")),
        (empty, ("sample", "--shards")),
        (tars_without_a_manifest, ("sample", "--shards")),
        (images, ("sample", "--shards")),
        (a_damaged_manifest, ("sample", "--shards")),
        (a_manifest, ("index", "--shards")),
    ],
)
def test_a_suggested_command_takes_a_folder_with_a_blank_in_its_name_as_one_word(
    refused, tiny, tmp_path, content, words
):
    folder = tmp_path / "it's my data"
    folder.mkdir()
    content(folder, tiny)
    message = refused(shard_imagenet.main, *words, folder)
    commands = re.findall(r"python shard_imagenet\.py (.+?)(?:\), |; |$)", message, re.MULTILINE)
    assert commands
    for command in commands:
        assert str(folder) in shlex.split(command)
