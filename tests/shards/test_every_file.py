"""Every file of a source is packed, or counted and named; none disappears."""

import io
import json
import os
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import shard_imagenet
from imagenet_rn50.shards.pack import pack
from imagenet_rn50.shards.plan import PackOptions
from imagenet_rn50.shards.sources.detect import read_source
from imagenet_rn50.utils.errors import InputError
from tests.shards.helpers import (
    WNIDS,
    images_of,
    jpeg,
    samples_of,
    tar_of,
    write_imagefolder,
    write_official,
    write_parquet,
)

STOP, SKIP = PackOptions(), PackOptions(on_corrupt="skip")


def encoded(form: str, mode: str = "RGB", **save: object) -> bytes:
    buffer = io.BytesIO()
    image = Image.open(io.BytesIO(jpeg(3))).convert(mode)
    image.save(buffer, format=form, **save)
    return buffer.getvalue()


def two_frames() -> bytes:
    buffer = io.BytesIO()
    red, blue = (Image.new("RGB", (16, 16), colour) for colour in ("red", "blue"))
    red.save(buffer, format="GIF", save_all=True, append_images=[blue])
    return buffer.getvalue()


def gray_16_bits() -> bytes:
    buffer = io.BytesIO()
    values = np.linspace(0, 65535, 40 * 30).reshape(30, 40).astype(np.uint16)
    Image.fromarray(values).save(buffer, format="PNG")
    return buffer.getvalue()


IMAGES = {
    "a.webp": ("WEBP", encoded("WEBP")),
    "b.bmp": ("BMP", encoded("BMP")),
    "c.gif": ("GIF", encoded("GIF")),
    "d.tif": ("TIFF", encoded("TIFF")),
    "e.avif": ("AVIF", encoded("AVIF")),
    "f.jp2": ("JPEG2000", encoded("JPEG2000")),
    "g.JPEG": ("PNG", gray_16_bits()),
    "h.png": ("PNG", encoded("PNG", "P", transparency=0)),
    "i": ("GIF", two_frames()),
    "j.jpe": (None, jpeg(50)),
    "k.jfif": (None, jpeg(51)),
    "without_ending": (None, jpeg(52)),
    "m.JPEG.1": (None, jpeg(53)),
    "n.txt": (None, jpeg(54)),
    ".hidden.jpg": (None, jpeg(55)),
    "._looks_like_junk.jpg": (None, jpeg(56)),
    "nested/deep/o.JPEG": (None, jpeg(57)),
}


def audit_of(out):
    return json.loads((out / "audit.json").read_text(encoding="utf-8"))


@pytest.fixture
def source(tmp_path):
    return write_imagefolder(tmp_path / "source")


@pytest.fixture
def folder(source):
    return source / "train" / WNIDS[1]


def add(folder, files):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def test_an_image_is_packed_by_its_content_whatever_it_is_called(tmp_path, source, folder):
    add(folder, {name: content for name, (_, content) in IMAGES.items()})
    pack(read_source(source), tmp_path / "out", STOP)
    samples = samples_of(tmp_path / "out", "train")
    assert len(samples) == 12 + len(IMAGES)
    packed = [content for label, content in samples.values() if label == 1]
    kept = [content for form, content in IMAGES.values() if form is None]
    assert all(content in packed for content in kept)
    for content in packed:
        assert Image.open(io.BytesIO(content)).format == "JPEG"
    files = audit_of(tmp_path / "out")["splits"]["train"]["files"]
    assert files == {
        "found": 12 + len(IMAGES),
        "unchanged": 12 + len(kept),
        "converted": {
            "AVIF": 1, "BMP": 1, "GIF": 2, "JPEG2000": 1, "PNG": 2, "TIFF": 1, "WEBP": 1
        },
        "changed": 0,
        "skipped": 0,
        "not_packed": 0,
    }  # fmt: skip
    reasons = {e["path"]: e["reason"] for e in audit_of(tmp_path / "out")["changed"]}
    assert "the first of 2 frames" in reasons[f"train/{WNIDS[1]}/i"]
    assert "transparency" in reasons[f"train/{WNIDS[1]}/h.png"]
    assert "16 bits" in reasons[f"train/{WNIDS[1]}/g.JPEG"]


NO_IMAGES = {
    "notes.txt": b"some words",
    "empty.jpg": b"",
    "cut.webp": encoded("WEBP")[:60],
    "vector.eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n",
    "labels.csv": b"a,b\n",
    "array.npy": b"\x93NUMPY\x01\x00" + bytes(200),
    "bomb.png": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\xff\xff\0\0\xff\xff\x08\x02\0\0\0" + bytes(4),
}


