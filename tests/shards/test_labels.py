import bz2
import gzip
import io
import json
import lzma
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import shard_imagenet
from imagenet_rn50.classes import Classes
from imagenet_rn50.shards.index import IndexOptions, index
from imagenet_rn50.shards.manifest import Manifest
from imagenet_rn50.shards.verify import verify
from imagenet_rn50.utils.errors import InputError
from tests.shards.helpers import WNIDS, jpeg, tar_of

IMAGE = jpeg()


def shard(folder, *samples, split="train", number=0, name="x"):
    """Write a shard of (key, {ending: content}); returns `folder`."""
    members = {}
    for key, others in samples:
        members[f"{key}.jpg"] = IMAGE
        members |= {f"{key}.{ending}": text.encode() for ending, text in others.items()}
    folder.mkdir(exist_ok=True, parents=True)
    (folder / f"{name}-{split}-{number:04d}.tar").write_bytes(tar_of(members))
    return folder


def indexed(folder, *labels, key="{wnid}_{n}", **options):
    """Write a shard with one sample a label, the wnids in turn."""
    samples = [
        (key.format(wnid=WNIDS[n % 3], n=n), {"cls": str(label)}) for n, label in enumerate(labels)
    ]
    return shard(folder, *samples, **options)


def mapping(path, *wnids):
    path.write_text("".join(f"{wnid} name of {wnid}\n" for wnid in wnids), encoding="utf-8")
    return path


def write_classes(folder, *wnids, names=None):
    Classes(wnids, tuple(names or wnids)).save(folder)


def names_in(folder):
    classes = Classes.load(folder)
    return dict(zip(classes.wnids, classes.names, strict=True))


def labels_in(folder, split="train"):
    return Manifest.load(folder).split(split).labels.tolist()


PLACES = {
    "cls": lambda n, wnid: (f"{n}", {"cls": wnid}),
    "json label": lambda n, wnid: (f"{n}", {"json": json.dumps({"label": wnid})}),
    "json wnid": lambda n, wnid: (f"{n}", {"json": json.dumps({"wnid": wnid})}),
    "json file": lambda n, wnid: (f"{n}", {"json": json.dumps({"filename": f"{wnid}_1.JPEG"})}),
    "key": lambda n, wnid: (f"{wnid}_{n}", {}),
    "folder": lambda n, wnid: (f"train/{wnid}/{n}", {}),
    "end": lambda n, wnid: (f"ILSVRC2012_val_{n:08d}_{wnid}", {}),
}


@settings(max_examples=20)
@given(st.lists(st.sampled_from(sorted(PLACES)), min_size=3, max_size=8), st.data())
def test_a_wnid_is_a_label_wherever_it_stands(tmp_path_factory, places, data):
    chosen = [*WNIDS, *data.draw(st.lists(st.sampled_from(WNIDS), max_size=len(places) - 3))]
    chosen += [WNIDS[0]] * (len(places) - len(chosen))
    samples = [
        PLACES[place](n, wnid) for n, (place, wnid) in enumerate(zip(places, chosen, strict=True))
    ]
    folder = shard(tmp_path_factory.mktemp("shards"), *samples)
    index(folder)
    assert labels_in(folder) == [WNIDS.index(wnid) for wnid in chosen]
    assert Classes.load(folder).wnids == WNIDS
    assert verify(folder) == []


@pytest.mark.parametrize(
    ("key", "others", "values"),
    [
        ("a", {"cls": "1", "json": '{"label": 2}'}, ("1 in .cls", "2 in .json")),
        (f"{WNIDS[0]}_1", {"cls": WNIDS[1]}, (WNIDS[1], f"{WNIDS[0]} in its key")),
        (f"{WNIDS[0]}_1", {"json": json.dumps({"wnid": WNIDS[1]})}, WNIDS[:2]),
        ("a", {"cls": WNIDS[0], "json": json.dumps({"label": WNIDS[1]})}, WNIDS[:2]),
        ("a", {"json": json.dumps({"label": WNIDS[0], "filename": WNIDS[1]})}, WNIDS[:2]),
        (f"{WNIDS[0]}/{WNIDS[1]}_1", {"cls": "0"}, WNIDS[:2]),
    ],
)
def test_a_sample_that_names_two_classes_is_refused(tmp_path, key, others, values):
    shard(tmp_path, (key, others))
    with pytest.raises(InputError, match="names two classes") as caught:
        index(tmp_path)
    assert all(value in str(caught.value) for value in values)
    assert not (tmp_path / "manifest.json").exists()


