import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imagenet_rn50.errors import InputError
from imagenet_rn50.shards.options import PackOptions
from imagenet_rn50.shards.packing import pack
from imagenet_rn50.shards.plan import make_plan
from imagenet_rn50.shards.sources.detect import read_source
from imagenet_rn50.shards.space import space_needed
from tests.shards.helpers import WNIDS, write_kaggle

SCRIPT = Path(__file__).parents[2] / "shard_imagenet.py"


def run(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False)


def lose_csv(source: Path) -> None:
    (source / "LOC_val_solution.csv").unlink()


def lose_class(source: Path) -> None:
    mapping = source / "LOC_synset_mapping.txt"
    lines = mapping.read_text(encoding="utf-8").splitlines(keepends=True)
    mapping.write_text("".join(lines[:-1]), encoding="utf-8")


def lose_row(source: Path) -> None:
    path = source / "LOC_val_solution.csv"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text("".join(lines[:-1]), encoding="utf-8")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lose_csv, "no ground truth"),
        (lose_class, "has the class n02012849, which"),
        (lose_row, "do not name the same pictures"),
    ],
)
def test_a_broken_source_gives_one_message_exit_code_2_and_no_output(tmp_path, damage, message):
    source = write_kaggle(tmp_path / "source")
    damage(source)
    result = run("pack", "--source", source, "--out", tmp_path / "out")
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("prepare", [Path.mkdir, Path.touch, lambda path: None])
def test_a_source_that_is_missing_or_empty_or_a_file_is_refused(tmp_path, prepare):
    source = tmp_path / "source"
    prepare(source)
    result = run("pack", "--source", source, "--out", tmp_path / "out")
    assert result.returncode == 2
    assert result.stderr.startswith(f"error: the source {source} is")
    assert not (tmp_path / "out").exists()


def test_a_disk_that_is_too_small_is_noticed_before_anything_is_written(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    source = read_source(write_kaggle(tmp_path / "source"))
    with pytest.raises(InputError, match="not enough disk space"):
        pack(source, tmp_path / "out", PackOptions())
    assert not (tmp_path / "out").exists()


def test_resized_pictures_are_asked_for_the_space_that_they_will_take(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(40):
        noise = rng.integers(0, 256, (120 + 8 * number, 300, 3), dtype=np.uint8)
        path = tmp_path / "source" / "train" / WNIDS[number % 3] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise).save(path, quality=95)
    source = read_source(tmp_path / "source")
    options = PackOptions(train_shards=5, resize="short=64")
    needed = space_needed(make_plan(source, options))
    pack(source, tmp_path / "out", options)
    written = sum(path.stat().st_size for path in (tmp_path / "out").glob("*.tar"))
    whole = sum(path.stat().st_size for path in (tmp_path / "source").rglob("*.jpg"))
    assert written < needed < whole / 4
