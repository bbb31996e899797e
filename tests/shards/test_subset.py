"""A subset has the samples that were asked for, with their classes, each once an epoch."""

import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import shard_imagenet
from imagenet_rn50.classes import Classes
from imagenet_rn50.data.loader import make_loader
from imagenet_rn50.data.sampler import DistributedBatchSampler, ShardShuffleSampler
from imagenet_rn50.recipe import DataRecipe
from imagenet_rn50.shards.audit import read_report
from imagenet_rn50.shards.manifest import Manifest, Shard, Split
from imagenet_rn50.shards.pack import pack
from imagenet_rn50.shards.plan import PackOptions
from imagenet_rn50.shards.sources.detect import read_source
from imagenet_rn50.shards.store import open_shards
from imagenet_rn50.shards.subset import LIST_NAMES, Selection, subset
from imagenet_rn50.shards.verify import verify
from imagenet_rn50.tools.digits import write_ilsvrc
from imagenet_rn50.utils.errors import InputError
from tests.support import imagenet1k_wnids, write_shards

DATA = DataRecipe(train_size=16, eval_size=16, eval_resize=18, shuffle_window=2)


def split_of(name, labels, num_shards):
    """A split of shards that are nowhere: a subset reads no image."""
    n = len(labels)
    sizes = [len(part) for part in np.array_split(np.arange(n), num_shards)]
    return Split(
        shards=tuple(Shard(f"{name}-{k}.tar", size, 100, "") for k, size in enumerate(sizes)),
        offsets=np.arange(n, dtype=np.int64),
        lengths=np.arange(1, n + 1, dtype=np.int32),
        labels=np.asarray(labels, dtype=np.int32),
        keys=np.array([f"{name}_{i}".encode() for i in range(n)]),
        crc32s=np.arange(n, dtype=np.uint32),
    )


def write_manifest(folder, train=None, validation=None, *, num_classes=None, num_shards=4):
    """Write a manifest of samples with these labels, and classes named by number."""
    folder.mkdir(parents=True)
    given = {"train": train, "validation": validation}
    splits = {n: split_of(n, labels, num_shards) for n, labels in given.items() if labels}
    num = num_classes or 1 + max(max(labels) for labels in given.values() if labels)
    wnids = tuple(f"n{label:08d}" for label in range(num))
    Classes(wnids, tuple(f"thing {label}" for label in range(num))).save(folder)
    Manifest("whole", {"seed": 0}, splits).save(folder)
    return folder


def rows_of(folder):
    """Return (wnid, key, offset, crc32) of each sample of each split."""
    manifest, classes = Manifest.load(folder), Classes.load(folder)
    rows = {}
    for name, split in manifest.splits.items():
        wnids = [classes.wnids[label] for label in split.labels]
        keys = [split.key_of(index) for index in range(split.num_samples)]
        assert split.crc32s is not None
        columns = (wnids, keys, split.offsets.tolist(), split.crc32s.tolist())
        rows[name] = set(zip(*columns, strict=True))
    return rows


def keys_of(folder, split="train"):
    return {key for _, key, _, _ in rows_of(folder)[split]}


labels = st.lists(st.integers(0, 4), min_size=10, max_size=40).map(lambda x: [*range(5), *x])
selections = st.builds(
    Selection,
    num_classes=st.none() | st.integers(2, 5),
    images_per_class=st.none() | st.integers(1, 6),
    seed=st.integers(0, 9),
)