@pytest.mark.parametrize("name", NO_IMAGES)
def test_what_is_no_image_stops_packing_or_is_skipped_by_name(tmp_path, source, folder, name):
    add(folder, {name: NO_IMAGES[name]})
    with pytest.raises(InputError, match=name):
        pack(read_source(source), tmp_path / "out", STOP)
    packed = pack(read_source(source), tmp_path / "out", SKIP)
    assert packed.manifest.split("train").num_samples == 12
    audit = audit_of(tmp_path / "out")
    assert [entry["path"] for entry in audit["skipped"]] == [f"train/{WNIDS[1]}/{name}"]
    assert audit["splits"]["train"]["files"]["skipped"] == 1


def test_no_other_program_is_started_for_an_image(tmp_path, source, folder, monkeypatch):
    def started(*words, **options):
        raise AssertionError(words)

    monkeypatch.setattr("subprocess.Popen", started)
    monkeypatch.setattr("os.system", started)
    add(folder, NO_IMAGES | {name: content for name, (_, content) in IMAGES.items()})
    pack(read_source(source), tmp_path / "out", SKIP)
    assert len(audit_of(tmp_path / "out")["skipped"]) == len(NO_IMAGES)


def loose_image(train):
    add(train, {"loose.JPEG": jpeg(1)})


def archive_of_a_class(train):
    add(train, {"n07777777.tar": tar_of({"a.JPEG": jpeg(1)})})


def dangling_link(train):
    (train / WNIDS[0] / "gone.jpg").symlink_to(train / "nowhere.jpg")


def pipe(train):
    os.mkfifo(train / WNIDS[0] / "pipe.jpg")


def circle(train):
    (train / WNIDS[0] / "circle").symlink_to(train)


def hidden_class(train):
    add(train / ".n07777777", {"a.JPEG": jpeg(1)})


@pytest.mark.parametrize(
    "make", [loose_image, archive_of_a_class, dangling_link, pipe, circle, hidden_class]
)
def test_what_may_be_a_missing_image_stops_packing_or_is_skip_or_stop(tmp_path, source, make):
    before = set(source.rglob("*"))
    make(source / "train")
    [name] = {
        path.name for path in source.rglob("*") if path not in before and path.parent in before
    }
    with pytest.raises(InputError, match=name):
        pack(read_source(source), tmp_path / "out", STOP)
    assert not (tmp_path / "out").exists()
    packed = pack(read_source(source), tmp_path / "out", SKIP)
    assert packed.manifest.split("train").num_samples == 12
    [entry] = audit_of(tmp_path / "out")["skipped"]
    assert name in entry["path"]


JUNK = {
    ".DS_Store": b"\0\0\0\1Bud1",
    "Thumbs.db": b"\xd0\xcf\x11\xe0",
    "desktop.ini": b"[x]",
    "._n01443537_1.JPEG": b"\0\5\x16\7",
    ".ipynb_checkpoints/n01443537_1-checkpoint.JPEG": jpeg(1),
    "@eaDir/SYNOPHOTO_THUMB_XL.jpg": jpeg(1),
}


@pytest.mark.parametrize("place", [f"train/{WNIDS[1]}", "train", "."])
@pytest.mark.parametrize("name", JUNK)
def test_what_systems_leave_behind_is_counted_and_named_wherever_it_is(
    tmp_path, source, place, name
):
    add(source / place, {name: JUNK[name]})
    packed = pack(read_source(source), tmp_path / "out", STOP)
    assert packed.manifest.split("train").num_samples == 12
    [entry] = audit_of(tmp_path / "out")["not_packed"]
    assert name.partition("/")[0] in entry["path"]
    assert entry["num_files"] == 1


def test_a_file_beside_the_classes_that_is_no_image_is_named(tmp_path, source):
    add(source, {"train/README.md": b"# read me", "LICENSE": b"free", "test/a/b.jpg": jpeg(1)})
    pack(read_source(source), tmp_path / "out", STOP)
    entries = {e["path"]: e["num_files"] for e in audit_of(tmp_path / "out")["not_packed"]}
    assert entries == {"train/README.md": 1, "LICENSE": 1, "test/": 1}
    assert "README.md" in (tmp_path / "out" / "audit.md").read_text(encoding="utf-8")


@settings(max_examples=25, deadline=None)
@given(
    names=st.lists(
        st.tuples(
            st.sampled_from(["", "x/", "x/y/"]),
            st.sampled_from(["a", "b", "a_b", "a.b"]),
            st.sampled_from(["", ".jpg", ".JPEG", ".png", ".JPEG.1"]),
        ),
        unique=True,
        max_size=12,
    )
)
def test_as_many_keys_as_files_whatever_their_names_share(tmp_path_factory, names):
    root = write_imagefolder(tmp_path_factory.mktemp("keys") / "source")
    folder = root / "train" / WNIDS[0]
    for number, parts in enumerate(names):
        add(folder / "other", {"".join(parts): jpeg(number)})
    images = read_source(root).splits["train"]
    assert len({image.key for image in images}) == len(images) == 12 + len(names)
    assert not any("." in image.key for image in images)