@pytest.mark.parametrize(
    ("labels", "values"),
    [
        ((2, 1, 0), (f"index 0 and the wnid {WNIDS[2]}", "rank 2")),
        ((1, 2, 0), (f"index 0 and the wnid {WNIDS[2]}", "rank 2")),
        ((0, 1, 1), ("index 1 has two wnids", WNIDS[1], WNIDS[2])),
        ((0, 1, 2, 3), (f"wnid {WNIDS[0]} has two class indices", "0 in", "3 in")),
    ],
)
def test_indices_that_contradict_the_wnids_in_keys_are_refused(tmp_path, labels, values):
    indexed(tmp_path, *labels)
    with pytest.raises(InputError) as caught:
        index(tmp_path)
    assert all(value in str(caught.value) for value in values)
    with pytest.raises(InputError):
        index(tmp_path, IndexOptions(mapping=mapping(tmp_path / "list.txt", *WNIDS, "n02999999")))
    assert not (tmp_path / "manifest.json").exists()


@pytest.mark.parametrize("index_of", [(2, 1, 0), (1, 2, 0)])
def test_a_mapping_does_not_rename_classes_whose_keys_have_wnids(tmp_path, index_of):
    indexed(tmp_path, *index_of)
    listed = mapping(tmp_path / "list.txt", *WNIDS)
    with pytest.raises(InputError) as caught:
        index(tmp_path, IndexOptions(mapping=listed))
    assert f"class index {index_of[0]} and the wnid {WNIDS[0]}" in str(caught.value)
    assert f"class index 0, the index of {WNIDS[0]} in {listed}" in str(caught.value)
    assert f"gives to {WNIDS[index_of[0]]}" in str(caught.value)


def test_indices_that_begin_at_1_are_refused_and_called_so(tmp_path):
    for key in ("{wnid}_{n}", "{n}"):
        indexed(tmp_path, 1, 2, 3, key=key)
        with pytest.raises(InputError, match=r"index 3, beyond the 3(.|\n)*may begin at 1"):
            index(tmp_path, IndexOptions(mapping=mapping(tmp_path / "list.txt", *WNIDS)))


@pytest.mark.parametrize("order", [1, -1])
def test_a_mapping_gives_names_by_wnid_in_any_order_and_may_list_more(tmp_path, order):
    indexed(tmp_path, 0, 1, 2)
    others = ("n01440000", "n01443000", "n02999999")  # WNIDS have the ranks 1, 3, 4 among these
    index(
        tmp_path,
        IndexOptions(mapping=mapping(tmp_path / "list.txt", *sorted((*WNIDS, *others))[::order])),
    )
    assert names_in(tmp_path) == {wnid: f"name of {wnid}" for wnid in WNIDS}
    assert labels_in(tmp_path) == [0, 1, 2]


def test_indices_of_a_larger_mapping_keep_all_its_classes_and_empty_ones_are_logged(
    tmp_path, capsys
):
    wnids = ("n01440000", *WNIDS)
    indexed(tmp_path, 1, 2, 3)
    index(tmp_path, IndexOptions(mapping=mapping(tmp_path / "list.txt", *wnids)))
    assert Classes.load(tmp_path).wnids == wnids
    assert "1 of the 4 classes have no samples, such as class 0" in capsys.readouterr().out