@settings(max_examples=50)
@given(
    labels=labels,
    selection=selections,
    num_shards=st.integers(1, 6),
    world_size=st.integers(1, 4),
    num_workers=st.integers(1, 3),
    batch=st.integers(1, 5),
    window=st.integers(1, 4),
)
def test_an_epoch_of_a_subset_is_a_permutation_of_what_was_selected(
    labels, selection, num_shards, world_size, num_workers, batch, window
):
    with tempfile.TemporaryDirectory() as name:
        whole = write_manifest(Path(name) / "whole", labels, num_shards=num_shards)
        view = subset(str(whole), Path(name) / "view", selection)
        wnids = Classes.load(Path(name) / "view").wnids
        before, after = rows_of(whole)["train"], rows_of(Path(name) / "view")["train"]
    assert after <= before  # so each label is that of the source, by wnid
    assert len(wnids) == (selection.num_classes or 5)
    counts = {wnid: sum(row[0] == wnid for row in before) for wnid in wnids}
    limit = selection.images_per_class or len(labels)
    assert len(after) == sum(min(count, limit) for count in counts.values())
    train = view.split("train")
    assert all(shard.num_samples for shard in train.shards)
    read = []
    for rank in range(world_size):
        order = ShardShuffleSampler(train.shard_sizes, seed=3, window=window)
        sampler = DistributedBatchSampler(0, train.num_samples, batch, rank, world_size)
        for worker in range(num_workers):
            for start in sampler.starts[worker::num_workers]:
                epochs, indices = order.indices(start, sampler.size_at(start))
                assert not epochs.any()
                read += indices.tolist()
    assert sorted(read) == list(range(train.num_samples))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_loader_reads_the_images_and_classes_of_a_subset(tmp_path, num_workers):
    whole = tmp_path / "whole"
    write_shards(whole, train=[8, 6, 7], validation=[6, 5])
    (tmp_path / "classes.txt").write_text("third\nn00000002  # second\n", encoding="utf-8")
    view = tmp_path / "view"
    subset(str(whole), view, Selection(classes=str(tmp_path / "classes.txt"), images_per_class=5))
    expected = {}
    for batch in make_loader(whole, "train", batch_size=5, data=DATA, epochs=1):
        for index, label in zip(batch.indices.tolist(), batch.labels.tolist(), strict=True):
            expected[Manifest.load(whole).split("train").key_of(index)] = label
    seen = {}
    for rank in range(2):
        loader = make_loader(
            view, batch_size=3, data=DATA, rank=rank, world_size=2, num_workers=num_workers
        )
        for batch in loader:
            for index, label in zip(batch.indices.tolist(), batch.labels.tolist(), strict=True):
                key = Manifest.load(view).split("train").key_of(index)
                assert key not in seen
                seen[key] = label
    assert len(seen) == 10
    assert seen == {key: expected[key] - 1 for key in seen}
    [images] = [b.images for b in make_loader(view, "validation", batch_size=99, data=DATA)]
    whole_batch = next(iter(make_loader(whole, "validation", batch_size=99, data=DATA)))
    assert torch.equal(images, whole_batch.images[whole_batch.labels > 0])
    assert verify(view) == []


@settings(max_examples=15)
@given(labels=labels, seed=st.integers(0, 9), some=st.integers(1, 4), more=st.integers(1, 8))
def test_few_images_per_class_are_among_more_and_subsets_nest(labels, seed, some, more):
    some, more = sorted((some, more))
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        write_manifest(root / "whole", labels, labels[:20])

        def take(parent, out, **options):
            subset(str(root / parent), root / out, Selection(seed=seed, **options))
            return rows_of(root / out)

        many = take("whole", "many", images_per_class=more)
        few = take("whole", "few", images_per_class=some)
        assert few["train"] <= many["train"]
        assert few["validation"] == many["validation"]
        assert take("many", "few of many", images_per_class=some) == few
        classes = take("few", "classes of few", num_classes=2)
        assert classes == take("whole", "both", num_classes=2, images_per_class=some)
        take("whole", "four classes", num_classes=4)
        assert take("four classes", "two of four", num_classes=2, images_per_class=some) == classes
        manifests = [Manifest.load(root / out) for out in ("classes of few", "both")]
        assert manifests[0].source_labels == manifests[1].source_labels
        prints = {Manifest.fingerprint_of(root / out) for out in ("classes of few", "both")}
        assert len(prints) == 1


