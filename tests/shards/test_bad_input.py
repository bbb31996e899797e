import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import shard_imagenet
from imagenet_rn50.shards.pack import pack, space_needed
from imagenet_rn50.shards.plan import PackOptions, make_plan
from imagenet_rn50.shards.sources.detect import read_source
from imagenet_rn50.utils.errors import InputError
from tests.shards.helpers import WNIDS, jpeg, write_kaggle, write_parquet

SCRIPT = Path(__file__).parents[2] / "shard_imagenet.py"


@pytest.fixture
def error_of(monkeypatch, capfd):
    """Run the script in this process, which must exit with code 2; return all of its stderr."""

    def error_of(*words: object) -> str:
        monkeypatch.setattr(sys, "argv", ["shard_imagenet.py", *map(str, words)])
        with pytest.raises(SystemExit) as left:
            shard_imagenet.main()
        assert left.value.code == 2
        told = str(capfd.readouterr().err)
        assert told.startswith("error: ")
        assert "Traceback" not in told
        return told

    return error_of


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
        (lose_row, "do not name the same images"),
    ],
)
def test_a_broken_source_gives_one_message_exit_code_2_and_no_output(
    tmp_path, error_of, damage, message
):
    source = write_kaggle(tmp_path / "source")
    damage(source)
    told = error_of("pack", "--source", source, "--out", tmp_path / "out")
    assert message in told
    assert not (tmp_path / "out").exists()


def write_mapping(source: Path) -> None:
    (source / "LOC_synset_mapping.txt").write_bytes(b"n01440764 caf\xe9\n")


def write_class_of_latin_1(source: Path) -> None:
    folder = source / "train" / os.fsdecode(b"caf\xe9")
    folder.mkdir(parents=True)
    (folder / "1.jpg").write_bytes(jpeg())


def write_rows(*images: object) -> Callable[[Path], None]:
    def write(source: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        (source / "data").mkdir(parents=True)
        table = pa.Table.from_pylist([{"image": image, "label": 0} for image in images])
        pq.write_table(table, source / "data" / "train-0.parquet")

    return write


def write_cut_off_parquet(source: Path) -> None:
    write_parquet(source)
    path = source / "data" / "train-00000-of-00002.parquet"
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("write", "message", "options"),
    [
        (lambda source: write_mapping(write_kaggle(source)), "expected: text in UTF-8", ()),
        (write_class_of_latin_1, r"the class 'caf\udce9' is not valid UTF-8", ()),
        (write_cut_off_parquet, "train-00000-of-00002.parquet cannot be read", ()),
        (write_kaggle, "holds no parquet files", ("--layout", "parquet")),
        (write_rows({"bytes": b"", "path": "a_n01440764.JPEG"}, None), "row 1 of", ()),
        (write_rows(b""), "are numbers without names", ()),
        (write_rows({"path": "a_n01440764.JPEG"}), "has other columns", ()),
    ],
)
def test_a_source_that_cannot_be_read_is_refused_before_packing(
    tmp_path, refused, write, message, options
):
    write(tmp_path / "source")
    words = ("pack", "--source", tmp_path / "source", "--out", tmp_path / "out", *options)
    assert message in refused(shard_imagenet.main, *words)
    assert not (tmp_path / "out").exists()


def test_an_output_that_the_system_does_not_make_is_refused(tmp_path, refused):
    source, out = write_kaggle(tmp_path / "source"), tmp_path / "out"
    out.symlink_to(out)
    said = refused(shard_imagenet.main, "pack", "--source", source, "--out", out)
    assert "cannot be written" in said
    assert "give another --out" in said


@pytest.mark.parametrize("prepare", [Path.mkdir, Path.touch, lambda path: None])
def test_a_source_that_is_missing_or_empty_or_a_file_is_refused(tmp_path, error_of, prepare):
    source = tmp_path / "source"
    prepare(source)
    told = error_of("pack", "--source", source, "--out", tmp_path / "out")
    assert told.startswith(f"error: the source {source} is")
    assert not (tmp_path / "out").exists()


def test_a_process_writes_one_message_on_stderr_and_exits_with_code_2(tmp_path):
    command = [sys.executable, str(SCRIPT), "pack", "--source", str(tmp_path / "source")]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "out")],
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: the source {tmp_path / 'source'} is")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_disk_that_is_too_small_is_noticed_before_anything_is_written(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    source = read_source(write_kaggle(tmp_path / "source"))
    with pytest.raises(InputError, match="not enough disk space"):
        pack(source, tmp_path / "out", PackOptions())
    assert not (tmp_path / "out").exists()


def test_resized_images_are_asked_for_the_space_that_they_will_take(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(40):
        noise = rng.integers(0, 256, (120 + 8 * number, 300, 3), dtype=np.uint8)
        path = tmp_path / "source" / "train" / WNIDS[number % 3] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise).save(path, quality=95)
    source = read_source(tmp_path / "source", train_only=True)
    options = PackOptions(train_shards=5, resize="short=64")
    needed = space_needed(make_plan(source, options))
    pack(source, tmp_path / "out", options)
    written = sum(path.stat().st_size for path in (tmp_path / "out").glob("*.tar"))
    whole = sum(path.stat().st_size for path in (tmp_path / "source").rglob("*.jpg"))
    assert written < needed < whole / 4
