import io
import json
import zlib

from PIL import Image

from imagenet_rn50.shards.audit import report_of
from imagenet_rn50.shards.pack import pack
from imagenet_rn50.shards.plan import PackOptions
from imagenet_rn50.shards.sources.detect import read_source
from tests.shards.helpers import WNIDS, jpeg, write_imagefolder


def test_every_touched_file_duplicate_and_count_stands_in_the_audit(tmp_path):
    root = write_imagefolder(tmp_path / "source")
    png = io.BytesIO()
    Image.new("RGB", (300, 20), "red").save(png, format="PNG")
    folder = root / "train" / WNIDS[0]
    (folder / "disguised.JPEG").write_bytes(png.getvalue())
    (folder / "cmyk.JPEG").write_bytes(jpeg(5, mode="CMYK"))
    (folder / "cut.JPEG").write_bytes(jpeg(6)[:-200])
    twin = root / "val" / WNIDS[2] / "twin.JPEG"
    twin.write_bytes((folder / f"{WNIDS[0]}_0.JPEG").read_bytes())
    pack(read_source(root), tmp_path / "out", PackOptions(on_corrupt="skip"))

    audit = json.loads((tmp_path / "out" / "audit.json").read_text(encoding="utf-8"))
    changed = {entry["path"]: entry["reason"] for entry in audit["changed"]}
    assert changed == {
        f"train/{WNIDS[0]}/cmyk.JPEG": "CMYK: written anew at quality 95",
        f"train/{WNIDS[0]}/disguised.JPEG": "PNG: converted to JPEG at quality 95",
    }
    (skipped,) = audit["skipped"]
    assert skipped["path"] == f"train/{WNIDS[0]}/cut.JPEG"
    assert "truncated" in skipped["reason"]
    (group,) = audit["duplicates"]
    assert [(entry["split"], entry["key"]) for entry in group] == [
        ("train", f"{WNIDS[0]}_0"),
        ("validation", "twin"),
    ]
    train = audit["splits"]["train"]
    assert (train["num_samples"], train["num_skipped"]) == (14, 1)
    assert train["files"] == {
        "found": 15,
        "unchanged": 12,
        "converted": {"PNG": 1},
        "changed": 1,
        "skipped": 1,
        "not_packed": 0,
    }
    assert train["per_class"]["max"] == {"label": 0, "wnid": WNIDS[0], "num_samples": 6}
    assert train["per_class"]["min"] == {"label": 1, "wnid": WNIDS[1], "num_samples": 4}
    assert (train["width"]["min"], train["width"]["max"]) == (40, 300)
    assert (train["height"]["min"], train["height"]["median"]) == (20, 30)

    report = (tmp_path / "out" / "audit.md").read_text(encoding="utf-8")
    for words in (
        "cmyk.JPEG",
        "disguised.JPEG",
        "cut.JPEG",
        "validation/twin",
    ):
        assert words in report
    assert "ImageNet" not in report


def test_data_of_a_thousand_classes_is_compared_with_imagenet(tmp_path):
    pack(read_source(write_imagefolder(tmp_path / "source")), tmp_path / "out", PackOptions())
    audit = json.loads((tmp_path / "out" / "audit.json").read_text(encoding="utf-8"))
    report = report_of(audit | {"num_classes": 1000})
    assert "1,281,167 (-1,281," in report
    assert "50,000 (-" in report


def test_duplicates_are_a_table_of_twenty_groups_at_most_the_largest_first(tmp_path):
    pack(read_source(write_imagefolder(tmp_path / "source")), tmp_path / "out", PackOptions())
    audit = json.loads((tmp_path / "out" / "audit.json").read_text(encoding="utf-8"))
    groups = [
        [{"split": "train", "key": f"key{group}_{copy}", "label": 7} for copy in range(2)]
        for group in range(30)
    ]
    groups[29] += [{"split": "validation", "key": "odd", "label": 8}]
    report = report_of(audit | {"duplicates": groups})
    table = report.partition("## Exact duplicates: 30 groups")[2]
    rows = [line for line in table.splitlines() if line.startswith("|")][2:]
    assert len(rows) == 20
    assert rows[0].startswith("| 3 | train, validation | 7, 8 | train/key29_0")
    assert "61 images, 31 of them copies" in table
    assert "and 10 more" in table


def test_equal_length_and_checksum_alone_do_not_make_a_duplicate(tmp_path, monkeypatch):
    monkeypatch.setattr(zlib, "crc32", lambda content: 0)
    root = write_imagefolder(tmp_path / "source", train=3)
    one = jpeg(0, comment=b"one")
    (root / "train" / WNIDS[0] / "one.JPEG").write_bytes(one)
    (root / "train" / WNIDS[0] / "two.JPEG").write_bytes(one.replace(b"one", b"two"))
    pack(read_source(root), tmp_path / "out", PackOptions())
    assert json.loads((tmp_path / "out" / "audit.json").read_text("utf-8"))["duplicates"] == []


def test_a_file_name_cannot_break_the_report(tmp_path):
    root = write_imagefolder(tmp_path / "source")
    (root / "train" / WNIDS[0] / "a|b\nc.JPEG").write_bytes(jpeg(5, mode="CMYK"))
    pack(read_source(root), tmp_path / "out", PackOptions())
    report = (tmp_path / "out" / "audit.md").read_text(encoding="utf-8")
    assert "a\\|b c.JPEG" in report