@settings(max_examples=15)
@given(labels=labels, fraction=st.floats(0.01, 0.99), seed=st.integers(0, 9))
def test_a_holdout_divides_every_class_into_disjoint_parts(labels, fraction, seed):
    with tempfile.TemporaryDirectory() as name:
        labels = [*labels, *range(5)]  # at least 2 of each class
        whole = write_manifest(Path(name) / "whole", labels)
        subset(str(whole), Path(name) / "view", Selection(holdout=fraction, seed=seed))
        rows = rows_of(Path(name) / "view")
        assert rows["train"] | rows["validation"] == rows_of(whole)["train"]
        assert not rows["train"] & rows["validation"]
        for label in range(5):
            count = sum(row[0] == f"n{label:08d}" for row in rows["validation"])
            assert 1 <= count < labels.count(label)
            assert abs(count - fraction * labels.count(label)) <= 1
        limited = Selection(holdout=fraction, seed=seed, images_per_class=1)
        subset(str(whole), Path(name) / "limited", limited)
        assert rows_of(Path(name) / "limited")["validation"] == rows["validation"]
        assert len(rows_of(Path(name) / "limited")["train"]) == 5


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """The digits packed in 8 and in 3 training shards."""
    folder = tmp_path_factory.mktemp("digits")
    source = read_source(write_ilsvrc(folder / "source"))
    for num in (8, 3):
        options = PackOptions(dataset="digits", train_shards=num, seed=num, check="header")
        pack(source, folder / f"{num}", options)
    return folder


@pytest.mark.parametrize(
    "options",
    [
        {"train_only": True, "holdout": 0.1},
        {"images_per_class": 20},
        {"num_classes": 5, "fraction": 0.3, "seed": 1},
    ],
    ids=str,
)
def test_the_same_images_are_selected_however_the_data_is_packed(digits, tmp_path, options):
    views = {}
    for num in (8, 3):
        subset(str(digits / f"{num}"), tmp_path / f"{num}", Selection(**options))
        manifest = Manifest.load(tmp_path / f"{num}")
        views[num] = {
            name: {(split.key_of(i), int(label)) for i, label in enumerate(split.labels)}
            for name, split in manifest.splits.items()
        }
    assert views[8] == views[3]
    if "images_per_class" in options:
        counts = np.bincount([label for _, label in views[8]["train"]])
        assert counts.tolist() == [20] * 10


def test_packing_with_a_holdout_holds_out_what_a_subset_does(digits, tmp_path):
    options = PackOptions(dataset="digits", check="header", train_only=True)
    source = read_source(digits / "source", train_only=True, holdout=0.1)
    pack(source, tmp_path / "packed", options)
    subset(str(digits / "8"), tmp_path / "view", Selection(train_only=True, holdout=0.1))
    packed, view = (Manifest.load(tmp_path / name) for name in ("packed", "view"))
    for name in ("train", "validation"):
        assert set(packed.split(name).keys) == set(view.split(name).keys)
    assert packed.options["holdout"] == view.options["holdout"] == 0.1


def test_a_subset_is_the_same_data_wherever_its_shards_are(tmp_path, monkeypatch):
    write_shards(tmp_path / "a" / "whole", train=[8, 6, 7], validation=[6, 5])
    monkeypatch.chdir(tmp_path)
    selection = Selection(num_classes=2)
    subset("a/whole", Path("a/view"), selection)
    assert Manifest.load(Path("a/view")).location == "../whole"
    before = Manifest.fingerprint_of(Path("a/view"))
    Path("a").rename("b")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert verify(tmp_path / "b" / "view") == []
    shutil.copytree(tmp_path / "b" / "whole", tmp_path / "mirror")
    subset(str(tmp_path / "mirror"), tmp_path / "absolute", selection)
    assert Manifest.load(tmp_path / "absolute").location == str(tmp_path / "mirror")
    assert Manifest.fingerprint_of(tmp_path / "absolute") == before
    (tmp_path / "absolute").rename(tmp_path / "elsewhere" / "moved")
    assert verify(tmp_path / "elsewhere" / "moved") == []
    subset("moved", Path("again"), selection)  # a subset of a subset leads to the shards
    assert verify(Path("again")) == []
    assert open_shards("again").fetch(Manifest.load(Path("again")).split("train").shards[0])


