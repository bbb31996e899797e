import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagenet_rn50.runs.checkpoint import (
    MANIFEST,
    best_score,
    commit,
    folder_name,
    newest_checkpoint,
    prune,
    remove_partial,
)
from imagenet_rn50.utils.errors import RankError


def save(checkpoints, samples_seen, *, is_best=False, **facts):
    temporary = checkpoints / f"{samples_seen}.partial"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    (temporary / "model.safetensors").write_bytes(b"weights %d" % samples_seen)
    (temporary / "optimizer.bin").write_bytes(b"momentum %d" % samples_seen)
    final = checkpoints / folder_name(samples_seen)
    commit(temporary, final, samples_seen, is_best=is_best, metadata=facts)


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"other")])
def test_a_file_that_is_damaged_when_one_rank_reads_it_is_that_ranks_to_tell(tmp_path, damage):
    save(tmp_path, 10)
    checkpoint = newest_checkpoint(tmp_path)
    assert checkpoint is not None
    damage(checkpoint.weights)
    with pytest.raises(RankError, match=r"model\.safetensors is (missing|damaged)"):
        checkpoint.read("model.safetensors")


def kept(checkpoints):
    return sorted(int(path.name.split("-")[1]) for path in checkpoints.iterdir())


def test_pruning_keeps_the_two_newest_and_the_best(tmp_path):
    for samples_seen in (10, 20, 30, 40, 50):
        save(tmp_path, samples_seen, is_best=samples_seen in {10, 20})
    prune(tmp_path)
    assert kept(tmp_path) == [20, 40, 50]


@pytest.mark.parametrize("damage", ["truncate", "remove", "no manifest"])
def test_pruning_keeps_the_best_of_those_that_seem_whole(tmp_path, damage):
    for samples_seen, score in ((10, 0.3), (20, 0.5), (30, 0.45), (40, 0.4), (50, 0.2)):
        save(tmp_path, samples_seen, is_best=score in {0.3, 0.5}, score=score)
    path = tmp_path / folder_name(20) / ("optimizer.bin" if damage != "no manifest" else MANIFEST)
    if damage == "truncate":
        path.write_bytes(path.read_bytes()[:-1])
    else:
        path.unlink()
    assert best_score(tmp_path) == 0.45
    prune(tmp_path)
    assert kept(tmp_path) == [30, 40, 50]


def test_nothing_is_newest_where_nothing_was_saved(tmp_path):
    assert newest_checkpoint(tmp_path / "checkpoints") is None


def test_a_folder_of_someone_else_and_a_half_written_one_are_ignored(tmp_path):
    save(tmp_path, 10)
    (tmp_path / "samples-000000099.partial").mkdir()
    (tmp_path / "holiday").mkdir()
    newest = newest_checkpoint(tmp_path)
    assert newest is not None
    assert newest.samples_seen == 10


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.bin", "checkpoint.json"])
@pytest.mark.parametrize("damage", ["truncate", "flip", "remove"])
def test_any_damage_to_any_file_makes_the_one_before_the_newest(tmp_path, name, damage, capsys):
    save(tmp_path, 10)
    save(tmp_path, 20)
    path = tmp_path / folder_name(20) / name
    content = path.read_bytes()
    if damage == "truncate":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "flip":
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 128]) + content[middle + 1 :])
    else:
        path.unlink()
    newest = newest_checkpoint(tmp_path)
    assert newest is not None
    assert newest.samples_seen == 10
    assert "damaged" in capsys.readouterr().out


@given(st.data())
def test_no_bit_of_a_manifest_can_change_unnoticed(tmp_path_factory, data):
    checkpoints = tmp_path_factory.mktemp("checkpoints")
    save(checkpoints, 20, is_best=True)
    path = checkpoints / folder_name(20) / "checkpoint.json"
    content = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content[place] ^= 1 << data.draw(st.integers(0, 7))
        path.write_bytes(content)
    else:
        path.write_bytes(content[:place])
    assert newest_checkpoint(checkpoints) is None


def test_one_of_the_same_place_is_replaced_and_stands_until_then(tmp_path, monkeypatch):
    save(tmp_path, 20)

    class Killed(BaseException):
        pass

    def killed(folder, target):
        if target.name == folder_name(20):
            raise Killed
        return plain(folder, target)

    plain = Path.rename
    monkeypatch.setattr(Path, "rename", killed)
    with pytest.raises(Killed):
        save(tmp_path, 20, is_best=True)
    monkeypatch.undo()
    newest = newest_checkpoint(tmp_path)
    assert newest is not None
    assert (newest.samples_seen, newest.is_best) == (20, False)
    remove_partial(tmp_path)
    save(tmp_path, 20, is_best=True)
    prune(tmp_path, keep_last=1)
    newest = newest_checkpoint(tmp_path)
    assert newest is not None
    assert newest.is_best
    assert [path.name for path in tmp_path.iterdir()] == [folder_name(20)]


def test_what_a_kill_left_half_written_or_half_removed_is_swept(tmp_path):
    save(tmp_path, 10)
    for name in ("samples-000000020.partial", "samples-000000005.removed.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(b"half")
    (tmp_path / "notes.partial").mkdir()
    remove_partial(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {folder_name(10), "notes.partial"}
