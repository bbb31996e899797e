import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import shard_imagenet
from imagenet_rn50.classes import Classes
from imagenet_rn50.shards.audit import read_audit
from imagenet_rn50.shards.contact_sheet import write_sheet
from imagenet_rn50.shards.lossless import is_installed
from imagenet_rn50.shards.store import open_shards
from tests.shards.helpers import write_kaggle
from tests.support import CLASSES, write_shards

SCRIPT = Path(__file__).parents[2] / "shard_imagenet.py"
VERBS = ("pack", "verify", "index", "subset", "audit", "sample")


def run(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False)


def run_here(words: Sequence[object], monkeypatch: pytest.MonkeyPatch) -> object:
    """Runs the script in this process, which is quicker; returns its exit code."""
    monkeypatch.setattr(sys, "argv", ["shard_imagenet.py", *map(str, words)])
    with pytest.raises(SystemExit) as left:
        shard_imagenet.main()
    return left.value.code


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    source = write_kaggle(folder / "source")
    result = run("pack", "--source", source, "--out", folder / "out")
    assert result.returncode == 0, result.stderr
    assert "12 train samples in 1 shards, 6 validation samples in 1 shards" in result.stdout
    return folder / "out"


@pytest.mark.skipif(not is_installed(), reason="needs jpegtran")
def test_pack_counts_the_images_that_are_too_small_for_restart_markers(
    tmp_path, monkeypatch, capsys
):
    source = write_kaggle(tmp_path / "source")
    words = ["pack", "--source", str(source), "--out", str(tmp_path / "out"), "--workers", "1"]
    assert run_here(words, monkeypatch) == 0
    assert "without restart markers: 18 images" in capsys.readouterr().out
    splits = read_audit(tmp_path / "out")["splits"]
    assert [split["num_without_markers"] for split in splits.values()] == [12, 6]


@pytest.mark.parametrize("words", [[], *([verb] for verb in VERBS)])
def test_every_verb_explains_itself(words, monkeypatch, capsys):
    assert run_here([*words, "--help"], monkeypatch) == 0
    assert "usage: shard_imagenet.py" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words",
    [
        ["pack"],
        ["unpack"],
        ["verify", "--shards"],
        ["pack", "--source", "x", "--sed", "1"],
        ["verify", "--shards", "x", "--workers", "0"],
    ],
)
def test_wrong_use_gives_exit_code_2(words, monkeypatch):
    assert run_here(words, monkeypatch) == 2


def test_packing_again_verifies_and_says_so(shards, monkeypatch, capsys):
    words = ["pack", "--source", shards.parent / "source", "--out", shards]
    assert run_here(words, monkeypatch) == 0
    assert "is already packed" in capsys.readouterr().out


def test_verify_says_whole_with_0_and_damaged_with_1(shards, tmp_path, monkeypatch, capsys):
    assert run_here(["verify", "--shards", shards], monkeypatch) == 0
    assert "is whole (every byte)" in capsys.readouterr().out
    assert run_here(["verify", "--shards", shards, "--quick"], monkeypatch) == 0
    assert "is whole (names and sizes)" in capsys.readouterr().out
    (tmp_path / "source-train-00.tar").write_bytes(b"")
    for path in shards.glob("*[!r]"):
        if path.is_file() and path.name != "source-train-00.tar":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    result = run("verify", "--shards", tmp_path)
    assert result.returncode == 1
    assert "source-train-00.tar: has 0 bytes" in result.stdout
    assert run_here(["verify", "--shards", tmp_path / "nowhere"], monkeypatch) == 2


def test_audit_prints_the_report(shards, monkeypatch, capsys):
    assert run_here(["audit", "--shards", shards], monkeypatch) == 0
    assert capsys.readouterr().out == (shards / "audit.md").read_text(encoding="utf-8")


def test_a_sheet_tells_names_apart_that_are_not_ascii(tmp_path):
    write_shards(tmp_path, train=[3], validation=[1])
    sheets = []
    for letter in "üßлα":  # a font without a letter draws a box for it
        Classes(CLASSES.wnids, tuple(letter * n for n in (1, 2, 3))).save(tmp_path)
        write_sheet(open_shards(tmp_path), tmp_path / "a.png", split="train", num_samples=3, seed=0)
        sheets.append((tmp_path / "a.png").read_bytes())
    assert len(set(sheets)) == 4


def test_sample_draws_a_sheet_of_the_asked_number(shards, tmp_path, monkeypatch, capsys):
    out = tmp_path / "sheet.png"
    assert run_here(["sample", "--shards", shards, "--out", out, "--num", 5], monkeypatch) == 0
    assert "5 samples" in capsys.readouterr().out
    with Image.open(out) as sheet:
        assert sheet.format == "PNG"
        assert np.asarray(sheet).min() < 60  # something is drawn on the white


def test_sharding_starts_without_torch():
    code = (
        "import sys, shard_imagenet; "
        "print({'torch', 'webdataset', 'datasets', 'transformers'} & sys.modules.keys())"
    )
    command = [sys.executable, "-c", code]
    result = subprocess.run(
        command, capture_output=True, text=True, encoding="utf-8", check=True, cwd=SCRIPT.parent
    )
    assert result.stdout.strip() == "set()"