def test_a_subset_reads_only_shards_that_hold_a_selected_sample(tmp_path):
    whole = write_manifest(tmp_path / "whole", [0, 0, 1, 1, 2, 2, 3, 3], num_shards=4)
    (tmp_path / "list").write_text("n00000003\nthing 1", encoding="utf-8")
    view = subset(str(whole), tmp_path / "view", Selection(classes=str(tmp_path / "list")))
    assert [shard.name for shard in view.split("train").shards] == ["train-1.tar", "train-3.tar"]
    assert view.source_labels == (1, 3)
    assert Classes.load(tmp_path / "view").names == ("thing 1", "thing 3")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"num_classes": 0}, "--num-classes"),
        ({"num_classes": 6}, "--num-classes"),
        ({"images_per_class": 0}, "--images-per-class"),
        ({"images_per_class": -1}, "--images-per-class"),
        ({"seed": -1}, "--seed"),
        ({"fraction": 0}, "--fraction"),
        ({"fraction": 1.01}, "--fraction"),
        ({"fraction": float("nan")}, "--fraction"),
        ({"holdout": 0}, "--holdout"),
        ({"holdout": 1}, "--holdout"),
        ({"holdout": 0.5}, "--holdout"),  # there is a validation split
        ({"classes": "a", "num_classes": 2}, "--classes"),
        ({"classes": ""}, "--classes"),
        ({"classes": "imagenet1000"}, "imagenet1000"),
        ({"classes": "imagenette"}, "imagenette"),
        ({"images_per_class": 2, "fraction": 0.5}, "--fraction"),
        ({"train_only": True, "validation_only": True}, "--validation-only"),
        ({"holdout": 0.5, "validation_only": True}, "--holdout"),
        ({"images_per_class": 2, "validation_only": True}, "--images-per-class"),
        ({"fraction": 0.5, "validation_only": True}, "--fraction"),
        ({"num_classes": 1}, "single class"),
    ],
    ids=str,
)
def test_options_that_contradict_or_are_out_of_range_are_refused(tmp_path, options, named):
    whole = write_manifest(tmp_path / "whole", [0, 1, 2, 3, 4] * 3, [0, 1, 2, 3, 4])
    with pytest.raises(InputError, match=named):
        subset(str(whole), tmp_path / "view", Selection(**options))
    assert not (tmp_path / "view").exists()


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("# none", "no class"),
        ("n00000001\nn00000001", "twice"),
        ("n00000001\nthing 1", "twice"),
        ("n00000001\nn00000009", "n00000009"),
        ("crane\nn00000001", "crane"),
        ("n00000001", "single class"),
    ],
)
def test_lists_of_classes_that_do_not_fit_are_refused(tmp_path, text, named):
    whole = write_manifest(tmp_path / "whole", [0, 1, 2])
    names = ("crane", "thing 1", "crane")
    Classes(Classes.load(whole).wnids, names).save(whole)
    (tmp_path / "list").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=named):
        subset(str(whole), tmp_path / "view", Selection(classes=str(tmp_path / "list")))


def test_a_list_may_have_comments_and_class_names_with_any_characters(tmp_path):
    whole = write_manifest(tmp_path / "whole", [0, 1, 2, 3])
    wnids = ("C# code", "c++", "n00000001", "two words")
    Classes(wnids, wnids).save(whole)
    text = "# mine\nC# code\n\n  two words  \nn00000001 tench, Tinca tinca # a fish\n"
    (tmp_path / "list").write_text(text, encoding="utf-8")
    subset(str(whole), tmp_path / "view", Selection(classes=str(tmp_path / "list")))
    assert Classes.load(tmp_path / "view").wnids == ("C# code", "n00000001", "two words")


