"""A card's first command makes the very shards that the card names."""

import json
import shlex
import shutil
import sys
from dataclasses import fields, replace

import pytest

import shard_imagenet
from imagenet_rn50.publishing.export import export
from imagenet_rn50.publishing.provenance import unsourced_numbers
from imagenet_rn50.shards.manifest import Manifest
from imagenet_rn50.shards.plan import PackOptions
from tests.commands import check, commands_in
from tests.publishing.runs import make_run, save_checkpoint
from tests.shards.helpers import write_kaggle

OPTIONS = "--train-shards 3 --validation-shards 2 --seed 7 --resize short=20 --quality 80"
OPTIONS += " --restart-blocks none --metadata --check header"
RECODED = "--recode 85 --resize max=20"  # instead of --quality


def shard(line, monkeypatch):
    workers = ["--workers", "1"] if " pack " in line else []  # not started for a few images
    monkeypatch.setattr(sys, "argv", [*shlex.split(line)[1:], *workers])
    with pytest.raises(SystemExit) as left:
        shard_imagenet.main()
    assert left.value.code == 0


def exported(folder, shards, dataset):
    """The card of a run over shards."""
    run = make_run(folder, shards, dataset=dataset)
    save_checkpoint(run, 24, 0.5, is_best=True)
    export(run.path, folder / "out")
    return folder / "out" / "README.md"


@pytest.mark.parametrize("options", [OPTIONS, RECODED, "", "--restart-blocks 3 --dataset in-100"])
def test_packing_by_the_command_of_the_card_gives_its_fingerprint(tmp_path, monkeypatch, options):
    source, shards = write_kaggle(tmp_path / "source"), tmp_path / "shards"
    shard(f"python shard_imagenet.py pack --source {source} --out {shards} {options}", monkeypatch)
    card = exported(tmp_path, shards, Manifest.load(shards).dataset)
    assert unsourced_numbers(card.parent) == []
    [line] = [command.text for command in commands_in(card) if " pack " in command.text]
    line = line.replace("SOURCE", str(source)).replace("SHARDS", str(tmp_path / "again"))
    shard(line, monkeypatch)
    fingerprint = Manifest.fingerprint_of(tmp_path / "again")
    assert fingerprint == Manifest.fingerprint_of(shards)
    text = card.read_text(encoding="utf-8")
    assert f"\n{fingerprint}<!--" in text
    assert "The layout of SOURCE is `kaggle`" in text
    assert ("jpegtran" in text) == ("none" not in options)


def test_every_option_of_pack_is_tried_here():
    decide_no_byte_of_sound_pictures = {"on_corrupt", "train_only"}  # training needs both splits
    words = f"{OPTIONS} {RECODED}".split()
    tried = {word[2:].replace("-", "_") for word in words if word.startswith("--")}
    names = {field.name for field in fields(PackOptions)}
    assert tried | {"dataset"} | decide_no_byte_of_sound_pictures == names