def test_pack_says_how_many_files_it_skipped_each_time(
    tmp_path, source, folder, monkeypatch, capsys
):
    add(folder, {"notes.txt": b"words", "cut.JPEG": jpeg(3)[:300]})
    (source / "train" / WNIDS[0] / "gone.jpg").symlink_to("nowhere")
    words = ["pack", "--source", source, "--out", tmp_path / "out", "--on-corrupt", "skip"]
    words += ["--workers", "1"]
    monkeypatch.setattr("sys.argv", ["shard_imagenet.py", *map(str, words)])
    for _ in range(2):
        with pytest.raises(SystemExit) as left:
            shard_imagenet.main()
        assert left.value.code == 0
        assert "skipped: 3 files" in capsys.readouterr().out


def test_skipping_may_not_empty_a_class(tmp_path, source, folder):
    for path in folder.iterdir():
        path.write_bytes(b"oops")
    with pytest.raises(InputError, match=WNIDS[1]):
        pack(read_source(source), tmp_path / "out", SKIP)
    assert not (tmp_path / "out" / "manifest.json").exists()


@pytest.mark.parametrize("number", [0, 1])
def test_a_parquet_file_that_is_missing_from_its_set_is_named(tmp_path, number):
    root = write_parquet(tmp_path / "source")
    name = f"train-0000{number}-of-00002.parquet"
    (root / "data" / name).unlink()
    with pytest.raises(InputError, match=name):
        read_source(root)


def test_a_parquet_set_without_total_has_no_gap_either(tmp_path):
    root = write_parquet(tmp_path / "source")
    for number, path in enumerate(sorted((root / "data").glob("train-*"))):
        path.rename(root / "data" / f"train-{2 * number}.parquet")
    with pytest.raises(InputError, match=r"train-1\.parquet"):
        read_source(root)


def test_parquet_images_without_a_path_take_their_class_from_the_label(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "data").mkdir()
    rows: list[dict[str, Any]] = [
        {"image": {"bytes": content, "path": f"{name}_{wnid}.JPEG"}, "label": WNIDS.index(wnid)}
        for name, (wnid, content) in images_of(6).items()
    ]
    rows[4]["image"]["path"] = None
    path = tmp_path / "data" / "train-00000-of-00001.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    source = read_source(tmp_path, train_only=True)
    pack(source, tmp_path / "out", STOP)
    found = samples_of(tmp_path / "out", "train")
    assert found["train-00000-of-00001-4"] == (rows[4]["label"], rows[4]["image"]["bytes"])
    assert len(found) == 6
    for row in rows:
        row["image"]["path"] = None
    pq.write_table(pa.Table.from_pylist(rows), path)
    with pytest.raises(InputError, match="row 0 of"):
        read_source(tmp_path, train_only=True)


@pytest.mark.parametrize("train_only", [False, True])
def test_a_class_tar_that_is_missing_is_named(tmp_path, train_only):
    root = write_official(tmp_path / "source")
    by_class: dict[str, dict[str, bytes]] = {wnid: {} for wnid in WNIDS}
    for name, (wnid, content) in images_of(12).items():
        by_class[wnid][f"{name}.JPEG"] = content
    tars = {f"{wnid}.tar": tar_of(by_class[wnid]) for wnid in WNIDS[:2]}
    (root / "ILSVRC2012_img_train.tar").write_bytes(tar_of(tars))
    with pytest.raises(InputError, match=f"{WNIDS[2]}.tar"):
        read_source(root, train_only=train_only)


def test_members_of_official_tars_are_images_by_content_too(tmp_path):
    root = write_official(tmp_path / "source")
    by_class = {wnid: {"._a.JPEG": b"\0\5\x16\7"} for wnid in WNIDS}
    for name, (wnid, content) in images_of(12).items():
        by_class[wnid][f"{name}.jpe"] = content
    tars = {f"{wnid}.tar": tar_of(members) for wnid, members in by_class.items()}
    (root / "ILSVRC2012_img_train.tar").write_bytes(tar_of(tars | {".DS_Store": b"x"}))
    pack(read_source(root), tmp_path / "out", STOP)
    files = audit_of(tmp_path / "out")["splits"]["train"]["files"]
    assert (files["found"], files["unchanged"], files["not_packed"]) == (16, 12, 4)