def test_a_list_may_be_the_classes_of_another_data_set_and_its_path_stays_private(tmp_path):
    whole = write_manifest(tmp_path / "whole", [0, 1, 2, 3])
    subset(str(whole), tmp_path / "one", Selection(num_classes=2))
    path = tmp_path / "one" / "classes.json"
    subset(str(whole), tmp_path / "two", Selection(classes=str(path)))
    assert rows_of(tmp_path / "two") == rows_of(tmp_path / "one")
    assert Manifest.options_of(tmp_path / "two")["subset"] == {"classes": "classes.json"}


def test_splits_that_are_missing_are_refused(tmp_path):
    train = write_manifest(tmp_path / "train", [0, 1, 0, 1])
    validation = write_manifest(tmp_path / "validation", None, [0, 1])
    for shards, options in (
        (train, {"validation_only": True}),
        (validation, {"train_only": True}),
        (validation, {"holdout": 0.5, "train_only": True}),
    ):
        with pytest.raises(InputError, match="no such split"):
            subset(str(shards), tmp_path / "view", Selection(**options))
    alone = subset(str(validation), tmp_path / "one", Selection(validation_only=True))
    assert list(alone.splits) == ["validation"]


def test_a_class_of_one_image_cannot_be_divided(tmp_path):
    whole = write_manifest(tmp_path / "whole", [0, 0, 1])
    with pytest.raises(InputError, match="thing 1"):
        subset(str(whole), tmp_path / "view", Selection(holdout=0.5))


def test_the_output_folder_is_new_or_has_the_same_subset(tmp_path):
    whole = write_manifest(tmp_path / "whole", [0, 1, 2, 0, 1, 2])
    (tmp_path / "list").write_text("n00000000\nn00000001", encoding="utf-8")
    selection = Selection(classes=str(tmp_path / "list"))
    view = tmp_path / "view"
    subset(str(whole), view, selection)
    before = {path.name: path.read_bytes() for path in view.iterdir()}
    (view / "manifest.json").unlink()  # as a run leaves it that was killed before its last step
    (view / "manifest.json.17.partial").write_bytes(b"{")
    subset(str(whole), view, selection)
    (view / "manifest.json.17.partial").unlink()
    assert {path.name: path.read_bytes() for path in view.iterdir()} == before
    with pytest.raises(InputError, match="not empty"):
        subset(str(whole), view, Selection(num_classes=2))
    (tmp_path / "list").write_text("n00000000\nn00000002", encoding="utf-8")  # of the same name
    with pytest.raises(InputError, match="not empty"):
        subset(str(whole), view, selection)
    with pytest.raises(InputError, match="not empty"):
        subset(str(whole), whole, selection)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").touch()
    with pytest.raises(InputError, match="notes"):
        subset(str(whole), tmp_path / "other", selection)


def test_a_subset_records_its_parent_and_a_holdout_stays_recorded(tmp_path):
    whole = write_manifest(tmp_path / "whole", [0, 1, 2] * 4)
    subset(str(whole), tmp_path / "one", Selection(holdout=0.25, seed=3))
    subset(str(tmp_path / "one"), tmp_path / "two", Selection(num_classes=2))
    options = Manifest.options_of(tmp_path / "two")
    assert options["subset"] == {"num_classes": 2, "seed": 0}
    assert options["holdout"] == 0.25
    assert options["parent"]["fingerprint"] == Manifest.fingerprint_of(tmp_path / "one")
    assert options["parent"]["options"]["subset"] == {"holdout": 0.25, "seed": 3}
    assert options["parent"]["options"]["parent"]["dataset"] == "whole"
    subset(str(tmp_path / "one"), tmp_path / "three", Selection(train_only=True))
    assert "holdout" not in Manifest.options_of(tmp_path / "three")


