"""The doctor as a user calls it."""

import json
import sys
from dataclasses import replace

import pytest

from imagenet_rn50.__main__ import main
from imagenet_rn50.tools import doctor as module
from imagenet_rn50.tools.measure import DecodingRates
from imagenet_rn50.tools.system_info import read_machine
from imagenet_rn50.utils.formatting import rate_text
from tests.support import write_shards, write_tiny


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("tiny"))


def doctor(monkeypatch, capsys, *words):
    """Returns the exit code, and what was printed."""
    arguments = ["imagenet_rn50", "doctor", "--seconds", "0.05", "--workers", "1", *words]
    monkeypatch.setattr(sys, "argv", arguments)
    code = 0
    try:
        main()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def options(tiny, shards="shards"):
    return "--recipe", str(tiny / "tiny.yaml"), "--shards", str(tiny / shards)


@pytest.mark.multiprocess
def test_a_sound_machine_is_measured_into_json_that_estimate_reads(
    tiny, tmp_path, monkeypatch, capsys
):
    code, out, _ = doctor(monkeypatch, capsys, *options(tiny), "--json")
    assert code == 0
    found = json.loads(out)
    assert found["packed"]["num_samples"] == 21
    assert found["decoding"]["all_workers"] > 0
    assert found["blockers"] == []

    measured = tmp_path / "doctor.json"
    measured.write_text(out)
    words = ["estimate", "--recipe", "rn50-16ep", "--precision", "no", "--measured", str(measured)]
    monkeypatch.setattr(sys, "argv", ["imagenet_rn50", *words, "--price", "0"])
    main()
    printed = capsys.readouterr().out
    rate = rate_text(found["devices"][0]["steps"]["no"])
    assert f"{rate} images/s of 1 device at" in printed
    assert "NOT MEASURED HERE" not in printed
    assert "21 training images, 11 in each epoch's evaluation" in printed
    assert "accuracy: unknown on these images" in printed


@pytest.mark.multiprocess
def test_the_table_names_the_bottleneck_in_a_sentence(tiny, monkeypatch, capsys):
    code, out, _ = doctor(monkeypatch, capsys, *options(tiny))
    assert code == 0
    assert "loader, 1 worker" in out
    assert "TFLOP/s" in out
    assert "MFU" not in out  # of a CPU
    assert out.splitlines()[-1].startswith("The bottleneck is ")


def test_damaged_shards_are_a_blocker(tiny, monkeypatch, capsys):
    write_shards(tiny / "cut", train=[8, 6, 7], validation=[6, 5])
    shard = tiny / "cut" / "tiny-train-1.tar"
    shard.write_bytes(shard.read_bytes()[:-512])
    code, out, _ = doctor(monkeypatch, capsys, *options(tiny, "cut"))
    assert code == 1
    assert "BLOCKER: " in out
    assert "does not verify: tiny-train-1.tar" in out
    assert "not measured: see the blockers" in out


def test_a_folder_without_shards_exits_with_code_2(tiny, monkeypatch, capsys):
    code, _, err = doctor(monkeypatch, capsys, *options(tiny, "nowhere"))
    assert code == 2
    assert "holds no manifest" in err


def test_damage_inside_a_shard_is_a_blocker_too(tiny, monkeypatch, capsys):
    write_shards(tiny / "bitten", train=[8, 6, 7], validation=[6, 5])
    for shard in (tiny / "bitten").glob("tiny-train-*.tar"):
        content = shard.read_bytes()
        shard.write_bytes(content.replace(b"\xff\xd8\xff", b"\x00\x00\x00"))
    code, out, _ = doctor(monkeypatch, capsys, *options(tiny, "bitten"))
    assert code == 1
    assert "is damaged" in out


def test_too_little_shared_memory_is_a_blocker_before_it_kills_a_worker(tiny, monkeypatch, capsys):
    small = replace(read_machine(), shared_memory_bytes=1000)
    monkeypatch.setattr(module, "read_machine", lambda: small)
    monkeypatch.setattr(module, "measure_decoding", None)  # is not called
    code, out, _ = doctor(monkeypatch, capsys, *options(tiny))
    assert code == 1
    assert "BLOCKER: /dev/shm has 0.00 GB free" in out
    assert "not measured: see the blockers" in out


def test_each_rank_keeps_a_core_for_itself_while_the_loader_is_measured(tiny, monkeypatch, capsys):
    asked = []

    def measuring(shards, train, recipe, num_workers, seconds):
        asked.append(num_workers)
        return DecodingRates(1.0, 2.0, num_workers, 16)

    monkeypatch.setattr(module, "read_machine", lambda: replace(read_machine(), cores=6))
    monkeypatch.setattr(module, "measure_decoding", measuring)
    for workers in ("4", "5", "6", "0"):
        doctor(monkeypatch, capsys, *options(tiny), "--workers", workers)
    assert asked == [4, 5, 5, 0]


@pytest.mark.parametrize("seconds", ["nan", "inf", "0"])
def test_a_measurement_that_takes_no_time_or_never_ends_is_refused(seconds, monkeypatch, capsys):
    code, _, error = doctor(monkeypatch, capsys, "--seconds", seconds)
    assert code == 2
    assert "--seconds must be" in error
    assert f"got {seconds}" in error


def test_remote_shards_need_a_cache(monkeypatch, capsys):
    code, _, error = doctor(monkeypatch, capsys, "--shards", "s3://bucket/imagenet")
    assert code == 2
    assert "--cache" in error
