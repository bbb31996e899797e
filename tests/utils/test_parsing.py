import json
from datetime import date

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from imagenet_rn50.classes import Classes
from imagenet_rn50.recipe import load_recipe
from imagenet_rn50.runs.metrics import read_metrics
from imagenet_rn50.shards.manifest import Manifest
from imagenet_rn50.tools.prices import PRICES, load_prices
from imagenet_rn50.utils.errors import InputError
from imagenet_rn50.utils.files import read_json, read_yaml
from imagenet_rn50.utils.parsing import parse_json, parse_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1:30", "1:30"),
        ("12:30:45", "12:30:45"),
        ("yes", "yes"),
        ("No", "No"),
        ("on", "on"),
        ("true", True),
        ("010", 10),
        ("0o10", 8),
        ("0x1F", 31),
        ("0b1", "0b1"),
        ("1_000", "1_000"),
        ("1e-3", 1e-3),
        ("1E3", 1e3),
        (".5", 0.5),
        ("2026-11-25", "2026-11-25"),
        ("~", None),
        ("", None),
        ("'1'", "1"),
    ],
)
def test_a_scalar_is_what_yaml_1_2_says(text, value):
    found = parse_yaml(f"key: {text}\n", "x.yaml")["key"]
    assert (found, type(found)) == (value, type(value))


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False),
        lambda values: st.lists(values) | st.dictionaries(st.text("abc", min_size=1), values),
        max_leaves=15,  # a recipe's deepest part has as many
    )
)
def test_what_pyyaml_writes_of_a_recipe_reads_back(value):
    assert parse_yaml(yaml.safe_dump({"key": value}), "x.yaml") == {"key": value}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("optimizer: {lr: 1.0}\nepochs: 3\noptimizer: {name: sgd}\n", "lines 1 and 3"),
        ("optimizer:\n  lr: 1.0\n  lr: 2.0\n", "lines 2 and 3"),
        ("'epochs': 3\n\"epochs\": 4\n", "lines 1 and 2"),
        ("base: &base {lr: 1.0}\noptimizer: *base\n", "line 1: anchors"),
        ("optimizer:\n  <<: {lr: 1.0}\n", "line 2: merge keys"),
        ("epochs: !!int '3'\n", "line 1: anchors, aliases and tags"),
        ("epochs: !!python/object/apply:os.getcwd []\n", "line 1: anchors, aliases and tags"),
        ("epochs: 3\n---\nepochs: 4\n", "line 2: .*another document"),
        ("optimizer:\n\tlr: 1.0\n", "line 2: .*cannot start any token"),
        ("1: 2\n", "keys must be strings, got 1"),
        ("? [epochs]\n: 3\n", "keys must be strings"),
        ("[" * 1000, "recursion"),
    ],
)
def test_yaml_that_could_mean_two_things_is_refused_with_its_lines(text, found):
    with pytest.raises(InputError, match=rf"x\.yaml is not valid YAML\n.*{found}"):
        parse_yaml(text, "x.yaml")


@pytest.mark.parametrize("text", ["", "\n# a comment\n", "null\n", "--- \n"])
def test_an_empty_recipe_is_not_a_recipe_of_defaults(tmp_path, text):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match="is empty"):
        load_recipe(str(path))


@pytest.mark.parametrize("text", ["[]\n", "false\n", "0\n", "''\n", "- epochs: 3\n"])
def test_a_recipe_is_keys_and_values(tmp_path, text):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match="is not a recipe"):
        load_recipe(str(path))


@pytest.mark.parametrize(
    "line", ["nesterov: yes", "lr: .inf", "lr: .nan", "lr: 1e999", "lr: 0:30", "lr: 1_0.0"]
)
def test_a_recipe_takes_no_word_for_a_number_or_a_truth(tmp_path, line):
    path = tmp_path / "recipe.yaml"
    path.write_text(f"optimizer:\n  {line}\n")
    with pytest.raises(InputError, match=r"optimizer\.(nesterov|lr) = "):
        load_recipe(str(path))


def test_a_byte_order_mark_is_not_part_of_the_first_key(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(b"\xef\xbb\xbfepochs: 3\n")
    assert read_yaml(path) == {"epochs": 3}


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        ("  g6.2xlarge:", "  g6.12xlarge:", r"duplicate key 'g6\.12xlarge' in lines"),
        ("on_demand: 0.9776", "on_demand: '0.9776'", r"g6\.2xlarge\.on_demand"),
        ("on_demand: 0.9776", "on_demand: .inf", r"g6\.2xlarge\.on_demand"),
        (
            "g6.2xlarge: {provider: ec2, gpus: 1,",
            "g6.2xlarge: {provider: ec2, gpus: true,",
            r"g6\.2xlarge\.gpus",
        ),
    ],
)
def test_a_table_of_prices_is_read_as_strictly_as_a_recipe(tmp_path, old, new, found):
    text, path = PRICES.read_text(encoding="utf-8"), tmp_path / "prices.yaml"
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(InputError, match=found):
        load_prices(path)


def test_the_date_of_a_table_of_prices_is_a_date():
    assert all(isinstance(each.looked_up, date) for each in load_prices().providers.values())


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('{"a": 1,\n "b": {"a": 2},\n "a": 3}', "'a' in lines 1 and 3"),
        ('[{"a": 1},\n {"b": "}\\"",\n "b": 2}]', "'b' in lines 2 and 3"),
        ('{"\\u0061": 1,\n"a": 2}', "'a' in lines 1 and 2"),
        ('{"a": NaN}', "NaN"),
        ('{"a": -Infinity}', "-Infinity"),
        ("{'a': 1}", "line 1 column 2"),
        ("", "line 1 column 1"),
        ("[" * 100_000, "recursion"),
    ],
)
def test_json_that_could_mean_two_things_is_refused_with_its_lines(text, found):
    with pytest.raises(InputError, match=rf"x\.json is not valid JSON\n.*{found}"):
        parse_json(text, "x.json")


def test_equal_keys_of_different_objects_are_no_duplicates():
    content = {"a": {"a": [{"a": 1}, {"a": '"a": '}]}, "b": {"a": 2}}
    assert parse_json(json.dumps(content), "x.json") == content


def test_a_key_twice_is_refused_in_every_file_of_a_shard_set_and_a_run(tmp_path):
    (tmp_path / "manifest.json").write_text('{"format": "x",\n"format": "y"}')
    (tmp_path / "classes.json").write_text('[{"index": 0, "index": 1, "wnid": "a", "name": "b"}]')
    (tmp_path / "config.json").write_text('{"id2label": {"0": "a", "0": "b"}}')
    (tmp_path / "metrics.jsonl").write_text('{"kind": "start"}\n{"kind": "x", "kind": "y"}\n')
    for read in (
        lambda: Manifest.load(tmp_path),
        lambda: Classes.load(tmp_path),
        lambda: read_json(tmp_path / "config.json"),
        lambda: read_metrics(tmp_path),
    ):
        with pytest.raises(InputError, match="duplicate key"):
            read()
