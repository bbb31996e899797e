"""What a verb is told and cannot do is refused before anything is loaded."""

import sys
from pathlib import Path

import pytest

import shard_imagenet
import train_accelerate
from imagenet_rn50 import __main__, __version__
from imagenet_rn50.cli import EvaluateArguments, evaluate, export
from imagenet_rn50.recipe import load_recipe, recipe_names
from imagenet_rn50.tools.recipe_list import recipe_table
from imagenet_rn50.utils.errors import InputError

OUT = Path("nowhere") / "out"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"run": "r", "classes": "c"}, "--classes does not apply to --run\n.*--from only"),
        ({"run": "r", "eval_size": 16}, "--eval-resize or --eval-size does not apply to --run"),
        ({"from_": "w", "checkpoint": "last"}, "--checkpoint does not apply to --from"),
        ({"run": "r", "arch": "resnet50"}, "--arch does not apply to --run\n.*--from only"),
        ({"run": "r", "from_": "w"}, "--run and --from exclude each other"),
    ],
    ids=str,
)
def test_an_option_of_the_other_source_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        export(OUT, **options)


@pytest.mark.parametrize("options", [{"batch": 0}, {"workers": -1}], ids=str)
def test_an_evaluation_without_batches_is_refused(options):
    with pytest.raises(InputError, match="must be"):
        evaluate(EvaluateArguments("model", shards="shards", **options))


def test_a_report_does_not_go_where_it_would_be_pushed(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="holds a model"):
        evaluate(EvaluateArguments("model", shards="shards", out=tmp_path))
    with pytest.raises(InputError, match="is not a folder"):
        evaluate(EvaluateArguments("model", shards="shards", out=tmp_path / "config.json"))


@pytest.mark.parametrize("entry", [shard_imagenet, train_accelerate, __main__])
def test_every_entry_point_has_a_version(entry, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["program", "--version"])
    with pytest.raises(SystemExit) as left:
        entry.main()
    assert left.value.code == 0
    assert capsys.readouterr().out.startswith(f"imagenet_rn50 {__version__}")


def test_every_recipe_is_listed_once_with_its_size_and_its_source():
    lines = recipe_table().splitlines()
    rows = {line.split()[0]: line for line in lines[1 : len(recipe_names()) + 1]}
    assert sorted(rows) == recipe_names()
    for name, row in rows.items():
        recipe = load_recipe(name)
        words = row.split()
        assert words[1] == str(recipe.epochs)
        assert words[4] == str(recipe.global_batch)
    assert "73.8%" in rows["rn50-16ep"]
    assert "libffcv/ffcv-imagenet" in rows["rn50-16ep"]
    epochs = [int(row.split()[1]) for row in rows.values()]
    assert epochs == sorted(epochs)


def test_the_first_documented_command_says_what_writes_the_digits(monkeypatch, tmp_path, refused):
    monkeypatch.chdir(tmp_path)
    words = ("pack", "--source", "data/digits/source", "--out", "shards")
    assert "make demo" in refused(shard_imagenet.main, *words)
    assert "make demo" not in refused(shard_imagenet.main, "pack", "--source", "a", "--out", "b")