def test_a_run_that_was_begun_before_options_were_recorded_says_so_and_learns_them(
    tmp_path, monkeypatch
):
    source, shards = write_kaggle(tmp_path / "source"), tmp_path / "shards"
    shard(f"python shard_imagenet.py pack --source {source} --out {shards} --seed 7", monkeypatch)
    run = make_run(tmp_path, shards, dataset="imagenet1k")
    whole = json.loads((run.path / "shards.json").read_text())
    assert whole["options"]["seed"] == 7
    older = {name: whole[name] for name in ("dataset", "fingerprint")}
    (run.path / "shards.json").write_text(json.dumps(older))
    save_checkpoint(run, 24, 0.5, is_best=True)
    export(run.path, tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "Their packing options were not recorded:" in text
    assert "pack --source SOURCE --out SHARDS --dataset imagenet1k\n" in text

    run.check(run.recipe(), shards)
    run.create(run.recipe(), shards, "imagenet1k", run.classes())
    assert json.loads((run.path / "shards.json").read_text()) == whole


def test_shards_that_others_packed_are_indexed(tmp_path, shards):
    manifest = Manifest.load(shards)
    replace(manifest, options={"indexed": True}).save(shutil.copytree(shards, tmp_path / "shards"))
    card = exported(tmp_path, tmp_path / "shards", "tiny")
    command = commands_in(card)[0]
    check(command)
    assert command.text == "python shard_imagenet.py index --shards SHARDS --dataset tiny"
    assert "They were packed elsewhere" in card.read_text(encoding="utf-8")


def test_the_options_of_indexing_are_in_the_command(tmp_path, shards):
    options = {"indexed": True, "train": "{00000..00122}.tar", "label_key": "x y", "num_skipped": 3}
    folder = shutil.copytree(shards, tmp_path / "shards")
    replace(Manifest.load(shards), options=options).save(folder)
    command = commands_in(exported(tmp_path, folder, "tiny"))[0]
    check(command)
    assert command.text.endswith(
        "--dataset tiny --train '{00000..00122}.tar' --label-key 'x y' --on-corrupt skip"
    )


def test_another_number_in_the_command_is_found(tmp_path, monkeypatch):
    source, shards = write_kaggle(tmp_path / "source"), tmp_path / "shards"
    shard(f"python shard_imagenet.py pack --source {source} --out {shards} {OPTIONS}", monkeypatch)
    card = exported(tmp_path, shards, "imagenet1k")
    card.write_text(card.read_text(encoding="utf-8").replace("--seed 7", "--seed 71"))
    assert any("71 has no source" in problem for problem in unsourced_numbers(card.parent))


def test_the_commands_of_a_subsets_card_select_its_images_again(tmp_path, monkeypatch):
    source, whole = write_kaggle(tmp_path / "source", train=24), tmp_path / "whole"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my list.txt").write_text("n01440764\nn02012849", encoding="utf-8")
    begin = "python shard_imagenet.py "
    shard(
        f"{begin}pack --source {source} --out {whole} --restart-blocks none --seed 4",
        monkeypatch,
    )
    shard(f"{begin}subset --shards whole --out two --classes 'my list.txt'", monkeypatch)
    shard(
        f"{begin}subset --shards two --out few --train-only --holdout 0.25 --images-per-class 5",
        monkeypatch,
    )
    few = tmp_path / "few"
    card = exported(tmp_path, few, "few")
    assert unsourced_numbers(card.parent) == []
    text = card.read_text(encoding="utf-8")
    for parent in ("two", "whole"):
        assert f"\n{Manifest.fingerprint_of(tmp_path / parent)}<!--" in text
    assert "held out of the training images: 0.25<!--shards.json options.holdout-->" in text
    assert "my list" not in text
    again = {"SOURCE": source, "PARENT_OF_PARENT": "a", "PARENT": "b", "SHARDS": "c"}
    again["classes.json"] = few / "classes.json"  # as a real run copies it
    commands = [command for command in commands_in(card) if "shard_imagenet.py" in command.text]
    for command in commands:
        check(command)
        shard(" ".join(str(again.get(word, word)) for word in command.text.split()), monkeypatch)
    assert len(commands) == 3
    assert Manifest.fingerprint_of(tmp_path / "c") == Manifest.fingerprint_of(few)


def test_a_pack_with_a_holdout_is_packed_again_with_it(tmp_path, monkeypatch):
    source, shards = write_kaggle(tmp_path / "source", train=24), tmp_path / "shards"
    words = f"pack --source {source} --out {shards} --train-only --holdout 0.25"
    shard(f"python shard_imagenet.py {words} --restart-blocks none", monkeypatch)
    card = exported(tmp_path, shards, Manifest.load(shards).dataset)
    assert unsourced_numbers(card.parent) == []
    [line] = [command.text for command in commands_in(card) if " pack " in command.text]
    shard(line.replace("SOURCE", str(source)).replace("SHARDS", f"{tmp_path}/again"), monkeypatch)
    assert Manifest.fingerprint_of(tmp_path / "again") == Manifest.fingerprint_of(shards)
    assert "held out of the training images" in card.read_text(encoding="utf-8")
    anew = f"pack --source {shards} --out {tmp_path}/anew --restart-blocks none"
    shard(f"python shard_imagenet.py {anew}", monkeypatch)
    (tmp_path / "second").mkdir()
    card = exported(tmp_path / "second", tmp_path / "anew", Manifest.load(shards).dataset)
    assert unsourced_numbers(card.parent) == []
    text = card.read_text(encoding="utf-8")
    assert "held out of the training images" in text
    assert f"{Manifest.fingerprint_of(shards)}<!--shards.json options.parent.fingerprint-->" in text
    assert "--holdout" not in text  # the source has its validation split
