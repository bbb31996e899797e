"""What a verb is told and cannot do is refused before anything is loaded."""

from pathlib import Path

import pytest

from imagenet_rn50.cli import EvaluateArguments, evaluate, export
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