def test_wnids_as_labels_have_their_rank_in_the_mapping(tmp_path):
    shard(tmp_path, *(PLACES["cls"](n, wnid) for n, wnid in enumerate(WNIDS)))
    index(tmp_path, IndexOptions(mapping=mapping(tmp_path / "list.txt", "n01440000", *WNIDS)))
    assert labels_in(tmp_path) == [1, 2, 3]
    assert verify(tmp_path) == []


@pytest.mark.parametrize("label", ["2", WNIDS[2]])
def test_a_wnid_that_the_mapping_lacks_is_refused(tmp_path, label):
    indexed(tmp_path, 0, 1, label)
    listed = mapping(tmp_path / "LOC_synset_mapping.txt", *WNIDS[:2], "n02099999")
    with pytest.raises(InputError, match=f"wnid {WNIDS[2]}, which {listed} lacks"):
        index(tmp_path)


def test_names_by_position_are_logged_and_need_a_sorted_mapping_of_the_same_classes(
    tmp_path, capsys
):
    indexed(tmp_path, 0, 1, 2, key="{n}")
    listed = tmp_path / "list.txt"
    for wnids in (WNIDS[::-1], (*WNIDS, "n02999999")):
        with pytest.raises(InputError, match="by position"):
            index(tmp_path, IndexOptions(mapping=mapping(listed, *wnids)))
    index(tmp_path, IndexOptions(mapping=mapping(listed, *WNIDS)))
    assert names_in(tmp_path) == {wnid: f"name of {wnid}" for wnid in WNIDS}
    assert "3 class indices have no wnid" in capsys.readouterr().out


def test_validation_without_wnids_takes_the_classes_of_training(tmp_path, capsys):
    indexed(tmp_path, 0, 1, 2)
    indexed(tmp_path, 2, 0, key="ILSVRC2012_val_{n:08d}", split="validation")
    index(tmp_path, IndexOptions(mapping=mapping(tmp_path / "list.txt", *WNIDS)))
    assert labels_in(tmp_path, "validation") == [2, 0]
    assert "by position" not in capsys.readouterr().out


def test_a_validation_wnid_that_training_lacks_is_refused_for_it_would_shift_indices(tmp_path):
    shard(tmp_path, *(PLACES["cls"](n, wnid) for n, wnid in enumerate(WNIDS[1:])))
    shard(tmp_path, *(PLACES["cls"](n, wnid) for n, wnid in enumerate(WNIDS)), split="validation")
    with pytest.raises(InputError, match=f"wnid {WNIDS[0]}, which no training sample has"):
        index(tmp_path)
    index(tmp_path, IndexOptions(mapping=mapping(tmp_path / "list.txt", *WNIDS)))
    assert labels_in(tmp_path) == [1, 2]


def test_classes_json_is_compared_with_keys_and_mappings(tmp_path):
    indexed(tmp_path, 0, 1, 2)
    write_classes(tmp_path, WNIDS[0], "n01500000", WNIDS[2])
    with pytest.raises(InputError, match=rf"{WNIDS[1]}, which \S+classes\.json lacks"):
        index(tmp_path)
    indexed(tmp_path, 0, 1, 2, key="{n}")
    with pytest.raises(InputError, match=r"list different classes(.|\n)*n01500000"):
        index(tmp_path, IndexOptions(mapping=mapping(tmp_path / "list.txt", *WNIDS)))


def test_two_names_of_a_wnid_are_refused_until_one_list_is_chosen(tmp_path):
    indexed(tmp_path, 0, 1, 2)
    write_classes(tmp_path, *WNIDS, names=("a", "b", "c"))
    listed = mapping(tmp_path / "LOC_synset_mapping.txt", *WNIDS)
    with pytest.raises(InputError, match=f"'a' in(.|\n)*'name of {WNIDS[0]}' in(.|\n)*--mapping"):
        index(tmp_path)
    index(tmp_path, IndexOptions(mapping=listed))
    assert names_in(tmp_path)[WNIDS[0]] == f"name of {WNIDS[0]}"


