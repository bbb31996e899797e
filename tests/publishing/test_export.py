import json
import subprocess
import sys

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from imagenet_rn50.errors import InputError
from imagenet_rn50.evaluation.exported import evaluate_exported
from imagenet_rn50.loading.store import LocalShards
from imagenet_rn50.model import build_model, load_exported, logits_of
from imagenet_rn50.publishing.export import export
from imagenet_rn50.recipe_files import load_recipe
from imagenet_rn50.runs.checkpoints import folder_name, seal
from imagenet_rn50.runs.folder import RunFolder
from imagenet_rn50.runs.metrics import VALIDATION, Journal
from tests.support import CLASSES, write_recipe, write_shards

PREDICT = """
import json, sys
from transformers import pipeline
classify = pipeline("image-classification", sys.argv[1])
print(json.dumps(classify(sys.argv[2], top_k=3)))
assert "imagenet_rn50" not in sys.modules
"""


def save_checkpoint(run, samples_seen, top1, *, is_best):
    """Does what training does at the end of an epoch, with random weights."""
    torch.manual_seed(samples_seen)
    model = build_model(run.recipe().model, CLASSES)
    temporary = run.checkpoints / "new.partial"
    temporary.mkdir(parents=True)
    save_file(model.state_dict(), temporary / "model.safetensors")
    seal(temporary, run.checkpoints / folder_name(samples_seen), samples_seen, is_best=is_best)
    journal = Journal(run.path, samples_seen)
    values = {"top1": top1, "top5": 1.0, "loss": 1.5, "num_images": 11}
    journal.write(VALIDATION, samples_seen, samples_seen / 21, **values)
    journal.close()


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    write_shards(folder, train=[4], validation=[6, 5])
    return folder


@pytest.fixture
def run(tmp_path, shards):
    """A run with three checkpoints; the second was the best."""
    run = RunFolder(tmp_path / "a-run")
    run.create(load_recipe(str(write_recipe(tmp_path))), shards, "tiny", CLASSES)
    for samples_seen, top1 in ((24, 0.25), (48, 0.625), (72, 0.5)):
        save_checkpoint(run, samples_seen, top1, is_best=samples_seen < 50)
    return run


@pytest.mark.multiprocess
def test_transformers_loads_the_folder_in_a_process_without_our_code(run, tmp_path):
    export(run.path, tmp_path / "out")
    Image.new("L", (30, 40), 100).save(tmp_path / "gray.png")
    done = subprocess.run(
        [sys.executable, "-I", "-c", PREDICT, tmp_path / "out", tmp_path / "gray.png"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    answers = json.loads(done.stdout)
    assert {answer["label"] for answer in answers} == set(CLASSES.labels)


@pytest.mark.parametrize(("checkpoint", "samples_seen"), [("best", 48), ("last", 72)])
def test_the_chosen_checkpoint_is_exported_to_the_last_bit(run, tmp_path, checkpoint, samples_seen):
    export(run.path, tmp_path / "out", checkpoint=checkpoint)
    trained = build_model(run.recipe().model, CLASSES)
    trained.load_state_dict(
        load_file(run.checkpoints / folder_name(samples_seen) / "model.safetensors")
    )
    pictures = torch.randn(5, 3, 16, 16)
    with torch.inference_mode():
        ours = logits_of(trained.eval(), pictures)
        theirs = logits_of(load_exported(tmp_path / "out"), pictures)
    assert torch.equal(ours, theirs)


def test_the_card_gives_the_accuracy_that_metrics_jsonl_gives(run, tmp_path):
    export(run.path, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "| tiny, validation | 62.50% | 100.00% | 11 |" in card
    assert "value: 0.625" in card
    assert "`samples_seen` 48" in card


def test_exporting_again_replaces_the_export_and_nothing_else(run, tmp_path):
    out = tmp_path / "out"
    export(run.path, out, checkpoint="last")
    export(run.path, out, checkpoint="best")
    assert "`samples_seen` 48" in (out / "README.md").read_text(encoding="utf-8")
    other = tmp_path / "holiday-pictures"
    other.mkdir()
    (other / "beach.jpg").write_bytes(b"precious")
    with pytest.raises(InputError, match="holds something else"):
        export(run.path, other)
    assert (other / "beach.jpg").read_bytes() == b"precious"


def test_a_run_without_checkpoints_or_no_run_at_all_is_named(tmp_path, shards):
    with pytest.raises(InputError, match="holds no run"):
        export(tmp_path / "nothing", tmp_path / "out")
    run = RunFolder(tmp_path / "empty")
    run.create(load_recipe(str(write_recipe(tmp_path))), shards, "tiny", CLASSES)
    with pytest.raises(InputError, match="holds no checkpoint"):
        export(run.path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_exported_model_is_evaluated_over_every_image(run, shards, tmp_path):
    export(run.path, tmp_path / "out")
    measured = evaluate_exported(
        tmp_path / "out", LocalShards(shards), split="validation", batch=4, num_workers=0
    )
    assert measured["num_images"] == 11
    assert measured["top5"] == 1.0  # there are three classes


def test_a_folder_that_is_no_exported_model_says_what_it_lacks(run, shards, tmp_path):
    out = tmp_path / "out"
    export(run.path, out)
    (out / "preprocessor_config.json").unlink()
    with pytest.raises(InputError, match=r"found:    no preprocessor_config\.json"):
        evaluate_exported(out, LocalShards(shards), split="validation", batch=4, num_workers=0)