def test_a_subset_is_never_named_imagenet1k(tmp_path):
    whole = write_manifest(tmp_path / "whole", [0, 1, 2])
    view = subset(str(whole), tmp_path / "imagenet", Selection(num_classes=2))
    assert view.dataset == "imagenet-2-images"
    for name in ("ImageNet-1k", "a/b"):
        with pytest.raises(InputError, match=name):
            subset(str(whole), tmp_path / "x", Selection(num_classes=2), dataset=name)


def test_shards_whose_classes_are_not_known_have_no_subset(tmp_path):
    whole = write_manifest(tmp_path / "whole", [0, 1, 2])
    (whole / "classes.json").unlink()
    with pytest.raises(InputError, match="classes"):
        subset(str(whole), tmp_path / "view", Selection(num_classes=2))


@pytest.mark.parametrize(("name", "count"), list(zip(LIST_NAMES, (100, 10, 10), strict=True)))
def test_the_published_lists_are_of_imagenet1ks_classes(tmp_path, name, count):
    wnids = imagenet1k_wnids()
    whole = write_manifest(tmp_path / "whole", list(range(1000)))
    Classes(wnids, wnids).save(whole)
    subset(str(whole), tmp_path / "view", Selection(classes=name))
    chosen = Classes.load(tmp_path / "view").wnids
    assert len(chosen) == count
    assert set(chosen) < set(wnids)


def test_the_command_says_what_it_selected(tmp_path, monkeypatch, capsys):
    whole = write_manifest(tmp_path / "whole", [0, 1, 2] * 4)
    words = ["subset", "--shards", whole, "--out", tmp_path / "view", "--holdout", "0.25"]
    monkeypatch.setattr("sys.argv", ["shard_imagenet.py", *map(str, words)])
    with pytest.raises(SystemExit) as left:
        shard_imagenet.main()
    assert left.value.code == 0
    assert "9 samples" in capsys.readouterr().out
    content = json.loads((tmp_path / "view" / "manifest.json").read_text(encoding="utf-8"))
    assert content["location"] == str(whole)


def test_the_audit_of_a_subset_counts_its_classes_and_names_its_parents(tmp_path):
    whole = write_manifest(tmp_path / "whole", [0, 1, 2] * 8)
    subset(str(whole), tmp_path / "one", Selection(holdout=0.25))
    subset(str(tmp_path / "one"), tmp_path / "two", Selection(num_classes=2, images_per_class=3))
    report = read_report(tmp_path / "two")
    for label, name in enumerate(Classes.load(tmp_path / "two").labels):
        assert f"| {label} | {name} | 3 | 2 |" in report
    for parent in (whole, tmp_path / "one"):
        assert Manifest.fingerprint_of(parent) in report
    assert "--num-classes 2 --images-per-class 3" in report
    assert str(whole) in report
    assert "0.25 of each class" in report


def test_a_subset_knows_how_its_shards_were_packed_and_what_an_epoch_reads(tmp_path):
    whole = write_manifest(tmp_path / "whole", [0, 1, 2] * 4)
    subset(str(whole), tmp_path / "one", Selection(images_per_class=2))
    view = subset(str(tmp_path / "one"), tmp_path / "two", Selection(num_classes=2))
    assert view.pack_options == {"seed": 0}
    assert view.num_bytes_of("train") == view.split("train").lengths.sum()
    assert Manifest.load(whole).num_bytes_of("train") == 400


def test_the_seed_decides_which_images_and_classes_are_selected(tmp_path):
    shards = write_manifest(tmp_path / "whole", train=[number % 10 for number in range(200)])
    for options in ({"images_per_class": 5}, {"holdout": 0.5}, {"num_classes": 4}):
        chosen: list[set[str]] = []
        for seed in (0, 0, 1):
            out = tmp_path / f"{len(chosen)}-{next(iter(options))}"
            subset(str(shards), out, Selection(**options, seed=seed))
            chosen.append(keys_of(out))
        assert chosen[0] == chosen[1] != chosen[2]