def test_names_may_be_given_after_indexing_without_them(tmp_path):
    indexed(tmp_path, 0, 1, 2)
    index(tmp_path)
    assert names_in(tmp_path) == dict(zip(WNIDS, WNIDS, strict=True))
    index(
        tmp_path,
        IndexOptions(mapping=mapping(tmp_path / "list.txt", *WNIDS, "n02999999"), force=True),
    )
    assert names_in(tmp_path) == {wnid: f"name of {wnid}" for wnid in WNIDS}


def test_classes_of_another_kind_than_wnids_may_hold_several(tmp_path):
    indexed(tmp_path, 0, 1, 1)
    write_classes(tmp_path, "fish", "others")
    index(tmp_path)
    assert Classes.load(tmp_path).wnids == ("fish", "others")
    assert verify(tmp_path) == []


def test_verify_compares_the_wnids_in_shards_with_the_classes(tmp_path):
    shard(tmp_path, *(PLACES["cls"](n, wnid) for n, wnid in enumerate(WNIDS)))
    index(tmp_path)
    path = tmp_path / "x-train-0000.tar"
    path.write_bytes(path.read_bytes().replace(WNIDS[1].encode(), WNIDS[2].encode()))
    (finding,) = verify(tmp_path)
    assert f"the label {WNIDS[2]} in .cls instead of {WNIDS[1]}" in finding.problem


@pytest.mark.parametrize(
    ("numbers", "missing"), [((0, 1, 3), "2"), ((1, 2), "0"), ((0, 5), "1, 2, 3, 4")]
)
@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_gap_in_numbered_shards_is_refused(tmp_path, numbers, missing, split):
    for number in numbers:
        indexed(tmp_path, 0, key=f"{number}_{{n}}", number=number, split=split)
    with pytest.raises(InputError, match=f"{split} shards are missing(.|\n)*without {missing}"):
        index(tmp_path)


def test_shards_that_name_their_total_are_counted(tmp_path):
    for number in range(2):
        indexed(tmp_path, 0, 1, 2, key=f"{{wnid}}_{number}{{n}}", number=number)
        (tmp_path / f"x-train-{number:04d}.tar").rename(
            tmp_path / f"x-train-{number:05d}-of-00003.tar"
        )
    with pytest.raises(InputError, match="without 2"):
        index(tmp_path)
    for path in tmp_path.glob("*.tar"):
        path.rename(tmp_path / path.name.replace("of-00003", "of-00002"))
    assert index(tmp_path).split("train").num_samples == 6


@pytest.mark.parametrize(
    "name",
    [
        "x-train-0001.tar.gz",
        "x-train-0001.tgz",
        "x-train-0001.tar.part",
        "x-train-0001.tar.4711.partial",
        "x-train-0000.tar.aria2",
        "x-train-0001.TAR",
        "x-test-0000.tar",
        "00001.tar",
        "y-train-0001.tar",
        "y-validation-0000.tar",
    ],
)
def test_a_tar_beside_the_shards_is_not_skipped_silently(tmp_path, name):
    indexed(tmp_path, 0, 1, 2)
    (tmp_path / name).write_bytes(tar_of({}))
    with pytest.raises(InputError, match=name):
        index(tmp_path)


def test_files_that_are_no_tars_may_lie_beside_the_shards(tmp_path):
    indexed(tmp_path, 0, 1, 2)
    for name in ("._x-train-0000.tar", "x-train-0000.tar.sha256", "x-train-0000.idx", "README.md"):
        (tmp_path / name).write_bytes(b"x")
    assert index(tmp_path).split("train").num_samples == 3


def test_a_packing_that_is_not_finished_is_not_indexed(tmp_path):
    indexed(tmp_path, 0, 1, 2)
    (tmp_path / ".packing").mkdir()
    with pytest.raises(InputError, match="not finished"):
        index(tmp_path)


def write_info(folder, **changes):
    split = {
        "name": "train",
        "num_samples": 3,
        "filenames": ["x-train-0000.tar"],
        "shard_lengths": [3],
    }
    content = {"splits": {"train": split | changes}}
    (folder / "_info.json").write_text(json.dumps(content), encoding="utf-8")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {
                "filenames": ["x-train-0000.tar", "x-train-0001.tar"],
                "shard_lengths": [3, 3],
                "num_samples": 6,
            },
            "1 shards that are not there, such as x-train-0001.tar",
        ),
        ({"shard_lengths": [4], "num_samples": 4}, "expected: 4 samples\n  found:    3 samples"),
        ({"num_samples": 4}, "num_samples 4"),
        ({"filenames": [], "shard_lengths": [], "num_samples": 0}, "only shards it lists"),
        ({"shard_lengths": [1, 2]}, "cannot be read"),
        ({"filenames": None}, "cannot be read"),
        ({"alt_label": "superclass"}, "superclass"),
    ],
)
def test_an_info_file_that_contradicts_the_shards_is_refused(tmp_path, changes, message):
    indexed(tmp_path, 0, 1, 2)
    write_info(tmp_path, **changes)
    before = (tmp_path / "_info.json").read_bytes()
    with pytest.raises(InputError) as caught:
        index(tmp_path)
    assert message in str(caught.value)
    assert (tmp_path / "_info.json").read_bytes() == before


def test_an_info_file_that_agrees_is_accepted(tmp_path):
    indexed(tmp_path, 0, 1, 2)
    write_info(tmp_path)
    assert index(tmp_path).split("train").num_samples == 3


def test_force_takes_added_shards_but_none_may_be_missing(tmp_path):
    indexed(tmp_path, 0, 1, 2)
    index(tmp_path)
    indexed(tmp_path, 0, 1, 2, key="{wnid}_1{n}", number=1)
    assert index(tmp_path, IndexOptions(force=True)).split("train").num_samples == 6
    (tmp_path / "x-train-0001.tar").unlink()
    with pytest.raises(InputError, match=r"not there, such as x-train-0001\.tar"):
        index(tmp_path, IndexOptions(force=True))


@pytest.mark.parametrize("module", [gzip, bz2, lzma])
def test_a_compressed_tar_is_refused_by_its_content(tmp_path, refused, module):
    indexed(tmp_path, 0, 1, 2)
    path = tmp_path / "x-train-0000.tar"
    path.write_bytes(module.compress(path.read_bytes()))
    said = refused(shard_imagenet.main, "index", "--shards", tmp_path)
    assert f"{path} is compressed" in said
    assert not (tmp_path / "manifest.json").exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_a_link_in_a_shard_is_refused_for_its_image_would_be_missed(tmp_path, kind):
    with tarfile.open(tmp_path / "x-train-0000.tar", "w") as tar:
        for n, wnid in enumerate(WNIDS):
            info = tarfile.TarInfo(f"{wnid}/{n}.jpg")
            info.size = len(IMAGE)
            tar.addfile(info, io.BytesIO(IMAGE))
        info = tarfile.TarInfo(f"{WNIDS[0]}/3.jpg")
        info.type, info.linkname = kind, f"{WNIDS[0]}/0.jpg"
        tar.addfile(info)
    with pytest.raises(InputError, match=f"link '{WNIDS[0]}/3.jpg'"):
        index(tmp_path)


@pytest.mark.parametrize("name", [f"{WNIDS[0]}_3", ".jpg", f"{WNIDS[0]}/.JPEG"])
def test_an_image_that_is_part_of_no_sample_is_refused(tmp_path, name):
    members = {f"{wnid}_{n}.jpg": IMAGE for n, wnid in enumerate(WNIDS)}
    for others in ({"README": b"text", "._a.jpg": b"\0\5\x16\7"}, {name: IMAGE}):
        members |= others
        (tmp_path / "x-train-0000.tar").write_bytes(tar_of(members))
        if name not in members:
            assert index(tmp_path).split("train").num_samples == 3
    with pytest.raises(InputError, match="which readers skip"):
        index(tmp_path, IndexOptions(force=True))
